"""The network: scaling, a stack of recurrent layers, a head.

Owns the mathematics that the export must reproduce, and the initialisation. Knows nothing of ONNX or of data files.
Time comes first: inputs are (time, batch, features).
"""

import math
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from training.config import Model

State = tuple[Tensor, ...]
"""(h,) or, for LSTM, (h, c); each (layers, batch, units)."""

LOG_STD_BOUND = 7.0
"""A gaussian's deviation stays within exp(-7) and exp(7) of the target's own, so that no likelihood is infinite."""


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


class Stack(Protocol):
    """What torch's RNN, LSTM and GRU share."""

    def __call__(self, inputs: Tensor, state: Tensor | State) -> tuple[Tensor, Tensor | State]: ...


class Network(nn.Module):
    """`(y_t, s_t) = R(x_t, s_{t-1})`, in training's form: a whole window at once.

    The prediction is in scaled units: (time, batch, targets, parameters), the parameters being (point,) or
    (mean, log of the standard deviation).
    """

    def __init__(self, model: Model, scaling: Scaling, targets: list[int]) -> None:
        """`targets` are the places of the predicted columns among the features."""
        super().__init__()
        self.config, self.scaling, self.targets = model, scaling, targets
        features = len(scaling.mean)
        kind, extra = {
            "rnn_tanh": (nn.RNN, {"nonlinearity": "tanh"}),
            "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
            "lstm": (nn.LSTM, {}),
            "gru": (nn.GRU, {}),
        }[model.cell]
        dropout = model.dropout if model.layers > 1 else 0.0
        self.rnn: nn.RNNBase = kind(features, model.units, model.layers, dropout=dropout, **extra)
        self.parameters_each = 2 if model.head == "gaussian" else 1
        self.readout = nn.Linear(model.units, len(targets) * self.parameters_each)
        initialise(self.rnn, model.cell)
        nn.init.zeros_(self.readout.bias)

    def initial(self, batch: int) -> State:
        zeros = torch.zeros(self.config.layers, batch, self.config.units, device=self.readout.weight.device)
        return (zeros, zeros.clone()) if self.config.cell == "lstm" else (zeros,)

    def forward(self, scaled: Tensor, state: State) -> tuple[Tensor, State]:
        """scaled: (time, batch, features) -> prediction (time, batch, targets, parameters), state."""
        rnn = cast("Stack", self.rnn)
        hidden, after = rnn(scaled, state if self.config.cell == "lstm" else state[0])
        said = self.readout(hidden).unflatten(-1, (len(self.targets), self.parameters_each))
        if self.config.head == "gaussian":
            said = torch.stack((said[..., 0], said[..., 1].clamp(-LOG_STD_BOUND, LOG_STD_BOUND)), dim=-1)
        return said, after if isinstance(after, tuple) else (after,)

    def loss(self, said: Tensor, scaled_next: Tensor) -> Tensor:
        """(time, batch, targets) of one prediction each.

        gaussian: negative log-likelihood. point: absolute error, whose best forecast is the conditional median; it
        is what the reported MAE measures and is not led by outliers.
        """
        actual = scaled_next[..., self.targets]
        if self.config.head == "gaussian":
            mean, log_std = said.unbind(-1)
            return gaussian_nll(actual, mean, log_std)
        return (actual - said[..., 0]).abs()


def gaussian_nll(value: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """-log N(value; mean, exp(log_std)^2), elementwise."""
    return 0.5 * math.log(2 * math.pi) + log_std + 0.5 * ((value - mean) / log_std.exp()) ** 2


def initialise(rnn: nn.RNNBase, cell: str) -> None:
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
            if cell == "rnn_relu" and name.endswith("_l0"):
                nn.init.normal_(weight, std=0.001)
            else:
                for gate in torch.split(weight.data, units):
                    nn.init.xavier_uniform_(gate)
        else:
            nn.init.zeros_(weight)
            if cell == "lstm" and "bias_ih" in name:
                weight.data[units : 2 * units] = 1.0  # gates lie i, f, g, o
