"""Where a run computes: precisions, GPUs, and several processes that train one network."""

from pathlib import Path

import pytest
import torch

from onward.training.config import Cell
from onward.training.errors import TrainingError
from onward.training.fit import training_loop
from onward.training.fit.checkpoint import Checkpoint
from onward.training.fit.devices import Process
from tests.helpers.random_bundles import make_network
from tests.training.fit.test_training_loop import noise, series, settings


@pytest.mark.parametrize("cell", ["gru", "rnn_tanh"])
def test_bfloat16_is_for_the_network_alone(cell: Cell) -> None:
    """The network computes in bfloat16; its loss and the gradients are float32, and close to those of float32."""
    scaled, found = noise(30), []
    for precision in ("float32", "bfloat16"):
        network = make_network(cell=cell, units=16)
        objective = training_loop.Objective(network, settings(precision=precision))
        real = torch.ones(29, 1, 1)
        total, state = objective(scaled[:-1, None], scaled[1:, None], real, network.initial(1))
        assert total.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            said, _ = network(scaled[:-1, None], network.initial(1))
        assert total.item() == network.head.loss(said.float(), scaled[1:, None]).sum().item()
        (total / 29).backward()
        assert {parameter.grad.dtype for parameter in network.parameters() if parameter.grad is not None} == {
            torch.float32
        }
        grads = torch.cat(
            [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
        )
        found.append((total.item(), grads, state[0].float()))
    low, full = found[1], found[0]
    assert low[0] != full[0]
    assert low[0] == pytest.approx(full[0], rel=0.02)
    assert float((low[1] - full[1]).norm() / full[1].norm()) < 0.05
    assert not torch.equal(low[2], full[2])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"device": "cuda"}, 'train.device: this machine has no GPU.*"auto" uses the CPU'),
        ({"precision": "bfloat16"}, 'train.precision: "bfloat16" needs a GPU .*: use "float32"'),
    ],
)
def test_what_the_machine_has_not_is_refused(told: dict[str, str], says: str) -> None:
    """A GPU that is not there and arithmetic that would be slower are not silently replaced."""
    with pytest.raises(TrainingError, match=says):
        training_loop.fit(make_network(), [series(noise(60).numpy())], settings(**told), quiet=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampling", ["streams", "windows"])
def test_a_gpu_gives_what_the_cpu_gives(precision: str, sampling: str, tmp_path: Path) -> None:
    """The same losses but for rounding; the network comes back to the CPU, and a run goes on there or here."""
    one, losses = series(noise(300).numpy()), []
    for device in ("cpu", "cuda"):
        low = precision if device == "cuda" else "float32"
        told = settings(epochs=3, window=16, batch=4, sampling=sampling, device=device, precision=low, clip=1.0)
        network, kept = make_network(cell="gru"), Checkpoint(tmp_path / "checkpoint.pt", {})
        history = training_loop.fit(network, [one], told, quiet=True, checkpoint=kept)
        assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}
        longer = told.model_copy(update={"epochs": 4})
        training_loop.fit(make_network(cell="gru"), [one], longer, quiet=True, checkpoint=kept, resume=True)
        losses.append(history.train + history.validation)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3 if precision == "float32" else 0.05)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("compiled", [True, False])
def test_compile_compiles_what_is_trained(compiled: bool) -> None:
    """With `compile` the network with its loss runs compiled, without it as it is; what is exported is the same."""
    network = make_network()
    stepper = training_loop.make_trainer(network, settings(compile=compiled), Process(torch.device("cpu")))
    assert (stepper.objective._compiled_call_impl is not None) == compiled
    assert stepper.network is network


@pytest.mark.parametrize("sampling", ["streams", "windows"])
def test_every_tensor_is_made_where_the_run_is(sampling: str) -> None:
    """Nothing lands on the default device unasked: with one that cannot compute in its place, a run is the same."""
    one, losses = series(noise(200).numpy()), []
    for default in ("cpu", "meta"):
        network = make_network()
        with torch.device(default):
            told = settings(epochs=2, window=16, batch=4, sampling=sampling)
            losses.append(training_loop.fit(network, [one], told, quiet=True).validation)
    assert losses[0] == losses[1]
