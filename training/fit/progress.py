"""The progress bar: steps done, losses, the gradient's norm, steps per second and the time left."""

from types import TracebackType
from typing import Self

from tqdm import tqdm


class Progress:
    """A bar over all epochs of a run, for use as a context manager."""

    def __init__(self, epochs: int, steps_before: int, *, disable: bool | None) -> None:
        """`disable` None shows the bar on terminals only; `steps_before` are the steps of a run that is resumed."""
        self._bar = tqdm(initial=steps_before, unit="step", disable=disable, dynamic_ncols=True)
        self._epochs, self._postfix = epochs, dict[str, str]()
        self._steps, self._norm_sum, self._largest_norm = 0, 0.0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    def begin_epoch(self, epoch: int, steps: int) -> None:
        """Begins epoch number `epoch`, counted from 0. The epochs after it are assumed to have as many steps."""
        self._bar.total = self._bar.n + (self._epochs - epoch) * steps
        self._postfix["epoch"] = str(epoch + 1)
        self._steps, self._norm_sum, self._largest_norm = 0, 0.0, 0.0

    def step(self, loss: float, norm: float) -> None:
        """Counts a step. loss: the epoch's mean so far; norm: that of this step's gradient before clipping."""
        if not self._bar.disable:
            self._steps, self._norm_sum = self._steps + 1, self._norm_sum + norm
            self._largest_norm = max(self._largest_norm, norm)
            gradient = f"{self._norm_sum / self._steps:.3g} (largest {self._largest_norm:.3g})"
            self._postfix |= {"train": f"{loss:.4f}", "gradient": gradient}
            self._bar.set_postfix(self._postfix, refresh=False)
            self._bar.update(1)

    def end_epoch(self, validation: float | None) -> None:
        """Shows the epoch's validation loss, if there is one."""
        if not self._bar.disable:
            if validation is not None:
                self._postfix["validation"] = f"{validation:.4f}"
            self._bar.set_postfix(self._postfix)
