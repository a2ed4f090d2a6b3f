"""The configuration of a training run, read from a TOML file and validated.

Owns the keys of the configuration and their meaning. Knows nothing of torch.
"""

import contextlib
import difflib
import importlib.util
import math
import os
import tomllib
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from onward.model import calendar
from onward.model.errors import OnwardError
from onward.model.manifest import Name
from onward.model.tables.settings import TableSettings

Cell = Literal["rnn_tanh", "rnn_relu", "lstm", "gru"]
Columns = Annotated[tuple[str, ...], Field(min_length=1)]
TOKEN = "token"  # noqa: S105
"""The only feature of a text."""


def _moment(value: Any) -> Any:
    """Returns a date of TOML as it is written in ISO 8601; any other value as it is. Raises ValueError for no time."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str):
        datetime.fromisoformat(value)
    return value


Moment = Annotated[str | int | Annotated[float, Field(allow_inf_nan=False)], BeforeValidator(_moment)]
"""A time, as 2012-01-31 or 2012-01-31T12:00:00, or a number where the times of a table are numbers."""
Share = Annotated[float, Field(ge=0, lt=1)]


class ConfigError(OnwardError):
    """An invalid configuration; the message names the file and every invalid key."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(TableSettings, Section):
    """The training data: a table of series or events, or a text. `path` is relative to the configuration's folder."""

    path: Annotated[str, Field(description="a table: CSV, Parquet, Arrow or NDJSON; or a text")]
    package: Annotated[
        str | None, Field(description="an installed Python package; path is then relative to its folder")
    ] = None
    text: Annotated[
        Literal["characters", "bytes"] | None,
        Field(description="path is a text of these tokens; the text of a Python file is its string constants"),
    ] = None
    targets: Annotated[
        tuple[str, ...],
        Field(strict=False, description="columns whose next value is predicted: numbers or a single category"),
    ] = ()
    label: Annotated[
        str | None, Field(description="column that is predicted instead of targets, and is not an input")
    ] = None
    per: Annotated[
        Literal["step", "sequence"], Field(description="whether each step or each whole series has a label")
    ] = "step"
    features: Annotated[
        Columns | None,
        Field(strict=False, description="columns that the model reads, in this order; by default the targets"),
    ] = None
    categories: Annotated[
        tuple[str, ...], Field(strict=False, description="features that are categories: words or whole numbers")
    ] = ()
    known: Annotated[
        tuple[str, ...], Field(strict=False, description="features whose future values are known in advance")
    ] = ()
    lead: Annotated[
        Literal[0, 1],
        Field(
            description="1: a step has the future covariates and the calendar of the step that is predicted; 0: its own"
        ),
    ] = 1
    static: Annotated[
        tuple[str, ...], Field(strict=False, description="features that are constant within a series")
    ] = ()
    missing: Annotated[
        tuple[str, ...],
        Field(strict=False, description="features that may be missing; the model also reads a mask of them"),
    ] = ()
    changes: Annotated[
        tuple[str, ...],
        Field(strict=False, description="features that are differenced, because they have a trend"),
    ] = ()
    transforms: Annotated[
        dict[str, Literal["log", "log1p", "asinh", "box_cox", "relative"]],
        Field(description="transforms of features by column; relative is log and differenced"),
    ] = {}
    channels: Annotated[
        Literal["joint", "independent"],
        Field(description="whether one network reads all targets together, or each target apart with the same weights"),
    ] = "joint"
    min_count: Annotated[
        int, Field(ge=1, description="how often a category must occur in the training part; rarer ones are unknown")
    ] = 1
    unknown: Annotated[bool, Field(description="categories that the training part does not contain are allowed")] = (
        False
    )
    refuse_beyond: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="numbers so many deviations from the median of the training part are refused, also in service",
        ),
    ] = None
    split: Annotated[
        Literal["ends", "sequences", "none"],
        Field(
            description="the validation and test parts: the end of each series; whole series (the latest, or random); "
            "or none, and all is trained on"
        ),
    ] = "ends"
    validation: Annotated[
        Share, Field(description="share of each series' steps, or of the series, that validates; 0: no validation")
    ] = 0.15
    test: Annotated[
        Share, Field(description="share of each series' steps, or of the series, that is held out; 0: no figures")
    ] = 0.15
    validation_from: Annotated[
        Moment | None, Field(description="time from which steps validate, of all series; instead of a share")
    ] = None
    test_from: Annotated[
        Moment | None, Field(description="time from which steps are held out, of all series; instead of a share")
    ] = None
    part: Annotated[
        str | None, Field(description="column that assigns each series to train, validation or test, instead of split")
    ] = None
    short_series: Annotated[
        Literal["refuse", "train", "drop"],
        Field(description="series too short to be split at their end: refused, in the training part, or left out"),
    ] = "refuse"
    period: Annotated[int | None, Field(ge=2, description="steps of a season, for the seasonal naive baseline")] = None
    horizon: Annotated[int, Field(ge=1, le=10_000, description="the most steps ahead that are evaluated")] = 12

    @model_validator(mode="after")
    def _columns_make_sense(self) -> Self:
        for key in ("targets", "features", "categories", "known", "static", "missing", "changes", "calendar"):
            columns = getattr(self, key) or ()
            if len(set(columns)) != len(columns):
                raise ValueError(f"{key} names {'a feature' if key == 'calendar' else 'a column'} twice")
            unread = [column for column in columns if column not in self.columns]
            if unread and key in ("categories", "known", "static", "missing", "changes"):
                raise ValueError(f"{key} are features: {', '.join(unread)} is none")
        if unread := [target for target in self.targets if target not in self.columns]:
            raise ValueError(f"features must include every target, or its surprise is unknown: add {', '.join(unread)}")
        if given := [name for name in self.targets if name in (*self.known, *self.static)]:
            raise ValueError(f"a target is neither known in advance nor static: {', '.join(given)}")
        if unchanging := [name for name in self.differenced if name in (*self.categories, *self.known, *self.static)]:
            raise ValueError(f"changes must be observed numbers: {', '.join(unchanging)} is none")
        if unread := [name for name in self.transforms if name not in self.columns or name in self.categories]:
            raise ValueError(f"transforms are of features that are numbers: {', '.join(unread)} is none")
        if self.refuse_beyond is not None and not set(self.columns) - {*self.categories, *self.changes}:
            raise ValueError("refuse_beyond is about numbers that are not differenced, and there is none")
        return self

    @model_validator(mode="after")
    def _time_makes_sense(self) -> Self:
        if len(set(self.time_columns)) != len(self.time_columns):
            raise ValueError("time names a column twice")
        if self.calendar and self.time is None:
            raise ValueError("calendar needs a time column to be derived from: set time")
        for key in ("time_format", "time_zone"):
            if getattr(self, key) and self.time is None:
                raise ValueError(f"{key} is about a time column: set time")
        if self.time_zone is not None and self.time_zone != calendar.WRITTEN:
            calendar.zone(self.time_zone)
        return self

    @model_validator(mode="after")
    def _prediction_is_well_defined(self) -> Self:
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
        if self.channels == "independent" and self.predicts != "numbers":
            raise ValueError('channels = "independent" is for targets that are numbers')
        if self.per == "sequence" and (not self.label or self.series is None):
            raise ValueError('per = "sequence" is for a label, and needs the column that tells series apart')
        if (self.split == "sequences" or self.part) and self.series is None:
            raise ValueError("to hold out whole series, name the column that tells them apart: series")
        if self.label and self.per == "sequence" and self.split == "ends" and not self.part:
            raise ValueError('a label of whole series is validated on whole series: set split = "sequences" or part')
        return self

    @model_validator(mode="after")
    def _parts_are_well_defined(self) -> Self:
        dates = [key for key in ("validation_from", "test_from") if getattr(self, key) is not None]
        if self.validation + self.test >= 1:
            raise ValueError("validation and test are shares of the data, and leave nothing for the training part")
        if dates and self.time is None:
            raise ValueError(f"{' and '.join(dates)} needs a column of times: set time")
        if dates and (self.split != "ends" or self.part):
            raise ValueError(f'{" and ".join(dates)} cuts series in time: set split = "ends", without part')
        if self.split == "none" and self.part:
            raise ValueError('split = "none" trains on everything: leave out part')
        return self

    @property
    def everything(self) -> Self:
        """The same data without a validation and a test part."""
        parts = {"split": "none", "part": None, "validation_from": None, "test_from": None}
        return self.model_copy(update=parts)

    @property
    def shares(self) -> dict[str, float]:
        """The shares of the validation and the test part; 0 where there is none."""
        return (
            {"validation": 0.0, "test": 0.0}
            if self.split == "none"
            else {"validation": self.validation, "test": self.test}
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table that the model reads."""
        return self.features or self.targets

    @property
    def differenced(self) -> tuple[str, ...]:
        """The features that are read as differences, of their transforms where they have one."""
        relative = [name for name, kind in self.transforms.items() if kind == "relative"]
        return tuple(dict.fromkeys((*self.changes, *relative)))

    @property
    def ahead(self) -> tuple[str, ...]:
        """The features with a lead of one step, the calendar only if its times are regular.

        A label is of the step itself, and so are the features from which it is predicted.
        """
        return (*self.known, *self.derived) if self.lead and not self.label else ()

    @property
    def derived(self) -> tuple[str, ...]:
        """The names of the features that are computed from the time."""
        return calendar.names(self.time_name or "", self.calendar)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The features of the model: the columns, then the features derived from the time."""
        return (TOKEN,) if self.text else (*self.columns, *self.derived)

    @property
    def predicted(self) -> tuple[str, ...]:
        """The names of the predicted columns."""
        if self.text:
            return (TOKEN,)
        return (self.label,) if self.label else self.targets

    @property
    def predicts(self) -> Literal["numbers", "categories", "labels"]:
        """The kind of values that are predicted."""
        if self.label:
            return "labels"
        return "categories" if self.text or set(self.targets) & set(self.categories) else "numbers"


NON_NUMERIC_HEADS = {"categorical": "categories", "label": "labels"}
"""The kind of values that each head predicts; all other heads predict numbers."""


class Model(Section):
    cell: Cell = "lstm"
    layers: Annotated[int, Field(ge=1, le=16)] = 1
    units: Annotated[int, Field(ge=1, le=8192)] = 64
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout of each layer's output, in training")] = 0.0
    input_dropout: Annotated[float, Field(ge=0, lt=1, description="dropout of the first layer's inputs")] = 0.0
    embedding_dropout: Annotated[
        float,
        Field(ge=0, lt=1, description="dropout of whole categories from the embeddings (Merity et al. 2018)"),
    ] = 0.0
    residual: Annotated[bool, Field(description="add each layer's input to its output, from the second layer on")] = (
        False
    )
    layer_norm: Annotated[bool, Field(description="normalise each layer's output (Ba et al. 2016)")] = False
    locked_dropout: Annotated[
        bool, Field(description="a single dropout mask for all steps of a window (Gal and Ghahramani 2016)")
    ] = False
    weight_drop: Annotated[
        float, Field(ge=0, lt=1, description="dropout of recurrent weights, in training (Merity et al. 2018)")
    ] = 0.0
    scaling: Annotated[
        Literal["fixed", "causal", "mean"],
        Field(
            description="how observed numbers are scaled: by statistics of the training part, or of the session so far"
        ),
    ] = "fixed"
    half_life: Annotated[
        float,
        Field(
            ge=0,
            description="steps in which a session's statistics lose half of their weight; 0 or inf: they never do",
        ),
    ] = 100.0
    embedding: Annotated[
        int | None,
        Field(
            ge=1,
            le=8192,
            description="width of a predicted category's embedding; the default depends on the number of categories",
        ),
    ] = None
    tied: Annotated[bool, Field(description="the embedding is also the output matrix (Press and Wolf 2017)")] = False
    negatives: Annotated[
        int,
        Field(
            ge=0, description="negative categories sampled for the loss in training; 0: the loss is over all categories"
        ),
    ] = 0
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="share of the target spread over all categories (Szegedy et al. 2016)")
    ] = 0.0
    top: Annotated[int, Field(ge=1, le=1000, description="the number of likeliest categories in a prediction")] = 20
    head: Literal["point", "gaussian", "student_t", "quantiles", "categorical", "label"] = "gaussian"
    loss: Annotated[Literal["mae", "mse", "huber"], Field(description="the loss of the point head")] = "mae"
    quantiles: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...],
        Field(strict=False, description="levels of the quantiles head, rising and with 0.5"),
    ] = (0.1, 0.5, 0.9)

    def effective(self, *, has_categories: bool) -> dict[str, Any]:
        """Returns the settings that the weights depend on. has_categories: whether a feature is a category."""
        dropped = self.dropout or self.input_dropout
        without_effect = {
            "top": True,
            "loss": self.head != "point",
            "quantiles": self.head != "quantiles",
            "half_life": self.scaling == "fixed",
            "locked_dropout": not dropped,
            "residual": self.layers == 1,
            "embedding_dropout": not has_categories,
            **dict.fromkeys(("embedding", "tied", "negatives"), self.head != "categorical"),
        }
        return self.model_dump(mode="json", exclude={key for key, is_unused in without_effect.items() if is_unused})

    @field_validator("half_life")
    @classmethod
    def _forgets_nothing(cls, half_life: float) -> float:
        return 0.0 if math.isinf(half_life) else half_life  # JSON, in which a bundle has its configuration, has no inf

    @model_validator(mode="after")
    def _smoothing_is_of_a_full_softmax(self) -> Self:
        if self.label_smoothing and (self.negatives or self.head not in NON_NUMERIC_HEADS):
            raise ValueError("label_smoothing is for the heads categorical and label, without negatives")
        return self

    @model_validator(mode="after")
    def _levels_rise(self) -> Self:
        if 0.5 not in self.quantiles or list(self.quantiles) != sorted(set(self.quantiles)):
            raise ValueError("quantiles must rise, and 0.5 must be among them: forecasts feed back the median")
        return self


