"""What a training run is told: the TOML file, checked.

Owns the configuration's keys and their meaning. Knows nothing of torch.
"""

import difflib
import importlib.util
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from onward.model.manifest import Name
from onward.training.data import calendar

Cell = Literal["rnn_tanh", "rnn_relu", "lstm", "gru"]
Columns = Annotated[tuple[str, ...], Field(min_length=1)]
TOKEN = "token"  # noqa: S105
"""The one feature of a text."""


class ConfigError(Exception):
    """A configuration that cannot be used; the message names the file and every key at fault."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(Section):
    """What is learnt from: a table of series or events, or a text. `path` is relative to the configuration's folder."""

    path: Annotated[str, Field(description="a CSV or Parquet file, or a text")]
    package: Annotated[
        str | None, Field(description="an installed Python package in whose folder path lies, instead")
    ] = None
    text: Annotated[
        Literal["characters", "bytes"] | None,
        Field(description="path is a text, cut into these; of a Python file its string constants are the text"),
    ] = None
    targets: Annotated[
        tuple[str, ...], Field(strict=False, description="columns whose next value is predicted: numbers or a category")
    ] = ()
    label: Annotated[str | None, Field(description="column that is predicted instead, and not read")] = None
    per: Annotated[
        Literal["step", "sequence"], Field(description="whether the label is each step's or its whole series'")
    ] = "step"
    features: Annotated[
        Columns | None,
        Field(strict=False, description="columns that the model reads, in this order; the targets if left out"),
    ] = None
    categories: Annotated[
        tuple[str, ...], Field(strict=False, description="features that are categories: words or whole numbers")
    ] = ()
    known: Annotated[tuple[str, ...], Field(strict=False, description="features that are known in advance")] = ()
    static: Annotated[
        tuple[str, ...], Field(strict=False, description="features that are the same throughout a series")
    ] = ()
    missing: Annotated[
        tuple[str, ...], Field(strict=False, description="features that may be missing; the model is told so by a mask")
    ] = ()
    changes: Annotated[
        tuple[str, ...],
        Field(strict=False, description="features that are learnt as changes since the last value: what has a trend"),
    ] = ()
    min_count: Annotated[
        int, Field(ge=1, description="how often training must have a category; rarer ones are unknown")
    ] = 1
    unknown: Annotated[bool, Field(description="categories that training does not have are allowed")] = False
    series: Annotated[str | None, Field(description="column that tells one series from another")] = None
    time: Annotated[str | None, Field(description="column to order each series by; file order if left out")] = None
    calendar: Annotated[
        tuple[Literal["hour", "day", "week", "year"], ...],
        Field(strict=False, description="cycles of the time column that the model is told the place in"),
    ] = ()
    split: Annotated[
        Literal["ends", "sequences"],
        Field(description="what validates and tests: each series' end, or whole series, the latest by time or drawn"),
    ] = "ends"
    part: Annotated[
        str | None, Field(description="column that says train, validation or test of each series, instead of split")
    ] = None
    period: Annotated[int | None, Field(ge=2, description="steps in a season, for the seasonal-naive baseline")] = None
    horizon: Annotated[int, Field(ge=1, le=10_000, description="most steps ahead that are measured; 1: only one")] = 12

    @model_validator(mode="after")
    def _columns_make_sense(self) -> Self:
        for key in ("targets", "features", "categories", "known", "static", "missing", "changes", "calendar"):
            columns = getattr(self, key) or ()
            if len(set(columns)) != len(columns):
                raise ValueError(f"{key} names {'a cycle' if key == 'calendar' else 'a column'} twice")
            unread = [column for column in columns if column not in self.columns]
            if unread and key in ("categories", "known", "static", "missing", "changes"):
                raise ValueError(f"{key} are features: {', '.join(unread)} is none")
        if self.calendar and self.time is None:
            raise ValueError("calendar needs a time column to be derived from: set time")
        if unread := [target for target in self.targets if target not in self.columns]:
            raise ValueError(f"features must include every target, or its surprise is unknown: add {', '.join(unread)}")
        if told := [name for name in self.targets if name in (*self.known, *self.static)]:
            raise ValueError(f"a target is neither known in advance nor static: {', '.join(told)}")
        if still := [name for name in self.changes if name in (*self.categories, *self.known, *self.static)]:
            raise ValueError(f"changes are of observed numbers: {', '.join(still)} is none")
        return self

    @model_validator(mode="after")
    def _one_thing_is_predicted(self) -> Self:
        if self.min_count > 1 and not self.unknown:
            raise ValueError("with min_count the rarer categories are unknown: set unknown = true")
        if self.text and (self.targets or self.label or self.features or self.series or self.part):
            raise ValueError("a text has no columns: leave out targets, label, features, series and part")
        if self.label and (self.targets or self.label in self.columns):
            raise ValueError("a label is predicted instead of targets, and is no feature")
        if self.label and not self.features:
            raise ValueError("a label is predicted from features: name them")
        if not (self.text or self.label or self.targets):
            raise ValueError("nothing is predicted: set targets, label or text")
        if self.per == "sequence" and (not self.label or self.series is None):
            raise ValueError('per = "sequence" is for a label, and needs the column that tells series apart')
        if (self.split == "sequences" or self.part) and self.series is None:
            raise ValueError("to hold out whole series, name the column that tells them apart: series")
        if self.label and self.per == "sequence" and self.split == "ends" and not self.part:
            raise ValueError('a label of whole series is validated on whole series: set split = "sequences" or part')
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns that the model reads."""
        return self.features or self.targets

    @property
    def derived(self) -> dict[str, str]:
        """The features that are computed from the time, with their formulas."""
        return calendar.formulas(self.time or "", self.calendar)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The model's features: those columns, and what is derived from the time."""
        return (TOKEN,) if self.text else (*self.columns, *self.derived)

    @property
    def predicted(self) -> tuple[str, ...]:
        """What the head speaks of."""
        if self.text:
            return (TOKEN,)
        return (self.label,) if self.label else self.targets

    @property
    def predicts(self) -> Literal["numbers", "categories", "labels"]:
        if self.label:
            return "labels"
        return "categories" if self.text or set(self.targets) & set(self.categories) else "numbers"


