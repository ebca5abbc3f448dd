"""Filters of what an answer is: no answer, half an answer, the same thing again and again, not a known class."""

import re
from collections import Counter
from typing import TYPE_CHECKING

from tasks.filters.base import FILTERS, found_in, per_row, quote
from tasks.markup import CODE

if TYPE_CHECKING:
    import pandas as pd

_PLACEHOLDER = re.compile(
    r"""(?ix)
    <[^<>\n]*\b(?:no\s?(?:input|output|answer|response)|placeholder)\b[^<>\n]*> | <\s*(?:output|answer|response)\s*>
    | no\s?(?:input|output) | n/a | none | null | nan | undefined | todo | tbd | fixme
    | \[\s*(?:insert|add|enter|fill\ in|your|placeholder|no\ (?:output|answer|response))\b[^\[\]\n]*\]
    | <\s*(?:insert|add|enter|fill\ in|your)\b[^<>\n]*> | \{\{?\s*[\w.]+\s*\}?\} | \.{2,} | … | [-–—_?*]+
    | lorem\ ipsum\b.*
    """
)

_REFUSALS = (
    r"\bas an? (?:\w+ )?(?:AI|artificial intelligence)(?:[ -](?:based|powered|driven))?(?: (?:text|chat))?"
    r"(?: (?:language )?(?:model|assistant|chatbot|bot|system|program)\b|,)",
    r"\bas a (?:large )?language model\b",
    r"\bI(?:['’]m| am) (?:just |only |merely )?an? (?:\w+ )?(?:AI|artificial intelligence|(?:large )?language model)\b",
    r"\bmy (?:knowledge|training(?: data)?) (?:cut-?off|only goes)\b|\bas of my (?:last|latest|knowledge|training)\b",
    r"\bI (?:do not|don['’]t|cannot|can['’]t) have (?:personal |subjective )?(?:opinions|beliefs|feelings|emotions)\b",
    r"\bI (?:do not|don['’]t) have (?:the ability|access) to (?:browse|access|the internet|real[- ]time|current)\b",
    r"\bI(?:['’]m| am) (?:not able|unable) to (?:browse|access|open|provide|assist|help|fulfil|comply|generate)",
    r"\A\W*(?:I(?:['’]m| am) (?:very |really |so |deeply )?|my )?"
    r"(?:sorry|apologi[sz]e|apologies|afraid)\b[^.!?\n]{0,40}?\b"
    r"(?:I|we)(?: (?:cannot|can['’]t|can not|could not|couldn['’]t|won['’]t|will not|do not|don['’]t)|"
    r"(?:['’]m| am|['’]re| are) (?:unable|not able))\b",
    r"\A\W*(?:unfortunately,? )?I (?:cannot|can['’]t|can not|won['’]t|will not) "
    r"(?:\w+ )?(?:help|assist|provide|fulfil|comply|answer|do (?:that|this)|create|generate|engage|complete)",
    r"\bI must (?:respectfully )?decline\b|\bviolates? (?:my|our|OpenAI['’]s) (?:guidelines|policies|policy)",
)
"""Boilerplate of English assistants: a refusal counts at the start of an answer, a self-reference anywhere."""

_DANGLING = re.compile(
    r"(?:\b(?:a|an|the|and|or|of|to|for|with|from|by|as|at|because|which|that|is|are|was|were|its|their|his|my|your|"
    r"than|into|such as|including)|[,(–—])\Z"
)


@FILTERS
def placeholder(examples: "pd.DataFrame", extra: list[str] = []) -> "pd.Series[str]":  # noqa: B006
    """The whole output is a mark in the place of an answer, such as `N/A`, `TODO`, `...` or `[insert name]`.

    A row whose label says the same is a class of that name, and is kept.  `extra`: more such outputs, whole.
    """
    marks = {mark.strip().casefold() for mark in extra}

    def find(output: str, label: str) -> str:
        answer = output.strip().casefold()
        if not answer or len(answer) > 500 or answer == label.strip().casefold():
            return ""
        return quote(output) if answer in marks or _PLACEHOLDER.fullmatch(answer) else ""

    return per_row(examples, ("output", "label"), find)


@FILTERS
def truncated(examples: "pd.DataFrame", min_chars: int = 200) -> "pd.Series[str]":
    """An output of at least `min_chars` characters ends in an open code block, a comma, or a word such as "the"."""

    def find(output: str) -> str:
        answer = output.rstrip()
        if len(answer) < min_chars:
            return ""
        return "the last code block is not closed" if _open_code(answer) else _dangling(answer)

    return per_row(examples, ("output",), find)


