"""Near-duplicates: n-grams and Jaccard against plain Python, recall against theory, buckets that stay small."""

import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks import near_duplicates, shingles
from tasks.config import Similarity
from tasks.near_duplicates import Bands, band_keys, bands_for, candidates, distinct, jaccard, resolve

WILD = st.text(
    st.one_of(
        st.sampled_from("abAB09 \n.,'-_ßİıſΣσςéÉñ\u0301\u0308\u0345\ufb01ǅ½²\u00a0\u00ad\u200d\ufe0f\ufeff\0"),
        st.sampled_from(
            "漢字仮名かなカナー・ｶﾞ한국\u1112\u1161\u11ab\uac00กำเຂကើកхЩहिन्दीעַعَﷺ👍🏽𝒜𠀀\U0002f800\U000e0100\U0010ffff"
        ),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=40,
)


def reference_kinds(text: str) -> list[tuple[str, str]]:
    """Each character of the folded text, and whether it is a letter (or digit), a mark, alone a word, or else."""
    kinds = {"L": "letter", "N": "letter", "M": "mark"}
    found = []
    for character in unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()):
        code = ord(character)
        kind = kinds.get(unicodedata.category(character)[0], "else") if code < 0x20000 else "letter"
        if code >= 0x40000:  # beyond all planes with letters
            kind = "else"
        if kind != "else" and any(first <= code <= last for first, last in shingles._NO_SPACES):
            kind = "alone"
        found.append((character, kind))
    return found


def reference_words(text: str) -> list[str]:
    words, inside = [""], False
    for character, kind in reference_kinds(text):
        inside = kind == "letter" or (kind == "mark" and inside)
        if inside:
            words[-1] += character
        else:
            words += [character, ""] if kind == "alone" else [""]
    return [word for word in words if word]


def reference_characters(text: str) -> list[str]:
    kept, inside = "", False
    for character, kind in reference_kinds(text):
        inside = kind in ("letter", "alone") or (kind == "mark" and inside)
        kept += character if inside else " "
    return list(" ".join(word for word in kept.split(" ") if word))


def reference_shingles(text: str, unit: str, ngram: int) -> set[tuple[str, ...]]:
    parts = reference_words(text) if unit == "words" else reference_characters(text)
    return {tuple(parts[at : at + ngram]) for at in range(max(1, len(parts) - ngram + 1))} if parts else set()


def rows_of(found: shingles.Shingles) -> list[list[int]]:
    bounds = zip(found.offsets[:-1], found.offsets[1:], strict=True)
    return [found.hashes[start:end].tolist() for start, end in bounds]


@settings(deadline=None, max_examples=600, derandomize=True)
@given(one=WILD, other=WILD, unit=st.sampled_from(["words", "characters"]), ngram=st.integers(1, 5))
@example("", "a", "words", 3)
@example("Straße", "STRASSE", "words", 1)
@example("cafe\u0301 noir", "CAFÉ NOIR", "words", 2)
@example("\u1112\u1161\u11ab", "한", "characters", 1)
@example("\u0301", "\ufe0f", "words", 1)
def test_ngrams_and_similarity_are_those_of_plain_python(one, other, unit, ngram):
    pair = [reference_shingles(text, unit, ngram) for text in (one, other, one + " " + other, other + one)]
    sets = shingles.shingles(pa.array([one, other, one + " " + other, other + one]), Similarity(unit=unit, ngram=ngram))
    assert shingles.words(one) == reference_words(one)
    rows = rows_of(sets)
    assert [len(row) for row in rows] == [len(grams) for grams in pair]
    assert all(row == sorted(set(row)) for row in rows)
    pairs = np.array([(left, right) for left in range(4) for right in range(4)])
    expected = [
        len(pair[left] & pair[right]) / len(pair[left] | pair[right]) if pair[left] | pair[right] else 0
        for left, right in pairs
    ]
    assert jaccard(pairs, sets).tolist() == expected


