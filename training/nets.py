"""The network: scaling, a stack of recurrent layers, a head.

Owns the mathematics that the export must reproduce, and the initialisation. Knows nothing of ONNX or of data files.
Time comes first: inputs are (time, batch, features).
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import dropout

from training import heads
from training.config import Model

State = tuple[Tensor, ...]
"""(h,) or, for LSTM, (h, c); each (layers, batch, units)."""


class Scaling(nn.Module):
    """Fixed standardisation, fitted on the training part, kept in the graph so that clients send raw values."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        """mean, std: (features,) in the data's units; a constant feature has deviation 1."""
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", torch.where(std > 0, std, torch.ones_like(std)).float())

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.std


class Layer(Protocol):
    """What torch's RNN, LSTM and GRU share."""

    def __call__(self, inputs: Tensor, state: Tensor | State) -> tuple[Tensor, Tensor | State]: ...


class Network(nn.Module):
    """`(y_t, s_t) = R(x_t, s_{t-1})`, in training's form: a whole window at once.

    The prediction is in scaled units: (time, batch, targets, numbers), the numbers being what the head makes of them.
    """

    def __init__(self, model: Model, scaling: Scaling, targets: list[int]) -> None:
        """`targets` are the places of the predicted columns among the features."""
        super().__init__()
        self.config, self.scaling, self.targets = model, scaling, targets
        kind, extra = {
            "rnn_tanh": (nn.RNN, {"nonlinearity": "tanh"}),
            "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
            "lstm": (nn.LSTM, {}),
            "gru": (nn.GRU, {}),
        }[model.cell]
        widths = [len(scaling.mean), *[model.units] * model.layers]
        self.layers = nn.ModuleList(kind(width, model.units, **extra) for width in widths[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(model.units) for _ in range(model.layers if model.layer_norm else 0))
        self.head = heads.make(model, len(targets))
        self.readout = nn.Linear(model.units, len(targets) * self.head.width)
        for place, layer in enumerate(self.layers):
            initialise(cast("nn.RNNBase", layer), model.cell, first=place == 0)
        nn.init.zeros_(self.readout.bias)

    def initial(self, batch: int) -> State:
        zeros = torch.zeros(self.config.layers, batch, self.config.units, device=self.readout.weight.device)
        return (zeros, zeros.clone()) if self.config.cell == "lstm" else (zeros,)

    def forward(self, scaled: Tensor, state: State) -> tuple[Tensor, State]:
        """scaled: (time, batch, features) -> prediction (time, batch, targets, numbers), state."""
        hidden, after = scaled, []
        for place, layer in enumerate(self.layers):
            below = hidden if place == 0 else self._dropped(hidden)
            hidden, last = self._step(layer, below, tuple(tensor[place : place + 1] for tensor in state))
            if self.config.residual and place > 0:
                hidden = hidden + below
            if self.config.layer_norm:
                hidden = self.norms[place](hidden)
            after.append(last)
        said = self.readout(hidden).unflatten(-1, (len(self.targets), self.head.width))
        return said, tuple(torch.cat(tensors) for tensors in zip(*after, strict=True))

    def loss(self, said: Tensor, scaled_next: Tensor) -> Tensor:
        """(time, batch, targets) of one prediction each."""
        return self.head.loss(said, scaled_next[..., self.targets])

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
