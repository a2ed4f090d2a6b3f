"""The bodies of requests as pydantic models, from which the OpenAPI document is made too.

Numbers are strict: a text is not a number, and NaN and Infinity are refused.
"""

from itertools import chain
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    RootModel,
    Tag,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from onward.model.scoring.anomaly import AnomalyKind

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


Value = Number | Annotated[int, Field(strict=True)] | Annotated[str, Field(strict=True)] | None


def _form(steps: Any) -> str:
    """The tag of the form in which steps are written; the first entry of a list decides."""
    if isinstance(steps, str):
        return "@text"
    first = steps[0] if isinstance(steps, list) and steps else []
    if isinstance(first, dict):
        return "@named"
    return "@rows" if isinstance(first, list) else "@values"


_VALUES = frozenset({int, float, str, type(None)})


def plain_inputs(inputs: Any) -> bool:
    """True if the inputs are steps of one form. `map` collects the types, without a line of Python for each value.

    Only for inputs that orjson has parsed, which refuses numbers that are not finite.
    """
    if type(inputs) is not list or not inputs:
        return type(inputs) is str and inputs != ""
    if len(inputs) == 1 and type(step := inputs[0]) is list and len(step) == 1:
        return type(step[0]) in _VALUES
    kinds = set(map(type, inputs))
    if kinds == {list}:
        return all(inputs) and set(map(type, chain.from_iterable(inputs))) <= _VALUES
    if kinds == {dict}:
        return all(inputs) and set(map(type, chain.from_iterable(map(dict.values, inputs)))) <= _VALUES
    return kinds <= _VALUES


def texts_in(inputs: Any) -> int:
    """The number of texts among plain inputs; keys of objects do not count."""
    if type(inputs) is str:
        return 1
    values = chain.from_iterable(inputs) if type(inputs[0]) is list else inputs
    return list(map(type, values)).count(str)


