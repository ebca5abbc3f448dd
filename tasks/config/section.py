"""What every config section is."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A config section: strict types, no unknown keys, never changed after it was read."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False, hide_input_in_errors=True
    )
