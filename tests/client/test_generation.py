"""What a session generates, against a real service."""

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
from tests.helpers.losing_proxy import Losing
from tests.helpers.reference_loop import pulse


def drawn(client: Client, seed: int = 7) -> list[Generated | Done]:
    with client.session("characters", inputs="The ") as session:
        told = list(session.generate(40, seed=seed))
        assert session.info().step == session.step_count == 4
    return told


def test_tokens_come_one_by_one_and_then_the_end(client: Client) -> None:
    """The same for the same seed; together they are the text; the session stays."""
    *tokens, end = drawn(client)
    assert isinstance(end, Done)
    assert (end.reason, end.seed, end.step) == ("horizon", 7, 4)
    assert [one.ahead for one in tokens if isinstance(one, Generated)] == list(range(1, 41))
    assert end.text == "".join(str(one.token) for one in tokens if isinstance(one, Generated))
    again, other = drawn(client)[-1], drawn(client, 8)[-1]
    assert isinstance(again, Done)
    assert isinstance(other, Done)
    assert again.text == end.text != other.text


def test_numbers_are_generated_too(client: Client) -> None:
    with client.session("pulse", inputs=pulse(20)) as session:
        *values, end = session.generate(5, seed=1)
    assert isinstance(end, Done)
    assert all(isinstance(one, Generated) and one.values is not None and one.values.shape == (1,) for one in values)
    assert len(values) == 5


def test_choices_are_passed_on(client: Client) -> None:
    """A temperature of nearly nothing is the likeliest token each time; a refusal is a class."""
    with client.session("characters", inputs='The "assert" ') as session:
        likeliest = session.forecast(9)["top"][:, 0].tolist()
        *tokens, _ = session.generate(9, seed=3, temperature=1e-6, logprobs=3)
        assert [one.token for one in tokens if isinstance(one, Generated)] == likeliest
        assert all(len(one.top) == len(one.log_probabilities) == 3 for one in tokens if isinstance(one, Generated))
        *_, end = session.generate(400, seed=3, inputs="statement", stop=[" "])
        assert isinstance(end, Done)
        assert end.reason == "stop"
        with pytest.raises(InvalidRequest):
            list(session.generate(9, top_p=2.0))


def test_a_cut_connection_is_taken_up(server: Server, client: Client, twin: Twin) -> None:
    """Where the answer ends in the middle of an event, the client asks for the rest, and nothing is told twice."""
    right = drawn(client)
    with Losing(server.url, kept=1500) as between, twin(between.url) as cut:
        told = drawn(cut)
    assert [repr(one) for one in told] == [repr(one) for one in right]
    assert sum("/generate" in line for line in between.asked) == 2


def test_the_command_shows_tokens_as_they_come(server: Server) -> None:
    """From a session or a model and a prompt; the text for people, events for programs."""
    arguments = ["generate", "--model", "characters", "--prompt", "The ", "--horizon", "30", "--seed", "7"]
    shown = CliRunner().invoke(main, arguments, env={"ONWARD_URL": server.url})
    assert shown.exit_code == 0, shown.output
    done = CliRunner().invoke(main, [*arguments, "--json"], env={"ONWARD_URL": server.url})
    *tokens, end = [json.loads(line) for line in done.stdout.splitlines()]
    assert "".join(one["token"] for one in tokens) == end["text"] == shown.stdout.removesuffix("\n")
    assert np.isfinite([one["log_probability"] for one in tokens]).all()


def test_the_command_begins_at_one_of_the_two(server: Server, client: Client) -> None:
    """At a session, which stays, or anew: no session is made under a name."""
    arguments = ["generate", "--model", "pulse", "--session", "both", "--horizon", "3"]
    refused = CliRunner().invoke(main, arguments, env={"ONWARD_URL": server.url})
    assert refused.exit_code == 2
    assert "not both" in refused.stderr
    assert CliRunner().invoke(main, ["generate"], env={"ONWARD_URL": server.url}).exit_code == 2
    assert not list(client.sessions())
