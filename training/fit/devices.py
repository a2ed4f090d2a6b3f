"""Where a run computes: the CPU, a GPU, or several processes with one each.

Owns torch's device and process group. Processes are found as torchrun announces them, by RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT. They hold the same weights at every step; the first alone shows, writes and publishes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from onward.training.config import Train
from onward.training.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Place:
    """One process: its device, and which of how many it is."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def shared(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the processes."""
        if self.world == 1:
            return module
        devices = None if self.device.type == "cpu" else [self.device]
        return DistributedDataParallel(module, device_ids=devices)

    def total(self, value: Tensor) -> Tensor:
        """The sum of the processes' values."""
        value = value.detach()
        if self.world > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def agreed(self, value: Callable[[], float]) -> float:
        """The first process' value, which it alone computes, in all of them."""
        if self.world == 1:
            return value()
        told = torch.tensor(value() if self.first else 0.0, dtype=torch.float64, device=self.device)
        distributed.broadcast(told, 0)
        return float(told)

    def agreed_bytes(self, value: bytes | None) -> bytes | None:
        """The first process' bytes in all of them."""
        if self.world == 1:
            return value
        size = int(self.agreed(lambda: -1 if value is None else len(value)))
        if size < 0:
            return None
        told = torch.zeros(size, dtype=torch.uint8)
        if value is not None and self.first:
            told = torch.frombuffer(bytearray(value), dtype=torch.uint8)
        told = told.to(self.device)
        distributed.broadcast(told, 0)
        return told.cpu().numpy().tobytes()


def several() -> bool:
    """Whether this process was started as one of several."""
    announced = all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    return announced and int(os.environ.get("WORLD_SIZE", "1")) > 1


def first() -> bool:
    """Whether this process shows, writes and publishes."""
    return not several() or os.environ["RANK"] == "0"


@contextmanager
def place(settings: Train) -> Iterator[Place]:
    """Where this process computes, in one group with its companions while the context lasts. Raises TrainingError."""
    device = _device(settings)
    if not several():
        yield Place(device)
        return
    own = not distributed.is_initialized()  # a caller's group is used, and left
    try:
        if own:
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"the processes did not find each other: {str(error).splitlines()[0]}") from error
    try:
        yield Place(device, distributed.get_rank(), distributed.get_world_size())
    finally:
        if own:
            distributed.destroy_process_group()


def _device(settings: Train) -> torch.device:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.device == "cuda" and not gpus:
        raise TrainingError('train.device: there is no GPU here, or this torch has no CUDA; "auto" takes the CPU then')
    if settings.device == "cpu" or not gpus:
        if settings.precision == "bfloat16":
            raise TrainingError(
                'train.precision: "bfloat16" needs a GPU (on a CPU it is several times slower): use "float32"'
            )
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", "0")) if several() else 0
    if number >= gpus:
        raise TrainingError(
            f"process {number} of this machine has no GPU: there are {gpus}; start one process for each"
        )
    if settings.precision == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise TrainingError('train.precision: this GPU has no "bfloat16": use "float32"')
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