class Model(Section):
    cell: Cell = "lstm"
    layers: Annotated[int, Field(ge=1, le=16)] = 1
    units: Annotated[int, Field(ge=1, le=8192)] = 64
    dropout: Annotated[float, Field(ge=0, lt=1, description="between layers, while training")] = 0.0
    residual: Annotated[bool, Field(description="add each layer's input to its output, from the second layer on")] = (
        False
    )
    layer_norm: Annotated[bool, Field(description="normalise each layer's output (Ba et al. 2016)")] = False
    locked_dropout: Annotated[
        bool, Field(description="one dropout mask for all steps of a window (Gal and Ghahramani 2016)")
    ] = False
    weight_drop: Annotated[
        float, Field(ge=0, lt=1, description="dropout of recurrent weights, while training (Merity et al. 2018)")
    ] = 0.0
    scaling: Annotated[
        Literal["fixed", "causal", "mean"],
        Field(description="of what is observed: by training's moments, or by the session's own so far"),
    ] = "fixed"
    embedding: Annotated[
        int | None, Field(ge=1, le=8192, description="numbers that a predicted category becomes; a rule if left out")
    ] = None
    tied: Annotated[bool, Field(description="the embedding is the readout's matrix too (Press and Wolf 2017)")] = False
    negatives: Annotated[
        int, Field(ge=0, description="categories drawn to be told apart from the true one, while training; 0: all")
    ] = 0
    top: Annotated[int, Field(ge=1, le=1000, description="the likeliest categories that clients are told")] = 20
    head: Literal["point", "gaussian", "student_t", "quantiles", "categorical", "label"] = "gaussian"
    loss: Annotated[Literal["mae", "mse", "huber"], Field(description="of the head point")] = "mae"
    quantiles: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...],
        Field(strict=False, description="levels of the head quantiles, rising, 0.5 among them"),
    ] = (0.1, 0.5, 0.9)

    @model_validator(mode="after")
    def _levels_rise(self) -> Self:
        if 0.5 not in self.quantiles or list(self.quantiles) != sorted(set(self.quantiles)):
            raise ValueError("quantiles must rise, and 0.5 must be among them: the median is what forecasts feed back")
        return self


class Train(Section):
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    epochs: Annotated[int, Field(ge=1)] = 50
    sampling: Annotated[
        Literal["streams", "windows"],
        Field(description="long streams with carried state, or random windows of many short series"),
    ] = "streams"
    window: Annotated[int, Field(ge=1, description="steps between truncations of the gradient")] = 64
    burn_in: Annotated[int, Field(ge=0, description="steps before a random window that warm the state, unscored")] = 0
    batch: Annotated[int, Field(ge=1, description="streams or windows trained side by side")] = 32
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    warmup: Annotated[int, Field(ge=0, description="optimiser steps over which the learning rate rises")] = 0
    schedule: Annotated[
        Literal["constant", "cosine", "plateau"], Field(description="how the learning rate falls after that")
    ] = "constant"
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False, description="AdamW's; biases do not decay")] = 0.0
    clip: Annotated[float, Field(gt=0, description="largest norm of the gradient")] = 1.0
    patience: Annotated[int, Field(ge=1, description="epochs without a better validation loss before stopping")] = 10
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Field(description="where to train; auto is a GPU if there is one")
    ] = "auto"
    precision: Annotated[
        Literal["float32", "bfloat16"], Field(description="of the training's arithmetic; weights stay float32")
    ] = "float32"
    compile: Annotated[bool, Field(description="torch.compile: slow to start, needs a C++ compiler")] = False

    @model_validator(mode="after")
    def _burn_in_has_a_use(self) -> Self:
        if self.burn_in and self.sampling != "windows":
            raise ValueError('burn_in is for sampling = "windows"; streams carry their state')
        return self


