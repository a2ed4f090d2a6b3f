"""Both clients against a real service."""

import asyncio

import numpy as np
import pytest

import onward
from onward.client.results import Predictions
from onward.client.sync_client import Client
from onward.errors import (
    InvalidRequest,
    NotFound,
    RequestReused,
    SessionEnded,
    SessionExists,
    StepConflict,
    UnknownModel,
    UnknownSession,
    UnreachableError,
)  # fmt: skip
from tests.client.both_clients import Twin
from tests.e2e.server import Server
from tests.helpers.losing_proxy import LosingProxy
from tests.helpers.reference_loop import ZOO, BareLoop, pulse, weather


def test_state_is_carried(client: Client) -> None:
    """Single steps and several at once, in any form, have the bits of a bare loop and the right step count."""
    rows = weather(12)
    expected = BareLoop(ZOO / "weather/1").run(rows)
    names = ("precipitation", "temp_max", "temp_min", "wind")
    with client.session("weather", inputs=np.array(rows[:3])) as session:
        assert (session.model, session.version, session.step_count) == ("weather", 1, 3)
        assert session.prediction is not None
        assert session.prediction["point"].tobytes() == expected["point"][2].tobytes()
        first_one = session.step(np.array(rows[3], np.float64))
        assert first_one.surprise == float(expected["surprise"][3])
        assert {name: first_one[name].tobytes() for name in first_one} == {
            name: expected[name][3].tobytes() for name in expected if name != "surprise"
        }
        assert session.step(dict(zip(names, rows[4], strict=True))).step == 5
        some = session.steps(np.array(rows[5:8]))
        assert some["point"].tobytes() == expected["point"][5:8].tobytes()
        assert some.surprise is not None
        assert some.surprise.tobytes() == expected["surprise"][5:8].tobytes()
        assert [each.step for each in some.each] == [6, 7, 8]
        last = session.steps(rows[8:12]).last
        assert last["point"].tobytes() == expected["point"][11].tobytes()
        assert session.prediction is last or session.prediction["point"].tobytes() == last["point"].tobytes()
        assert session.step_count == session.info().step == 12


def test_a_text_comes_back_as_its_characters(client: Client) -> None:
    with client.session("characters", inputs='The "assert" ') as session:
        result = session.steps("stat")
        assert result["top"].shape == result["log_probability"].shape
        assert result["top"].dtype == object
        assert session.step("e")["top"][0] == "m"
        assert session.forecast(3)["top"].tolist() == [["m"], ["e"], ["n"]]


def test_forecasts_forks_and_what_stands_alone(client: Client) -> None:
    """A forecast leaves the session; a fork goes its own way; predict and held keep nothing."""
    rows = pulse(6)
    with client.session("pulse", inputs=rows[:4]) as session, session.fork() as fork:
        ahead = session.forecast(5)
        assert (ahead["mean"].shape, ahead.step) == ((5, 1), 4)
        assert fork.id != session.id
        assert fork.step(rows[4][0]).step == 5
        assert session.info().step == 4
        first_one, two = client.predict("pulse", [rows[:4], np.array(rows[:2])], 5)
        assert first_one.forecast is not None
        assert first_one.forecast["mean"].tobytes() == ahead["mean"].tobytes()
        assert two.predictions["mean"].tobytes() == first_one.predictions["mean"][:2].tobytes()
        stateless = client.held("pulse", rows[:3])
        after = client.held("pulse", rows[3:4], stateless.state).predictions
        assert after["mean"][0].tobytes() == first_one.predictions["mean"][3].tobytes()


def test_a_session_goes_back_away_and_on(client: Client) -> None:
    """Rewound, migrated, exported, and restored under another id."""
    rows = pulse(6)
    with client.session("pulse", inputs=rows[:4]) as session:
        at_four = session.steps(rows[4:5])
        assert session.rewind(4).step == session.step_count == 4
        assert session.steps(rows[4:5])["mean"].tobytes() == at_four["mean"].tobytes()
        assert session.migrate().replayed == 5
        with client.restore(f"{session.id}-b", session.export(), keep=False) as second:
            assert second.step_count == 5
            assert second.step(rows[5])["mean"].tobytes() == session.step(rows[5])["mean"].tobytes()


