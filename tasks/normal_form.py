"""When two texts count as the same: for duplicates, and for the group that keeps a prompt in one split."""

import unicodedata
from typing import Any


def normal_form(value: Any) -> Any:
    """`value` with every text in it in Unicode normal form C, with single spaces and none at its ends."""
    if isinstance(value, str):
        return " ".join(unicodedata.normalize("NFC", value).split())
    if isinstance(value, dict):
        return {name: normal_form(item) for name, item in value.items()}
    return [normal_form(item) for item in value]
