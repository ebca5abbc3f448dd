"""What a text may hold beside prose: code, tags and entities of HTML, signs of a wrong decoding."""

import re
from collections.abc import Callable

CODE = re.compile(
    r"(?ms)^[ \t]*(?P<fence>`{3,}|~{3,}).*?(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)"
    r"|(?<!`)(?P<ticks>`+)(?!`)[^\n]+?(?<!`)(?P=ticks)(?!`)"
)
"""A fenced block (to the end of the text where it is not closed) or a span in backticks."""

_NAMES = (
    r"a|abbr|address|article|aside|audio|b|blockquote|body|br|button|canvas|caption|center|cite|code|"
    r"col|colgroup|dd|del|details|dfn|div|dl|dt|em|embed|fieldset|figcaption|figure|font|footer|"
    r"form|h1|h2|h3|h4|h5|h6|head|header|hr|html|i|iframe|img|input|ins|kbd|label|legend|li|"
    r"link|main|mark|meta|nav|noscript|object|ol|optgroup|option|p|param|picture|pre|q|s|samp|"
    r"script|section|select|small|source|span|strike|strong|style|sub|summary|sup|svg|table|tbody|td|"
    r"textarea|tfoot|th|thead|time|title|tr|tt|u|ul|var|video|wbr"
)
_FLAGS = "allowfullscreen|async|autoplay|checked|controls|defer|disabled|hidden|loop|multiple|muted|required|selected"
_ATTRIBUTES = rf"(?:\s+(?:[\w:@.-]+\s*=\s*(?:\"[^\"<]*\"|'[^'<]*'|[^\s\"'<>=]+)|(?:{_FLAGS})\b))*"
TAG = re.compile(rf"(?is)<(?:/\s*(?:{_NAMES})\s*|(?:{_NAMES})\b{_ATTRIBUTES}\s*/?)>|<!--(?:(?!<!--).)*?-->")
"""A tag of HTML, or a comment; `<T>`, `<link to report>` and `a < b` are none."""

ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
"""What has the shape of an HTML entity, with its semicolon: `a&copy=1` in a URL has none."""

MAYBE_MISREAD = re.compile(r"[^\x00-\x7f]{2}|[\x80-\x9fÂÃŒœ]")
"""What every text holds in which ftfy sees a wrong decoding; looking for it is much faster than asking ftfy."""


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """`text` with `change` applied to each part that is not code."""
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [change(text[end : code.start()]), code.group()]
        end = code.end()
    return "".join([*parts, change(text[end:])])
