"""What every config section is."""

import re

from pydantic import BaseModel, ConfigDict


def _title(section: type) -> str:
    """How a form calls a section: FineTuneConfig is `Fine tune`."""
    return re.sub("(?<=[a-z])(?=[A-Z])", " ", section.__name__.removesuffix("Config")).capitalize()


class Section(BaseModel):
    """A config section: strict types, no unknown keys, never changed after it was read."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        model_title_generator=_title,
    )
