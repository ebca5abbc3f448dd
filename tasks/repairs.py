"""Repairs of the clean stage, chosen by name.

A repair takes a text and returns it repaired, or as it was.  It is called for every text of an example: system,
history, instruction, input, tool turns and output.  A repair of a repaired text changes nothing.
"""

import functools
import html
import re
import unicodedata
from typing import TYPE_CHECKING

from tasks import personal_data
from tasks.markup import ENTITY, MAYBE_MISREAD, TAG, outside_code
from tasks.registry import Registry

if TYPE_CHECKING:
    import ftfy

REPAIRS = Registry("repair")

_NO_INPUT = re.compile(r"(?i)\s*(?:<\s*no?[ _-]?in?put\s*\\?>|[\[(]?no[ _-]?input[\])]?\.?)\s*")
_ESCAPE_OR_CONTROL = re.compile("\x1b\\[[0-9;]*[A-Za-z]|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_OTHER_NEWLINE = re.compile("\r\n?|[\x85\u2028\u2029]")

_LIGATURE = re.compile("[\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\ufb00-\ufb06]")
_JOINING = "\u0590-\u109f\u1780-\u18af\u1900-\u1aaf\u1b00-\u1c4f\ua840-\ua8ff\ua980-\uabff\ufb50-\ufdff\ufe70-\ufefe"
"""Arabic, Indic and other scripts whose letters take another shape beside a joiner or a non-joiner."""
_SPACELESS = "\u0e00-\u109f\u1780-\u17ff\u1980-\u19df\u1a20-\u1aaf\uaa60-\uaadf"
"""Thai, Lao, Tibetan, Burmese, Khmer …: a zero-width space between two letters is where a word ends."""
_EMOJI = "\u00a9\u00ae\u2190-\u21ff\u2300-\u27bf\u2900-\u2bff\U0001f000-\U0001faff"
_ANY_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0001-\U000e007f]"
)
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
    f"|(?<![{_SPACELESS}])\u200b|\u200b(?![{_SPACELESS}])"
    "|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0001-\U000e007f]+"  # the flag of Wales is 🏴 and tag characters
)
_JOINER = re.compile(
    f"(?<![{_JOINING}])\u200c|(?<![{_JOINING}{_EMOJI}\ufe0f])\u200d|(?<=[{_EMOJI}\ufe0f])\u200d(?![{_EMOJI}])"
)

_ELEMENT_WITHOUT_TEXT = re.compile(r"(?is)<(script|style)\b[^<>]*>(?:(?!<\1\b).)*?</\1\s*>")
_LINE_END = re.compile(r"(?i)<(?:br\b|/\s*(?:p|div|li|tr|h[1-6]|ul|ol|table|blockquote|section|article|pre|dd|dt)\b)")


@REPAIRS
def fix_text(text: str) -> str:
    """Undo wrong decodings and bring the text into Unicode normal form C (ftfy).

    Quotes, full-width characters, line ends and HTML entities stay as they are.
    """
    if text.isascii() or not (MAYBE_MISREAD.search(text) or _LIGATURE.search(text)):
        return unicodedata.normalize("NFC", text)
    import ftfy

    return ftfy.fix_text(text, _ftfy_config())


@REPAIRS
def normalise_newlines(text: str) -> str:
    """Every end of a line becomes a line feed: carriage returns, and the line and paragraph separators of Unicode."""
    if text.isascii() and "\r" not in text:
        return text
    return _OTHER_NEWLINE.sub("\n", text)


@REPAIRS
def remove_control_characters(text: str) -> str:
    """Remove control characters and terminal colours; tab and line ends stay, a page break becomes a line feed."""
    if text.isprintable():
        return text
    return _ESCAPE_OR_CONTROL.sub("", text.replace("\x0b", "\n").replace("\x0c", "\n"))


@REPAIRS
def remove_invisible(text: str) -> str:
    """Remove zero-width characters, marks of writing direction, soft hyphens and byte order marks.

    Joiners stay in emoji and in scripts that are spelt with them, such as Persian and Hindi; a zero-width space stays
    where it ends a word of Thai or Khmer.
    """
    if text.isascii() or not _ANY_INVISIBLE.search(text):
        return text
    return _JOINER.sub("", _INVISIBLE.sub("", text))


@REPAIRS
def drop_placeholder(text: str) -> str:
    """A text that is nothing but `<noinput>` or `No input` becomes empty; other placeholders may be an answer."""
    return "" if len(text) < 40 and _NO_INPUT.fullmatch(text) else text


@REPAIRS
def strip_html(text: str) -> str:
    """Drop the tags of HTML and resolve its entities, outside of code, until nothing is left to drop."""
    while ("<" in text or "&" in text) and (stripped := outside_code(text, _strip_html)) != text:
        text = stripped
    return text


@REPAIRS
def mask_personal_data(text: str, kinds: list[str] = personal_data.KINDS, phone_region: str = "") -> str:
    """Replace personal data and secrets by what they are: [EMAIL], [PHONE], [CARD] ….

    `kinds` and `phone_region` are those of the filter `personal_data`.
    """
    return personal_data.mask(text, tuple(kinds), phone_region)


@functools.cache
def _ftfy_config() -> "ftfy.TextFixerConfig":
    import ftfy

    return ftfy.TextFixerConfig(
        unescape_html=False,
        uncurl_quotes=False,
        fix_character_width=False,
        fix_line_breaks=False,
        remove_terminal_escapes=False,
        remove_control_chars=False,
        normalization="NFC",
        explain=False,
    )


def _strip_html(text: str) -> str:
    if "<" in text:
        text = TAG.sub(_instead_of_tag, _ELEMENT_WITHOUT_TEXT.sub("", text))
    return ENTITY.sub(_resolve, text) if "&" in text else text


def _instead_of_tag(tag: re.Match[str]) -> str:
    return "\n" if _LINE_END.match(tag.group()) else ""


def _resolve(entity: re.Match[str]) -> str:
    """The character of an entity; what names none, or one that does not print, stays."""
    text = " " if entity.group() == "&nbsp;" else html.unescape(entity.group())
    return text if text.isprintable() and "\ufffd" not in text else entity.group()
