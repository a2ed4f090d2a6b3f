"""The progress bar: how far, the losses, the gradient's norm, steps a second and the time left."""

from types import TracebackType
from typing import Self

from tqdm import tqdm


class Progress:
    """`disable` None shows the bar on terminals only."""

    def __init__(self, epochs: int, done: int, *, disable: bool | None) -> None:
        """done: the optimiser's steps before, of a run that goes on."""
        self._bar = tqdm(initial=done, unit="step", disable=disable, dynamic_ncols=True)
        self._epochs, self._told = epochs, dict[str, str]()
        self._steps, self._sum, self._largest = 0, 0.0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    def epoch(self, epoch: int, steps: int) -> None:
        """Epoch number `epoch`, from 0, of so many steps begins; those after it are taken to be as long."""
        self._bar.total = self._bar.n + (self._epochs - epoch) * steps
        self._told["epoch"] = str(epoch + 1)
        self._steps, self._sum, self._largest = 0, 0.0, 0.0

    def step(self, loss: float, norm: float) -> None:
        """loss: the epoch's mean so far; norm: this step's, of the gradient before clipping."""
        if not self._bar.disable:
            self._steps, self._sum, self._largest = self._steps + 1, self._sum + norm, max(self._largest, norm)
            gradient = f"{self._sum / self._steps:.3g} (largest {self._largest:.3g})"
            self._told |= {"train": f"{loss:.4f}", "gradient": gradient}
            self._bar.set_postfix(self._told, refresh=False)
            self._bar.update(1)

    def validated(self, loss: float) -> None:
        if not self._bar.disable:
            self._told["validation"] = f"{loss:.4f}"
            self._bar.set_postfix(self._told)
