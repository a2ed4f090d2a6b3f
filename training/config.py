"""What a training run is told: the TOML file, checked.

Owns the configuration's keys and their meaning. Knows nothing of torch.
"""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.manifest import Name
from training import calendar

Cell = Literal["rnn_tanh", "rnn_relu", "lstm", "gru"]
Columns = Annotated[tuple[str, ...], Field(min_length=1)]


class ConfigError(Exception):
    """A configuration that cannot be used; the message names the file and every key at fault."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(Section):
    """Where the series are. `path` is relative to the configuration's own folder."""

    path: Annotated[str, Field(description="a CSV or Parquet file")]
    targets: Annotated[Columns, Field(strict=False, description="columns whose next value is predicted")]
    features: Annotated[
        Columns | None,
        Field(strict=False, description="columns that the model reads, in this order; the targets if left out"),
    ] = None
    series: Annotated[str | None, Field(description="column that tells one series from another")] = None
    time: Annotated[str | None, Field(description="column to order each series by; file order if left out")] = None
    calendar: Annotated[
        tuple[Literal["hour", "day", "week", "year"], ...],
        Field(strict=False, description="cycles of the time column that the model is told the place in"),
    ] = ()
    period: Annotated[int | None, Field(ge=2, description="steps in a season, for the seasonal-naive baseline")] = None
    horizon: Annotated[int, Field(ge=1, le=10_000, description="most steps ahead that are measured; 1: only one")] = 12

    @model_validator(mode="after")
    def _columns_make_sense(self) -> Self:
        for key, columns in (("targets", self.targets), ("features", self.columns), ("calendar", self.calendar)):
            if len(set(columns)) != len(columns):
                raise ValueError(f"{key} names {'a cycle' if key == 'calendar' else 'a column'} twice")
        if self.calendar and self.time is None:
            raise ValueError("calendar needs a time column to be derived from: set time")
        if unread := [target for target in self.targets if target not in self.columns]:
            raise ValueError(f"features must include every target, or its surprise is unknown: add {', '.join(unread)}")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns that the model reads."""
        return self.features or self.targets

    @property
    def inputs(self) -> tuple[str, ...]:
        """The model's features: those columns, and what is derived from the time."""
        return (*self.columns, *calendar.names(self.time or "", self.calendar))


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
    head: Literal["point", "gaussian", "student_t", "quantiles"] = "gaussian"
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


class Output(Section):
    repository: Annotated[str, Field(description="folder of models, relative to the configuration's own folder")]


class Config(Section):
    name: Name
    description: str = ""
    data: Data
    model: Model = Model()
    train: Train = Train()
    output: Output

    folder: Annotated[Path, Field(exclude=True)] = Path()
    """The configuration's own folder; set by `read`, not by the file."""

    @property
    def data_file(self) -> Path:
        return self.folder / self.data.path

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
