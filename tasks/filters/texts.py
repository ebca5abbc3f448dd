"""Filters of what the texts of a row hold: broken characters, leftovers of HTML, a URL to open."""

import re
from typing import TYPE_CHECKING

from tasks.filters.base import FILTERS, found_in, per_row, quote
from tasks.markup import CODE, ENTITY, MAYBE_MISREAD, TAG

if TYPE_CHECKING:
    import pandas as pd

_TEXTS = ("system", "instruction", "input", "output")
_BROKEN = re.compile("[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_ABOUT_CODE = re.compile(
    r"(?i)\b(?:x?html\d?|xml|css|svg|markup|markdown|tags?|code|coding|script|javascript|js|jsx|react|vue|angular|php|"
    r"jinja|web\s?(?:page|site|app)s?|browser|front-?end|scrap(?:e|ing)|pars(?:e|er|ing)|entit(?:y|ies)|escap\w+|rss|"
    r"regex|regular expressions?|python|java|program|sql|query|fonts?)\b"
)

_URL = re.compile(r"(?i)\b(?:https?://|www\.)[^\s<>\"'`\])]+")
_OPEN = re.compile(
    r"(?i)\b(?:open(?![- ]source)|read|visit|browse|access|click|go to|navigate to|follow th(?:e|is|at) (?:link|url)|"
    r"watch|listen|summari[sz]e[sd]?|summari[sz]ation|summari[sz]ing|summary|check out|look at|download|fetch)\b"
)
_LOOK_INSIDE = re.compile(
    r"(?i)\b(?:describe|description|analy[sz]e|review|explain|extract|edit|rewrite|transform|colori[sz]e|classify|"
    r"categori[sz]e|translate|paraphrase|identify|(?:headline|title) (?:for|that|of))\b"
)
_ABOUT_URLS = re.compile(
    r"(?i)\b(?:urls?|links?|domains?|hyperlinks?|addresses|regex|html|markdown|cit(?:e|ation)|phishing|bookmark)\b"
)


@FILTERS
def broken_text(examples: "pd.DataFrame") -> "pd.Series[str]":
    """A replacement or control character, or text that was decoded in the wrong encoding (ftfy's heuristic)."""
    from ftfy.badness import BADNESS_RE

    def find(text: str) -> str:
        if match := _BROKEN.search(text):
            return f"U+{ord(match.group()):04X}"
        misread = BADNESS_RE.search(text.replace("œ", "oe"))  # a vowel of phonetic notation, as in [ˈjœːkʏtl̥]
        return f"wrongly decoded: {quote(misread.group())}" if misread else ""

    return found_in(examples, _TEXTS, find, f"{_BROKEN.pattern}|{MAYBE_MISREAD.pattern}")


@FILTERS
def html_residue(examples: "pd.DataFrame") -> "pd.Series[str]":
    """A tag or an entity of HTML that scraping left behind.

    Code does not count, nor do rows whose prompt speaks of HTML, XML, code, web pages and the like.
    """
    found = found_in(examples, ("instruction", "input", "output"), _residue, "[<&]")

    def unless_about_code(what: str, instruction: str, input_: str) -> str:
        return "" if what and _ABOUT_CODE.search(f"{instruction}\n{input_}") else what

    return per_row(examples.assign(found=found), ("found", "instruction", "input"), unless_about_code)


@FILTERS
def opens_url(examples: "pd.DataFrame") -> "pd.Series[str]":
    """The prompt asks to read, summarise, describe … what stands behind a URL, which a model alone cannot open.

    A prompt that brings the text along, in an input of its own or in more than 60 words, is kept, and so is a row that
    is answered by a tool call.
    """
    return per_row(examples, ("instruction", "input", "tool_calls"), _opens_url)


def _residue(text: str) -> str:
    prose = CODE.sub(" ", text)
    match = TAG.search(prose) or ENTITY.search(prose)
    return quote(match.group()) if match else ""


def _opens_url(instruction: str, input_: str, tool_calls: str) -> str:
    url = _URL.search(f"{instruction}\n{input_}")
    if not url or tool_calls:
        return ""
    task = _URL.sub(" ", instruction)
    asks = _OPEN.search(task) or (_LOOK_INSIDE.search(task) and not _ABOUT_URLS.search(task))
    brings_text = len(_URL.sub(" ", input_).split()) > 8 or len(task.split()) > 60
    return quote(url.group()) if asks and not brings_text else ""
