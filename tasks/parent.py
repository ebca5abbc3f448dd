"""Processes that end when their parent does, however it dies."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with(parent: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Have Linux send this process the signal `how` when `parent` dies; at once if it has died before.

    Elsewhere nothing happens: a process then ends when it next asks for work.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how)
        if os.getppid() != parent:
            os.kill(os.getpid(), how)
