"""What a client asks of the service, each call as a flow: the request, when it may go again, what its answer means.

Every step carries a request id, so it may be sent until it is answered. A session that is made under an id may be, too:
where the answer was lost, the next try finds the id taken, and what was made is looked at.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import uuid4

from onward.client import results, session_info
from onward.client.command_flow import (
    AGAIN,
    Emit,
    Exchanged,
    Feed,
    Flow,
    Patience,
    Reply,
    Request,
    Retry,
    content,
    exchange,
)
from onward.client.errors import Problem, SessionEnded, SessionExists, UnreachableError
from onward.client.results import Forecast, Held, Predicted, Predictions, Steps, given
from onward.client.session_info import SessionInfo

Json = dict[str, Any]
T = TypeVar("T")
Answer = Predictions | Problem | UnreachableError
"""To one of many items: what is predicted, or why it was not done, or that no answer to it came."""
REMEMBERED, MOST_ITEMS, MOST_STEPS = 32, 10_000, 100_000
"""How many of a session's last requests the service knows when they come again, and how many items a call may have."""
DATE_S = 2.0
"""How exact the date is that an answer carries: a second, and one for clocks of machines side by side."""


def path(session_id: str, what: str = "") -> str:
    return f"/v1/sessions/{quote(session_id, safe='')}{what}"


def path_of_model(model: str, session_id: str, what: str = "") -> str:
    return of_model(model, f"/sessions/{quote(session_id, safe='')}{what}")


def of_model(name: str, what: str = "") -> str:
    return f"/v1/models/{quote(name, safe='')}{what}"


def new_id() -> str:
    return uuid4().hex


