"""The wire: what bodies look like, as pydantic models, from which the OpenAPI document is made too.

Owns the reading of request bodies. Numbers are strict: text is no number, and NaN and Infinity are refused.
"""

from typing import Annotated, Any, Literal, TypeVar

from flask import request
from gunicorn.http.errors import ParseException
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, RootModel, Tag
from werkzeug.exceptions import RequestEntityTooLarge

from service.errors import Fault
from service.http.problems import HTTP_KINDS, MEDIA, RequestError

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


Value = Number | Annotated[int, Field(strict=True)] | Annotated[str, Field(strict=True)] | None


def _form(steps: Any) -> str:
    """Which way of writing steps is used: by the first, for a list."""
    if isinstance(steps, str):
        return "@text"
    first = steps[0] if isinstance(steps, list) and steps else []
    if isinstance(first, dict):
        return "@named"
    return "@rows" if isinstance(first, list) else "@values"


_STEPS = Field(
    min_length=1, fail_fast=True
)  # the first fault is enough: a million of them would take seconds to collect
Inputs = Annotated[
    Annotated[list[Annotated[list[Value], _STEPS]], _STEPS, Tag("@rows")]
    | Annotated[list[Value], _STEPS, Tag("@values")]
    | Annotated[list[dict[str, Value]], _STEPS, Tag("@named")]
    | Annotated[str, Field(strict=True, min_length=1), Tag("@text")],
    Discriminator(_form),
    Field(
        description="Steps, oldest first: lists of values in the order of the model's features, or objects by feature "
        "name, or single values where the model has one feature, or a text where the model reads one. A value is a "
        "number, a category (or, where the categories are words, its place), or null where it may be missing.",
        examples=[[[506.0], [511.0]], [{"ppg": 506.0}], [506.0, 511.0], "The next "],
    ),
]
SESSION_ID = r"[A-Za-z0-9][A-Za-z0-9._~:-]{0,127}"
REQUEST_ID = r"[\x21-\x7e]{1,128}"
SessionId = Annotated[str, Field(pattern=f"^{SESSION_ID}$", description="1 to 128 letters, digits and . _ ~ : -")]
Version = Annotated[int, Field(strict=True, ge=1, description="a version of the model; the highest if left out")]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # most of them are never read


TtlS = Annotated[
    float, Field(strict=True, gt=0, le=31_536_000, allow_inf_nan=False, description="idle seconds before it expires")
]


class CreateSession(Body):
    session_id: SessionId | None = None
    version: Version | None = None
    ttl_s: TtlS | None = None
    inputs: Inputs | None = None
    interval: Annotated[
        float | None,
        Field(strict=True, ge=0.5, le=0.99, description="answers have intervals that hold this share of inputs"),
    ] = None


class ForkSession(Body):
    session_id: SessionId | None = None
    ttl_s: TtlS | None = None


class Rewind(Body):
    step: Annotated[int, Field(strict=True, ge=0, lt=2**63, description="to go back to")]


class Migrate(Body):
    version: Version | None = None


class Exported(Body):
    """A session to carry away; what comes back must be as it was."""

    model: str | None = None
    version: int | None = None
    step: int | None = None
    state: Annotated[str, Field(max_length=2**27, description="the record, signed; base64")]


class HeldStep(Body):
    inputs: Inputs
    state: Annotated[str | None, Field(max_length=2**27, description="of the answer before; none begins anew")] = None
    version: Version | None = None


class EndedSessions(Body):
    ended: int
    more: Annotated[bool, Field(description="whether more may be left: call again")]


ExpectedStep = Annotated[
    int, Field(strict=True, ge=0, lt=2**63, description="the step that the session is believed to have reached")
]
RequestId = Annotated[
    str, Field(pattern=f"^{REQUEST_ID}$", description="makes a retry safe: the same id gets the same answer")
]


class Step(Body):
    inputs: Inputs
    step: ExpectedStep | None = None
    request_id: RequestId | None = None


class Line(RootModel[list[Value] | dict[str, Value] | Value]):
    """A step, as `inputs` has it: a list in the order of the features, an object by their names, or a single value."""


class Item(Step):
    session_id: SessionId