class Train(Section):
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    epochs: Annotated[int, Field(ge=1)] = 50
    sampling: Annotated[
        Literal["streams", "windows"],
        Field(description="long streams with carried state, or random windows of many short series"),
    ] = "streams"
    window: Annotated[int, Field(ge=1, description="steps between truncations of the gradient")] = 64
    burn_in: Annotated[
        int, Field(ge=0, description="steps before a random window that warm up the state and are not in the loss")
    ] = 0
    batch: Annotated[int, Field(ge=1, description="streams or windows in a batch")] = 32
    learning_rate: Annotated[
        float | Literal["auto"],
        Field(description="the highest rate of the optimiser; auto: by a range test of 100 steps (Smith 2017)"),
    ] = 1e-3
    warmup: Annotated[int, Field(ge=0, description="optimiser steps over which the learning rate rises")] = 0
    schedule: Annotated[
        Literal["constant", "cosine", "plateau"], Field(description="how the learning rate falls after the warm-up")
    ] = "constant"
    weight_decay: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="weight decay of AdamW; biases do not decay")
    ] = 0.0
    clip: Annotated[float, Field(gt=0, description="the gradient is clipped to this norm")] = 1.0
    averaging: Annotated[
        float,
        Field(ge=0, lt=1, description="decay a step of the average of the weights that is used; 0: the last weights"),
    ] = 0.0
    patience: Annotated[
        int, Field(ge=1, description="epochs without a better validation loss before early stopping")
    ] = 10
    refit: Annotated[
        bool,
        Field(description="train anew on all data, held-out part included, for the epochs that the validation chose"),
    ] = False
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Field(description="the device of the training; auto is a GPU if available")
    ] = "auto"
    threads: Annotated[
        int,
        Field(ge=1, le=1024, description="threads of the arithmetic on a CPU; more than one help wide networks only"),
    ] = 1
    precision: Annotated[
        Literal["float32", "bfloat16"], Field(description="precision of the training arithmetic; weights stay float32")
    ] = "float32"
    compile: Annotated[
        bool, Field(description="use torch.compile, which is slow to start and needs a C++ compiler")
    ] = False

    def effective(self) -> dict[str, Any]:
        """Returns the settings that the weights depend on, but for the last bits: not where they are computed."""
        return self.model_dump(mode="json", exclude={"refit", "device", "threads", "compile"})

    @field_validator("learning_rate")
    @classmethod
    def _rate_is_positive(cls, rate: float | Literal["auto"]) -> float | Literal["auto"]:
        if rate != "auto" and not 0 < rate < math.inf:
            raise PydanticCustomError("rate", "Input should be greater than 0, and finite")
        return rate

    @model_validator(mode="after")
    def _burn_in_is_of_windows(self) -> Self:
        if self.burn_in and self.sampling != "windows":
            raise ValueError('burn_in is for sampling = "windows"; streams carry their state')
        return self