class Calls:
    """All calls, with the same patience."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience

    def ask(self, request: Request, read: Callable[[Json], T], *, safe: bool = True) -> Flow[T]:
        """What the answer says, by `read`. Raises Problem, UnreachableError."""
        return content((yield from exchange(request, Retry(self.patience), safe=safe)).reply, read)

    # The service

    def get(self, where: str) -> Flow[Json]:
        return (yield from self.ask(Request("GET", where), dict))

    def ready(self) -> Flow[bool]:
        """Whether it serves, asked once."""
        answer = yield Request("GET", "/readyz")
        return isinstance(answer, Reply) and answer.status == 200

    def models(self) -> Flow[list[Json]]:
        return (yield from self.ask(Request("GET", "/v1/models"), lambda told: list(map(dict, told["models"]))))

    def model(self, name: str, version: int | None) -> Flow[Json]:
        return (yield from self.ask(Request("GET", of_model(name), query=given(version=version)), dict))

    def predict(
        self, model: str, sequences: Sequence[Steps], horizon: int, version: int | None
    ) -> Flow[list[Predicted]]:
        body = {"inputs": [results.steps(one) for one in sequences], "horizon": horizon} | given(version=version)
        return (yield from self.ask(Request("POST", of_model(model, "/predict"), body), results.sequences))

    def held(self, model: str, inputs: Steps, state: str | None, version: int | None) -> Flow[Held]:
        body = {"inputs": results.steps(inputs)} | given(state=state, version=version)
        request = Request("POST", of_model(model, "/step"), body)
        return (yield from self.ask(request, lambda told: Held(results.predictions(told), told["state"])))

    # Lives of sessions

    def sessions(self, model: str | None, page: int) -> Feed:
        after: str | None = ""
        while after is not None:
            query = {"limit": page} | given(model=model) | ({"after": after} if after else {})
            found, after = yield from self.ask(Request("GET", "/v1/sessions", query=query), _page)
            for one in found:
                yield Emit(one)

    def create(
        self, model: str, session_id: str | None, version: int | None, ttl_s: float | None, inputs: Steps | None,
        interval: float | None = None,
    ) -> Flow[SessionInfo]:  # fmt: skip
        seeds = None if inputs is None else results.steps(inputs)
        body = given(session_id=session_id or new_id(), version=version, ttl_s=ttl_s, inputs=seeds, interval=interval)
        request = Request("POST", of_model(model, "/sessions"), body)
        return (yield from self._born(request, body["session_id"], chosen=session_id is not None))

    def ensure(
        self, model: str, session_id: str, version: int | None, ttl_s: float | None, inputs: Steps | None,
        interval: float | None,
    ) -> Flow[SessionInfo]:  # fmt: skip
        seeds = None if inputs is None else results.steps(inputs)
        body = given(version=version, ttl_s=ttl_s, inputs=seeds, interval=interval)
        return (yield from self.ask(Request("PUT", path_of_model(model, session_id), body), session_info.session))

    def fork(self, source: str, session_id: str | None, ttl_s: float | None) -> Flow[SessionInfo]:
        body = given(session_id=session_id or new_id(), ttl_s=ttl_s)
        request = Request("POST", path(source, "/fork"), body)
        return (yield from self._born(request, body["session_id"], chosen=session_id is not None))

    def restore(self, session_id: str, exported: Mapping[str, Any]) -> Flow[SessionInfo]:
        request = Request("PUT", path(session_id, "/state"), dict(exported))
        return (yield from self._born(request, session_id, chosen=True))

    def _born(self, request: Request, session_id: str, *, chosen: bool) -> Flow[SessionInfo]:
        """A session that may be there already because the answer to an earlier try was lost.

        chosen: someone chose the id, and the session that has it may be another, older than the tries.
        """
        done: Exchanged = yield from exchange(request, Retry(self.patience), safe=True)
        try:
            return content(done.reply, session_info.session)
        except SessionExists:
            if not done.doubtful:
                raise
            found = yield from self.info(session_id)
            if chosen and not _made_since(found, done):
                raise
            return found

    def info(self, session_id: str) -> Flow[SessionInfo]:
        return (yield from self.ask(Request("GET", path(session_id)), session_info.session))

    def delete(self, session_id: str) -> Flow[None]:
        done = yield from exchange(Request("DELETE", path(session_id)), Retry(self.patience), safe=True)
        try:
            content(done.reply, lambda _: None)
        except SessionEnded as ended:
            if not done.doubtful or ended.reason != "deleted":
                raise

    def delete_sessions(self, model: str | None, prefix: str | None, idle_s: float | None) -> Flow[int]:
        query = given(model=model, prefix=prefix, idle_s=idle_s)
        ended, more = 0, True
        while more:
            request = Request("DELETE", "/v1/sessions", query=query)
            some, more = yield from self.ask(request, lambda told: (int(told["ended"]), bool(told["more"])))
            ended += some
        return ended

    # Of one session

    def steps(self, session_id: str, inputs: Any, at: int | None, request_id: str | None) -> Flow[Predictions]:
        """inputs: as JSON has them."""
        return (yield from self._advance(path(session_id, "/steps"), inputs, at, request_id))

    def step(
        self, model: str, session_id: str, inputs: Steps, at: int | None, request_id: str | None
    ) -> Flow[Predictions]:
        """Creates the session where there is none."""
        where = path_of_model(model, session_id, "/steps")
        return (yield from self._advance(where, results.steps(inputs), at, request_id))

    def _advance(self, where: str, inputs: Any, at: int | None, request_id: str | None) -> Flow[Predictions]:
        body = {"inputs": inputs, "request_id": request_id or new_id()} | given(step=at)
        return (yield from self.ask(Request("POST", where, body), results.predictions))

    def forecast(self, session_id: str, body: Json) -> Flow[Forecast]:
        return (yield from self.ask(Request("POST", path(session_id, "/forecast"), body), results.forecast))

    def rewind(self, session_id: str, step: int) -> Flow[SessionInfo]:
        """Not sent again where it may have been done: it would also take back what others did since."""
        request = Request("POST", path(session_id, "/rewind"), {"step": step})
        return (yield from self.ask(request, session_info.session, safe=False))

    def migrate(self, session_id: str, version: int | None) -> Flow[SessionInfo]:
        body = given(version=version)
        request = Request("POST", path(session_id, "/migrate"), body)
        return (yield from self.ask(request, session_info.session, safe=False))

    # Of many

    def step_many(self, items: Sequence[tuple[str, Steps]]) -> Flow[list[Answer]]:
        """In rounds, of each session its next items: no more than the service remembers, since a round whose answer was
        lost is sent again, and all answered before those after them are sent.

        What is refused for now, with all of its session behind it, is in the next round again, and so is not overtaken;
        where patience ends, what is left of its session is refused with it. Where a round fails as a whole, all that is
        left has failed with it; the first one's failure is raised.
        """
        bodies = [{"session_id": name, "inputs": results.steps(one), "request_id": new_id()} for name, one in items]
        own: dict[str, deque[int]] = {}
        for place, (name, _) in enumerate(items):
            own.setdefault(name, deque()).append(place)
        lines = list(own.values())  # of each session the places of what is not answered, in their order
        answers: dict[int, Answer] = {}
        retry = Retry(self.patience)
        while lines:
            places = _round(lines, bodies)
            request = Request("POST", "/v1/steps", {"items": [bodies[place] for place in places]})
            try:
                reply = (yield from exchange(request, retry, safe=True)).reply
                told = dict(zip(places, content(reply, partial(_items, len(places))), strict=True))
            except (Problem, UnreachableError) as error:
                if not answers:
                    raise
                return [answers.get(place, error) for place in range(len(items))]
            for line in lines:
                while line and line[0] in told and not _for_now(told[line[0]]):
                    place = line.popleft()
                    answers[place] = told[place]
            held_up = [line for line in lines if line and line[0] in told]
            pause = retry.next(reply) if held_up else None
            if pause is not None:
                yield pause
            else:
                for line in held_up:
                    answers |= dict.fromkeys(line, told[line[0]])
                    line.clear()
            lines = [line for line in lines if line]
        return [answers[place] for place in range(len(items))]


def _round(lines: Iterable[deque[int]], bodies: Sequence[Json]) -> list[int]:
    """The places of what the next call takes of these lines: as many items, and steps, as a service takes in one."""
    places: list[int] = []
    steps = 0
    for place in islice((place for line in lines for place in islice(line, REMEMBERED)), MOST_ITEMS):
        steps += len(bodies[place]["inputs"])
        if places and steps > MOST_STEPS:
            break
        places.append(place)
    return places


def _page(told: Json) -> tuple[list[SessionInfo], str | None]:
    """The sessions on it, and what the next one is asked for by."""
    return list(map(session_info.session, told["sessions"])), told["after"]


def _items(count: int, told: Json) -> list[Predictions | Problem]:
    items = list(map(_item, told["items"]))
    if len(items) != count:
        raise ValueError(f"{len(items)} answers to {count} items")
    return items


def _item(told: Json) -> Predictions | Problem:
    return Problem.of(told["problem"]) if "problem" in told else results.predictions(told)


def _for_now(answer: Predictions | Problem) -> bool:
    return isinstance(answer, Problem) and answer.status in AGAIN


def _made_since(found: SessionInfo, done: Exchanged) -> bool:
    """Whether the session was made by these tries, by the service's own clock."""
    now = parsedate_to_datetime(done.reply.headers["date"])
    return found.created_at >= now - timedelta(seconds=done.since_s + DATE_S)


def forecast_body(
    horizon: int, samples: int | None, quantiles: Sequence[float] | None, seed: int | None,
    future: Steps | None, inputs: Steps | None, *, paths: bool,
) -> Json:  # fmt: skip
    return {"horizon": horizon} | given(
        samples=samples,
        quantiles=None if quantiles is None else [float(level) for level in quantiles],
        seed=seed,
        future=None if future is None else results.steps(future),
        inputs=None if inputs is None else results.steps(inputs),
        paths=paths or None,
    )
