"""Filters of the clean stage, chosen by name.

A filter takes a pandas frame of examples (columns `system`, `task`, `instruction`, `input`, `output`, `label`,
`tool_calls`, and `history`, the turns before and between; all text) and returns one value per row, with the frame's
index: a truth value, True where the row is rejected, or a text, "" where it is kept and else what was found.  The
filter's name is the reason in the ledger, the text is the detail.  Its other parameters are what a config sets.
"""

from tasks.filters import answers, language, lengths, privacy, texts
from tasks.filters.base import FILTERS

__all__ = ["FILTERS", "answers", "language", "lengths", "privacy", "texts"]
