"""Small bundles with random weights, made by the exporter that makes the real ones, for any test that needs a model.

`make_bundle(repository)` is enough for most tests; the same arguments give the same bytes. Each network is exported
once in a run of the tests and written from memory after that.
"""

import json
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import nn

from onward.model.manifest import Feature
from onward.model.repository import GRAPH, MANIFEST, open_bundle
from onward.model.runner import StepModel
from onward.training.config import Cell, Model
from onward.training.export.export_bundle import PROOF_STEPS, export
from onward.training.network.heads import NumberHead
from onward.training.network.input_layer import TrainingStatistics
from onward.training.network.network import Network, Signature
from tests.helpers.recorded_bundles import draw, moments

Options = tuple[tuple[str, object], ...]


def make_bundle(
    repository: Path,
    *,
    name: str = "tiny",
    cell: Cell = "lstm",
    layers: int = 1,
    units: int = 8,
    head: str = "gaussian",
    features: tuple[str, ...] = ("x",),
    targets: tuple[str, ...] | None = None,
    seed: int = 0,
    version: int = 1,
    more: Options = (),
) -> StepModel:
    """Writes `<repository>/<name>/<version>` and opens it. `targets` are the features where left out.

    `more` are further keys of the configuration's [model], with their values.
    """
    graph, manifest = _exported(cell, layers, units, head, features, targets or features, seed, more)
    bundle = repository / name / str(version)
    bundle.mkdir(parents=True)
    (bundle / GRAPH).write_bytes(graph)
    (bundle / MANIFEST).write_text(json.dumps(json.loads(manifest) | {"name": name, "version": version}))
    return open_bundle(bundle)


def make_network(
    *,
    cell: Cell = "lstm",
    layers: int = 1,
    units: int = 8,
    head: str = "gaussian",
    features: tuple[str, ...] = ("x",),
    targets: tuple[str, ...] | None = None,
    seed: int = 0,
    more: Options = (),
) -> Network:
    """Returns the network of `make_bundle` with these arguments.

    No weight or bias is zero, so that a misplaced weight shows.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, std = moments(len(features))
    model = Model.model_validate({"cell": cell, "layers": layers, "units": units, "head": head, **dict(more)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scaling = TrainingStatistics(torch.from_numpy(mean), torch.from_numpy(std))
        network = Network(model, signature(features, targets), scaling)
    with torch.no_grad():
        for parameter_name, parameter in network.named_parameters():
            if "weight_hh" in parameter_name:
                parameter.mul_(0.7)  # a contraction, so that no state grows without bound
            reach = 0.3 if parameter.ndim == 1 else 0.3 / parameter.shape[1]
            parameter.add_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * reach)
    return network


def signature(features: tuple[str, ...] = ("x",), targets: tuple[str, ...] | None = None) -> Signature:
    """Returns the signature of a network whose features are all observed numbers."""
    return Signature(tuple(Feature(name=name) for name in features), targets or features)


def readout(network: Network) -> nn.Linear:
    """Returns the readout layer of a network whose head predicts numbers."""
    assert isinstance(network.head, NumberHead)
    return network.head.readout


@cache
def _exported(
    cell: Cell,
    layers: int,
    units: int,
    head: str,
    features: tuple[str, ...],
    targets: tuple[str, ...],
    seed: int,
    more: Options,
) -> tuple[bytes, str]:
    network = make_network(
        cell=cell, layers=layers, units=units, head=head, features=features, targets=targets, seed=seed, more=more
    )
    with tempfile.TemporaryDirectory() as repository:
        bundle = Path(repository) / "tiny" / "1"
        sample = draw(7, PROOF_STEPS, len(features), seed=seed)
        export(network, bundle=bundle, sample=sample)
        return (bundle / GRAPH).read_bytes(), (bundle / MANIFEST).read_text()