def test_every_code_point_counts_as_python_folds_it():
    """Within a word, by itself and under an accent; against what plain Python makes of the text."""
    planes = [*range(0xD800), *range(0xE000, 0x20000), *range(0x20000, 0x30000, 16), *range(0x2F800, 0x2FA20)]
    codes = [*planes, *range(0xE0000, 0xE0200), 0x3FFFF, 0x40000, 0x10FFFF]
    texts = [text for code in codes for text in (f"x{chr(code)}y {chr(code)}", f"{chr(code)}\u0301")]
    for unit, parts, glue in ("words", reference_words, " "), ("characters", reference_characters, ""):
        similarity = Similarity(unit=unit, ngram=1)
        expected = [parts(text) for text in texts]
        mine = shingles.shingles(pa.array(texts), similarity)
        assert np.diff(mine.offsets).tolist() == [len(set(part)) for part in expected]
        folded = shingles.shingles(pa.array(map(glue.join, expected)), similarity)
        assert np.array_equal(mine.hashes, folded.hashes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop_me now!", ["don", "t", "stop", "me", "now"]),
        ("3.14 km²", ["3", "14", "km²"]),
        ("東京へ行く。", list("東京へ行く")),
        ("ChatGPTは便利", ["chatgpt", "は", "便", "利"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("สวัสดี", list("สวัสดี")),
        ("ΟΔΟΣ οδος", ["οδοσ", "οδοσ"]),
        ("👍 … ❤️", []),
    ],
)
def test_words_are_what_a_reader_expects(text, words):
    similarity = Similarity(ngram=1)
    assert reference_words(text) == shingles.words(text) == words
    singles = shingles.shingles(pa.array(words, pa.string()), similarity).hashes
    assert rows_of(shingles.shingles(pa.array([text]), similarity)) == [sorted(set(singles.tolist()))]


def test_order_counts_and_so_does_the_length_of_the_ngram():
    three = Similarity(ngram=3)
    texts = pa.array(["a b c", "c b a", "a b", "ab c", "A, b; C!", "a b c a b c a b c"])
    rows = rows_of(shingles.shingles(texts, three))
    assert [len(row) for row in rows] == [1, 1, 1, 1, 1, 3]
    assert rows[0] == rows[4] and len({tuple(row) for row in rows}) == 5
    assert rows[0][0] in rows[5]


TEXTS = ["the quick brown fox", None, "", "over the lazy Über-dog", "x" * 300, "漢字 e\u0301", "the quick brown fox"]
COLUMNS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", COLUMNS, ids=str)
def test_the_layout_of_the_column_does_not_matter(kind, monkeypatch):
    similarity = Similarity(ngram=2)
    plain = pa.array(TEXTS)
    expected_keys, expected = band_keys(plain, similarity), rows_of(shingles.shingles(plain, similarity))
    array = pa.array(["before", *TEXTS, "after"], pa.string()).cast(kind).slice(1, len(TEXTS))
    halves = pa.chunked_array([array.slice(0, 3), array.slice(3, 0), array.slice(3)])
    for block_bytes in (1 << 18, 1, 40):
        monkeypatch.setattr(shingles, "BLOCK_BYTES", block_bytes)
        for texts in (array, halves):
            assert np.array_equal(band_keys(texts, similarity), expected_keys)
            assert rows_of(shingles.shingles(texts, similarity)) == expected
    assert (expected_keys[:, 1:3] == near_duplicates.NO_KEY).all() and expected[1] == expected[2] == []


def test_the_bytes_under_a_null_are_no_text():
    offsets = np.array([0, 8, 16, 24], np.int32)
    buffers = [pa.py_buffer(b"\x05"), pa.py_buffer(offsets), pa.py_buffer(b"a b c d." * 3)]
    texts = pa.Array.from_buffers(pa.string(), 3, buffers)
    assert texts.to_pylist() == ["a b c d.", None, "a b c d."]
    assert (band_keys(texts, Similarity()) == near_duplicates.NO_KEY).any(axis=0).tolist() == [False, True, False]


@pytest.mark.parametrize("texts", [pa.array([], pa.string()), pa.chunked_array([], pa.string()), pa.array([None, ""])])
def test_nothing_is_no_near_duplicate_of_nothing(texts):
    similarity = Similarity()
    assert near_pairs(texts, similarity).shape == (0, 2)
    assert band_keys(texts, similarity).shape == (18, len(texts))
    assert resolve(np.empty((0, 2), np.int64), None, len(texts)).tolist() == [-1] * len(texts)
    assert not jaccard(np.array([[0, 1]])[: len(texts)], shingles.shingles(texts, similarity)).any()


def test_the_keys_are_the_same_on_every_machine():
    """Another result here changes which rows are kept: it belongs into the change log."""
    texts = pa.array(["Name three primary colours.", "Straße nach München", "東京へ行く", ""])
    words, characters = Similarity(), Similarity(threshold=0.5, unit="characters", ngram=5)
    sums = [band_keys(texts, similarity).sum(axis=0, dtype=np.uint64).tolist() for similarity in (words, characters)]
    assert sums == [
        [11746503346855657217, 8329631493415258996, 9764398457880247553, 0],
        [16701514736910746057, 1273693894927212346, 14914202344766571224, 0],
    ]
    first_band = [f"{key:x}" for key in band_keys(texts, words)[0]]
    assert first_band == ["4c716c79b4addf0e", "43523905ff0f142", "a16c99c62a982db9", "0"]


@pytest.mark.parametrize("threshold", [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0])
def test_bands_are_as_long_as_the_recall_allows(threshold):
    chosen = bands_for(threshold)
    assert chosen.bands * chosen.rows <= near_duplicates.HASHES
    assert chosen.recall(threshold) >= near_duplicates.LEAST_RECALL
    longer = Bands(near_duplicates.HASHES // (chosen.rows + 1), chosen.rows + 1)
    assert chosen.rows == near_duplicates.HASHES or longer.recall(threshold) < near_duplicates.LEAST_RECALL


def test_bands_of_known_thresholds():
    assert [bands_for(threshold) for threshold in (0.01, 0.5, 0.7, 0.8, 0.9, 1.0)] == [
        Bands(128, 1),
        Bands(42, 3),
        Bands(25, 5),
        Bands(18, 7),
        Bands(11, 11),
        Bands(1, 128),
    ]
    assert Bands(18, 7).recall(0.8) == pytest.approx(1 - (1 - 0.8**7) ** 18)


def planted(shared: int, different: int, pairs: int) -> pa.Array:
    """Pairs of texts, one after the other: `shared` equal words and `different` ones that only one of the two has."""
    draw = np.random.default_rng(shared * 1000 + different)
    half = shared + different // 2
    texts = []
    for numbers in draw.integers(0, 2**48, (pairs, shared + different)).tolist():
        words = [f"{number:x}" for number in numbers]
        texts += [" ".join(words[:half]), " ".join(words[:shared] + words[half:])]
    return pa.array(texts)


@pytest.mark.parametrize("threshold", [0.5, 0.8])
@pytest.mark.parametrize(
    ("shared", "different"),
    [(5, 5), (3, 2), (50, 50), (60, 40), (70, 30), (80, 20), (16, 4), (90, 10), (95, 5), (9, 0)],
)
def test_recall_is_what_theory_says(shared, different, threshold):
    pairs = 1500
    similarity = Similarity(threshold=threshold, ngram=1)
    texts = planted(shared, different, pairs)
    wanted = np.arange(2 * pairs).reshape(-1, 2)
    truth = shared / (shared + different)
    assert jaccard(wanted, shingles.shingles(texts, similarity)) == pytest.approx(truth)
    keys = band_keys(texts, similarity)
    found = (keys[:, ::2] == keys[:, 1::2]).any(axis=0).mean()
    expected = bands_for(threshold).recall(truth)
    assert abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / pairs) + 1e-9
    together = [tuple(pair) for band in keys for pair in candidates(band).tolist()]
    assert {pair for pair in together if pair[0] % 2 == 0} <= {tuple(pair) for pair in wanted.tolist()}


def test_minhashes_agree_as_often_as_the_sets_do_and_independently():
    """Also two by two, which bands rely on: at neighbouring hashes and between all of them."""
    pairs = 1500
    texts = planted(12, 8, pairs)
    similarity = Similarity(threshold=0.01, ngram=1)  # bands of one hash
    keys = band_keys(texts, similarity)
    assert np.bitwise_or.reduce(keys.ravel()) == 2**64 - 1 and np.bitwise_and.reduce(keys.ravel()) == 0
    agree = keys[:, ::2] == keys[:, 1::2]
    assert abs(agree.mean() - 0.6) < 4 * np.sqrt(0.24 / agree.size)
    assert abs(agree.mean(axis=1) - 0.6).max() < 5 * np.sqrt(0.24 / pairs)
    assert agree.sum(axis=0).var() == pytest.approx(0.24 * len(keys), rel=0.2)


def near_pairs(texts: pa.Array, similarity: Similarity, rank: np.ndarray | None = None) -> np.ndarray:
    """All steps in a row, the way stages take them."""
    pairs = distinct([candidates(keys, rank) for keys in band_keys(texts, similarity)], len(texts))
    return pairs[jaccard(pairs, shingles.shingles(texts, similarity)) >= similarity.threshold]


def brute_candidates(keys: list[int], rank: list[int], hubs: int) -> set[tuple[int, int]]:
    order = sorted(range(len(keys)), key=lambda row: (rank[row], row))
    found = set()
    for key in set(keys) - {near_duplicates.NO_KEY}:
        bucket = [row for row in order if keys[row] == key]
        found |= {(first, row) for at, row in enumerate(bucket) for first in bucket[: min(at, hubs)]}
    return found


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    rows=st.lists(st.tuples(st.sampled_from([0, 1, 2, 2**40, 2**40 + 1, 2**64 - 1]), st.integers(0, 4)), max_size=30),
    hubs=st.integers(1, 5),
    ranked=st.booleans(),
)
def test_candidates_are_the_pairs_of_a_bucket(rows, hubs, ranked):
    keys, rank = [key for key, _ in rows], [place for _, place in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "HUBS", hubs)
        found = candidates(np.array(keys, np.uint64), np.array(rank) if ranked else None)
    assert found.dtype == np.int64 and found.shape[1] == 2
    pairs = [tuple(pair) for pair in found.tolist()]
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) == brute_candidates(keys, rank if ranked else [0] * len(keys), hubs)


