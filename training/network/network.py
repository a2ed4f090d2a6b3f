"""The network: an input layer, a stack of recurrent layers, a head.

Owns the mathematics that the export must reproduce, and the initialisation. Knows nothing of ONNX or of data files.
Time comes first: inputs are (time, batch, features).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import dropout

from onward.model.manifest import Category, Feature
from onward.training.config import Model
from onward.training.network import heads
from onward.training.network.heads import Head
from onward.training.network.input_layer import InputLayer, TargetScale, TrainingStatistics
from onward.training.network.ops import TorchOps

State = tuple[Tensor, ...]
"""(h,) or, for LSTM, (h, c); each (layers, batch * channels, units)."""

_torch = TorchOps()


@dataclass(frozen=True, slots=True)
class Signature:
    """The features that a network reads, and the targets that it predicts."""

    features: tuple[Feature, ...]
    targets: tuple[str, ...]
    """The names of the predicted features, or of the label."""
    classes: tuple[Category, ...] = ()
    """The classes of a label."""
    per_sequence: bool = False
    """True if the label is that of the whole sequence."""
    differenced: tuple[str, ...] = ()
    """The features that are read as differences from the last value."""
    independent: bool = False
    """True if each target is read apart, as a channel: with the same weights, and a state of its own."""

    @property
    def channels(self) -> int:
        """The number of rows of the recurrent layers for each row of a batch."""
        return len(self.targets) if self.independent else 1

    @property
    def target_columns(self) -> list[int]:
        """The columns of the targets among the features; none for a label."""
        names = [feature.name for feature in self.features]
        return [] if self.classes else [names.index(target) for target in self.targets]

    @property
    def number_columns(self) -> list[int]:
        """The columns of the targets that are numbers."""
        return [column for column in self.target_columns if self.features[column].kind == "number"]

    @property
    def category_count(self) -> int:
        """The number of categories or classes that the head predicts among; 0 where it predicts numbers."""
        if self.classes or self.number_columns:
            return len(self.classes)
        return self.features[self.target_columns[0]].category_count


class Layer(Protocol):
    """The call that torch's RNN, LSTM and GRU have in common."""

    def __call__(self, inputs: Tensor, state: Tensor | State) -> tuple[Tensor, Tensor | State]: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A sequence as the network reads it, and the scale of its predictions."""

    values: Tensor
    """The values in transformed units: (time, batch, features)."""
    inputs: Tensor
    """Scaled numbers and masks, then categories as indices: (time, batch, read)."""
    target_scale: TargetScale | None
    """The targets' scale after each step; None where they are not numbers."""
    previous_level: Tensor | None
    """The level before each step, (time, batch, targets); None where no target is differenced."""


