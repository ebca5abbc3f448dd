"""One example in tokens, or the reason why it cannot be."""

from typing import NamedTuple


class Encoded(NamedTuple):
    """What format writes down of an example; see TOKENIZED."""

    input_ids: list[int]
    labels: list[int]
    prompt_tokens: int
    truncated: bool


class Refused(NamedTuple):
    """Why an example cannot be used, as the ledger tells it."""

    reason: str
    detail: str
