"""Streams and generations go on after broken connections; the tests send events to the flows, without a network."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from onward.client.command_flow import Emit, EmittingFlow, NoResponse, Response, RetryPolicy, Sleep
from onward.client.generation import EventParser, OpenResponse, ReadChunk, generate
from onward.client.results import Done
from onward.client.step_stream import (
    Connect,
    Disconnected,
    InputsEnded,
    InputTaken,
    Received,
    Send,
    StepStream,
    TakeInput,
    Wait,
)
from onward.errors import InvalidRequest, Overloaded, Problem, SessionEnded, UnreachableError

POLICY = RetryPolicy(deadline_s=10.0)
CUT = Disconnected(ConnectionResetError())


class Service:
    """A session at the other end of a stream: it counts steps, and remembers the responses to its last 32 requests."""

    def __init__(self, inputs: Iterable[Any], breaks: Iterable[int] = ()) -> None:
        self.step, self.answers, self.received = 0, dict[str, str](), list[str]()
        self.dialled, self.most, self._waiting = 0, 0, list[str]()
        self._inputs, self._breaks, self._asked, self._waits = iter(inputs), set(breaks), 0, 0

    def drive(self, flow: EmittingFlow) -> Iterator[Any]:
        """Yields the items that the flow emits. The connection breaks at the waits whose numbers are in `breaks`."""
        answer: Any = None
        while True:
            try:
                command = flow.send(answer)
            except StopIteration:
                return
            answer = None
            match command:
                case Emit(item):
                    yield item
                case Connect(path):
                    assert path == "/v1/sessions/s/stream"
                    self.dialled += 1
                    self._waiting.clear()
                case Send(text):
                    self._receive(json.loads(text))
                    self.most = max(self.most, len(self._waiting))
                case TakeInput():
                    self._asked += 1
                case Wait():
                    answer = self._event()
                case Sleep():
                    pass

    def _receive(self, message: dict[str, Any]) -> None:
        request_id = message["request_id"]
        self.received.append(request_id)
        if request_id not in self.answers:
            assert message.get("step", self.step) == self.step
            self.step += 1
            answers = {"step": self.step, "predictions": {"mean": message["inputs"]}, "request_id": request_id}
            self.answers[request_id] = json.dumps(answers)
            self.answers = dict(list(self.answers.items())[-32:])
        self._waiting.append(self.answers[request_id])

    def _event(self) -> Any:
        self._waits += 1
        if self._waits in self._breaks:
            return CUT
        if self._asked:  # inputs come first: as many as may be are under way
            self._asked -= 1
            try:
                return InputTaken(next(self._inputs))
            except StopIteration:
                return InputsEnded()
            except KeyError as error:
                return InputsEnded(error)
        return Received(self._waiting.pop(0).encode())


def test_a_stream_keeps_32_under_way_and_its_order() -> None:
    service = Service([[float(number)] for number in range(100)])
    answers = list(service.drive(StepStream("s", POLICY).run()))
    assert [number["mean"].tolist() for number in answers] == [[float(number)] for number in range(100)]
    assert [number.step for number in answers] == list(range(1, 101))
    assert (service.most, service.dialled) == (32, 1)


def test_each_message_but_the_first_is_for_a_step() -> None:
    """The step of the first response is the start; until it comes, only the first message is sent."""
    service = Service([[float(number)] for number in range(4)])
    service.step = 7
    commands = list[Any]()
    flow = StepStream("s", POLICY).run()

    def watched() -> EmittingFlow:
        answer = None
        while True:
            try:
                command = flow.send(answer)
            except StopIteration:
                return
            commands.append(command)
            answer = yield command

    assert [number.step for number in service.drive(watched())] == [8, 9, 10, 11]
    answers = [json.loads(command.text).get("step") for command in commands if isinstance(command, Send)]
    assert answers == [None, 8, 9, 10]
    kinds = [type(command) for command in commands if isinstance(command, (Send, Emit))]
    assert kinds[:3] == [Send, Emit, Send]


def test_a_broken_stream_sends_again_what_was_not_answered() -> None:
    """Messages are sent again with the same ids: each step is applied once, whenever the connection breaks."""
    for wait in range(1, 50):
        service = Service([[float(number)] for number in range(40)], breaks=(wait, wait + 1, wait + 33))
        answers = list(service.drive(StepStream("s", POLICY).run()))
        assert [number.step for number in answers] == list(range(1, 41))
        assert service.step == 40
        assert service.dialled >= 2


def drive(flow: EmittingFlow, *events: Any) -> tuple[list[Any], list[Any]]:
    """The commands of a flow that is sent these in turn where it waits, until there are no more; and what it emits."""
    coming, commands, emitted, answer = iter(events), list[Any](), list[Any](), None
    while True:
        try:
            command = flow.send(answer)
            commands.append(command)
            answer = next(coming) if isinstance(command, (Wait, Connect, OpenResponse, ReadChunk)) else None
        except StopIteration:
            return commands, emitted
        if isinstance(command, Emit):
            emitted.append(command.item)


def heard(**answers: Any) -> Received:
    return Received(json.dumps(answers).encode())


def test_a_refusal_ends_a_stream_and_a_busy_service_does_not() -> None:
    """410 is raised; 503 is waited out, on another connection, with the same message."""
    ended = {"type": "urn:onward:problem:session-ended", "status": 410, "reason": "expired"}
    with pytest.raises(SessionEnded):
        drive(StepStream("s", POLICY).run(), InputTaken([1.0]), None, heard(**ended, request_id="x"))
    busy = {"type": "urn:onward:problem:overloaded", "status": 503}
    commands, _ = drive(StepStream("s", POLICY).run(), InputTaken([1.0]), None, InputsEnded(), heard(**busy), None)
    first, second = [command.text for command in commands if isinstance(command, Send)]
    assert first == second
    assert any(isinstance(command, Sleep) for command in commands)


def test_a_stream_that_cannot_connect_gives_up() -> None:
    refused = NoResponse(ConnectionRefusedError(), sent=False)
    with pytest.raises(UnreachableError):
        drive(StepStream("s", POLICY).run(), InputTaken([1.0]), *[refused] * 99)
    with pytest.raises(Problem, match="no session"):
        drive(
            StepStream("s", POLICY).run(),
            InputTaken([1.0]),
            Response(404, {}, b'{"type":"urn:onward:problem:unknown-session","status":404,"detail":"no session"}'),
        )


def test_inputs_that_fail_fail_after_what_came_before() -> None:
    """The answers to earlier inputs are told first, whatever it is: also an input that cannot be sent."""

    def inputs() -> Iterator[list[float]]:
        yield from ([1.0], [2.0], [3.0])
        raise KeyError

    ways: tuple[tuple[Iterable[Any], type[Exception]], ...] = (
        (inputs(), KeyError),
        ([[1.0], [2.0], [3.0], [float("inf")], [5.0]], InvalidRequest),
        ([[1.0], [2.0], [3.0], [object()], [5.0]], InvalidRequest),
    )
    for given, error in ways:
        made = Service(given).drive(StepStream("s", POLICY).run())
        assert [next(made).step, next(made).step, next(made).step] == [1, 2, 3]
        with pytest.raises(error):
            next(made)


def test_an_idle_stream_does_not_mind_a_cut() -> None:
    """The stream connects again when there is a message to send."""
    commands, _ = drive(StepStream("s", POLICY).run(), InputTaken([1.0]), None, CUT, None)
    assert sum(isinstance(command, Connect) for command in commands) == 2
    commands, _ = drive(StepStream("s", POLICY).run(), CUT)
    assert not [command for command in commands if isinstance(command, (Connect, Sleep))]


HEAD = Response(200, {"content-type": "text/event-stream"}, b"")
SSE = (
    b': heart-beat\n\nid: 7.1\ndata: {"ahead": 1, "token": "a", "log_probability": -0.5}\n\n'
    b'id: 7.2\r\ndata: {"ahead": 2, "token": "\xe2\x82\xac", "log_probability": -1.5}\r\n\r\n'
    b'event: done\ndata: {"reason": "horizon", "seed": 7, "step": 3, "text": "a\xe2\x82\xac"}\n\n'
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_read_however_they_are_cut(size: int) -> None:
    """Even inside a character."""
    events = EventParser()
    found = [number for at in range(0, len(SSE), size) for number in events.parse(SSE[at : at + size])]
    assert [(number.kind, number.last_id) for number in found] == [
        ("message", "7.1"),
        ("message", "7.2"),
        ("done", "7.2"),
    ]
    assert json.loads(found[1].data)["token"] == "\u20ac"


def test_a_cut_generation_is_resumed() -> None:
    """The same body, with the id of the last event that was whole; the cut one is not told twice."""
    head, cut = HEAD, SSE.index(b"id: 7.2") + 20
    rest = SSE[SSE.index(b"id: 7.2") :]
    flow = generate("/v1/sessions/s/generate", {"horizon": 2}, POLICY)
    commands, emitted = drive(flow, head, SSE[:cut], NoResponse(ConnectionResetError(), sent=True), head, rest)
    first, second = [command.request for command in commands if isinstance(command, OpenResponse)]
    assert "last-event-id" not in first.headers
    assert (second.headers["last-event-id"], second.content) == ("7.1", first.content)
    assert [getattr(number, "token", None) for number in emitted] == ["a", "\u20ac", None]
    assert emitted[-1] == Done("horizon", 7, 3, "a\u20ac")


def test_a_generation_that_could_not_go_on_for_now_is_resumed() -> None:
    """As where the service says so at once: after a pause, from the last event on, for as long as patience lasts."""
    busy = b'id: 7.1\nevent: problem\ndata: {"type": "urn:onward:problem:overloaded", "status": 503}\n\n'
    first, second = SSE[: SSE.index(b"id: 7.2")], SSE[SSE.index(b"id: 7.2") :]
    commands, emitted = drive(generate("/g", {"horizon": 2}, POLICY), HEAD, first + busy, HEAD, second)
    assert [
        command.request.headers.get("last-event-id") for command in commands if isinstance(command, OpenResponse)
    ] == [
        None,
        "7.1",
    ]
    assert [getattr(number, "token", None) for number in emitted] == ["a", "\u20ac", None]
    assert sum(isinstance(command, Sleep) for command in commands) == 1
    with pytest.raises(Overloaded):
        drive(generate("/g", {"horizon": 2}, POLICY), HEAD, first + busy, *[HEAD, busy] * 99)


def test_an_answer_that_generates_nothing_is_raised() -> None:
    """The response is not Onward's, and would be the same at the next try."""
    page = Response(200, {"content-type": "text/html"}, b"")
    with pytest.raises(Problem, match="200 OK"):
        drive(generate("/g", {"horizon": 2}, POLICY), page)


def test_a_problem_in_the_middle_is_raised() -> None:
    problem = (
        b'event: problem\ndata: {"type": "urn:onward:problem:session-ended", "status": 410, "reason": "deleted"}\n\n'
    )
    with pytest.raises(SessionEnded):
        drive(generate("/g", {"horizon": 2}, POLICY), HEAD, problem)
    with pytest.raises(UnreachableError):
        drive(generate("/g", {"horizon": 2}, POLICY), *[HEAD, b""] * 99)
