"""What a bundle declares about its graph: tensors, state pairs, features, head, provenance and proof.

Owns the format of `manifest.json`. Knows nothing of files' places, of ONNX Runtime, of sessions or of training.

Shapes name their axes: `["time", "batch", 3]` is a tensor whose first axis is time and whose second is the batch. A
tensor without a `"time"` axis takes one step a call; one without `"batch"` is shared by all rows. So every tensor says
for itself where its axes lie, and a third-party graph needs no convention.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

TIME, BATCH = "time", "batch"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Dim = Annotated[int, Field(gt=0)] | Literal["time", "batch"]
Dtype = Literal["float32", "float64", "int32", "int64", "uint8"]
Score = Literal[
    "negative_log_likelihood",
    "scaled_absolute_error",
    "scaled_squared_error",
    "scaled_huber_loss",
    "scaled_quantile_loss",
]
"""What a surprise is: nats, or an error in units of the target's deviation."""
Nested = list[Any]
"""Numbers nested as an array's `tolist()` nests them."""


class BundleError(Exception):
    """A bundle that must not serve: `file` is what is wrong, `reason` is why. The message has both."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tensor(Frozen):
    """A tensor of the graph, by its name there; `shape` names the time and batch axes."""

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
        """Where the named axis lies, None where the tensor has none."""
        return self.shape.index(name) if name in self.shape else None

    @property
    def inner(self) -> tuple[int, ...]:
        """The shape of one row at one step: all axes but time and batch."""
        return tuple(dim for dim in self.shape if isinstance(dim, int))


class StatePair(Frozen):
    """A tensor carried from step to step: the graph reads it as `input` and returns it as `output`.

    `init` is a session's first value: one number for all elements, or a value per element, nested as one row's shape.
    """

    input: str
    output: str
    shape: tuple[Dim, ...]
    dtype: Dtype = "float32"
    init: float | Nested = 0.0

    def tensor(self, name: str) -> Tensor:
        return Tensor(name=name, shape=self.shape, dtype=self.dtype)

    @model_validator(mode="after")
    def _carries_rows(self) -> Self:
        if BATCH not in self.shape or TIME in self.shape:
            raise ValueError(f"state {self.input!r} needs a batch axis and no time axis, not {list(self.shape)}")
        return self


class Head(Frozen):
    """What the graph says of the next input.

    `outputs` name the parameters of the prediction, the first one being what a rollout feeds back as the next input.
    `targets` are the features that are predicted, in the outputs' order. `surprise` is the output with the score of
    each input under the prediction made before it, and `score` says which score that is. `last` maps each output to
    the state tensor that holds it for the next step, so that a session can be forecast from its state alone.
    """

    kind: Literal["point", "gaussian", "student_t", "quantiles"]
    outputs: Annotated[tuple[str, ...], Field(min_length=1)]
    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    surprise: str | None = None
    score: Score | None = None
    levels: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Of the output `quantiles`, where there is one: what lies on its last axis."""
    last: dict[str, str] = {}


class Parity(Frozen):
    """Inputs and the answers that the trained network itself gave, from the initial state; rows are ragged.

    inputs: (batch, time, features); lengths: (batch,); outputs: name -> (batch, time, ...). What lies beyond a row's
    length is padding. The graph must agree within `tolerance` times the largest magnitude of each output.
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
    task: Literal["forecast"]
    description: str = ""
    inputs: Annotated[tuple[Tensor, ...], Field(min_length=1, max_length=1)]
    lengths: Tensor
    outputs: Annotated[tuple[Tensor, ...], Field(min_length=1)]
    state: Annotated[tuple[StatePair, ...], Field(min_length=1)]
    features: Annotated[tuple[str, ...], Field(min_length=1)]
    derived: dict[str, str] = {}
    """Features that are computed rather than measured, each with its formula: clients compute them alike."""
    head: Head
    exact: bool
    """Whether a row's answers are the same bits alone, in any batch, and cut into any chunks (LSTM and GRU: yes)."""
    metrics: dict[str, JsonValue] = {}
    provenance: dict[str, JsonValue] = {}
    parity: Parity
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of `model.onnx`."""

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        for what, names in (
            ("output", [tensor.name for tensor in self.outputs]),
            ("state input", [pair.input for pair in self.state]),
            ("state output", [pair.output for pair in self.state]),
            ("feature", list(self.features)),
            ("target", list(self.head.targets)),
        ):
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{what} named twice: {', '.join(sorted(twice))}")
        for tensor in (*self.inputs, *self.outputs):
            if TIME not in tensor.shape or BATCH not in tensor.shape:
                raise ValueError(f"tensor {tensor.name!r} needs a time and a batch axis, not {list(tensor.shape)}")
        if self.inputs[0].inner != (len(self.features),):
            raise ValueError(
                f"input {self.inputs[0].name!r} has shape {list(self.inputs[0].shape)}, "
                f"but there are {len(self.features)} features"
            )
        return self

    @model_validator(mode="after")
    def _head_fits(self) -> Self:
        outputs = {tensor.name: tensor for tensor in self.outputs}
        states = {pair.input: pair for pair in self.state}
        said = [*self.head.outputs, *([self.head.surprise] if self.head.surprise else []), *self.head.last]
        if missing := [name for name in said if name not in outputs]:
            raise ValueError(f"the head names outputs that are not declared: {', '.join(missing)}")
        if missing := [name for name in self.head.last.values() if name not in states]:
            raise ValueError(f"the head names state that is not declared: {', '.join(missing)}")
        for name, held in self.head.last.items():
            if outputs[name].inner != states[held].tensor(held).inner:
                raise ValueError(f"the state {held!r} does not have the shape of the output {name!r} that it holds")
        for name in self.head.outputs:
            levels = (len(self.head.levels),) if name == "quantiles" else ()
            if outputs[name].inner != (len(self.head.targets), *levels):
                raise ValueError(
                    f"output {name!r} has shape {list(outputs[name].shape)}, "
                    f"but there are {len(self.head.targets)} targets" + (f" and {levels[0]} levels" if levels else "")
                )
        if missing := [name for name in self.derived if name not in self.features]:
            raise ValueError(f"derived features that are not features: {', '.join(missing)}")
        if missing := [name for name in self.head.targets if name not in self.features]:
            raise ValueError(f"targets that are not features: {', '.join(missing)}")
        return self

    @property
    def forecasts(self) -> bool:
        """Whether predictions can be fed back as inputs: every feature is predicted, the last prediction is state."""
        return self.head.targets == self.features and set(self.head.outputs) == set(self.head.last)


def read(file: Path) -> Manifest:
    """The manifest in `file`.

    Raises BundleError, naming the first field at fault.
    """
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise BundleError(file, f"cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        raise BundleError(file, f"{field}: {first['msg']}") from error


def write(manifest: Manifest, file: Path) -> None:
    file.write_text(manifest.model_dump_json(indent=2) + "\n")
