"""The device that a run computes on, and the processes among which it is distributed.

Owns torch's device and process group. Processes are described by torchrun's environment variables RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR and MASTER_PORT. All hold the same weights at every step; only the first shows progress, writes
checkpoints and publishes.
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
class Process:
    """A process of a run: its device, its rank and the number of processes."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def data_parallel(self, module: nn.Module) -> nn.Module:
        """Returns the module with its gradients averaged over the processes."""
        if self.world == 1:
            return module
        devices = None if self.device.type == "cpu" else [self.device]
        return DistributedDataParallel(module, device_ids=devices)

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        """Returns the sum of the processes' values."""
        value = value.detach()
        if self.world > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def broadcast_number(self, compute: Callable[[], float]) -> float:
        """Returns the number of the first process, which alone computes it, in all processes."""
        if self.world == 1:
            return compute()
        number = torch.tensor(compute() if self.first else 0.0, dtype=torch.float64, device=self.device)
        distributed.broadcast(number, 0)
        return float(number)

    def broadcast_bytes(self, value: bytes | None) -> bytes | None:
        """Returns the bytes of the first process in all processes."""
        if self.world == 1:
            return value
        size = int(self.broadcast_number(lambda: -1 if value is None else len(value)))
        if size < 0:
            return None
        buffer = torch.zeros(size, dtype=torch.uint8)
        if value is not None and self.first:
            buffer = torch.frombuffer(bytearray(value), dtype=torch.uint8)
        buffer = buffer.to(self.device)
        distributed.broadcast(buffer, 0)
        return buffer.cpu().numpy().tobytes()


def is_distributed() -> bool:
    """Returns True if this process was started as one of several."""
    announced = all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    return announced and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first_process() -> bool:
    """Returns True if this process shows progress, writes checkpoints and publishes."""
    return not is_distributed() or os.environ["RANK"] == "0"


@contextmanager
def process_group(settings: Train) -> Iterator[Process]:
    """Yields this process, connected to the others of its run while the context lasts. Raises TrainingError.

    Meanwhile torch computes in as many threads as the settings say, whatever the number of cores: small operations take
    longer in several threads, which wait for each other, and the sums do not depend on the machine.
    """
    device, threads = _device(settings), torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with _connected(device) as process:
            yield process
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _connected(device: torch.device) -> Iterator[Process]:
    if not is_distributed():
        yield Process(device)
        return
    own_group = not distributed.is_initialized()  # a group that the caller initialised is used, and not destroyed
    try:
        if own_group:
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"the processes cannot connect to each other: {str(error).splitlines()[0]}") from error
    try:
        yield Process(device, distributed.get_rank(), distributed.get_world_size())
    finally:
        if own_group:
            distributed.destroy_process_group()


def _device(settings: Train) -> torch.device:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.device == "cuda" and not gpus:
        raise TrainingError(
            'train.device: this machine has no GPU, or this torch has no CUDA; "auto" uses the CPU in that case'
        )
    if settings.device == "cpu" or not gpus:
        if settings.precision == "bfloat16":
            raise TrainingError(
                'train.precision: "bfloat16" needs a GPU (on a CPU it is several times slower): use "float32"'
            )
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", "0")) if is_distributed() else 0
    if number >= gpus:
        raise TrainingError(
            f"process {number} of this machine has no GPU: there are {gpus}; start one process for each"
        )
    if settings.precision == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise TrainingError('train.precision: this GPU does not support "bfloat16": use "float32"')
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
