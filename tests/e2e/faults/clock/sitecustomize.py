"""Makes a process's wall clock steppable from outside: seconds in the file that STEPPED_CLOCK names are added to it."""

import os
import time

_real, _file = time.time, os.open(os.environ["STEPPED_CLOCK"], os.O_RDONLY)


def _stepped() -> float:
    return _real() + float(os.pread(_file, 32, 0) or 0)


time.time = _stepped