class Output(Section):
    repository: Annotated[str, Field(description="folder of models, relative to the folder of the configuration")] = (
        "models"
    )


class Range(Section):
    """A range of a search: of whole numbers if both ends are whole numbers."""

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
    "train": frozenset({"seed", "device", "threads", "precision", "compile"}),
}
"""The keys by section that a search must not change: with another loss or scale two runs cannot be compared."""


class Tune(Section):
    """The search of `onward tune`: values or a range by key, such as "model.units"."""

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
    """The whole configuration file."""

    name: Name
    description: str = ""
    data: Data
    model: Model = Model()
    train: Train = Train()
    tune: Tune | None = None
    output: Output = Output()

    folder: Annotated[Path, Field(exclude=True)] = Path()
    """The folder of the configuration file; set by `read`, not by the file."""

    @model_validator(mode="after")
    def _head_fits_data(self) -> Self:
        head, predicts = self.model.head, self.data.predicts
        fitting = [name for name, what in NON_NUMERIC_HEADS.items() if what == predicts] or ["gaussian"]
        if NON_NUMERIC_HEADS.get(head, "numbers") != predicts:
            raise ValueError(f'the data is for predicting {predicts}: set model.head = "{fitting[0]}", not "{head}"')
        if predicts == "categories" and len(self.data.predicted) != 1:
            raise ValueError(f"categories are predicted one at a time, not {', '.join(self.data.predicted)} together")
        return self

    @property
    def data_file(self) -> Path:
        """The path of the data. Raises ConfigError if the data is in a package that is not installed."""
        if self.data.package is None:
            return self.folder / self.data.path
        package = importlib.util.find_spec(self.data.package)
        if package is None or not package.submodule_search_locations:
            raise ConfigError(f"data.package: no package {self.data.package} is installed")
        return Path(package.submodule_search_locations[0]) / self.data.path

    @property
    def repository(self) -> Path:
        """The folder of models."""
        return Path(os.path.normpath(self.folder / self.output.repository))

    @property
    def checkpoint_file(self) -> Path:
        """The checkpoint from which an unfinished run resumes; it is deleted when the bundle is published."""
        return self.folder / ".training" / self.name / "checkpoint.pt"

    @property
    def refit_checkpoint_file(self) -> Path:
        """The checkpoint from which an unfinished refit resumes, beside that of the first fit."""
        return self.checkpoint_file.with_name("refit.pt")