def _unless_plain(inputs: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    return inputs if info.mode == "python" and plain_inputs(inputs) else validate(inputs)


# The first fault is enough: collecting a million faults would take seconds.
_STEPS = Field(min_length=1, fail_fast=True)
Inputs = Annotated[
    Annotated[list[Annotated[list[Value], _STEPS]], _STEPS, Tag("@rows")]
    | Annotated[list[Value], _STEPS, Tag("@values")]
    | Annotated[list[dict[str, Value]], _STEPS, Tag("@named")]
    | Annotated[str, Field(strict=True, min_length=1), Tag("@text")],
    Discriminator(_form),
    WrapValidator(_unless_plain),
    Field(
        description="Steps, oldest first: lists of values in the order of the model's features, or objects by feature "
        "name, or single values where the model has one feature, or a text where the model reads one. A value is a "
        "number, a category (or, where the categories are words, its index), or null where it may be missing.",
        examples=[[[506.0], [511.0]], [{"ppg": 506.0}], [506.0, 511.0], "The next "],
    ),
]
SESSION_ID = r"[A-Za-z0-9][A-Za-z0-9._~:-]{0,127}"
MODEL_NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
REQUEST_ID = r"[\x21-\x7e]{1,128}"
SessionId = Annotated[str, Field(pattern=f"^{SESSION_ID}$", description="1 to 128 letters, digits and . _ ~ : -")]
Version = Annotated[int, Field(strict=True, ge=1, description="a version of the model; the highest if left out")]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # most are never validated


TtlS = Annotated[
    float, Field(strict=True, gt=0, le=31_536_000, allow_inf_nan=False, description="idle seconds before it expires")
]


Interval = Annotated[
    float,
    Field(strict=True, ge=0.5, le=0.99, description="the share of inputs that the intervals in responses should cover"),
]


AnomalyOption = Annotated[
    AnomalyKind,
    Field(description="what `anomaly` in responses is: run (default), tail or rank; see docs/api.md"),
]


class CreateSession(Body):
    session_id: SessionId | None = None
    version: Version | None = None
    ttl_s: TtlS | None = None
    inputs: Inputs | None = None
    interval: Interval | None = None
    anomaly: AnomalyOption | None = None


class EnsureSession(Body):
    """The fields that a living session must agree with; a field that is left out may have any value."""

    version: Version | None = None
    ttl_s: TtlS | None = None
    inputs: Inputs | None = None
    interval: Interval | None = None
    anomaly: AnomalyOption | None = None


class ForkSession(Body):
    session_id: SessionId | None = None
    ttl_s: TtlS | None = None


class Rewind(Body):
    step: Annotated[int, Field(strict=True, ge=0, lt=2**63, description="to go back to")]


class Migrate(Body):
    version: Version | None = None


class Exported(Body):
    """A session to transfer; it can be restored only unchanged."""

    model: str | None = None
    version: int | None = None
    step: int | None = None
    state: Annotated[str, Field(max_length=2**27, description="the record, signed; base64")]


class HeldStep(Body):
    inputs: Inputs
    state: Annotated[
        str | None, Field(max_length=2**27, description="of the response before; without it, a new state begins")
    ] = None
    version: Version | None = None


ExpectedStep = Annotated[
    int, Field(strict=True, ge=0, lt=2**63, description="the step that the session is believed to have reached")
]
RequestId = Annotated[
    str, Field(pattern=f"^{REQUEST_ID}$", description="makes a retry safe: the same id gets the same response")
]


class Step(Body):
    inputs: Inputs
    step: ExpectedStep | None = None
    request_id: RequestId | None = None


class Line(RootModel[list[Value] | dict[str, Value] | Value]):
    """A step, as `inputs` has it: a list in the order of the features, an object by their names, or a single value."""


CREATES = "creates the session on the newest version of this model where there is none"
ModelName = Annotated[str, Field(pattern=f"^{MODEL_NAME}$", description=CREATES)]


class Item(Step):
    session_id: SessionId
    model: ModelName | None = None


MOST_ITEMS = 10_000
_ITEMS = Field(min_length=1, max_length=MOST_ITEMS, fail_fast=True)
_COLUMN = Field(max_length=MOST_ITEMS, fail_fast=True)


class Many(Body):
    """Steps of many sessions, one item each; the items of one session run in their order."""

    items: Annotated[
        list[Item],
        _ITEMS,
        Field(description="their inputs have at most ONWARD_MAX_STEPS steps together"),
    ]


class Columns(Body):
    """Steps of many sessions in columns; entries at the same index belong together."""

    session_ids: Annotated[list[SessionId], _ITEMS]
    inputs: Annotated[
        list[Inputs],
        _COLUMN,
        Field(description="of each session, as in a step of its own; at most ONWARD_MAX_STEPS together"),
    ]
    steps: Annotated[list[ExpectedStep | None], _COLUMN] | None = None
    request_ids: Annotated[list[RequestId | None], _COLUMN] | None = None
    models: Annotated[list[ModelName | None], _COLUMN] | None = None


class Bulk(RootModel[Many | Columns]):
    """Steps of many sessions, as items or as columns."""


Seed = Annotated[
    int,
    Field(
        strict=True,
        ge=0,
        lt=2**63,
        description="the same seed draws the same paths; if left out, the service chooses one",
    ),
]
Levels = Annotated[
    list[Annotated[float, Field(strict=True, gt=0, lt=1)]],
    Field(min_length=1, max_length=99, fail_fast=True, description="of the quantiles in the response, rising"),
]


class Ahead(Body):
    horizon: Annotated[int, Field(strict=True, ge=1, le=2**31, description="how many steps ahead")]
    inputs: Annotated[Inputs | None, Field(description="consumed first, as by a step; the session does not change")] = (
        None
    )
    future: Annotated[
        Inputs | None,
        Field(
            description="future covariates: the values of the features that are not predicted, in the model's order, "
            "as a step would have them, at each step that is fed back: at least horizon - 1 steps, at most "
            "ONWARD_MAX_HORIZON. A feature with lead 1 has in each of them its value at the step after it"
        ),
    ] = None
    seed: Seed | None = None


class Forecast(Ahead):
    samples: Annotated[
        int | None,
        Field(strict=True, ge=2, description="how many paths are drawn; times the horizon at most ONWARD_MAX_STEPS"),
    ] = None
    quantiles: Levels | None = None
    paths: Annotated[bool, Field(strict=True, description="whether the response has the paths themselves")] = False


MOST_STOPS, MOST_IN_STOPS = 100, 10_000


def _short(stops: list[str | int]) -> list[str | int]:
    if sum(len(stop) for stop in stops if isinstance(stop, str)) > MOST_IN_STOPS:
        raise ValueError(f"at most {MOST_IN_STOPS} characters in all")
    return stops


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
    top_k: Annotated[int | None, Field(strict=True, ge=1, description="draw among this many likeliest categories")] = (
        None
    )
    top_p: Annotated[
        float | None,
        Field(
            strict=True,
            gt=0,
            le=1,
            description="draw among the fewest likeliest categories whose probability reaches this sum",
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        Field(strict=True, ge=1, le=100, description="multiplies the log-probability of categories that came before"),
    ] = None
    stop: Annotated[
        Annotated[
            list[Annotated[str, Field(strict=True, min_length=1)] | Annotated[int, Field(strict=True)]],
            Field(min_length=1, max_length=MOST_STOPS, fail_fast=True),
            AfterValidator(_short),
        ]
        | None,
        Field(
            description="end after one of these: categories, or texts where the model reads one; "
            f"at most {MOST_IN_STOPS:,} characters in all",
        ),
    ] = None
    logprobs: Annotated[
        int | None, Field(strict=True, ge=1, description="the number of likeliest categories to list")
    ] = None


class Predict(Body):
    inputs: Annotated[
        list[Inputs],
        Field(
            min_length=1,
            fail_fast=True,
            description="sequences, each a list of steps; lengths may differ. All of them, "
            "each with its horizon, have at most ONWARD_MAX_STEPS steps together",
        ),
    ]
    version: Version | None = None
    horizon: Annotated[int, Field(strict=True, ge=0, le=2**31, description="steps to roll each sequence forward")] = 0
