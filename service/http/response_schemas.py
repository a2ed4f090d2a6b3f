"""The responses as pydantic models, from which the OpenAPI document is made.

Responses are encoded without these models, which would cost time; tests validate responses against them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, Json, RootModel

from onward.model.scoring.anomaly import AnomalyKind
from onward.model.tables.settings import TableSettings
from onward.model.transforms import Transform
from onward.service.http.request_schemas import Body

Doubles = Annotated[
    Literal["float64"] | None,
    Field(description="named where the model is in double precision; all other numbers have 32 bits"),
]
OutputValues = list[float] | list[list[float]] | list[str | int | None]
"""The output of one step: a number a target, or a row of numbers a target, such as a number a quantile level; or
categories, null for a category outside of the model's list.
"""
Rows = dict[str, list[OutputValues]]


class Predictions(Body):
    """Predictions of the next input, a row a step: the head's parameters by name, in the targets' order."""

    predictions: Annotated[Rows, Field(description="by output of the head, such as mean and std")]
    surprise: Annotated[
        list[float] | None, Field(description="the score of each input under the prediction made before it")
    ] = None
    dtype: Doubles = None


class Bounds(Body):
    """Prediction intervals of the next input, after each step; null before the first, or if it would be unbounded."""

    low: list[list[float | None]]
    high: list[list[float | None]]


class Scores(Body):
    """Scores of the prediction made before each input; null where the input, or a target of it, is missing."""

    error: Annotated[
        list[list[float | None]] | None, Field(description="the input minus its prediction, by target")
    ] = None
    anomaly: Annotated[
        list[float | None] | None,
        Field(description="from 0 to 1, how unusual the input is for the session; null in the first 19 inputs"),
    ] = None
    interval: Annotated[Bounds | None, Field(description="of a session that asked for intervals")] = None


class Problem(BaseModel):
    """RFC 9457. Some types carry more members, such as `expected_step`, `reason` and `ended_at`."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] = []
    more_errors: Annotated[int, Field(description="how many faults are not among the errors")] = 0


class StepAnswer(Predictions, Scores):
    step: Annotated[int, Field(description="inputs consumed so far")]


class HeldAnswer(Predictions):
    step: Annotated[int, Field(description="inputs consumed so far")]
    state: Annotated[str, Field(description="to send with the next step; encrypted and authenticated by the service")]


class ItemAnswer(Scores):
    session_id: str
    status: Annotated[int, Field(description="the status that a request for this step alone would have had")]
    step: int | None = None
    predictions: Rows | None = None
    surprise: list[float] | None = None
    dtype: Doubles = None
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
        dict[str, list[list[OutputValues] | None]],
        Field(description="by output of the head, and session, the rows of its steps"),
    ]
    surprise: list[list[float] | None] = Field(default_factory=list)
    error: list[list[list[float | None]] | None] = Field(default_factory=list)
    anomaly: list[list[float | None] | None] = Field(default_factory=list)
    interval: Annotated[ColumnBounds | None, Field(description="by bound, and session")] = None
    dtype: Doubles = None
    problems: Annotated[dict[str, Problem], Field(description="by index in the request, where the status is not 200")]


class BulkAnswer(RootModel[ManyAnswer | ColumnsAnswer]):
    """The form of the request: items or columns."""


class ForecastAnswer(Body):
    step: int
    forecast: Annotated[
        dict[str, list[OutputValues | list[list[str | int]]]],
        Field(
            description="the head's first output, each step fed back as the next input; of sample paths mean and "
            "quantiles, or top and probability of categories, a row a step, and paths, a list a path"
        ),
    ]
    seed: Annotated[int | None, Field(description="of sample paths: the same seed draws the same paths again")] = None
    samples: int | None = None
    levels: Annotated[list[float] | None, Field(description="of the quantiles, in their order")] = None
    dtype: Doubles = None


class TokenEvent(Body):
    ahead: Annotated[int, Field(description="how many steps ahead of the session, from 1")]
    token: str | int
    log_probability: Annotated[float, Field(description="by the model, before temperature, top_k, top_p and penalty")]
    top: Annotated[list[str | int | None] | None, Field(description="the likeliest, null for any other")] = None
    log_probabilities: list[float] | None = None


class ValuesEvent(Body):
    ahead: int
    values: Annotated[list[float], Field(description="in the order of the targets")]
    dtype: Doubles = None


class EndEvent(Body):
    """The data of the event `done`."""

    reason: Literal["horizon", "stop"]
    seed: Annotated[int, Field(description="the same seed draws the same again")]
    step: Annotated[int, Field(description="of the session, which did not move")]
    text: Annotated[str | None, Field(description="all that was drawn, where the model reads a text")] = None


EventId = Annotated[str, Field(description="opaque; as Last-Event-ID, the draw goes on after this event")]


