"""The manifest of a bundle: tensors, state pairs, features, head, provenance and parity vectors.

Owns the format of `manifest.json`. Knows nothing of the layout of folders, ONNX Runtime, sessions or training.

Shapes name their axes: `["time", "batch", 3]` is a tensor whose first axis is time and whose second is the batch. A
tensor without a `"time"` axis takes one step a call; a tensor without `"batch"` is shared by all rows. Each tensor
declares its own axes, so that a third-party graph needs no convention.
"""

from functools import cached_property
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from onward.model.errors import BundleError
from onward.model.tables.settings import TableSettings
from onward.model.transforms import Transform, Transforms

TIME, BATCH = "time", "batch"
RANKED = ("top", "log_probability")
"""The outputs of heads that rank categories: indices of the likeliest ones, and their log-probabilities."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Dim = Annotated[int, Field(gt=0)] | Literal["time", "batch"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Dtype = Literal["float32", "float64", "int32", "int64", "uint8"]
Score = Literal[
    "negative_log_likelihood",
    "scaled_absolute_error",
    "scaled_squared_error",
    "scaled_huber_loss",
    "scaled_quantile_loss",
    "bayesian_surprise",
]
"""The score that a surprise is: in nats, or an error in units of the target's deviation."""
Category = str | int
RESERVED = "onward."
"""The prefix of names that no output of a graph may have."""
Nested = list[Any]
"""Numbers nested as an array's `tolist()` nests them."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tensor(Frozen):
    """A tensor of the graph, under the graph's name; `shape` names the time and batch axes."""

    name: str
    shape: tuple[Dim, ...]
    dtype: Dtype = "float32"

    @field_validator("shape")
    @classmethod
    def _axes_appear_once(cls, shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
        for axis in (TIME, BATCH):
            if shape.count(axis) > 1:
                raise ValueError(f"the axis {axis!r} appears {shape.count(axis)} times")
        return shape

    def axis(self, name: Literal["time", "batch"]) -> int | None:
        """Returns the index of the named axis, or None if the tensor has no such axis."""
        return self.shape.index(name) if name in self.shape else None

    @property
    def inner(self) -> tuple[int, ...]:
        """The shape of one row at one step: all axes but time and batch."""
        return tuple(dim for dim in self.shape if isinstance(dim, int))


class Part(Frozen):
    """Consecutive elements of one row of a state tensor."""

    name: str
    size: Annotated[int, Field(gt=0)]


class StatePair(Frozen):
    """A tensor that is carried from step to step: the graph reads it as `input` and returns it as `output`.

    `init` is its initial value: one number for all elements, or nested numbers in the shape of one row. `parts` divide
    a row, with its axes in the order of `shape`, into values that were joined into one tensor, in order.
    """

    input: str
    output: str
    shape: tuple[Dim, ...]
    dtype: Dtype = "float32"
    init: float | Nested = 0.0
    parts: tuple[Part, ...] = ()

    def tensor(self, name: str) -> Tensor:
        return Tensor(name=name, shape=self.shape, dtype=self.dtype)

    @model_validator(mode="after")
    def _has_batch_axis_only(self) -> Self:
        if BATCH not in self.shape or TIME in self.shape:
            raise ValueError(f"state {self.input!r} needs a batch axis and no time axis, not {list(self.shape)}")
        return self

    @model_validator(mode="after")
    def _parts_divide_a_row(self) -> Self:
        if not self.parts:
            return self
        names, row = [part.name for part in self.parts], prod(self.tensor(self.input).inner)
        if len(set(names)) != len(names):
            raise ValueError(f"state {self.input!r} has two parts of one name")
        if (size := sum(part.size for part in self.parts)) != row:
            raise ValueError(f"the parts of state {self.input!r} have {size} elements, but a row has {row}")
        return self


class Feature(Frozen):
    """A feature: one number of a step. The graph receives a category as its index and a missing value as NaN."""

    name: str
    kind: Literal["number", "category"] = "number"
    role: Literal["observed", "known", "static"] = "observed"
    """Observed at its step; known in advance, such as the hour; or constant over a session."""
    lead: Literal[0, 1] = 0
    """The number of steps by which a value is ahead of the others of its step: with 1 it is the value at the step that
    is predicted, so that a client sends the plan for tomorrow with what was observed today."""
    nullable: bool = False
    """True if values may be missing; the model receives a mask of them."""
    formula: str | None = None
    """The formula of a feature that is computed rather than measured, for clients to compute it in the same way."""
    categories: tuple[Category, ...] = ()
    unknown: bool = False
    """True if values beyond the categories are allowed; all of them have the index after the last category."""
    text: Literal["characters", "bytes"] | None = None
    """The units into which a text is split for this feature's values."""
    differenced: bool = False
    """True if the graph reads the difference from the last value present; clients send the values themselves."""
    transform: Transform | None = None
    """The transform that the graph applies to the values, before differences are taken; clients send the values."""
    limits: tuple[Finite, Finite] | None = None
    """The lowest and the highest number that is accepted; None: any number."""

    @cached_property
    def category_index(self) -> dict[Category, int]:
        """The index of each category."""
        return {category: index for index, category in enumerate(self.categories)}

    @property
    def category_count(self) -> int:
        """The number of indices of categories, with the one for unknown values if they are allowed."""
        return len(self.categories) + self.unknown

    @model_validator(mode="after")
    def _kind_is_consistent(self) -> Self:
        if (self.kind == "category") != bool(self.categories):
            raise ValueError(f"feature {self.name!r}: categories are listed for a category, and only for one")
        if len(set(self.categories)) != len(self.categories):
            raise ValueError(f"feature {self.name!r}: a category is listed twice")
        if len({type(category) for category in self.categories}) > 1:
            raise ValueError(f"feature {self.name!r}: categories are all strings or all whole numbers")
        if self.kind == "number" and (self.unknown or self.text):
            raise ValueError(f"feature {self.name!r}: a number is neither unknown nor cut from a text")
        if self.kind == "category" and self.transform:
            raise ValueError(f"feature {self.name!r}: a category has no transform")
        if self.lead and self.role != "known":
            raise ValueError(f"feature {self.name!r}: only a feature that is known in advance can have a lead")
        if self.limits is not None and (self.kind != "number" or self.limits[0] > self.limits[1]):
            raise ValueError(f"feature {self.name!r}: limits are the lowest and the highest of its numbers")
        return self


class Stored(Frozen):
    """A reference to an output's last value in the state: the tensor of the input `state`, or a part of that tensor."""

    state: str
    part: str | None = None

    @property
    def label(self) -> str:
        """The name under which `onward.model.state.Layout.parts` has the value."""
        return part_label(self.state, self.part)


def part_label(state: str, part: str | None) -> str:
    """Returns a name for a state tensor, or for a part of it."""
    return state if part is None else f"{state}.{part}"


class Head(Frozen):
    """The meaning of the graph's outputs: a prediction of the next input, or of a label.

    `outputs` name the parameters of the prediction; a rollout feeds back the first one as the next input. `targets` are
    the predicted features, in the outputs' order, or the label's name. `surprise` is the output with the score of each
    input under the prediction made before it, and `score` the kind of that score. `last` maps each output to the state
    tensor, or the part of one, that holds it for the next step, so that a session can be forecast from its state alone;
    a string in its place names a whole tensor. The heads `categorical` and `label` output `top`, the indices of the
    likeliest categories or classes in falling order, and their `log_probability`.

    `transforms` are those of the targets, if any of them has one. The first output and `quantiles` are in the data's
    units nonetheless; the outputs `location`, `scale` and `df` are the parameters of the distribution of the
    transformed targets. The first output is the mean where the distribution is normal, and otherwise the median.
    """

    kind: Literal["point", "gaussian", "student_t", "quantiles", "categorical", "label"]
    outputs: Annotated[tuple[str, ...], Field(min_length=1)]
    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    surprise: str | None = None
    score: Score | None = None
    levels: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """The levels along the last axis of the output `quantiles`, if the head has it."""
    last: dict[str, Stored] = {}
    classes: tuple[Category, ...] = ()
    """The classes of the head `label`, in the order of their indices."""
    transforms: Transforms = ()
    per: Literal["step", "sequence"] = "step"
    """Whether each step has a label or the whole sequence has one; then the last prediction counts."""

    @field_validator("last", mode="before")
    @classmethod
    def _a_string_names_a_whole_tensor(cls, last: Any) -> Any:
        if not isinstance(last, dict):
            return last
        return {name: {"state": stored} if isinstance(stored, str) else stored for name, stored in last.items()}

    @property
    def ranks_categories(self) -> bool:
        """True if the outputs are indices of categories in falling order of their probability."""
        return self.kind in ("categorical", "label")

    @property
    def last_ranking(self) -> tuple[str, str] | None:
        """The labels of what holds the last ranking in the state: indices and log-probabilities."""
        labels = tuple(self.last[name].label for name in RANKED if name in self.last)
        return (labels[0], labels[1]) if len(labels) == len(RANKED) else None


class Parity(Frozen):
    """Parity vectors: inputs, and the outputs of the trained network from the initial state; rows are ragged.

    inputs: (batch, time, features), null if a value is missing; lengths: (batch,); outputs: name -> (batch, time, ...).
    Values beyond a row's length are padding. The graph must agree within `tolerance` times the largest magnitude of
    each output; indices of categories may differ if their probabilities agree as closely.
    """

    inputs: Nested
    lengths: list[int]
    outputs: dict[str, Nested]
    tolerance: Annotated[float, Field(gt=0, le=1e-2)] = 1e-4


class Manifest(Frozen):
    """`manifest.json`: the whole contract of one version of one model."""

    format: Literal[1] = 1
    name: Name
    version: Annotated[int, Field(ge=1)]
    task: Literal["forecast", "tokens", "label"]
    description: str = ""
    inputs: Annotated[tuple[Tensor, ...], Field(min_length=1, max_length=1)]
    lengths: Tensor
    outputs: Annotated[tuple[Tensor, ...], Field(min_length=1)]
    state: Annotated[tuple[StatePair, ...], Field(min_length=1)]
    features: Annotated[tuple[Feature, ...], Field(min_length=1)]
    head: Head
    data: TableSettings | None = None
    """The settings of the table that the model learnt from, by which every command reads other tables alike."""
    exact: bool
    """True if a row's outputs have the same bits alone, in any batch, and in any chunks (LSTM and GRU: yes)."""
    metrics: dict[str, JsonValue] = {}
    provenance: dict[str, JsonValue] = {}
    parity: Parity
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """The digest of `model.onnx`."""

    @model_validator(mode="after")
    def _names_are_consistent(self) -> Self:
        for what, names in (
            ("output", [tensor.name for tensor in self.outputs]),
            ("state input", [pair.input for pair in self.state]),
            ("state output", [pair.output for pair in self.state]),
            ("feature", list(self.feature_names)),
            ("target", list(self.head.targets)),
        ):
            if repeated := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{what} named twice: {', '.join(sorted(repeated))}")
        if reserved := [tensor.name for tensor in self.outputs if tensor.name.startswith(RESERVED)]:
            raise ValueError(f"names that begin with {RESERVED!r} are not for outputs: {', '.join(reserved)}")
        for tensor in (*self.inputs, *self.outputs):
            if TIME not in tensor.shape or BATCH not in tensor.shape:
                raise ValueError(f"tensor {tensor.name!r} needs a time and a batch axis, not {list(tensor.shape)}")
        if self.inputs[0].dtype not in ("float32", "float64"):
            raise ValueError(f"input {self.inputs[0].name!r} is {self.inputs[0].dtype}; inputs are float32 or float64")
        if self.inputs[0].inner != (len(self.features),):
            raise ValueError(
                f"input {self.inputs[0].name!r} has shape {list(self.inputs[0].shape)}, "
                f"but there are {len(self.features)} features"
            )
        return self

    @model_validator(mode="after")
    def _head_is_consistent(self) -> Self:
        outputs = {tensor.name: tensor for tensor in self.outputs}
        states = {pair.input: pair for pair in self.state}
        named = [*self.head.outputs, *([self.head.surprise] if self.head.surprise else []), *self.head.last]
        if missing := [name for name in named if name not in outputs]:
            raise ValueError(f"the head names outputs that are not declared: {', '.join(missing)}")
        if missing := [stored.state for stored in self.head.last.values() if stored.state not in states]:
            raise ValueError(f"the head names state that is not declared: {', '.join(missing)}")
        for name, stored in self.head.last.items():
            _check_stored(outputs[name], stored, states[stored.state])
        if self.head.ranks_categories:
            self._check_ranking_head(outputs)
        else:
            self._check_number_head(outputs)
        return self

    def _check_number_head(self, outputs: dict[str, Tensor]) -> None:
        if sorted(set(self.head.levels)) != list(self.head.levels):
            raise ValueError("the head's levels do not rise")
        for name in self.head.outputs:
            levels = (len(self.head.levels),) if name == "quantiles" else ()
            if outputs[name].inner != (len(self.head.targets), *levels):
                raise ValueError(
                    f"output {name!r} has shape {list(outputs[name].shape)}, "
                    f"but there are {len(self.head.targets)} targets" + (f" and {levels[0]} levels" if levels else "")
                )
        if missing := [name for name in self.head.targets if name not in self.feature_names]:
            raise ValueError(f"targets that are not features: {', '.join(missing)}")
        if wrong := [name for name in self.head.targets if self.feature(name).kind != "number"]:
            raise ValueError(f"the head {self.head.kind} predicts numbers, not {', '.join(wrong)}")
        transforms = tuple(self.feature(name).transform for name in self.head.targets)
        if self.head.transforms != (transforms if any(transforms) else ()):
            raise ValueError("the head's transforms are not those of its targets")

    def _check_ranking_head(self, outputs: dict[str, Tensor]) -> None:
        if self.head.outputs != RANKED:
            raise ValueError(f"the head {self.head.kind} has the outputs {', '.join(RANKED)}")
        if len(self.head.targets) != 1:
            raise ValueError(f"the head {self.head.kind} predicts one target, not {len(self.head.targets)}")
        if self.head.kind == "categorical" and self.head.targets[0] not in self.feature_names:
            raise ValueError(f"the target {self.head.targets[0]!r} is not a feature")
        top, scores = (outputs[name] for name in RANKED)
        if top.dtype != "int64" or top.inner != scores.inner or len(top.inner) != 1:
            raise ValueError("the outputs top and log_probability have one shape, of one axis, and top is int64")
        if not self.categories or top.inner[0] > self.category_count:
            raise ValueError(f"there are {self.category_count} categories, and the output top has {top.inner[0]}")

    def feature(self, name: str) -> Feature:
        return next(feature for feature in self.features if feature.name == name)

    @property
    def dtype(self) -> Dtype:
        """The type of the inputs: float64 if offsets or levels need more digits than float32 has."""
        return self.inputs[0].dtype

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the features, in order."""
        return tuple(feature.name for feature in self.features)

    @property
    def categories(self) -> tuple[Category, ...]:
        """The categories or classes that the head ranks, by index; empty if it predicts numbers.

        If unknown values are allowed, the index after the last category stands for all of them.
        """
        if self.head.kind == "label":
            return self.head.classes
        return self.feature(self.head.targets[0]).categories if self.head.kind == "categorical" else ()

    @property
    def category_count(self) -> int:
        """The number of indices that the head ranks: 0 if it predicts numbers."""
        if self.head.kind == "label":
            return len(self.head.classes)
        return self.feature(self.head.targets[0]).category_count if self.head.kind == "categorical" else 0

    @property
    def future_covariates(self) -> tuple[str, ...]:
        """The features that a rollout needs from the client, because the model does not predict them."""
        return tuple(name for name in self.feature_names if name not in self.head.targets)

    @property
    def can_forecast(self) -> bool:
        """True if predictions can be fed back: they predict inputs, and the state holds the last one.

        A rollout also needs the future covariates.
        """
        return self.head.kind != "label" and set(self.head.outputs) == set(self.head.last)


def _check_stored(output: Tensor, stored: Stored, state: StatePair) -> None:
    if stored.part is None:
        fits = output.inner == state.tensor(state.input).inner
    else:
        sizes = {part.name: part.size for part in state.parts}
        if stored.part not in sizes:
            raise ValueError(f"the head names a part that is not declared: {stored.label}")
        fits = prod(output.inner) == sizes[stored.part]
    if not fits:
        raise ValueError(
            f"the state {stored.label!r} does not have the shape of the output {output.name!r} that it holds"
        )


def content(file: Path) -> bytes:
    """Returns the bytes of a bundle's file. Raises BundleError."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise BundleError(file, f"cannot be read: {error.strerror}") from error


def read(file: Path) -> Manifest:
    """Returns the manifest in `file`. Raises BundleError, which names the first invalid field."""
    return parse(file, content(file))


def parse(file: Path, document: bytes) -> Manifest:
    """Returns the manifest in `document`, read from `file`. Raises BundleError, naming the first invalid field."""
    try:
        return Manifest.model_validate_json(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        raise BundleError(file, f"{field}: {first['msg']}") from error


def write(manifest: Manifest, file: Path) -> None:
    """Writes the manifest to `file` as JSON."""
    file.write_text(manifest.model_dump_json(indent=2) + "\n")
