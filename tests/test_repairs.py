"""Repairs: what each changes, what it leaves alone, and that a repaired text is not repaired again."""

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import ConfigError
from tasks.repairs import REPAIRS

BAD_TO_GOOD = {
    "fix_text": [
        ("le cafÃ© est trÃ¨s bon", "le café est très bon"),
        ("donâ€™t", "don’t"),
        ("voilÃ le travail", "voilà le travail"),
        ("cafe\u0301", "café"),
        ("the \ufb01rst e\ufb03cient", "the first efficient"),
    ],
    "normalise_newlines": [("a\r\nb\rc\u2028d\u2029e\x85f", "a\nb\nc\nd\ne\nf"), ("\r\n\r\n", "\n\n")],
    "remove_control_characters": [
        ("a\x00b\x7fc\x81", "abc"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("page one\x0cpage two", "page one\npage two"),
    ],
    "remove_invisible": [
        ("What?\u200b\u200b", "What?"),
        ("\ufeffStart", "Start"),
        ("co\u00adop\u2060erate", "cooperate"),
        ("\u202eevil\u202c \u2066x\u2069 \u200e\u200f", "evil x "),
        ("a\u200cb\u200dc", "abc"),
        ("end👩\u200d", "end👩"),
        ("Hi\U000e0068\U000e0069", "Hi"),
        ("ก\u200bx x\u200bก", "กx xก"),
    ],
    "drop_placeholder": [
        (text, "")
        for text in ("<noinput>", "<No input>", "Noinput", "No input.", " <no_input>\n", "[no input]", "<noinput\\>")
    ],
    "strip_html": [
        ("<p>One</p><p>Two<br/>Three</p>", "One\nTwo\nThree\n"),
        ("Salt&nbsp;&amp; pepper, the nation&#39;s", "Salt & pepper, the nation's"),
        ("a<script>let x = '<b>';</script>b<!-- c -->d", "abd"),
        ('<a href="https://a.org" class=x>link</a>', "link"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        ("<b>see</b> `<b>` and\n```\n<b>&amp;</b>\n```\n&gt; 1", "see `<b>` and\n```\n<b>&amp;</b>\n```\n> 1"),
    ],
    "mask_personal_data": [
        ("Write to ada@attune-mail.org or +49 30 901820.", "Write to [EMAIL] or [PHONE]."),
        ("4242 4242 4242 4242, 81.2.69.142", "[CARD], [IP]"),
        ("?to=ada@attune-mail.org&x=1", "?to=[EMAIL]&x=1"),
        ("536-90-4399+49 30 901820", "[NATIONAL_ID][PHONE]"),  # the first looks like a sum until the second is gone
    ],
}
LEFT_ALONE = {
    "fix_text": [
        "“Curly” ‘quotes’ stay", "全角，ＡＢＣ　１２３！ ｶﾀｶﾅ", "&lt;b&gt; &amp; <br>", "a\r\nb\x0c",
        "ein Satz – mit … 👩\u200d👧",
        "Drangajökull [ˈjœːkʏtl̥]", "한국어 हिन्दी العربية", "```\nx = 'Ã'\n```",
    ],
    "normalise_newlines": ["a\nb\tc", "a\\r\\nb"],
    "remove_control_characters": ["a\tb\nc\r\n", "é👩\u200d👧", "[0m"],
    "remove_invisible": [
        "👩\u200d👩\u200d👧 👨🏽\u200d💻 ❤\ufe0f\u200d🔥 🏳\ufe0f\u200d🌈",  # emoji of several emoji
        "🏴\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f",  # the flag of Wales
        "می\u200cخواهم",  # Persian
        "क्\u200dष श्री\u200cमान",  # Hindi
        "ශ්\u200dරී",  # Sinhala
        "ខ្ញុំ\u200bស្រលាញ់",  # Khmer, a zero-width space between two words
        "a\u00a0b\u3000c",
    ],
    "drop_placeholder": ["No", "None", "N/A", "There is no input.", "<input>", "noinput is a word", ""],
    "strip_html": [
        "a < b && c > d", "List<T> <your name> <link to report>", "AT&T; R&D &nosuchname;", "x?a=1&copy=2",
        "&#0; &#xd800;",
        "```html\n<p>&nbsp;</p>\n```", "Use `<br>`.",
    ],
    "mask_personal_data": ["ada@example.com, 127.0.0.1", "[EMAIL] [PHONE]", "Call 030 901820", "3.14159265358979"],
}  # fmt: skip


def pairs(table: dict[str, list[object]]) -> list[tuple[str, object]]:
    return [(name, item) for name, items in table.items() for item in items]


@pytest.mark.parametrize(("name", "texts"), pairs(BAD_TO_GOOD))
def test_a_repair_mends_what_it_is_named_after(name: str, texts: tuple[str, str]):
    assert REPAIRS[name](texts[0]) == texts[1]


@pytest.mark.parametrize(("name", "text"), pairs(LEFT_ALONE))
def test_a_repair_leaves_alone_what_is_not_broken(name: str, text: str):
    assert REPAIRS[name](text) == text


def test_every_repair_is_tried_here():
    assert set(BAD_TO_GOOD) == set(LEFT_ALONE) == set(REPAIRS.names())


PIECES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.text("\u200b\u200c\u200d\u00ad\u2060\ufe0f\U000e0067\U0001f3f4👩🏽❤كกខक् ax", max_size=6),
    st.text("ÃÂ©¢â€™œ\u0301\u00a0\x85\x81eaИ \ufb01", max_size=6),
    st.text("\r\n\x00\x0c\x1b[;3m\u2028 a", max_size=6),
    st.sampled_from(
        ["<p>", "</p>", "<br", "&lt;", "&amp;", "&#39;", "&#96;", "gt;", "lt;b&gt;", "<!--", "-->", "<script>",
         "</script>",
         "`", "```\n", "\n", ">", "<no", "input>", "ada@mail.org", "+49 30 901820", "81.2.69.142",
         "4242 4242 4242 4242",
         "536-90-4399", "DE89 3704 0044 0532 0130 00", "1", "-", "@", ".", "version "]
    ),
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=8).map("".join)


@pytest.mark.parametrize("name", REPAIRS.names())
@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_a_repaired_text_is_not_repaired_again(name: str, text: str):
    once = REPAIRS[name](text)
    assert REPAIRS[name](once) == once


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_the_fast_way_of_fix_text_gives_what_ftfy_gives(text: str):
    config = ftfy.TextFixerConfig(
        unescape_html=False, uncurl_quotes=False, fix_character_width=False, fix_line_breaks=False,
        remove_terminal_escapes=False, remove_control_chars=False, normalization="NFC",
    )  # fmt: skip
    assert REPAIRS["fix_text"](text) == ftfy.fix_text(text, config)


def test_what_is_masked_may_be_chosen():
    text = "ada@attune-mail.org, 81.2.69.142, (415) 555-2671"
    mask = REPAIRS["mask_personal_data"]
    assert mask(text, kinds=["ip"]) == "ada@attune-mail.org, [IP], (415) 555-2671"
    assert mask(text, kinds=["phone"]) == text
    assert mask(text, kinds=["phone"], phone_region="US") == "ada@attune-mail.org, 81.2.69.142, [PHONE]"
    REPAIRS.check("mask_personal_data", {"kinds": ["ip"], "phone_region": "US"})
    with pytest.raises(ConfigError, match="unknown kind of personal data 'name'"):
        mask(text, kinds=["name"])


@pytest.mark.parametrize(
    "piece", ["<a ", "`", "<!--", "<script>", "&amp;", "\u200d", "1 ", "a@b.", "eyJ-", "Ã", "\x1b["]
)
def test_odd_and_long_texts_do_not_hold_a_repair_up(piece: str):
    """A regular expression that goes back and forth would need hours here; the time limit of the tests says so."""
    for name in REPAIRS.names():
        repaired = REPAIRS[name](piece * (100_000 // len(piece)))
        assert REPAIRS[name](repaired) == repaired