@FILTERS
def refusal(examples: "pd.DataFrame", extra: list[str] = []) -> "pd.Series[str]":  # noqa: B006
    """The output refuses, or speaks of itself as a model, in English boilerplate.

    `extra`: other phrases, in any language, that reject an output that holds one; case does not count.
    """
    pattern = "(?i)" + "|".join((*_REFUSALS, *map(re.escape, extra)))

    def find(output: str) -> str:
        match = re.search(pattern, output)
        return quote(match.group()) if match else ""

    return found_in(examples, ("output",), find, pattern)


@FILTERS
def repeated_ngrams(
    examples: "pd.DataFrame",
    ngram_words: int = 5,
    max_repeated_ratio: float = 0.75,
    min_words: int = 30,
    max_in_a_row: int = 10,
) -> "pd.Series[str]":
    """The output says the same again and again.

    Either more than `max_repeated_ratio` of the characters of its words lie in n-grams of `ngram_words` words that
    occurred before; looked at in outputs of at least `min_words` words.  Or up to `ngram_words` words follow each
    other more than `max_in_a_row` times without a break, whatever the length.

    Gopher (Rae et al. 2021, table A1) drops web pages above 0.15 for 5-grams and 0.10 for 10-grams; answers are
    shorter, and lists and worked sums repeat themselves with good reason, hence the higher default.
    """

    def find(output: str) -> str:
        words = _WORD.findall(output.casefold())
        if run := _run(words, ngram_words, max_in_a_row):
            return run
        if len(words) < min_words or _most_repeated(words) <= max_repeated_ratio:
            return ""
        ratio = _repeated_ratio(words, ngram_words)
        return f"{ratio:.2f} of the output repeats itself" if ratio > max_repeated_ratio else ""

    return per_row(examples, ("output",), find)


@FILTERS
def unknown_label(examples: "pd.DataFrame", labels: list[str]) -> "pd.Series[str]":
    """The label is none of `labels`, or there is none."""
    known = set(labels)

    def find(label: str) -> str:
        return "" if label in known else quote(label) or "no label"

    return per_row(examples, ("label",), find)


_CJK = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
"""A word; in scripts that put no space between words, one character."""
_LETTER = re.compile(r"[^\W\d_]")


def _most_repeated(words: list[str]) -> float:
    """The share of characters in words that occurred before: no share of repeated n-grams is larger."""
    return 1 - sum(map(len, set(words))) / sum(map(len, words))


def _repeated_ratio(words: list[str], size: int) -> float:
    """The share of the characters of `words` that lie in an n-gram of `size` words that occurred before."""
    seen: set[tuple[str, ...]] = set()
    repeated: set[int] = set()
    for start, ngram in enumerate(zip(*(words[skip:] for skip in range(size)), strict=False)):
        if ngram in seen:
            repeated.update(range(start, start + size))
        seen.add(ngram)
    return sum(len(words[index]) for index in repeated) / sum(map(len, words))


def _run(words: list[str], size: int, most: int) -> str:
    """A phrase of up to `size` words that stands more than `most` times in a row and has a letter in it, or ""."""
    if not words or max(Counter(words).values()) <= most:
        return ""
    for period in range(1, size + 1):
        same = 0
        for end, (word, before) in enumerate(zip(words[period:], words, strict=False), start=1):
            same = same + 1 if word == before else 0
            if same == period * most and _LETTER.search(phrase := " ".join(words[end : end + period])):
                return f"{quote(phrase)!r} more than {most} times in a row"
    return ""


def _open_code(answer: str) -> bool:
    """Whether the last block of code has no closing fence."""
    blocks = [code for code in CODE.finditer(answer) if code["fence"]] if "```" in answer or "~~~" in answer else []
    return bool(blocks) and not re.search(rf"\n[ \t]*{blocks[-1]['fence']}[`~]*\Z", blocks[-1].group())


def _dangling(answer: str) -> str:
    """The last words, where they ask for more; a line of a few words is a list or the end of a letter."""
    last = answer[answer.rfind("\n") + 1 :].rstrip()
    if last.endswith((".", "!", "?", ":")):
        return ""
    words = last.split()
    return quote(" ".join(words[-5:])) if len(words) > 5 and _DANGLING.search(last) else ""