def test_a_block_ends_its_session_unless_told_to_keep_it(client: Client) -> None:
    """A session that has ended by itself is no error, and an error raised inside the block is not hidden."""
    with client.session("pulse", session_id="kept", keep=True, ttl_s=600.0):
        pass
    with client.attach("kept") as again:
        assert again.info().ttl_s == 600
    with client.attach("kept", keep=False) as again:
        assert again.step_count == 0
        again.delete()
    with pytest.raises(SessionEnded) as ended:
        client.attach("kept")
    assert ended.value.reason == "deleted"
    with pytest.raises(KeyError), client.session("pulse") as lost:
        raise KeyError
    with pytest.raises(SessionEnded):
        lost.info()


def test_pages_of_sessions_are_one_list(client: Client) -> None:
    names = [f"page-{number}" for number in range(7)]
    for name in names:
        client.session("pulse", name, keep=True)
    listed = [first_one.session_id for first_one in client.sessions("pulse", page=3)]
    assert [name for name in listed if name.startswith("page-")] == names
    assert client.delete_sessions(prefix="page-") == 7
    assert not [first_one for first_one in client.sessions() if first_one.session_id.startswith("page-")]


def test_many_sessions_step_in_one_call(client: Client) -> None:
    """Handles are brought up to date; what fails is told in its place."""
    with client.session("pulse") as first_one, client.session("weather") as two:
        result = client.step_many(
            [(first_one, [515, 514]), ("nobody", [1]), (two.id, weather(1)), (first_one, [[513]])]
        )
        first, nobody, second, last = result
        assert isinstance(first, Predictions)
        assert isinstance(second, Predictions)
        assert isinstance(last, Predictions)
        assert isinstance(nobody, UnknownSession)
        assert (first.step, second.step, last.step, first_one.step_count) == (2, 1, 3, 3)


def test_many_steps_of_one_session_survive_lost_answers(server: Server, twin: Twin) -> None:
    """More of them than the service remembers requests of a session: none is done twice, and they keep their order."""
    rows = pulse(70)
    expected = BareLoop(ZOO / "pulse/1").run(rows)
    with LosingProxy(server.url) as between, twin(between.url) as client, client.session("pulse") as session:
        result = client.step_many([(session, [row]) for row in rows])
        assert session.info().step == session.step_count == 70
    assert between.request_lines.count("POST /v1/steps HTTP/1.1") == 4
    for row, first_one in enumerate(result):
        assert isinstance(first_one, Predictions)
        assert first_one["mean"][0].tobytes() == expected["mean"][row].tobytes()


def test_what_is_served_is_told(client: Client) -> None:
    assert client.ready()
    assert client.alive()["status"]
    assert [model["name"] for model in client.models()] == ["characters", "pulse", "weather"]
    assert client.model("pulse", 1)["inputs"][0]["name"] == "ppg"
    assert client.openapi()["openapi"].startswith("3.")


def test_refusals_are_exceptions_of_their_type(client: Client) -> None:
    """The exceptions have the attributes that a program needs to go on."""
    with pytest.raises(UnknownModel):
        client.model("nothing")
    with pytest.raises(UnknownSession, match="nobody"):
        client.attach("nobody")
    with pytest.raises((NotFound, InvalidRequest)):
        client.attach("a/b c")
    with client.session("pulse") as session:
        with pytest.raises(SessionExists):
            client.session("pulse", session.id)
        with pytest.raises(StepConflict) as conflict:
            session.step(1, at=3)
        assert conflict.value.expected_step == 0
        with pytest.raises(InvalidRequest) as invalid:
            session.steps([[1.0], [float("nan")]])
        assert invalid.value.errors[0]["field"] == "inputs[1][0]"
        with pytest.raises(InvalidRequest, match="infinite"):
            session.steps(np.array([[np.inf]]))
        session.step(1, request_id="mine")
        assert session.step(1, request_id="mine").step == 1
        with pytest.raises(RequestReused):
            session.step(2, request_id="mine")