_ITEMS = Field(min_length=1, max_length=10_000)


class Many(Body):
    """Steps of many sessions, one item each; the items of one session run in their order."""

    items: Annotated[list[Item], _ITEMS]


class Columns(Body):
    """The same in columns: entries at the same place belong together."""

    session_ids: Annotated[list[SessionId], _ITEMS]
    inputs: Annotated[list[Inputs], Field(description="of each session, as in a step of its own")]
    steps: list[ExpectedStep | None] | None = None
    request_ids: list[RequestId | None] | None = None


def _rising(levels: list[float]) -> list[float]:
    if sorted(set(levels)) != levels:
        raise ValueError("levels rise, each of them once")
    return levels


Seed = Annotated[
    int, Field(strict=True, ge=0, lt=2**63, description="the same one draws the same; the service's own if left out")
]
Levels = Annotated[
    list[Annotated[float, Field(strict=True, gt=0, lt=1)]],
    Field(min_length=1, max_length=99, description="of the quantiles that are told, rising"),
    AfterValidator(_rising),
]


class Ahead(Body):
    horizon: Annotated[int, Field(strict=True, ge=1, le=2**31, description="how many steps ahead")]
    inputs: Annotated[Inputs | None, Field(description="consumed first, as a step's; the session stays")] = None
    future: Annotated[
        Inputs | None,
        Field(
            description="of the features that are not predicted, in the order of the model's, what they are at each "
            "step that is fed back: at least horizon - 1"
        ),
    ] = None
    seed: Seed | None = None


class Forecast(Ahead):
    samples: Annotated[int | None, Field(strict=True, ge=2, description="how many paths are drawn")] = None
    quantiles: Levels | None = None
    paths: Annotated[bool, Field(strict=True, description="whether the paths themselves are told")] = False


class Generate(Ahead):
    temperature: Annotated[
        float,
        Field(
            strict=True,
            ge=0,
            le=100,
            description="scales the spread of numbers, divides log-probabilities; at 0 the centre, or the likeliest",
        ),
    ] = 1.0
    top_k: Annotated[int | None, Field(strict=True, ge=1, description="draw among so many likeliest categories")] = None
    top_p: Annotated[
        float | None,
        Field(strict=True, gt=0, le=1, description="draw among the fewest likeliest categories that are so probable"),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        Field(strict=True, ge=1, le=100, description="multiplies the log-probability of categories that came before"),
    ] = None
    stop: Annotated[
        list[Annotated[str, Field(strict=True, min_length=1)] | Annotated[int, Field(strict=True)]] | None,
        Field(
            min_length=1,
            max_length=100,
            description="end after one of these: categories, or texts where the model reads one",
        ),
    ] = None
    logprobs: Annotated[int | None, Field(strict=True, ge=1, description="tell so many of the likeliest")] = None


class Predict(Body):
    inputs: Annotated[
        list[Inputs],
        Field(min_length=1, fail_fast=True, description="sequences, each a list of steps; lengths may differ"),
    ]
    version: Version | None = None
    horizon: Annotated[int, Field(strict=True, ge=0, le=2**31, description="steps to roll each sequence forward")] = 0


Said = list[float] | list[list[float]] | list[str | int | None]
"""Of one step: a number a target, or a row of them, such as one a quantile level; or categories, null for any other."""
Rows = dict[str, list[Said]]


class Predictions(Body):
    """What the model says of the next input, a row a step: the head's parameters by name, in the targets' order."""

    predictions: Annotated[Rows, Field(description="by output of the head, such as mean and std")]
    surprise: Annotated[
        list[float] | None, Field(description="the score of each input under the prediction made before it")
    ] = None


class Bounds(Body):
    """Of the next input, after each step; null: none is known yet, or it would have to be without end."""

    low: list[list[float | None]]
    high: list[list[float | None]]


class Seen(Body):
    """What is seen of the prediction made before each input; null where the input, or some target of it, is missing."""

    error: Annotated[
        list[list[float | None]] | None, Field(description="the input minus its prediction, by target")
    ] = None
    anomaly: Annotated[
        list[float | None] | None,
        Field(description="from 0 to 1, how unusual the surprise is among the session's last 256; null below 19"),
    ] = None
    interval: Annotated[Bounds | None, Field(description="of a session that asked for intervals")] = None


