"""SIGTERM: a work that can save itself is asked to stop; any other stops where it is."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tasks.errors import Interrupted


class StopRequest:
    """Whether SIGTERM came.  Where the work cannot save itself, `waits` is False and Interrupted is raised at once."""

    def __init__(self) -> None:
        self.asked = self.waits = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        self.asked = True
        self.raise_if_asked()

    def raise_if_asked(self) -> None:
        """Raise Interrupted when SIGTERM came and nothing waits to save itself."""
        if self.asked and not self.waits:
            raise Interrupted("stopped by SIGTERM; run the same command again and it goes on from where it was")

    @contextmanager
    def waiting(self, waits: bool = True) -> Iterator[None]:
        """Whether, inside, the work looks at `asked` by itself."""
        before, self.waits = self.waits, waits
        try:
            self.raise_if_asked()
            yield
        finally:
            self.waits = before


@contextmanager
def on_sigterm() -> Iterator[StopRequest]:
    """Take over SIGTERM while inside; in a thread, which gets no signals, nothing is ever asked."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, request)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