def test_lost_answers_cost_nothing(server: Server, twin: Twin) -> None:
    """The first response to every request is lost after the service did the work; nothing is done twice or fails."""
    rows = pulse(3)
    expected = BareLoop(ZOO / "pulse/1").run(rows)
    with (
        LosingProxy(server.url) as between,
        twin(between.url) as client,
        client.session("pulse", inputs=rows[:1]) as session,
    ):
        assert session.step_count == 1
        result = session.steps(rows[1:])
        assert result["mean"].tobytes() == expected["mean"][1:].tobytes()
        with session.fork("by-name") as fork:
            assert fork.step_count == 3
        assert session.info().step == 3
    assert between.request_lines.count(f"POST /v1/sessions/{session.id}/steps HTTP/1.1") == 2
    with twin(server.url) as client:
        for name in (session.id, "by-name"):
            with pytest.raises(SessionEnded):
                client.attach(name)


def test_a_service_that_is_not_there_is_said_to_be(twin: Twin) -> None:
    """After as long as patience lasts, and no longer."""
    with LosingProxy("http://127.0.0.1:1") as between:
        gone = between.url
    with twin(gone, patience=0.2) as client:
        assert not client.ready()
        with pytest.raises(UnreachableError):
            client.models()


def test_an_asynchronous_session_is_awaited_or_opened(server: Server) -> None:
    """Many at once, each its own."""

    async def first_one(client: onward.AsyncClient, count: int) -> int:
        async with client.session("pulse") as session:
            for value in range(count):
                await session.step(value)
            return session.step_count

    async def all_of_them() -> list[int]:
        async with onward.AsyncClient(server.url) as client:
            session = await client.session("pulse")
            await session.delete()
            return await asyncio.gather(*(first_one(client, count) for count in range(1, 9)))

    assert asyncio.run(all_of_them()) == list(range(1, 9))


def test_an_opening_is_one_session_however_often_it_is_awaited(server: Server) -> None:
    """Awaiting it in turn, side by side and in a block gives one session; a refusal is raised each time."""

    async def several() -> None:
        async with onward.AsyncClient(server.url) as client:
            opening = client.session("pulse")
            first_one, second = await asyncio.gather(opening, opening)
            assert first_one is second is await opening
            async with opening as same:
                assert same is first_one
            with pytest.raises(SessionEnded):
                await first_one.info()
            refused = client.attach("nobody")
            for _ in range(2):
                with pytest.raises(UnknownSession):
                    await refused

    asyncio.run(several())


def test_a_step_creates_its_session_and_ensure_confirms_it(client: Client) -> None:
    """Both say the same of a session, however often they are sent; what is different is refused by name."""
    rows = pulse(4)
    first = client.step("pulse", "ensured", rows[:2])
    assert client.step("pulse", "ensured", rows[2:3], at=2).step == 3
    with client.ensure("pulse", "ensured", keep=False) as session:
        assert session.step_count == 3
        assert session.step(rows[3]).step == 4
        with pytest.raises(SessionExists, match="has a ttl_s of 3600"):
            client.ensure("pulse", "ensured", ttl_s=5.0)
    with pytest.raises(SessionEnded):
        client.step("pulse", "ensured", rows[2:3], at=4)
    with client.ensure("pulse", "ensured", inputs=rows[:2], keep=False) as anew:
        assert (anew.step_count, anew.prediction and anew.prediction["mean"].tolist()) == (
            2,
            first.last["mean"].tolist(),
        )
