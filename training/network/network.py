"""The network: what it reads, a stack of recurrent layers, a head.

Owns the mathematics that the export must reproduce, and the initialisation. Knows nothing of ONNX or of data files.
Time comes first: inputs are (time, batch, features).
"""

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
from onward.training.network.input_layer import Reading, Scaling, Unit
from onward.training.network.ops import TorchOps

State = tuple[Tensor, ...]
"""(h,) or, for LSTM, (h, c); each (layers, batch, units)."""

_torch = TorchOps()


@dataclass(frozen=True, slots=True)
class Signature:
    """What a network reads and says: the features of a step, and what the head speaks of."""

    features: tuple[Feature, ...]
    targets: tuple[str, ...]
    """Features, or the label's name."""
    classes: tuple[Category, ...] = ()
    """Of a label."""
    per_sequence: bool = False
    """Whether the label is that of the whole sequence."""
    changes: tuple[str, ...] = ()
    """The features that are read as changes."""

    @property
    def places(self) -> list[int]:
        """Of the targets among the features; none for a label."""
        names = [feature.name for feature in self.features]
        return [] if self.classes else [names.index(target) for target in self.targets]

    @property
    def numbers(self) -> list[int]:
        """The places of the targets that are numbers."""
        return [place for place in self.places if self.features[place].kind == "number"]

    @property
    def chosen(self) -> int:
        """How many places the head chooses among; 0 where it predicts numbers."""
        if self.classes or self.numbers:
            return len(self.classes)
        return self.features[self.places[0]].places


class Layer(Protocol):
    """What torch's RNN, LSTM and GRU share."""

    def __call__(self, inputs: Tensor, state: Tensor | State) -> tuple[Tensor, Tensor | State]: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A sequence as the network reads it, and what its predictions are held to."""

    inputs: Tensor
    """(time, batch, read): scaled numbers and masks, then categories by place."""
    unit: Unit | None
    """Of the targets, after each step."""
    base: Tensor | None
    """The level before each step, around which a prediction is held to what came."""


class Network(nn.Module):
    """`(y_t, s_t) = R(x_t, s_{t-1})`, in training's form: a whole window at once, from prepared inputs."""

    def __init__(self, model: Model, signature: Signature, scaling: Scaling, counts: Tensor | None = None) -> None:
        """counts: (places,) how often the training part has each category or class that the head chooses among."""
        super().__init__()
        self.config, self.signature = model, signature
        target = signature.targets[0]
        self.reading = Reading(model, signature.features, scaling, changes=signature.changes, embedded=target)
        kind, extra = {
            "rnn_tanh": (nn.RNN, {"nonlinearity": "tanh"}),
            "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
            "lstm": (nn.LSTM, {}),
            "gru": (nn.GRU, {}),
        }[model.cell]
        widths = [self.reading.width, *[model.units] * model.layers]
        self.layers = nn.ModuleList(kind(width, model.units, **extra) for width in widths[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(model.units) for _ in range(model.layers if model.layer_norm else 0))
        self.head: Head
        if signature.chosen:
            counts = torch.zeros(signature.chosen) if counts is None else counts
            if signature.classes:
                self.head = heads.Label(model, target, counts)
            else:
                self.head = heads.Categorical(model, target, counts, self.reading.table(target) if model.tied else None)
        else:
            self.head = heads.make(model, len(signature.targets))
        for place, layer in enumerate(self.layers):
            initialise(cast("nn.RNNBase", layer), model.cell, first=place == 0)

    def initial(self, batch: int) -> State:
        device = next(self.parameters()).device
        zeros = torch.zeros(self.config.layers, batch, self.config.units, device=device)
        return (zeros, zeros.clone()) if self.config.cell == "lstm" else (zeros,)

    @torch.no_grad()
    def prepare(self, raw: Tensor) -> Prepared:
        """raw: (time, batch, features) from the sequences' beginning, in the data's units."""
        read = self.reading.numbers(_torch, raw, self.signature.numbers)
        inputs = torch.cat([*read.terms, raw[..., self.reading.categories]], dim=-1)
        return Prepared(inputs, read.unit, read.base)

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """inputs: (time, batch, read) as prepared -> hidden (time, batch, units) of the top layer, state."""
        dense, places = inputs[..., : self.reading.dense], inputs[..., self.reading.dense :]
        terms = self.reading.embedded(_torch, places)
        hidden, after = torch.cat([dense, *terms], dim=-1) if terms else dense, []
        for place, layer in enumerate(self.layers):
            below = hidden if place == 0 else self._dropped(hidden)
            hidden, last = self._step(layer, below, tuple(tensor[place : place + 1] for tensor in state))
            if self.config.residual and place > 0:
                hidden = hidden + below
            if self.config.layer_norm:
                hidden = self.norms[place](hidden)
            after.append(last)
        return hidden, tuple(torch.cat(tensors) for tensors in zip(*after, strict=True))

    def _step(self, layer: nn.Module, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        given = state if self.config.cell == "lstm" else state[0]
        if self.training and self.config.weight_drop:
            recurrent = dropout(cast("Tensor", layer.weight_hh_l0), self.config.weight_drop)
            hidden, after = functional_call(layer, {"weight_hh_l0": recurrent}, (inputs, given))
        else:
            hidden, after = cast("Layer", layer)(inputs, given)
        return hidden, after if isinstance(after, tuple) else (after,)

    def _dropped(self, hidden: Tensor) -> Tensor:
        if not self.config.locked_dropout:
            return dropout(hidden, self.config.dropout, self.training)
        mask = dropout(torch.ones_like(hidden[:1]), self.config.dropout, self.training)
        return hidden * mask


def initialise(rnn: nn.RNNBase, cell: str, *, first: bool) -> None:
    """What the field knows to matter.

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