class Problem(BaseModel):
    """RFC 9457. Some types carry more members, such as `expected_step`, `reason` and `ended_at`."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] = []


class StepAnswer(Predictions, Seen):
    step: Annotated[int, Field(description="inputs consumed so far")]


class HeldAnswer(Predictions):
    step: Annotated[int, Field(description="inputs consumed so far")]
    state: Annotated[str, Field(description="to send with the next step; nobody else can read or alter it")]


class ItemAnswer(Seen):
    session_id: str
    status: Annotated[int, Field(description="as a step of its own would have been answered")]
    step: int | None = None
    predictions: Rows | None = None
    surprise: list[float] | None = None
    problem: Annotated[Problem | None, Field(description="where the status is not 200")] = None


class ManyAnswer(Body):
    items: Annotated[list[ItemAnswer], Field(description="in the order of the items")]


class ColumnBounds(Body):
    low: list[list[list[float | None]] | None]
    high: list[list[list[float | None]] | None]


class ColumnsAnswer(Body):
    statuses: list[int]
    steps: list[int | None]
    predictions: Annotated[
        dict[str, list[list[Said] | None]],
        Field(description="by output of the head, and session, the rows of its steps"),
    ]
    surprise: list[list[float] | None] = []
    error: list[list[list[float | None]] | None] = []
    anomaly: list[list[float | None] | None] = []
    interval: Annotated[ColumnBounds | None, Field(description="by bound, and session")] = None
    problems: Annotated[dict[str, Problem], Field(description="by place in the request, where the status is not 200")]


class Bulk(RootModel[Many | Columns]):
    """Of many sessions, as items or as columns."""


class BulkAnswer(RootModel[ManyAnswer | ColumnsAnswer]):
    """As the request was written."""


class ForecastAnswer(Body):
    step: int
    forecast: Annotated[
        dict[str, list[Said | list[list[str | int]]]],
        Field(
            description="the head's first output, each step fed back as the next input; of sample paths mean and "
            "quantiles, or top and probability of categories, a row a step, and paths, a list a path"
        ),
    ]
    seed: Annotated[int | None, Field(description="of sample paths: it draws the same again")] = None
    samples: int | None = None
    levels: Annotated[list[float] | None, Field(description="of the quantiles, in their order")] = None


class TokenEvent(Body):
    ahead: Annotated[int, Field(description="how many steps ahead of the session, from 1")]
    token: str | int
    log_probability: Annotated[float, Field(description="the model's own, whatever it was drawn by")]
    top: Annotated[list[str | int | None] | None, Field(description="the likeliest, null for any other")] = None
    log_probabilities: list[float] | None = None


class ValuesEvent(Body):
    ahead: int
    values: Annotated[list[float], Field(description="in the order of the targets")]


class EndEvent(Body):
    """Of the event `done`."""

    reason: Literal["horizon", "stop"]
    seed: Annotated[int, Field(description="it draws the same again")]
    step: Annotated[int, Field(description="of the session, which did not move")]
    text: Annotated[str | None, Field(description="all that was drawn, where the model reads a text")] = None


class GeneratedEvent(RootModel[TokenEvent | ValuesEvent | EndEvent | Problem]):
    """The data of each event; the event `problem` has a Problem."""


class SequenceAnswer(Predictions):
    forecast: Rows | None = None


class PredictAnswer(Body):
    model: str
    version: int
    sequences: list[SequenceAnswer]


class SurpriseInfo(Body):
    count: int
    mean: float
    recent: Annotated[float, Field(description="a mean that forgets: the last input weighs 0.1")]


class SessionInfo(Body):
    session_id: str
    model: str
    version: int
    step: int
    created_at: str
    last_step_at: str
    expires_at: str
    ttl_s: float
    surprise: Annotated[SurpriseInfo | None, Field(description="null before the first input")]


class TargetAccuracy(Body):
    """Of the inputs so far; null where the model does not say what it takes, or nothing came yet."""

    inputs: Annotated[int, Field(description="those that had a prediction")]
    mae: Annotated[float | None, Field(description="mean absolute error")]
    mase: Annotated[float | None, Field(description="mae over that of the value before as the prediction")]
    coverage: Annotated[float | None, Field(description="share of inputs inside the model's own central interval")]
    level: Annotated[float | None, Field(description="share that this interval should hold")]
    hits: Annotated[float | None, Field(description="share of inputs that were the likeliest category")]


class IntervalInfo(Body):
    """Of intervals that are corrected by how often they missed."""

    wanted: float
    coverage: Annotated[dict[str, float | None], Field(description="share of inputs that they held, by target")]
    alpha: Annotated[dict[str, float], Field(description="the share that is left out at present, by target")]


class SessionDetail(SessionInfo):
    accuracy: Annotated[dict[str, TargetAccuracy] | None, Field(description="by target; null where none is known")]
    interval: IntervalInfo | None


class CreatedSession(SessionInfo):
    prediction: Annotated[dict[str, Said], Field(description="of the next input; empty where the model keeps none")]


class MigratedSession(SessionInfo):
    replayed: Annotated[int, Field(description="how many of the session's last inputs made its state anew")]


class SessionList(Body):
    sessions: list[SessionInfo]
    after: Annotated[str | None, Field(description="pass it as ?after= for the next page; null at the end")]


class ModelInfo(Body):
    name: str
    versions: list[int]
    task: str
    description: str
    features: list[str]
    targets: list[str]
    live_sessions: int


class Refused(Body):
    file: str
    reason: str


class ModelList(Body):
    models: list[ModelInfo]
    refused: Annotated[list[Refused], Field(description="bundles that failed verification and are not served")]


class FeatureInfo(Body):
    name: str
    kind: Annotated[str, Field(description="number or category")]
    role: Annotated[str, Field(description="observed, known in advance, or static: the same for a whole session")]
    nullable: Annotated[bool, Field(description="whether null may stand for a missing value")]
    formula: Annotated[str | None, Field(description="how the client computes it, where it is not measured")]
    categories: Annotated[list[str | int], Field(description="what a category may be")]
    unknown: Annotated[bool, Field(description="whether other categories are taken, all of them alike")]
    text: Annotated[str | None, Field(description="characters or bytes, where inputs may be a text")]


class ModelDetail(ModelInfo):
    version: int
    inputs: Annotated[list[FeatureInfo], Field(description="what a step is made of, in order")]
    head: dict[str, Any]
    exact: bool
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    sha256: str
    state_bytes: int


class Status(Body):
    status: str


class Ready(Status):
    models: dict[str, list[int]]


class Index(Body):
    service: str
    version: str
    links: dict[str, str]


B = TypeVar("B", bound=Body)


def broken_off(why: str) -> RequestError:
    detail = f"the body is not whole: {why}"
    return RequestError(HTTP_KINDS[400], detail, [Fault("body", detail)])


def read(form: type[B], *, optional: bool = False) -> B:
    """The request's body as `form`; an empty one as its defaults where it is optional.

    Raises RequestError, ValidationError, or werkzeug's 413.
    """
    data = received(optional=optional)
    return form() if optional and not data else form.model_validate_json(data)


def received(*, optional: bool = False) -> bytes:
    """The request's body, whole and said to be JSON. Raises RequestError, or werkzeug's 413."""
    if request.content_encoding not in (None, "identity"):
        detail = f"Content-Encoding {request.content_encoding!r} is not supported; send the JSON as it is"
        raise RequestError(MEDIA, detail, [Fault("Content-Encoding", detail)])
    try:
        data = request.get_data(cache=False)
    except (OSError, ParseException) as error:  # gunicorn's, of a chunked body whose framing is broken
        raise broken_off(str(error)) from error
    if request.content_length not in (None, len(data)):
        raise broken_off(f"{len(data)} of {request.content_length} bytes came")
    if request.content_length is None and len(data) == request.max_content_length:
        raise RequestEntityTooLarge  # werkzeug cuts a chunked body off at the limit, without a word
    if request.mimetype != "application/json" and (data or not optional):
        detail = f"expected Content-Type: application/json, not {request.mimetype or 'none'}"
        raise RequestError(MEDIA, detail, [Fault("Content-Type", detail)])
    return data