class StepEvent(Body):
    """The event of a step. It has no name: a browser calls it `message`."""

    id: EventId
    data: Json[TokenEvent | ValuesEvent]


class DoneEvent(Body):
    """The last event."""

    event: Literal["done"]
    id: EventId
    data: Json[EndEvent]


class ProblemEvent(Body):
    """The last event, if the generation failed."""

    event: Literal["problem"]
    id: EventId
    data: Json[Problem]


class GeneratedEvents(RootModel[list[StepEvent | DoneEvent | ProblemEvent]]):
    """Server-Sent Events in their order, each by its fields; `data` is one line of JSON."""


class EndedSessions(Body):
    ended: int
    more: Annotated[bool, Field(description="whether more may be left: call again")]


class SequenceAnswer(Predictions):
    forecast: Rows | None = None


class PredictAnswer(Body):
    model: str
    version: int
    sequences: list[SequenceAnswer]


class SurpriseInfo(Body):
    count: int
    mean: float
    recent: Annotated[float, Field(description="an exponential moving mean: the last input weighs 0.1")]


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


class RecentAccuracy(Body):
    """Accuracy over the last inputs; null before the first, or where the model has no such prediction."""

    inputs: Annotated[int, Field(description="inputs that had a prediction")]
    mae: Annotated[float | None, Field(description="mean absolute error")]
    mase: Annotated[float | None, Field(description="mae over the mae of the naive prediction, the value before")]
    coverage: Annotated[float | None, Field(description="share of inputs inside the model's own central interval")]
    hits: Annotated[float | None, Field(description="share of inputs that were the likeliest category, and listed")]


class TargetAccuracy(RecentAccuracy):
    """Accuracy over all inputs so far; null before the first, or where the model has no such prediction."""

    level: Annotated[float | None, Field(description="nominal coverage of the model's own central interval")]
    recent: Annotated[
        RecentAccuracy,
        Field(description="the same over the last 100 to 199 inputs, or over all if there were fewer than 100"),
    ]


class IntervalInfo(Body):
    """Adaptive conformal intervals, corrected by how often they missed (Gibbs and Candès 2021)."""

    wanted: float
    coverage: Annotated[dict[str, float | None], Field(description="share of inputs inside the intervals, by target")]
    alpha: Annotated[dict[str, float], Field(description="the current miscoverage, by target")]
    recent_coverage: Annotated[
        dict[str, float | None], Field(description="the coverage over the last 100 to 199 inputs, by target")
    ]


class SessionDetail(SessionInfo):
    accuracy: Annotated[dict[str, TargetAccuracy] | None, Field(description="by target; null where the model has none")]
    interval: IntervalInfo | None
    anomaly: Annotated[AnomalyKind | None, Field(description="what its anomaly is; null where the model has none")]


class CreatedSession(SessionInfo):
    prediction: Annotated[
        dict[str, OutputValues], Field(description="of the next input; empty where the model keeps none")
    ]
    dtype: Doubles = None


class MigratedSession(SessionInfo):
    replayed: Annotated[int, Field(description="the number of the session's last inputs that were replayed")]


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
    lead: Annotated[
        int,
        Field(
            description="1: a step has the feature's value at the step that is predicted, such as tomorrow's plan with "
            "today's observations; 0: the value at the step itself"
        ),
    ]
    nullable: Annotated[bool, Field(description="whether null may stand for a missing value")]
    formula: Annotated[str | None, Field(description="how the client computes it, where it is not measured")]
    categories: Annotated[list[str | int], Field(description="what a category may be")]
    unknown: Annotated[bool, Field(description="whether other categories are taken, all of them alike")]
    text: Annotated[str | None, Field(description="characters or bytes, if inputs may be a text")]
    differenced: Annotated[
        bool, Field(description="whether the model reads differences; a client sends the values themselves")
    ]
    transform: Annotated[
        Transform | None,
        Field(description="the transform that the model applies; a client sends and receives the values themselves"),
    ]
    limits: Annotated[
        tuple[float, float] | None, Field(description="the lowest and the highest number that is taken; null: any")
    ]


class ModelDetail(ModelInfo):
    version: int
    inputs: Annotated[list[FeatureInfo], Field(description="what a step is made of, in order")]
    head: dict[str, Any]
    data: Annotated[
        TableSettings | None, Field(description="how the table of the training was read, for reading others alike")
    ]
    exact: bool
    dtype: Annotated[str, Field(description="of inputs and outputs, in binary messages too: float32 or float64")]
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    sha256: str
    state_bytes: int


class Status(Body):
    status: str


class Ready(Status):
    models: dict[str, list[int]]
    refused: Annotated[list[Refused], Field(description="bundles that failed verification and are not served")]
    unserved_sessions: Annotated[
        dict[str, int],
        Field(description="living sessions whose version is not served here, by that version, such as pulse/1"),
    ]


class Index(Body):
    service: str
    version: str
    links: dict[str, str]