class Network(nn.Module):
    """The recurrent model `(y_t, s_t) = R(x_t, s_{t-1})` in training's form: whole windows of prepared inputs."""

    def __init__(
        self, model: Model, signature: Signature, statistics: TrainingStatistics, counts: Tensor | None = None
    ) -> None:
        """Takes the counts (categories,) of the predicted category or class in the training part, if there is one."""
        super().__init__()
        self.config, self.signature = model, signature
        target = signature.targets[0]
        self.input_layer = InputLayer(
            model,
            signature.features,
            statistics,
            differenced=signature.differenced,
            embedded=target,
            channels=signature.target_columns if signature.channels > 1 else (),
        )
        kind, extra = {
            "rnn_tanh": (nn.RNN, {"nonlinearity": "tanh"}),
            "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
            "lstm": (nn.LSTM, {}),
            "gru": (nn.GRU, {}),
        }[model.cell]
        widths = [self.input_layer.width, *[model.units] * model.layers]
        self.layers = nn.ModuleList(kind(width, model.units, **extra) for width in widths[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(model.units) for _ in range(model.layers if model.layer_norm else 0))
        self.head: Head
        if signature.category_count:
            counts = torch.zeros(signature.category_count) if counts is None else counts
            if signature.classes:
                self.head = heads.Label(model, target, counts)
            else:
                self.head = heads.Categorical(
                    model, target, counts, self.input_layer.table(target) if model.tied else None
                )
        else:
            kinds = [signature.features[i].transform for i in signature.number_columns]
            self.head = heads.number_head(model, kinds, channels=signature.channels)
        for index, layer in enumerate(self.layers):
            initialise(cast("nn.RNNBase", layer), model.cell, first=index == 0)

    def initial(self, batch: int) -> State:
        """Returns the state before a session's first step: zeros."""
        device = next(self.parameters()).device
        rows = batch * self.signature.channels
        zeros = torch.zeros(self.config.layers, rows, self.config.units, device=device)
        return (zeros, zeros.clone()) if self.config.cell == "lstm" else (zeros,)

    @torch.no_grad()
    def prepare(self, raw: Tensor) -> Prepared:
        """Scales raw values (time, batch, features), which start at the sequences' beginning."""
        values = self.input_layer.transform(_torch, raw)
        numbers = self.input_layer.scale_numbers(_torch, values, self.signature.number_columns)
        inputs = torch.cat([*numbers.terms, values[..., self.input_layer.categories].float()], dim=-1)
        return Prepared(values, inputs, numbers.target_scale, numbers.previous_level)

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns the top layer's hidden state (time, batch * channels, units) and the last state.

        inputs: (time, batch, read).
        """
        dense, indices = inputs[..., : self.input_layer.dense], inputs[..., self.input_layer.dense :]
        embeddings = self._drop_categories(indices, self.input_layer.embed(_torch, indices))
        inputs = torch.cat([dense, *embeddings], dim=-1) if embeddings else dense
        inputs = self.input_layer.by_channel(_torch, inputs)
        hidden, last_states = self._dropout(inputs, self.config.input_dropout), []
        for index, layer in enumerate(self.layers):
            below = hidden
            hidden, last = self._run_layer(layer, below, tuple(tensor[index : index + 1] for tensor in state))
            if self.config.residual and index > 0:
                hidden = hidden + below
            if self.config.layer_norm:
                hidden = self.norms[index](hidden)
            hidden = self._dropout(hidden, self.config.dropout)
            last_states.append(last)
        return hidden, tuple(torch.cat(tensors) for tensors in zip(*last_states, strict=True))

    def _run_layer(self, layer: nn.Module, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        initial = state if self.config.cell == "lstm" else state[0]
        if self.training and self.config.weight_drop:
            recurrent = dropout(cast("Tensor", layer.weight_hh_l0), self.config.weight_drop)
            hidden, last = functional_call(layer, {"weight_hh_l0": recurrent}, (inputs, initial))
        else:
            hidden, last = cast("Layer", layer)(inputs, initial)
        return hidden, last if isinstance(last, tuple) else (last,)

    def _dropout(self, hidden: Tensor, share: float) -> Tensor:
        if not self.config.locked_dropout:
            return dropout(hidden, share, self.training)
        return hidden * dropout(torch.ones_like(hidden[:1]), share, self.training)

    def _drop_categories(self, indices: Tensor, embeddings: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns the embeddings with some categories' zero in the whole window, in training."""
        share = self.config.embedding_dropout
        if not (self.training and share):
            return embeddings
        columns = zip(indices.unbind(dim=-1), self.input_layer.tables, embeddings, strict=True)
        return [
            embedding
            * dropout(torch.ones_like(table.weight[:, :1]), share)[index.nan_to_num(len(table.weight) - 1).long()]
            for index, table, embedding in columns
        ]


def initialise(rnn: nn.RNNBase, cell: str, *, first: bool) -> None:
    """Initialises a recurrent layer in place.

    Recurrent weights are orthogonal, gate by gate (Saxe et al. 2014); the identity for ReLU cells, with input weights
    of deviation 0.001 in the first layer (Le, Jaitly and Hinton 2015, section 3), so that an error is carried back
    unchanged. The forget gate's bias is 1 (Gers et al. 2000; Jozefowicz et al. 2015), the other biases 0. Input weights
    are Glorot-uniform.
    """
    units = rnn.hidden_size
    for name, weight in rnn.named_parameters():
        if "weight_hh" in name:
            for gate in torch.split(weight.data, units):
                if cell == "rnn_relu":
                    nn.init.eye_(gate)
                else:
                    nn.init.orthogonal_(gate)
        elif "weight_ih" in name:
            if cell == "rnn_relu" and first:
                nn.init.normal_(weight, std=0.001)
            else:
                for gate in torch.split(weight.data, units):
                    nn.init.xavier_uniform_(gate)
        else:
            nn.init.zeros_(weight)
            if cell == "lstm" and "bias_ih" in name:
                weight.data[units : 2 * units] = 1.0  # gates lie i, f, g, o