def test_pairs_that_several_bands_found_count_once():
    found = [np.array([[3, 1], [0, 4]]), np.empty((0, 2), np.int64), np.array([[0, 4], [0, 0], [4, 4], [1, 3]])]
    assert distinct(found, 5).tolist() == [[0, 0], [0, 4], [1, 3], [3, 1], [4, 4]]
    assert distinct([], 0).shape == (0, 2)


def test_a_template_in_thousands_of_rows_costs_no_more_than_its_hubs():
    rows, hubs = 20_000, near_duplicates.HUBS
    found = candidates(np.full(rows, 7, np.uint64))
    assert len(found) == hubs * (hubs - 1) // 2 + (rows - hubs) * hubs
    assert found[:, 0].max() == hubs - 1 and set(found[:, 1]) == set(range(1, rows))


def test_of_thousands_of_copies_one_stays():
    texts = pa.array(["Answer the question with yes or no: is water wet?"] * 5000 + ["Something else, my friend"])
    rank = np.arange(5001)[::-1].copy()
    for order, kept in ((None, 0), (rank, 4999)):
        pairs = near_pairs(texts, Similarity(), order)
        gone = resolve(pairs, order, 5001)
        assert np.flatnonzero(gone < 0).tolist() == [kept, 5000]
        assert set(gone[gone >= 0]) == {kept}


