"""Devices of a run: precisions, GPUs and compilation."""

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
    scaled, results = noise(30), []
    for precision in ("float32", "bfloat16"):
        network = make_network(cell=cell, units=16)
        objective = training_loop.Objective(network, settings(precision=precision))
        real = torch.ones(29, 1, 1)
        total, state = objective(scaled[:-1, None], scaled[1:, None], real, network.initial(1))
        assert total.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            hidden, _ = network(scaled[:-1, None], network.initial(1))
        assert total.item() == network.head.loss(hidden.float(), scaled[1:, None]).sum().item()
        (total / 29).backward()
        assert {parameter.grad.dtype for parameter in network.parameters() if parameter.grad is not None} == {
            torch.float32
        }
        grads = torch.cat(
            [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
        )
        results.append((total.item(), grads, state[0].float()))
    reduced, full = results[1], results[0]
    assert reduced[0] != full[0]
    assert reduced[0] == pytest.approx(full[0], rel=0.02)
    assert float((reduced[1] - full[1]).norm() / full[1].norm()) < 0.05
    assert not torch.equal(reduced[2], full[2])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"device": "cuda"}, 'train.device: this machine has no GPU.*"auto" uses the CPU'),
        ({"precision": "bfloat16"}, 'train.precision: "bfloat16" needs a GPU .*: use "float32"'),
    ],
)
def test_an_unsupported_device_or_precision_is_refused(keys: dict[str, str], message: str) -> None:
    """A missing GPU, and arithmetic that would be slower, are refused and not silently replaced."""
    with pytest.raises(TrainingError, match=message):
        training_loop.fit(make_network(), [series(noise(60).numpy())], settings(**keys), quiet=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampling", ["streams", "windows"])
def test_a_gpu_gives_what_the_cpu_gives(precision: str, sampling: str, tmp_path: Path) -> None:
    """The losses agree but for rounding; the network returns to the CPU, and a run is resumed on either device."""
    data, losses = series(noise(300).numpy()), []
    for device in ("cpu", "cuda"):
        device_precision = precision if device == "cuda" else "float32"
        run_settings = settings(
            epochs=3, window=16, batch=4, sampling=sampling, device=device, precision=device_precision, clip=1.0
        )
        network, checkpoint = make_network(cell="gru"), Checkpoint(tmp_path / "checkpoint.pt", {})
        history = training_loop.fit(network, [data], run_settings, quiet=True, checkpoint=checkpoint)
        assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}
        longer = run_settings.model_copy(update={"epochs": 4})
        training_loop.fit(make_network(cell="gru"), [data], longer, quiet=True, checkpoint=checkpoint, resume=True)
        losses.append(history.train + history.validation)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3 if precision == "float32" else 0.05)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("compiled", [True, False])
def test_compile_compiles_what_is_trained(compiled: bool) -> None:
    """The network with its loss is compiled only with `compile`; the exported network is the same object."""
    network = make_network()
    trainer = training_loop.make_trainer(network, settings(compile=compiled), Process(torch.device("cpu")))
    assert (trainer.objective._compiled_call_impl is not None) == compiled
    assert trainer.network is network


@pytest.mark.parametrize("sampling", ["streams", "windows"])
def test_every_tensor_is_made_on_the_runs_device(sampling: str) -> None:
    """No tensor is made on the default device: a run is the same with a default device that cannot compute."""
    data, losses = series(noise(200).numpy()), []
    for default in ("cpu", "meta"):
        network = make_network()
        with torch.device(default):
            run_settings = settings(epochs=2, window=16, batch=4, sampling=sampling)
            losses.append(training_loop.fit(network, [data], run_settings, quiet=True).validation)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_fit_computes_in_the_threads_of_its_settings(threads: int) -> None:
    """The number of threads is that of the settings during a fit, and what it was before afterwards."""
    before, during = torch.get_num_threads(), []
    training_loop.fit(
        make_network(), [series(noise(60).numpy())], settings(threads=threads, epochs=1), quiet=True,
        on_epoch_end=lambda _: during.append(torch.get_num_threads()),
    )  # fmt: skip
    assert during == [threads]
    assert torch.get_num_threads() == before
