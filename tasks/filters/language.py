"""Filter of the language that a row is written in."""

import functools
import re
from typing import TYPE_CHECKING

from tasks.errors import ConfigError
from tasks.filters.base import FILTERS, per_row
from tasks.markup import CODE

if TYPE_CHECKING:
    import pandas as pd
    from py3langid.langid import LanguageIdentifier

_ENGLISH = ["en"]
_NO_LANGUAGE = "zxx"
_MEMBERS = {"ar": ("ary", "arz"), "ku": ("sdh",), "no": ("nn",), "uz": ("uzs",), "zh": ("wuu", "yue")}
"""Macrolanguages of ISO 639-3, with those of their members that the identifier tells apart."""
_ENOUGH_CHARS = 500
"""The beginning of a long text tells its language."""


_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_LATIN_END = "\u036f"


UNTOLD = "(not told)"
TELLING_CHARS = 40
TELLING_CONFIDENCE = 0.95


@FILTERS
def language(
    examples: "pd.DataFrame",
    languages: list[str] = _ENGLISH,
    min_chars: int = TELLING_CHARS,
    min_confidence: float = 0.999,
) -> "pd.Series[str]":
    """The prompt or the output is, with at least `min_confidence` (0 to 1), in none of `languages` (ISO 639-1 codes).

    Code, names and what stands in brackets do not count.  A text with fewer than `min_chars` other letters cannot be
    told, and is kept; a letter of another script than the Latin counts for three, because it tells more.  Languages
    that are close, such as Danish and Norwegian, are best named together.
    """
    _check(languages)
    wanted = {_NO_LANGUAGE, *languages, *(member for name in languages for member in _MEMBERS.get(name, ()))}

    def find(instruction: str, input_: str, output: str) -> str:
        for name, text in (("prompt", f"{instruction}\n{input_}"), ("output", output)):
            if other := _other_language(text, wanted, min_chars, min_confidence):
                return f"{name}: {other}"
        return ""

    return per_row(examples, ("instruction", "input", "output"), find)


def _other_language(text: str, wanted: set[str], min_chars: int, min_confidence: float) -> str:
    prose = _telling(text)
    if _letters(prose) < min_chars:
        return ""
    ranked = _identifier().rank(prose)
    other = 1 - sum(probability for name, probability in ranked if name in wanted)
    return f"{ranked[0][0]} ({other:.3f})" if other >= min_confidence else ""


def identify(text: str) -> str:
    """The language of a text as an ISO 639-1 code, or UNTOLD where it is too short or too odd to tell."""
    prose = _telling(text)
    if _letters(prose) < TELLING_CHARS:
        return UNTOLD
    name, probability = _identifier().rank(prose)[0]
    return name if probability >= TELLING_CONFIDENCE else UNTOLD


def _telling(text: str) -> str:
    """What of `text` tells its language: no code, and no names, which lists of cities or actors consist of."""
    prose = _BRACKETS.sub(" ", CODE.sub(" ", text[:_ENOUGH_CHARS]))
    return prose if prose.isupper() else " ".join(word for word in prose.split() if not word[0].isupper())


def _letters(text: str) -> int:
    if text.isascii():
        return sum(map(str.isalpha, text))
    return sum(3 if letter > _LATIN_END else 1 for letter in text if letter.isalpha())


def _check(languages: list[str]) -> None:
    known = [name for name in _identifier().labels if name != _NO_LANGUAGE]
    if unknown := [name for name in languages if name not in known]:
        raise ConfigError(f"filter language: unknown language {unknown[0]!r}; known: {', '.join(sorted(known))}")


@functools.cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