def read(file: Path) -> Config:
    """Loads the configuration in `file`. Raises ConfigError."""
    try:
        document = tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    if "folder" in document:
        raise ConfigError(f"{file}: folder: unknown key")
    try:
        return Config.model_validate({"name": file.stem} | document).model_copy(update={"folder": file.parent})
    except ValidationError as error:
        faults = "; ".join(_fault(tuple(fault["loc"]), fault["type"], fault["msg"]) for fault in error.errors())
        raise ConfigError(f"{file}: {faults}") from error


def read_moment(written: str) -> Moment:
    """Returns a time of the command line: a number if it is one. Raises ConfigError."""
    with contextlib.suppress(ValueError):
        return float(written)
    try:
        return str(_moment(written))
    except ValueError as error:
        raise ConfigError(
            f"{written!r} is neither a time, as 2012-01-31 or 2012-01-31T12:00:00, nor a number"
        ) from error


def with_settings(document: dict[str, Any], settings: dict[str, Any], folder: Path) -> Config:
    """Returns the configuration `document` with other settings, by keys such as `model.units`. Raises ConfigError."""
    sections = {name: dict(value) if isinstance(value, dict) else value for name, value in document.items()}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    try:
        return Config.model_validate(sections).model_copy(update={"folder": folder})
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"]) from error


def _fault(location: tuple[int | str, ...], kind: str, message: str) -> str:
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _keys(location[:-1]), n=1)
        return f"{key}: unknown key" + (f", did you mean {near[0]}?" if near else "")
    return f"{key}: {message}"


def _keys(section: tuple[int | str, ...]) -> list[str]:
    owner: type[BaseModel] = Config
    for part in section:
        annotation = owner.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        owner = annotation
    return [key for key in owner.model_fields if key != "folder"]
