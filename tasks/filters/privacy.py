"""Filter of personal data and secrets."""

from typing import TYPE_CHECKING

from tasks import personal_data as detectors
from tasks.filters.base import FILTERS, found_in

if TYPE_CHECKING:
    import pandas as pd


@FILTERS
def personal_data(
    examples: "pd.DataFrame", kinds: list[str] = detectors.KINDS, phone_region: str = ""
) -> "pd.Series[str]":
    """A text holds personal data or a secret; the detail says the column and the kind, never the datum.

    `kinds`: some of email, phone, card, iban, national_id, ip and secret (keys, tokens).  Phone numbers are found in
    international form (+49 …); with `phone_region`, a country such as US, in its own form too.
    """
    chosen = tuple(kinds)

    def find(text: str) -> str:
        return detectors.find(text, chosen, phone_region)

    return found_in(
        examples, ("system", "history", "instruction", "input", "output", "tool_calls"), find, detectors.HINT
    )
