"""The operations of the service, each as a flow: its request, whether that may be sent again, and its result.

Every step carries a request id, so it may be sent until a response comes. The same holds for a session that is created
under an id: if the response was lost, the next try finds the id taken, and the session that has it is looked at.
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

from onward.client import results
from onward.client.command_flow import (
    Emit,
    EmittingFlow,
    Exchange,
    Flow,
    Request,
    Response,
    Retry,
    RetryPolicy,
    content,
    exchange,
)
from onward.client.inputs import Steps, json_sequences, json_steps
from onward.client.results import (
    Forecast,
    Predictions,
    SequencePrediction,
    SessionInfo,
    StatelessStep,
    without_none,
)
from onward.errors import RETRYABLE_STATUSES, InvalidRequest, Problem, SessionEnded, SessionExists, UnreachableError
from onward.model.scoring.anomaly import AnomalyKind

Json = dict[str, Any]
T = TypeVar("T")
StepResult = Predictions | Problem | UnreachableError
"""The result of one of many items: its predictions, its problem, or that no response to it came."""
REMEMBERED, MOST_ITEMS, MOST_STEPS = 32, 10_000, 100_000
"""The number of a session's last requests that the service recognises when they come again, and the most items and
steps of one call.
"""
DATE_S = 2.0
"""The precision of the date of a response: one second, and one more for the clocks of machines side by side."""


def session_path(session_id: str, suffix: str = "") -> str:
    return f"/v1/sessions/{quote(session_id, safe='')}{suffix}"


def model_path(name: str, suffix: str = "") -> str:
    return f"/v1/models/{quote(name, safe='')}{suffix}"


def model_session_path(model: str, session_id: str, suffix: str = "") -> str:
    return model_path(model, f"/sessions/{quote(session_id, safe='')}{suffix}")


def new_id() -> str:
    return uuid4().hex


class Operations:
    """All operations of the service, with the same retry policy.

    listed_only: rankings of categories have listed ones only.
    """

    def __init__(self, policy: RetryPolicy, *, listed_only: bool = False) -> None:
        self.policy = policy
        self.ranking_query: dict[str, str] = {"listed_only": "true"} if listed_only else {}
        """The query of each request whose response may have a ranking."""

    def _call(self, request: Request, read: Callable[[Json], T], *, idempotent: bool = True) -> Flow[T]:
        """Returns what `read` makes of the response. Raises Problem, UnreachableError."""
        final = yield from exchange(request, Retry(self.policy), idempotent=idempotent)
        return content(final.response, read)

    # The service

    def get(self, path: str) -> Flow[Json]:
        return (yield from self._call(Request("GET", path), dict))

    def ready(self) -> Flow[bool]:
        """Returns True if the service serves. The request is sent once."""
        outcome = yield Request("GET", "/readyz")
        return isinstance(outcome, Response) and outcome.status == 200

    def models(self) -> Flow[list[Json]]:
        return (yield from self._call(Request("GET", "/v1/models"), lambda body: list(map(dict, body["models"]))))

    def model(self, name: str, version: int | None) -> Flow[Json]:
        return (yield from self._call(Request("GET", model_path(name), query=without_none(version=version)), dict))

    def predict(
        self, model: str, sequences: Sequence[Steps], horizon: int, version: int | None
    ) -> Flow[list[SequencePrediction]]:
        body = {"inputs": json_sequences(sequences), "horizon": horizon} | without_none(version=version)
        request = Request("POST", model_path(model, "/predict"), body, self.ranking_query)
        return (yield from self._call(request, results.sequences))

    def stateless_step(self, model: str, inputs: Steps, state: str | None, version: int | None) -> Flow[StatelessStep]:
        body = {"inputs": json_steps(inputs)} | without_none(state=state, version=version)
        request = Request("POST", model_path(model, "/step"), body, self.ranking_query)
        return (
            yield from self._call(
                request, lambda response: StatelessStep(results.predictions(response), response["state"])
            )
        )

    # The lifecycle of sessions

    def sessions(self, model: str | None, page: int) -> EmittingFlow:
        after: str | None = ""
        while after is not None:
            query = {"limit": page} | without_none(model=model) | ({"after": after} if after else {})
            infos, after = yield from self._call(Request("GET", "/v1/sessions", query=query), _page)
            for info in infos:
                yield Emit(info)

    def create(
        self, model: str, session_id: str | None, version: int | None, ttl_s: float | None, inputs: Steps | None,
        interval: float | None = None, anomaly: AnomalyKind | None = None,
    ) -> Flow[SessionInfo]:  # fmt: skip
        options = _session_options(version, ttl_s, inputs, interval, anomaly)
        body = {"session_id": session_id or new_id()} | options
        request = Request("POST", model_path(model, "/sessions"), body, self.ranking_query)
        return (yield from self._create(request, body["session_id"], chosen=session_id is not None))

    def ensure(
        self, model: str, session_id: str, version: int | None, ttl_s: float | None, inputs: Steps | None,
        interval: float | None, anomaly: AnomalyKind | None,
    ) -> Flow[SessionInfo]:  # fmt: skip
        body = _session_options(version, ttl_s, inputs, interval, anomaly)
        request = Request("PUT", model_session_path(model, session_id), body, self.ranking_query)
        return (yield from self._call(request, results.session))

    def fork(self, source: str, session_id: str | None, ttl_s: float | None) -> Flow[SessionInfo]:
        body = without_none(session_id=session_id or new_id(), ttl_s=ttl_s)
        request = Request("POST", session_path(source, "/fork"), body)
        return (yield from self._create(request, body["session_id"], chosen=session_id is not None))

    def restore(self, session_id: str, exported: Mapping[str, Any]) -> Flow[SessionInfo]:
        request = Request("PUT", session_path(session_id, "/state"), dict(exported))
        return (yield from self._create(request, session_id, chosen=True))

    def _create(self, request: Request, session_id: str, *, chosen: bool) -> Flow[SessionInfo]:
        """Creates a session that may exist already because the response to an earlier try was lost.

        chosen: the caller chose the id, so the session that has it may be another one, older than the tries.
        """
        final: Exchange = yield from exchange(request, Retry(self.policy), idempotent=True)
        try:
            return content(final.response, results.session)
        except SessionExists:
            if not final.doubtful:
                raise
            existing = yield from self.info(session_id)
            if chosen and not _created_since(existing, final):
                raise
            return existing

    def info(self, session_id: str) -> Flow[SessionInfo]:
        return (yield from self._call(Request("GET", session_path(session_id)), results.session))

    def delete(self, session_id: str) -> Flow[None]:
        final = yield from exchange(Request("DELETE", session_path(session_id)), Retry(self.policy), idempotent=True)
        try:
            content(final.response, lambda _: None)
        except SessionEnded as ended:
            if not final.doubtful or ended.reason != "deleted":
                raise

    def delete_sessions(self, model: str | None, prefix: str | None, idle_s: float | None) -> Flow[int]:
        query = without_none(model=model, prefix=prefix, idle_s=idle_s)
        ended, more = 0, True
        while more:
            request = Request("DELETE", "/v1/sessions", query=query)
            count, more = yield from self._call(request, lambda body: (int(body["ended"]), bool(body["more"])))
            ended += count
        return ended

    # One session

    def steps(self, session_id: str, inputs: Any, at: int | None, request_id: str | None) -> Flow[Predictions]:
        """inputs: in their JSON form."""
        return (yield from self._advance(session_path(session_id, "/steps"), inputs, at, request_id))

    def step(
        self, model: str, session_id: str, inputs: Steps, at: int | None, request_id: str | None
    ) -> Flow[Predictions]:
        """Creates the session if it does not exist."""
        path = model_session_path(model, session_id, "/steps")
        return (yield from self._advance(path, json_steps(inputs), at, request_id))

    def _advance(self, path: str, inputs: Any, at: int | None, request_id: str | None) -> Flow[Predictions]:
        body = {"inputs": inputs, "request_id": request_id or new_id()} | without_none(step=at)
        return (yield from self._call(Request("POST", path, body, self.ranking_query), results.predictions))

    def forecast(self, session_id: str, body: Json) -> Flow[Forecast]:
        request = Request("POST", session_path(session_id, "/forecast"), body, self.ranking_query)
        return (yield from self._call(request, results.forecast))

    def rewind(self, session_id: str, step: int) -> Flow[SessionInfo]:
        """Retries only if nothing was applied: a second rewind would also undo the later steps of other clients."""
        request = Request("POST", session_path(session_id, "/rewind"), {"step": step})
        return (yield from self._call(request, results.session, idempotent=False))

    def migrate(self, session_id: str, version: int | None) -> Flow[SessionInfo]:
        request = Request("POST", session_path(session_id, "/migrate"), without_none(version=version))
        return (yield from self._call(request, results.session, idempotent=False))

    # Many sessions

    def step_many(self, items: Sequence[tuple[str, Steps]]) -> Flow[list[StepResult]]:
        """Steps many sessions, in rounds that take the next items of each session.

        A round has no more items of a session than the service remembers, since a round whose response was lost is
        sent again; the items behind them are sent once these are answered.

        An item that fails for now, with all items of its session behind it, goes into the next round, so that none of
        them is applied out of order; at the retry deadline the remaining items of its session fail with it. If a round
        fails as a whole, all remaining items fail with it; the failure of the first round is raised.
        """
        bodies: dict[int, Json] = {}
        by_session: dict[str, deque[int]] = {}
        answered: dict[int, StepResult] = {}
        for index, (session_id, inputs) in enumerate(items):
            try:
                bodies[index] = {"session_id": session_id, "inputs": json_steps(inputs), "request_id": new_id()}
                by_session.setdefault(session_id, deque()).append(index)
            except InvalidRequest as refused:
                answered[index] = refused
        queues = list(by_session.values())  # for each session, the indices of its unanswered items in their order
        retry = Retry(self.policy)
        while queues:
            indices = _round(queues, bodies)
            content_of_round = {"items": [bodies[index] for index in indices]}
            request = Request("POST", "/v1/steps", content_of_round, self.ranking_query)
            try:
                response = (yield from exchange(request, retry, idempotent=True)).response
                received = dict(zip(indices, content(response, partial(_items, len(indices))), strict=True))
            except (Problem, UnreachableError) as error:
                if not answered:
                    raise
                return [answered.get(index, error) for index in range(len(items))]
            for queue in queues:
                while queue and queue[0] in received and not _failed_for_now(received[queue[0]]):
                    index = queue.popleft()
                    answered[index] = received[index]
            held_up = [queue for queue in queues if queue and queue[0] in received]
            pause = retry.next(response) if held_up else None
            if pause is not None:
                yield pause
            else:
                for queue in held_up:
                    answered |= dict.fromkeys(queue, received[queue[0]])
                    queue.clear()
            queues = [queue for queue in queues if queue]
        return [answered[index] for index in range(len(items))]


def _session_options(
    version: int | None, ttl_s: float | None, inputs: Steps | None, interval: float | None, anomaly: AnomalyKind | None
) -> Json:  # fmt: skip
    seeds = None if inputs is None else json_steps(inputs)
    return without_none(version=version, ttl_s=ttl_s, inputs=seeds, interval=interval, anomaly=anomaly)


def _round(queues: Iterable[deque[int]], bodies: Mapping[int, Json]) -> list[int]:
    """Returns the indices of the items for the next call: as many items and steps as a service takes in one."""
    indices: list[int] = []
    steps = 0
    for index in islice((index for queue in queues for index in islice(queue, REMEMBERED)), MOST_ITEMS):
        steps += len(bodies[index]["inputs"])
        if indices and steps > MOST_STEPS:
            break
        indices.append(index)
    return indices


def _page(body: Json) -> tuple[list[SessionInfo], str | None]:
    """Returns the sessions of a page, and the cursor of the next page."""
    return list(map(results.session, body["sessions"])), body["after"]


def _items(count: int, body: Json) -> list[Predictions | Problem]:
    items = list(map(_item, body["items"]))
    if len(items) != count:
        raise ValueError(f"{len(items)} answers to {count} items")
    return items


def _item(body: Json) -> Predictions | Problem:
    return Problem.from_document(body["problem"]) if "problem" in body else results.predictions(body)


def _failed_for_now(result: Predictions | Problem) -> bool:
    return isinstance(result, Problem) and result.status in RETRYABLE_STATUSES


def _created_since(session: SessionInfo, final: Exchange) -> bool:
    """Returns True if these tries created the session, by the clock of the service."""
    now = parsedate_to_datetime(final.response.headers["date"])
    return session.created_at >= now - timedelta(seconds=final.since_s + DATE_S)


def forecast_body(
    horizon: int, samples: int | None, quantiles: Sequence[float] | None, seed: int | None,
    future: Steps | None, inputs: Steps | None, *, paths: bool,
) -> Json:  # fmt: skip
    return {"horizon": horizon} | without_none(
        samples=samples,
        quantiles=None if quantiles is None else [float(level) for level in quantiles],
        seed=seed,
        future=None if future is None else json_steps(future, "future", least=0),
        inputs=None if inputs is None else json_steps(inputs),
        paths=paths or None,
    )
