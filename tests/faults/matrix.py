"""What a fault is: a function that provokes something bad many times and tells how often attune survived it."""

import importlib
import pkgutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faults

ROOT = Path(__file__).parent.parent.parent
SHOWN_FAILURES = 5


class NotRun(Exception):
    """This machine cannot provoke the fault, and why."""


@dataclass
class Outcome:
    """How often a fault was provoked, how often all was well afterwards, and what was measured on the way."""

    tries: int = 0
    survived: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def attempt(self, what: object) -> Iterator[None]:
        """One try: it is survived unless something is raised inside, which is noted and ends this try only."""
        self.tries += 1
        try:
            yield
        except NotRun:
            raise
        except Exception as error:  # noqa: BLE001 (one try that went wrong must not hide the others)
            self.failures.append(f"{what}: {_told(error)}")
        else:
            self.survived += 1


@dataclass(frozen=True)
class Fault:
    """One line of the matrix."""

    id: str
    what: str
    provoke: Callable[[Path], Outcome]


FAULTS: dict[str, Fault] = {}
"""Every fault by its id; filled by `load`."""

_scale: ContextVar[float] = ContextVar("scale", default=1.0)


def fault(id: str, what: str) -> Callable[[Callable[[Path], Outcome]], Callable[[Path], Outcome]]:
    """Register `function(folder) -> Outcome`; `folder` is an empty folder of its own."""

    def register(function: Callable[[Path], Outcome]) -> Callable[[Path], Outcome]:
        if id in FAULTS:
            raise ValueError(f"fault {id} is registered twice")
        FAULTS[id] = Fault(id, what, function)
        return function

    return register


def load() -> dict[str, Fault]:
    """Every fault of every module of this package, in order of their ids."""
    for module in pkgutil.iter_modules(faults.__path__):
        if module.name != "__main__":
            importlib.import_module(f"faults.{module.name}")
    return dict(sorted(FAULTS.items()))


@contextmanager
def scaled(scale: float) -> Iterator[None]:
    """Inside, `tries` gives that share of the whole number."""
    token = _scale.set(scale)
    try:
        yield
    finally:
        _scale.reset(token)


def tries(whole: int, least: int = 1) -> int:
    """How often to try: `whole` times, or a share of it where the runner was told so, but not less than `least`."""
    return max(least, round(whole * _scale.get()))


def sample(every: list[Any], least: int = 3) -> list[Any]:
    """All of them, or evenly spread ones where the runner was told to try less."""
    count = min(len(every), tries(len(every), least))
    return [every[index * len(every) // count] for index in range(count)]


def run(fault: Fault, folder: Path) -> dict[str, Any]:
    """Provoke a fault; the line of the report: fault, what, tries, survived, seconds, figures, failures, not_run."""
    began = time.monotonic()
    line: dict[str, Any] = {"fault": fault.id, "what": fault.what}
    try:
        outcome = fault.provoke(folder)
    except NotRun as reason:
        return line | {"tries": 0, "survived": 0, "seconds": 0.0, "not_run": str(reason)}
    except Exception as error:  # noqa: BLE001 (the faults behind this one are to be run as well)
        outcome = Outcome(tries=1, failures=[_told(error)])
    line |= {"tries": outcome.tries, "survived": outcome.survived, "seconds": round(time.monotonic() - began, 1)}
    extra = {"figures": outcome.figures, "failures": outcome.failures[:SHOWN_FAILURES]}
    return line | {name: value for name, value in extra.items() if value}


def is_survived(line: dict[str, Any]) -> bool:
    """Whether a line of the report is good: tried at least once, and survived each time."""
    return 0 < line["tries"] == line["survived"]


def _told(error: Exception) -> str:
    """An error with the line of ours that raised it, since a bare `assert` says nothing."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error) or place.line} ({Path(place.filename).name}:{place.lineno})"
