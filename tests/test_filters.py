"""Filters: each on both sides of its edge, with what it says; personal data is named, never repeated."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from ftfy.badness import BADNESS_RE, MOJIBAKE_CATEGORIES
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import personal_data
from tasks.errors import ConfigError
from tasks.filters import FILTERS
from tasks.filters.language import identify
from tasks.markup import MAYBE_MISREAD

COLUMNS = ["system", "task", "instruction", "input", "output", "label", "tool_calls", "history"]
GOOD = {"instruction": "Say it.", "output": "It."}
CALL = '[{"name": "look_up", "arguments": {}}]'
SENTENCE = "The committee met in the old town hall and spoke for hours about the new bridge over the river. "
LONG = SENTENCE * 3


def frame(*rows: dict[str, str]) -> pd.DataFrame:
    """Examples whose texts are empty where nothing is said, with an index that does not count from 0."""
    filled = [dict.fromkeys(COLUMNS, "") | GOOD | row for row in rows]
    return pd.DataFrame(filled, columns=COLUMNS, index=[10 * number for number in range(len(rows))], dtype="str")


def found(name: str, *rows: dict[str, str], **params: object) -> list[str]:
    """What the filter says of each row, as the stage reads it."""
    examples = frame(*rows)
    FILTERS.check(name, params)
    result = FILTERS[name](examples, **params)
    assert result.index.equals(examples.index)
    return result.tolist()


def out(*texts: str) -> list[dict[str, str]]:
    return [{"output": text} for text in texts]


def ask(*texts: str) -> list[dict[str, str]]:
    return [{"instruction": text} for text in texts]


WORDS = {"[UNK]": 0, "a": 1, "b": 2}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer of words whose file asks for truncation and padding, as those of many models do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[UNK] $A [UNK]", special_tokens=[("[UNK]", 0)])
    made.enable_truncation(max_length=3)
    made.enable_padding(length=5)
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    return str(folder)


CASES = {
    "empty": (
        {},
        [
            ({"instruction": ""}, "instruction"),
            ({"instruction": "\u3000"}, "instruction"),
            ({"output": " \n\t"}, "output"),
            ({"output": "\u200b\ufeff"}, "output"),
        ],
        [{}, {"output": "0"}, {"output": "", "tool_calls": CALL}, {"input": "", "system": ""}, {"output": "👍"}],
    ),
    "placeholder": (
        {"extra": ["See above"]},
        [
            (row, row["output"].strip())
            for row in out(
                "<noinput>", "<nooutput>", "No Output", " N/A\n", "none", "TODO", "...", "…", "[insert name here]",
                "[Your answer]", "<insert name>", "{{answer}}", "<No output, cannot draw>", "NaN", "see above", "-",
                "Lorem ipsum dolor sit amet",
            )
        ],
        [
            {},
            *out("None of them.", "No", "0", "[1, 2]", "TODO lists help.", "{}", "<b>", "a...", "?!", "nan bread"),
            {"output": "None", "label": "none"},
            {"output": "", "tool_calls": CALL},
            {"input": "<noinput>"},
        ],
    ),
    "truncated": (
        {"min_chars": 200},
        [
            ({"output": LONG + "They agreed on the"}, "river. They agreed on the"),
            ({"output": LONG + "It cost stone, wood, iron, glass,"}, "cost stone, wood, iron, glass,"),
            ({"output": LONG + "\n```python\nprint(1)"}, "the last code block is not closed"),
            ({"output": LONG + "\n```\na\n```\n~~~\nb\n```"}, "the last code block is not closed"),
        ],
        [
            {},
            *out(
                "It is too short to tell and",
                LONG,
                LONG + "It has no full stop",
                LONG + "\n```python\nprint(1)\n```",
                LONG + "\n```python\nprint(1)\n```\nDone",
                LONG + "\nYours sincerely,",
                LONG + "\n- oak and\n- elm,",
                LONG + "The band is called The The, as it was then!",
                LONG + "Write `a, b and` there, then stop.",
            ),
        ],
    ),
    "too_short": (
        {"min_output_chars": 3, "min_instruction_chars": 2},
        [
            ({"output": "ab"}, "output: 2 characters"),
            ({"output": "  ab \n"}, "output: 2 characters"),
            ({"output": "你好"}, "output: 2 characters"),
            ({"instruction": " ?"}, "instruction: 1 characters"),
        ],
        [{"output": "abc"}, {"output": "你好吗"}, {"instruction": "ab"}, {"output": "", "tool_calls": CALL}],
    ),
    "too_long": (
        {"max_chars": 9, "max_instruction_chars": 8, "max_output_chars": 7},
        [
            ({"instruction": "1234", "input": "567", "output": "890"}, "whole: 10 characters"),
            ({"instruction": "", "output": "é" * 8}, "output: 8 characters"),
            ({"instruction": "x" * 9, "output": ""}, "instruction: 9 characters"),
        ],
        [
            {"instruction": "123", "input": "456", "output": "789", "system": "x" * 99},
            {"instruction": "", "output": "é" * 7},
            {"instruction": "x" * 8, "output": ""},
        ],
    ),
    "too_few_tokens": (
        {"min_tokens": 4, "min_output_tokens": 2},
        [
            ({"instruction": "a a a a", "output": "b"}, "output: 1 tokens"),
            ({"instruction": "a", "output": "b b"}, "whole: 3 tokens"),
        ],
        [
            {"instruction": "a a", "output": "b b"},
            {"instruction": "a a a a", "output": "", "tool_calls": CALL},
            {"instruction": "a", "system": "a", "output": "b b"},
        ],
    ),
    "too_many_tokens": (
        {"max_tokens": 8, "max_output_tokens": 6},
        [
            ({"instruction": "a", "output": "b " * 7}, "output: 7 tokens"),
            ({"instruction": "a a", "input": "a", "system": "a", "output": "b " * 5}, "whole: 9 tokens"),
        ],
        [{"instruction": "a a", "output": "b " * 6}, {"instruction": "a" * 500, "output": "b"}],
    ),
    "broken_text": (
        {},
        [
            ({"output": "caf\ufffd"}, "output: U+FFFD"),
            ({"input": "a\x00b"}, "input: U+0000"),
            ({"instruction": "bell\x07"}, "instruction: U+0007"),
            ({"system": "del\x7f"}, "system: U+007F"),
            ({"output": "c1\x81"}, "output: U+0081"),
            ({"output": "le cafÃ© est trÃ¨s bon"}, "output: wrongly decoded: fÃ©"),
            ({"output": "donâ€™t"}, "output: wrongly decoded: â€"),
            ({"output": "voilÃ le travail"}, "output: wrongly decoded: lÃ"),
        ],
        out(
            "le café est très bon, don’t 👍🏽",
            "def f(x):\r\n\treturn x ** 2",
            "你好，世界。これは。한국어 العربية",
            "Drangajökull [ˈtrauŋkaˌjœːkʏtl̥] and an œuvre",
        ),
    ),
    "html_residue": (
        {},
        [
            ({"output": "It is new.<br>It is big."}, "output: <br>"),
            ({"output": "the nation&#39;s bank"}, "output: &#39;"),
            ({"input": "<div class='text'>Once upon a time</div>"}, "input: <div class='text'>"),
            ({"output": "Salt&nbsp;and pepper"}, "output: &nbsp;"),
            ({"output": "70 m<sup>2</sup>"}, "output: <sup>"),
            ({"output": "Fine.<!-- advert -->"}, "output: <!-- advert -->"),
            ({"input": "one<p>", "output": "two<br>"}, "input: <p>"),
            ({"output": "a ```x <br> `` y"}, "output: <br>"),
        ],
        [
            *out(
                "Use `<br>` for a new line.",
                "```\n<div>text</div>\n```",
                "a < b and c > d",
                "List<T> and <your name>",
                "<link to report>, <video clip>, <table of contents>",
                "AT&T; R&D",
                "See https://a.org/?x=1&copy=2",
            ),
            {"instruction": "Write HTML for a line break.", "output": "<br>"},
            {"instruction": "Fix it.", "input": "the code of a web page", "output": "<p>Hi</p>"},
        ],
    ),
    "opens_url": (
        {},
        [
            ({"instruction": "Summarize this article: https://a.org/x"}, "https://a.org/x"),
            ({"instruction": "Provide a summary.", "input": "https://a.org/x"}, "https://a.org/x"),
            ({"instruction": "Describe the painting.", "input": "![img](https://a.org/x.jpg)"}, "https://a.org/x.jpg"),
            ({"instruction": "Access and edit the sheet.", "input": "Sheet URL: www.a.org/s"}, "www.a.org/s"),
            ({"instruction": "Open the link https://a.org and read it."}, "https://a.org"),
        ],
        [
            {"instruction": "Summarize this article.", "input": f"{SENTENCE} (https://a.org/x)"},
            {"instruction": f"Summarize this: {SENTENCE * 4} https://a.org/x"},
            {"instruction": "Shorten https://a.org/read/summary."},
            {"instruction": "Make a link.", "input": "https://a.org/x"},
            {"instruction": "Extract the domain of the URL.", "input": "https://a.org/x"},
            {"instruction": "Classify the link as phishing or not.", "input": "https://a.org/x"},
            {"instruction": "Read the text.", "output": "See https://a.org/x"},
            {"instruction": "Open the window."},
            {"instruction": "Open https://a.org/x", "output": "", "tool_calls": CALL},
        ],
    ),
    "refusal": (
        {"extra": ["Tut mir leid"]},
        [
            ({"output": "As an AI language model, I have no taste."}, "output: As an AI language model"),
            ({"output": "Hm, as a large language model I like it."}, "output: as a large language model"),
            ({"output": "I'm sorry, but I cannot help with that."}, "output: I'm sorry, but I cannot"),
            ({"output": "I’m sorry, but I can’t."}, "output: I’m sorry, but I can’t"),
            ({"output": "Sorry, I am unable to say."}, "output: Sorry, I am unable"),
            ({"output": "I can't assist you here."}, "output: I can't assist"),
            ({"output": "Unfortunately, I cannot provide it."}, "output: Unfortunately, I cannot provide"),
            ({"output": "The tallest, as of my knowledge cutoff, is it."}, "output: as of my knowledge"),
            ({"output": "I don't have personal opinions."}, "output: I don't have personal opinions"),
            ({"output": "TUT MIR LEID."}, "output: TUT MIR LEID"),
        ],
        [
            *out(
                "AI is as an idea older than the model.",
                "Dear Sir, I am sorry that we could not meet. I cannot come.",
                "Dear Sir, I cannot help you today.",
                "He said: I'm sorry, but I cannot stay.",
                "Sorry for the delay! I do not mind.",
                "As an airline, we fly.",
                "A language model predicts the next word.",
                "I can help you.",
            ),
            {"instruction": "As an AI language model, say it."},
        ],
    ),
    "repeated_ngrams": (
        {"max_in_a_row": 4, "min_words": 20},
        [
            ({"output": "ha " * 5}, "'ha' more than 4 times in a row"),
            ({"output": "Well, " + "no way, " * 5}, "'no way' more than 4 times in a row"),
            ({"output": "好" * 5}, "'好' more than 4 times in a row"),
            ({"output": SENTENCE * 5}, "0.80 of the output repeats itself"),
        ],
        [
            *out(
                "ha " * 4, "0 0 0 0 0 0 0 0", "| --- | --- | --- | --- | --- | --- |", SENTENCE * 4, "好" * 4,
                "one two three four five six. " * 3,
                "Gouda is a type of cheese. Focaccia is a type of bread. Brie is a type of cheese. Rye is a bread.",
            ),
            {"instruction": "ha " * 50},
        ],
    ),
    "unknown_label": (
        {"labels": ["yes", "no"]},
        [({"label": "maybe"}, "maybe"), ({"label": ""}, "no label"), ({"label": "Yes"}, "Yes")],
        [{"label": "yes"}, {"label": "no"}],
    ),
    "language": (
        {"languages": ["en"]},
        [
            ({"output": "Die Stadt ist eine der schönsten, die wir auf unserer Reise besucht haben."}, "output: de"),
            ({"output": "请写一首关于大海的短诗，并解释质量和重量的区别。"}, "output: zh"),
            ({"instruction": "Explique la différence entre la masse et le poids d'un objet."}, "prompt: fr"),
            ({"instruction": "Sag,", "input": "wie viele von ihnen noch dort leben und was sie tun."}, "prompt: de"),
        ],
        [
            {"output": LONG, "instruction": SENTENCE},
            *out(
                "Bonjour tout le monde",
                "Cumulus, Stratus, Cirrus, Nimbostratus, Cirrocumulus, Cumulonimbus, Altocumulus, Cirrostratus",
                "```\n" + "während der Arbeit schläft er nicht und isst auch nichts davon\n" * 3 + "```",
                "1 2 3 4 5 6 7 8 9 " * 10,
            ),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("language", "personal_data")])
def test_a_filter_rejects_what_lies_beyond_its_edge_and_says_what_it_found(name: str, tokenizer: str):
    params, bad, good = CASES[name]
    params = params | ({"tokenizer": tokenizer} if name.endswith("_tokens") else {})
    says = found(name, *(row for row, _ in bad), *good, **params)
    assert says == [detail for _, detail in bad] + [""] * len(good)


def test_a_language_that_is_not_wanted_is_named_with_its_probability():
    params, bad, good = CASES["language"]
    says = found("language", *(row for row, _ in bad), *good, **params)
    assert [detail.split(" (")[0] for detail in says] == [detail for _, detail in bad] + [""] * len(good)
    assert all(0.999 <= float(detail.split("(")[1].rstrip(")")) <= 1 for detail in says[: len(bad)])


def test_what_is_wanted_may_be_several_languages_and_less_certain():
    rows = [row for row, _ in CASES["language"][1]]
    assert found("language", *rows, languages=["en", "de", "zh", "fr"]) == [""] * len(rows)
    assert all(found("language", *rows, languages=["es"]))
    words = {"instruction": "蛋糕、厨房、花、碗、城市、钢笔中有几个词？"}
    assert found("language", words)[0].startswith("prompt: wuu")
    assert found("language", words, languages=["en", "zh"]) == [""]
    assert found("language", {"output": "Der Hund schläft unter dem Tisch."}) == [""]
    assert found("language", {"output": "Der Hund schläft unter dem Tisch."}, min_chars=10)[0].startswith("output: de")


@pytest.mark.parametrize("name", [*CASES, "personal_data"])
def test_a_table_without_rows_stays_one(name: str, tokenizer: str):
    params = {"tokenizer": tokenizer} if name.endswith("_tokens") else {}
    params |= {"labels": ["yes"]} if name == "unknown_label" else {}
    assert found(name, **params) == []


def test_every_filter_is_tried_here():
    assert {*CASES, "personal_data"} == set(FILTERS.names())


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("too_few_tokens", {"tokenizer": "no/such/place"}, "there is no file .*no/such/place"),
        ("language", {"languages": ["en", "english"]}, "unknown language 'english'; known: .*en, "),
        ("language", {"languages": ["zxx"]}, "unknown language 'zxx'"),
        ("personal_data", {"kinds": ["mail"]}, "unknown kind of personal data 'mail'; known: .*email"),
        ("personal_data", {"phone_region": "Germany"}, "phone_region 'Germany'"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_what_would(name: str, params: dict[str, object], says: str):
    row = GOOD | {"output": "Write to me@attune-mail.org."}
    with pytest.raises(ConfigError, match=says):
        found(name, row, **params)


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"words": []}))
    with pytest.raises(ConfigError, match=r"tokenizer\.json: is not a tokenizer\.json"):
        found("too_many_tokens", GOOD, tokenizer=str(tmp_path))


def test_a_tokenizer_may_be_given_as_a_file(tokenizer: str):
    params = {"tokenizer": tokenizer + "/tokenizer.json", "max_output_tokens": 3}
    assert found("too_many_tokens", *out("a b a", "a b a b"), **params) == ["", "output: 4 tokens"]


def test_long_findings_are_cut():
    (said,) = found("opens_url", {"instruction": "Read https://a.org/" + "x" * 500})
    assert said.endswith("x…")
    assert len(said) < 100


SECRETS = {
    "AWS": "AKIA" + "Z7Q2MXW4RT6BNPLD",
    "GitHub": "ghp" + "_" + "a1B2c3D4e5" * 4,
    "Slack": "xoxb" + "-123456789012-abcdefABCDEF",
    "Stripe": "sk_" + "live_" + "a1B2c3D4e5f6G7h8",
    "OpenAI": "sk-" + "proj-" + "a1B2c3D4e5f6G7h8-J9k0",
    "Google": "AIza" + "Sy" + "a1B2c3D4e5" * 3 + "f6g",
    "JWT": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0" + ".dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    "PEM": "-----BEGIN " + "RSA PRIVATE KEY-----\nMIIEow+/=\nabc-def\n-----END " + "RSA PRIVATE KEY-----",
}
PERSONAL = {
    "email": ["ada@attune-mail.org", "Ada.Love-lace+x@mail.co.uk"],
    "phone": ["+49 30 901820", "+1 (415) 555-2671", "+442083661177"],
    "card": ["4242 4242 4242 4242", "5555-5555-5555-4444", "378282246310005", "3782 822463 10005"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "MT84MALT011000012345MTLCAST001S"],
    "national_id": [
        "536-90-4399",
        "390.533.447-05",
        "12345678-Z",
        "X1234567L",
        "RSSMRA85T10A562S",
        "110101199003074514",
    ],
    "ip": ["81.2.69.142", "2a00:1450:4001:81b::200e"],
    "secret": list(SECRETS.values()),
}
NOT_PERSONAL = {
    "email": ["ada@example.com", "git@github.com:a/b.git",
              "a @ b.org", "user@localhost", "@ada", "5@3.2", "noreply@attune-mail.org"],
    "phone": ["+12", "+49 30", "1914-1918 and 2020", "x = 28980 - 18480", "+1 000 000 0000"],
    "card": ["4242 4242 4242 4243", "1234 5678 9012 3452", "4242424242424242.5", "9999 9999 9999 9999"],
    "iban": ["DE88 3704 0044 0532 0130 00", "AB12 CDEF GHIJ KLMN"],
    "national_id": ["666-12-3456", "390.533.447-06", "12345678-A", "400-120-200", "12345678Z", "2020-01-01"],
    "ip": ["192.168.1.10", "127.0.0.1", "192.0.2.55", "::1", "fe80::1", "2001:db8::1", "1.2.3.4", "256.1.1.12",
           "version 81.2.69.142", "v81.2.69.142", "12:30:45", "224.0.0.251"],
    "secret": ["AKIAIOSFODNN7EXAMPLE", "sk-learn", "ghp_short", "eyJ", "xoxb-1", "-----BEGIN CERTIFICATE-----"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in PERSONAL.items() for text in texts])
def test_personal_data_is_named_by_column_and_kind_and_masked_whole(kind: str, text: str):
    columns = ("system", "history", "instruction", "input", "output", "tool_calls")
    rows = [{column: f"Here: {text}, she wrote."} for column in columns]
    assert found("personal_data", *rows, kinds=[kind]) == [f"{column}: {kind}" for column in columns]
    assert found("personal_data", *rows) == found("personal_data", *rows, kinds=[kind])
    for others in personal_data.KINDS:
        if others != kind:
            assert found("personal_data", rows[0], kinds=[others]) == [""]
    assert personal_data.mask(f"Here: {text}, she wrote.", (kind,)) == f"Here: [{kind.upper()}], she wrote."


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in NOT_PERSONAL.items() for text in texts])
def test_what_only_looks_like_personal_data_is_kept(kind: str, text: str):
    assert found("personal_data", {"output": f"Here: {text} it says."}) == [""]
    assert personal_data.mask(text, tuple(personal_data.KINDS)) == text


def test_a_phone_number_in_national_form_needs_its_country():
    rows = out("Call (415) 555-2671.", "Call 030 901820.", "It makes 28980 - 18480 in all.")
    assert found("personal_data", *rows) == ["", "", ""]
    assert found("personal_data", *rows, phone_region="US") == ["output: phone", "", ""]
    assert found("personal_data", *rows, phone_region="DE") == ["", "output: phone", ""]


def test_the_order_in_which_kinds_are_named_does_not_matter():
    row = {"output": "81.2.69.142 or +49 30 901820"}
    assert found("personal_data", row, kinds=["phone", "ip"]) == found("personal_data", row, kinds=["ip", "phone"])


def test_capitals_behind_an_account_number_are_not_a_part_of_it():
    assert personal_data.mask("To AT61 1904 3002 3457 3201 CODE NONE", ("iban",)) == "To [IBAN] CODE NONE"


_MISREAD = "".join(
    sorted({character for group in MOJIBAKE_CATEGORIES.values() for character in group} | set("aZ .,œŒ°√±×²€вЂ\x85à"))
)


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet=_MISREAD, max_size=8))
def test_ftfy_sees_nothing_where_the_fast_look_sees_nothing(text: str):
    assert MAYBE_MISREAD.search(text) or not BADNESS_RE.search(text)


@pytest.mark.parametrize(
    "piece",
    [
        "<a ",
        "`",
        "<!--",
        "<a b='",
        "eyJ-",
        "-----BEGIN PRIVATE KEY-----",
        "&",
        "1 ",
        "a@b.",
        "AB12 ",
        "```\n",
        "as an ",
        "(",
    ],
)
def test_odd_and_long_texts_do_not_hold_a_filter_up(piece: str):
    """A regular expression that goes back and forth would need hours here; the time limit of the tests says so."""
    text = piece * (100_000 // len(piece))
    for name in (
        "placeholder",
        "truncated",
        "html_residue",
        "opens_url",
        "refusal",
        "repeated_ngrams",
        "personal_data",
    ):
        [answer] = found(name, {"instruction": text, "input": text, "output": text})
        assert len(answer) < 500, "a detail is short, whatever the text"


def test_importing_the_filters_loads_no_library_that_only_their_work_needs():
    code = "import tasks.filters, tasks.repairs, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"pandas", "pyarrow", "numpy", "ftfy", "tokenizers", "py3langid", "phonenumbers", "stdnum"}
    assert not heavy & set(run.stdout.split())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("the quick brown fox jumps over the lazy dog and runs away", "en"),
        ("der schnelle braune fuchs springt über den faulen hund und läuft weg", "de"),
        ("12 + 30 = 42", "(not told)"),
        ("", "(not told)"),
        ("Paris, London, Rome, Madrid, Vienna, Berlin, Warsaw, Prague", "(not told)"),
    ],
)
def test_a_language_is_only_told_where_the_text_tells_it(text: str, told: str):
    assert identify(text) == told
