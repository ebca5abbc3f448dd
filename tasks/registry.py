"""Open axes: things that a config chooses by name, such as filters and metrics."""

import inspect
from collections.abc import Callable
from typing import Any


class Registry:
    """Named functions whose parameters are checked against their own signatures.

    The first parameter of a registered function is its data; the others are its settings, and those without a default
    must be set.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._functions: dict[str, Callable[..., Any]] = {}

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register `function` under its own name; use as a decorator."""
        self._functions[function.__name__] = function
        return function

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self._functions[name]

    def names(self) -> list[str]:
        """The known names, in the order of registration."""
        return list(self._functions)

    def check(self, name: str, params: dict[str, Any]) -> None:
        """Raise ValueError, naming what is known, for an unknown name, an unknown parameter or a wrong type."""
        if name not in self._functions:
            raise ValueError(f"unknown {self.kind} {name!r}; known: {', '.join(sorted(self._functions))}")
        settings = dict(list(inspect.signature(self._functions[name]).parameters.items())[1:])
        for key, setting in settings.items():
            if setting.default is setting.empty and key not in params:
                raise ValueError(f"{self.kind} {name!r} needs the parameter {key!r}")
        for key, value in params.items():
            if key not in settings:
                known = ", ".join(settings) or "none"
                raise ValueError(f"{self.kind} {name!r} has no parameter {key!r}; its parameters: {known}")
            expected = settings[key].annotation
            if not _fits(value, expected):
                takes = getattr(expected, "__name__", expected) if expected != list[str] else "a list of texts"
                raise ValueError(f"parameter {key!r} of {self.kind} {name!r} takes {takes}, not {value!r}")


def _fits(value: Any, expected: Any) -> bool:
    if expected == list[str]:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return type(value) is expected or (expected is float and type(value) is int)
