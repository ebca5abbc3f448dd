"""Section of the hyper-parameter search."""

from difflib import get_close_matches
from typing import Any, Self

from pydantic import Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from tasks.config.section import Section

SEARCHABLE = ("model", "collect", "clean", "split", "format", "fine_tune")
"""Sections that decide how a training ends."""

Value = bool | int | float | str | list[str] | None


class SweepParameter(Section):
    """The values that are tried for one setting: a range, or a list of choices."""

    low: int | float | None = Field(None, description="Least value; with whole low, high and step only whole numbers.")
    high: int | float | None = Field(None, description="Largest value.")
    log: bool = Field(False, description="Search evenly in the logarithm.")
    step: int | float | None = Field(None, gt=0, description="Distance of two values; empty: any, or 1 of whole ones.")
    choices: list[Value] = Field([], description="Instead of low and high: the values.")

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are tried."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if self.choices:
            if (self.low, self.high, self.log, self.step) != (None, None, False, None):
                raise ValueError("'choices' stand alone, without 'low', 'high', 'log' and 'step'")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give 'low' and 'high', or 'choices'")
        if self.low >= self.high:
            raise ValueError(f"'low' must be below 'high', got {self.low!r} and {self.high!r}")
        if self.log and self.low <= 0:
            raise ValueError(f"with 'log', 'low' must be above 0, got {self.low!r}")
        if self.log and self.step:
            raise ValueError("'log' and 'step' exclude each other")
        if self.step and not _divides(self.step, self.high - self.low):
            raise ValueError(f"'high' must be 'low' and a whole number of steps of {self.step!r}")
        return self

    @property
    def ends(self) -> list[Value]:
        """The values that show whether all of them are allowed."""
        return self.choices or [self.low, self.high]


class SweepConfig(Section):
    """Search settings with a low validation loss, or a high metric_for_best_model; test is never looked at."""

    trials: int = Field(20, ge=1, description="Trainings; a larger number goes on with a finished search.")
    seed: int = Field(0, ge=0, description="Seed of the search.")
    parameters: dict[str, SweepParameter | None] = Field(
        {},
        description="Setting, as fine_tune.learning_rate, to {low, high, log, step} or {choices}; empty: not searched.",
    )

    @property
    def searched(self) -> dict[str, SweepParameter]:
        """The parameters without those that another config has emptied."""
        return {field: parameter for field, parameter in self.parameters.items() if parameter}


def allowed_in(sweep: SweepConfig, info: ValidationInfo) -> SweepConfig:
    """Refuse a parameter whose ends or choices the section of its setting would refuse; told all at once."""
    mistakes = [
        InitErrorDetails(
            type=PydanticCustomError("sweep", "{told}", {"told": told}), loc=("parameters", field), input={}
        )
        for field, parameter in sweep.searched.items()
        for told in _mistakes(field, parameter, info.data)
    ]
    if mistakes:
        raise ValidationError.from_exception_data("sweep", mistakes)
    return sweep


def _mistakes(field: str, parameter: SweepParameter, sections: dict[str, Any]) -> list[str]:
    name, _, path = field.partition(".")
    if name not in SEARCHABLE or not path:
        return [f"only settings of {', '.join(SEARCHABLE)} can be searched"]
    if field == "fine_tune.metric_for_best_model":
        return ["trials are compared by it, so it cannot be searched"]
    if name not in sections:  # it is refused for a mistake of its own
        return []
    found = [_refusal(sections[name], field, path.split("."), value) for value in parameter.ends]
    return list(dict.fromkeys(filter(None, found)))


def _refusal(section: Section, field: str, path: list[str], value: Value) -> str:
    """Why `section` cannot have `value` at `path`, or an empty text."""
    raw = section.model_dump()
    try:
        place(raw, path, value)
        type(section).model_validate(raw)
    except LookupError:
        return _unknown(section, field)
    except ValidationError as error:
        (first, *_) = error.errors()
        if first["type"] == "extra_forbidden":
            return _unknown(section, field)
        message = first["msg"].removeprefix("Value error, ")
        return f"{message[:1].lower()}{message[1:]}, got {value!r}"
    return ""


def place(raw: Any, path: list[str], value: Any) -> None:
    """Put `value` at `path` (keys, and positions in lists) into `raw`.  Raises LookupError when nothing leads there."""
    *sections, last = path
    for part in sections:
        raw = raw[_key(raw, part)]
    raw[_key(raw, last)] = value


def _key(node: Any, part: str) -> str | int:
    """`part` as what finds it in `node`."""
    if isinstance(node, dict):
        return part
    if not isinstance(node, list) or not part.isdecimal() or int(part) >= len(node):
        raise LookupError(part)
    return int(part)


def _unknown(section: Section, field: str) -> str:
    close = get_close_matches(field, list(_paths(section.model_dump(), field.partition(".")[0])), n=1)
    return "there is no such setting" + (f"; did you mean {close[0]!r}?" if close else "")


def _paths(node: Any, path: str) -> list[str]:
    """The dotted path of every setting in `node`."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(found for key, inner in items for found in _paths(inner, f"{path}.{key}"))]


def _divides(step: float, width: float) -> bool:
    steps = width / step
    return abs(steps - round(steps)) < 1e-9 * max(1.0, steps)
