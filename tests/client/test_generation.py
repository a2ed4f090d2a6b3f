"""Generation by a session, against a real service."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from onward.__main__ import main
from onward.client.results import Done, Generated
from onward.client.sync_client import Client
from onward.errors import InvalidRequest
from tests.client.both_clients import Twin
from tests.e2e.server import Server
from tests.helpers.losing_proxy import LosingProxy
from tests.helpers.reference_loop import pulse


def drawn(client: Client, seed: int = 7) -> list[Generated | Done]:
    with client.session("characters", inputs="The ") as session:
        events = list(session.generate(40, seed=seed))
        assert session.info().step == session.step_count == 4
    return events


def test_tokens_come_one_by_one_and_then_the_end(client: Client) -> None:
    """The same for the same seed; together they are the text; the session stays."""
    *tokens, end = drawn(client)
    assert isinstance(end, Done)
    assert (end.reason, end.seed, end.step) == ("horizon", 7, 4)
    assert [event.ahead for event in tokens if isinstance(event, Generated)] == list(range(1, 41))
    assert end.text == "".join(str(event.token) for event in tokens if isinstance(event, Generated))
    again, different = drawn(client)[-1], drawn(client, 8)[-1]
    assert isinstance(again, Done)
    assert isinstance(different, Done)
    assert again.text == end.text != different.text


def test_numbers_are_generated_too(client: Client) -> None:
    with client.session("pulse", inputs=pulse(20)) as session:
        *values, end = session.generate(5, seed=1)
    assert isinstance(end, Done)
    assert all(
        isinstance(event, Generated) and event.values is not None and event.values.shape == (1,) for event in values
    )
    assert len(values) == 5


def test_choices_are_passed_on(client: Client) -> None:
    """A temperature of nearly nothing is the likeliest token each time; a refusal is a class."""
    with client.session("characters", inputs='The "assert" ') as session:
        likeliest = session.forecast(9)["top"][:, 0].tolist()
        *tokens, _ = session.generate(9, seed=3, temperature=1e-6, logprobs=3)
        assert [event.token for event in tokens if isinstance(event, Generated)] == likeliest
        assert all(
            len(event.top) == len(event.log_probabilities) == 3 for event in tokens if isinstance(event, Generated)
        )
        *_, end = session.generate(400, seed=3, inputs="statement", stop=[" "])
        assert isinstance(end, Done)
        assert end.reason == "stop"
        with pytest.raises(InvalidRequest):
            list(session.generate(9, top_p=2.0))


def test_a_cut_connection_is_taken_up(server: Server, client: Client, twin: Twin) -> None:
    """After a response that ends in the middle of an event, the client requests the rest, and no event comes twice."""
    right = drawn(client)
    with LosingProxy(server.url, delivered_bytes=1500) as between, twin(between.url) as cut:
        events = drawn(cut)
    assert [repr(event) for event in events] == [repr(event) for event in right]
    assert sum("/generate" in line for line in between.request_lines) == 2


def test_the_command_shows_tokens_as_they_come(server: Server) -> None:
    """The command generates from a model and a prompt; it writes text for people and events for programs."""
    arguments = ["generate", "--model", "characters", "--prompt", "The ", "--horizon", "30", "--seed", "7"]
    shown = CliRunner().invoke(main, arguments, env={"ONWARD_URL": server.url})
    assert shown.exit_code == 0, shown.output
    done = CliRunner().invoke(main, [*arguments, "--json"], env={"ONWARD_URL": server.url})
    *tokens, end = [json.loads(line) for line in done.stdout.splitlines()]
    assert "".join(event["token"] for event in tokens) == end["text"] == shown.stdout.removesuffix("\n")
    assert np.isfinite([event["log_probability"] for event in tokens]).all()


def test_the_command_begins_at_one_of_the_two(server: Server, client: Client) -> None:
    """A session and a model together are refused, and so is neither; no session is created."""
    arguments = ["generate", "--model", "pulse", "--session", "both", "--horizon", "3"]
    refused = CliRunner().invoke(main, arguments, env={"ONWARD_URL": server.url})
    assert refused.exit_code == 2
    assert "not both" in refused.stderr
    assert CliRunner().invoke(main, ["generate"], env={"ONWARD_URL": server.url}).exit_code == 2
    assert not list(client.sessions())
