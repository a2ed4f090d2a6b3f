"""The root of Onward's exceptions, and those of a bundle that must not serve and of a file that is not data."""

from pathlib import Path


class OnwardError(Exception):
    """The base class of all exceptions that Onward raises for its callers, apart from ValueError and TypeError."""


class DataError(OnwardError):
    """A file that cannot be used as data. The message names it, and the row and column where there is one."""


class BundleError(OnwardError):
    """A bundle must not serve: `file` is the file at fault, `reason` the reason. The message has both."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason

    @property
    def folders(self) -> tuple[str, ...]:
        """The names of the two folders that the file lies in: for a file of a bundle, the model and the version."""
        return self.file.parts[-3:-1]
