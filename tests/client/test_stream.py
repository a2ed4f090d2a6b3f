"""Steps over a WebSocket, against a real service."""

import asyncio
import json
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import onward
from onward.__main__ import main
from onward.client.results import Prediction
from onward.client.sync_client import Client
from onward.errors import InvalidRequest, SessionEnded
from tests.client.both_clients import Twin
from tests.e2e.server import Server
from tests.helpers.reference_loop import ZOO, BareLoop, Steps, pulse


def assert_same(predictions: list[Prediction], expected: Steps, count: int) -> None:
    assert [prediction.step for prediction in predictions] == list(range(1, count + 1))
    for name in ("mean", "std"):
        assert np.stack([prediction[name] for prediction in predictions]).tobytes() == expected[name][:count].tobytes()
    assert [prediction.surprise for prediction in predictions] == expected["surprise"][:count].tolist()


def test_every_input_is_answered_in_order(client: Client) -> None:
    """Many more than may be under way, to the bits of a bare loop; the handle knows where the session is."""
    rows = pulse(200)
    with client.session("pulse") as session:
        predictions = list(session.stream(rows))
        assert_same(predictions, BareLoop(ZOO / "pulse/1").run(rows), 200)
        assert session.step_count == session.info().step == 200
        assert session.prediction is predictions[-1]


def test_an_input_may_wait_for_the_answer_before_it(server: Server) -> None:
    """A caller may compute its next input from the prediction after the last one."""
    heard: queue.SimpleQueue[float] = queue.SimpleQueue()

    def inputs() -> Iterator[float]:
        value = 515.0
        for _ in range(20):
            yield value
            value = heard.get()

    with onward.Client(server.url) as client, client.session("pulse") as session:
        sent = [515.0]
        for predictions in session.stream(inputs()):
            sent.append(float(predictions["mean"][0]))
            heard.put(sent[-1])
        assert session.step_count == 20
    expected = BareLoop(ZOO / "pulse/1").run([[value] for value in sent[:20]])
    assert expected["mean"][-1, 0] == sent[-1]


def test_an_event_loop_waits_for_no_iterator(server: Server) -> None:
    """An iterator that could block the loop is refused; lists, arrays and asynchronous iterators are accepted."""

    async def awaited() -> AsyncIterator[float]:
        for prediction in (1.0, 2.0):
            yield prediction

    async def streams() -> None:
        async with onward.AsyncClient(server.url) as client, client.session("pulse") as session:
            for inputs in ([1.0, 2.0], (1.0, 2.0), np.array([1.0, 2.0]), np.array([[1.0], [2.0]]), awaited()):
                before = session.step_count
                assert [prediction.step async for prediction in session.stream(inputs)] == [before + 1, before + 2]
            with pytest.raises(TypeError, match="generator: expected a list"):
                await anext(session.stream(prediction for prediction in (1.0, 2.0)))  # type: ignore[arg-type]

    asyncio.run(streams())


def test_what_is_refused_is_raised(client: Client) -> None:
    """A value that is none, and a session that has ended; the inputs before it are made, and none behind it."""
    with client.session("pulse") as session:
        for count in (2, 4):
            made = session.stream([511, 512, "bad", 514, 515, 516])
            assert [next(made).step, next(made).step] == [count - 1, count]
            with pytest.raises(InvalidRequest):
                next(made)
            assert session.step_count == session.info().step == count
    with pytest.raises(SessionEnded):
        list(session.stream([1.0]))


def test_whoever_leaves_a_stream_leaves_no_thread(server: Server) -> None:
    """Leaving early ends the connection; what was answered is made."""
    before = threading.active_count()
    with onward.Client(server.url) as client, client.session("pulse") as session:
        made: Any = session.stream(pulse(100))
        assert next(made).step == 1
        made.close()
        assert session.info().step >= 1
    for thread in threading.enumerate():
        if thread.name.startswith("onward stream"):
            thread.join(10)
    assert threading.active_count() <= before


def test_nothing_is_lost_or_doubled_over_kills(tmp_path: Path, twin: Twin) -> None:
    """Kill -9 of the whole service, twice, in the middle of a stream."""
    rows = pulse(300)
    with Server(tmp_path) as server, twin(server.url) as client, client.session("pulse") as session:
        predictions = []
        for prediction in session.stream(rows):
            predictions.append(prediction)
            if len(predictions) in (50, 170):
                server.kill()
                server.start()
        assert_same(predictions, BareLoop(ZOO / "pulse/1").run(rows), 300)
        assert session.info().step == 300


def test_a_name_that_has_ended_is_begun_anew(server: Server) -> None:
    """A living session is continued; a session of another model is refused and does not move."""
    env = {"ONWARD_URL": server.url}
    arguments = ["stream", "-", "--session", "again", "--json"]
    with onward.Client(server.url) as client:
        client.session("pulse", "again", inputs=[1.0, 2.0]).delete()
        ended = CliRunner().invoke(main, arguments, input="515\n", env=env)
        assert (ended.exit_code, ended.stdout) == (1, "")
        assert "[session-ended]" in ended.stderr
        done = CliRunner().invoke(main, [*arguments, "--model", "pulse"], input="515\n", env=env)
        assert json.loads(done.stdout)["step"] == 1, done.output
        refused = CliRunner().invoke(main, [*arguments, "--model", "characters"], input='"a"\n', env=env)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "'again' is of the model 'pulse', not of 'characters'" in refused.stderr
        assert client.attach("again").step_count == 1


def test_a_bad_line_ends_the_command_where_it_is(server: Server) -> None:
    """The lines behind it are not applied."""
    lines, env = "511\n512\n[513, 1]\n514\n515\n", {"ONWARD_URL": server.url}
    arguments = ["stream", "-", "--model", "pulse", "--session", "bad-line", "--json"]
    done = CliRunner().invoke(main, arguments, input=lines, env=env)
    assert done.exit_code == 1
    assert "[invalid-request]" in done.stderr
    assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == [1, 2]
    with onward.Client(server.url) as client:
        assert client.attach("bad-line").step_count == 2


def test_a_line_in_is_a_line_out(server: Server) -> None:
    """`onward stream` from stdin, on a session that lives on under its name."""
    lines = "".join(f"{row}\n" for row in pulse(3))
    arguments = ["stream", "-", "--model", "pulse", "--session", "lines", "--json"]
    for steps in ([1, 2, 3], [4, 5, 6]):
        done = CliRunner().invoke(main, arguments, input=lines, env={"ONWARD_URL": server.url})
        assert done.exit_code == 0, done.output
        assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == steps
    table = CliRunner().invoke(main, arguments[:-1], input=lines, env={"ONWARD_URL": server.url})
    assert [line.split("\t")[0] for line in table.stdout.splitlines()] == ["7", "8", "9"]