SPEAKS_OF = {"categorical": "categories", "label": "labels"}
"""What each head predicts, where it is not numbers."""


class Output(Section):
    repository: Annotated[str, Field(description="folder of models, relative to the configuration's own folder")]


class Range(Section):
    """Whole numbers where both ends are."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low must be below high, and above 0 where log is set, not {self.low} to {self.high}")
        return self


COMPARABLE = {
    "model": frozenset({"head", "loss", "quantiles", "scaling"}),
    "train": frozenset({"seed", "device", "precision", "compile"}),
}
"""By section, the keys that a search must leave alone: with another loss or scale two runs cannot be compared."""


class Tune(Section):
    """What `onward tune` tries: by key, such as "model.units", some values or a range."""

    search: Annotated[
        dict[str, Range | Annotated[tuple[int | float | str | bool, ...], Field(strict=False, min_length=2)]],
        Field(min_length=1),
    ]

    @field_validator("search")
    @classmethod
    def _keys_exist(cls, search: dict[str, Any]) -> dict[str, Any]:
        sections: dict[str, type[Section]] = {"model": Model, "train": Train}
        for key in search:
            section, _, name = key.partition(".")
            if section not in sections or name not in sections[section].model_fields:
                raise ValueError(f"{key!r} is no setting of the model or the training, such as model.units")
            if name in COMPARABLE[section]:
                raise ValueError(f"{key} must stay: validation losses could not be compared")
        return search


class Config(Section):
    name: Name
    description: str = ""
    data: Data
    model: Model = Model()
    train: Train = Train()
    tune: Tune | None = None
    output: Output

    folder: Annotated[Path, Field(exclude=True)] = Path()
    """The configuration's own folder; set by `read`, not by the file."""

    @model_validator(mode="after")
    def _head_fits_data(self) -> Self:
        head, predicts = self.model.head, self.data.predicts
        fitting = [name for name, what in SPEAKS_OF.items() if what == predicts] or ["gaussian"]
        if SPEAKS_OF.get(head, "numbers") != predicts:
            raise ValueError(f'the data is for predicting {predicts}: set model.head = "{fitting[0]}", not "{head}"')
        if predicts == "categories" and len(self.data.predicted) != 1:
            raise ValueError(f"categories are predicted one at a time, not {', '.join(self.data.predicted)} together")
        return self

    @property
    def data_file(self) -> Path:
        """Raises ConfigError where the data lies in a package that is not installed."""
        if self.data.package is None:
            return self.folder / self.data.path
        found = importlib.util.find_spec(self.data.package)
        if found is None or not found.submodule_search_locations:
            raise ConfigError(f"data.package: no package {self.data.package} is installed")
        return Path(found.submodule_search_locations[0]) / self.data.path

    @property
    def repository(self) -> Path:
        return Path(os.path.normpath(self.folder / self.output.repository))

    @property
    def checkpoint_file(self) -> Path:
        """What an unfinished run goes on from; gone once its bundle is published."""
        return self.folder / ".training" / self.name / "checkpoint.pt"


def read(file: Path) -> Config:
    """The configuration in `file`. Raises ConfigError."""
    try:
        document = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    if "folder" in document:
        raise ConfigError(f"{file}: folder: unknown key")
    try:
        return Config.model_validate(document).model_copy(update={"folder": file.parent})
    except ValidationError as error:
        faults = "; ".join(_fault(tuple(fault["loc"]), fault["type"], fault["msg"]) for fault in error.errors())
        raise ConfigError(f"{file}: {faults}") from error


def changed(document: dict[str, Any], settings: dict[str, Any], folder: Path) -> Config:
    """The configuration `document` with other settings, by keys such as `model.units`. Raises ConfigError."""
    sections = {name: dict(value) if isinstance(value, dict) else value for name, value in document.items()}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    try:
        return Config.model_validate(sections).model_copy(update={"folder": folder})
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"]) from error


def _fault(place: tuple[int | str, ...], kind: str, message: str) -> str:
    key = ".".join(str(part) for part in place)
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), _keys(place[:-1]), n=1)
        return f"{key}: unknown key" + (f", did you mean {near[0]}?" if near else "")
    return f"{key}: {message}"


def _keys(section: tuple[int | str, ...]) -> list[str]:
    owner: type[BaseModel] = Config
    for part in section:
        annotation = owner.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        owner = annotation
    return [key for key in owner.model_fields if key != "folder"]