GRAPHS = st.integers(1, 14).flatmap(
    lambda rows: st.tuples(
        st.just(rows),
        st.lists(
            st.tuples(st.integers(0, rows - 1), st.integers(0, rows - 1)).filter(lambda pair: pair[0] != pair[1]),
            max_size=30,
        ),
        st.lists(st.integers(0, 5), min_size=rows, max_size=rows),
    )
)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(graph=GRAPHS)
def test_resolve_is_greedy_in_order_of_rank(graph):
    rows, pairs, rank = graph
    order = sorted(range(rows), key=lambda row: (rank[row], row))
    expected = [-1] * rows
    for at, row in enumerate(order):
        near = [other for other in order[:at] if {(row, other), (other, row)} & set(pairs) and expected[other] < 0]
        expected[row] = near[0] if near else -1
    edges = np.array(pairs, np.int64).reshape(-1, 2)
    assert resolve(edges, np.array(rank), rows).tolist() == expected
    by_row = resolve(edges, None, rows)
    assert by_row.tolist() == resolve(edges, np.arange(rows), rows).tolist()


def test_pairs_are_all_near_and_hardly_one_is_missing():
    draw = np.random.default_rng(5)
    originals = [[f"word{number}" for number in draw.integers(0, 300, length)] for length in draw.integers(20, 60, 150)]
    texts = [" ".join(words) for words in originals]
    for words in originals:
        changes = dict.fromkeys(draw.integers(0, len(words), draw.integers(0, 4)).tolist(), "other")
        texts.append(" ".join(changes.get(at, word) for at, word in enumerate(words)).upper())
    similarity = Similarity(threshold=0.7)
    sets = [reference_shingles(text, "words", 3) for text in texts]
    near = {
        (one, other)
        for other in range(len(texts))
        for one in range(other)
        if len(sets[one] & sets[other]) / len(sets[one] | sets[other]) >= 0.7
    }
    found = {tuple(pair) for pair in near_pairs(pa.array(texts), similarity).tolist()}
    assert found <= near
    assert len(near) > 100 and len(found) >= 0.97 * len(near)


def test_code_that_cannot_be_kept_is_compiled_all_the_same(tmp_path):
    """In a container neither the package nor a home can be written; numba alone refuses to be imported there."""
    shutil.copytree(Path(shingles.__file__).parent, tmp_path / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tasks" / "__pycache__").touch()  # where a folder must be made, a file stands
    command = "import numpy, tasks.shingles; print(tasks.shingles._mix(numpy.uint64(1)))"
    environment = {**os.environ, "HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(shingles._mix(np.uint64(1)))), done.stderr
