"""The end of a command's process: an exit status, at most one line, and no traceback.

Ctrl-C, a reader of the output that has gone, and an output that cannot be written. The statuses are those that shells
give a process which such a signal ends: 128 and the signal's number.
"""

import atexit
import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import click

FAILED, INTERRUPTED, READER_GONE = 1, 130, 141
WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def run(command: Callable[[], object]) -> NoReturn:
    """Runs the command of this process, and ends the process.

    The interpreter is not taken down once its exit handlers have run: a thread that still waits for input holds the
    lock of stdin, at which the interpreter would abort, and what a failed write has left would be written once more.
    """
    status = FAILED
    atexit.register(lambda: os._exit(status))  # the first that is registered is the last that runs
    try:
        with reported():
            command()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else FAILED if end.code else 0
        raise
    sys.exit(status)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Ends the process, by SystemExit, for an interrupt and for an OSError of the block."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        _end(INTERRUPTED, "interrupted")
    except click.Abort as error:  # of a prompt
        if isinstance(error.__context__, KeyboardInterrupt):
            _end(INTERRUPTED, "interrupted")
        raise
    except BrokenPipeError:
        raise SystemExit(READER_GONE) from None
    except OSError as error:
        is_output = error.filename is None and error.errno in WRITE_ERRORS  # an error about a file has its name
        _end(FAILED, f"the output cannot be written: {error.strerror}" if is_output else str(error))


def _end(status: int, message: str) -> NoReturn:
    with contextlib.suppress(OSError):
        click.echo(f"onward: {message}", err=True)
    raise SystemExit(status) from None
