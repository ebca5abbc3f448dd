"""Texts as sets of n-grams: what the similarity of two texts is measured on.

Word: a run of letters and digits, with the marks that follow them, after Unicode normal form C and case folding.  Each
character of a script that puts no spaces between words (Han, kana, hangul, Thai, Lao, Burmese, Khmer) is a word of its
own.  Everything else (space, punctuation, symbols) only separates words.

Character: a code point of the words, joined by one space where anything separated them.

A text with fewer words (characters) than an n-gram has one n-gram of all of them; a text without any word has none.
"""

import functools
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.compiled import compiled
from tasks.config import Similarity

BLOCK_BYTES = 1 << 18
"""Texts are hashed in blocks of this size, or of one row where a row is longer, so that memory does not grow."""

Texts = pa.Array | pa.ChunkedArray

_HAN, _KNOWN = 0x20000, 0x40000  # from the first on there are only Han, from the second on no letters
_SEPARATOR, _LETTER, _MARK, _ALONE = (kind << 24 for kind in range(4))  # above the bits of a code point
_NO_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1100, 0x11FF),  # hangul, decomposed
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # Han: iteration mark, closing mark, zero
    (0x3040, 0x31FF),  # kana, bopomofo
    (0x3400, 0x9FFF),  # Han
    (0xAC00, 0xD7FF),  # hangul
    (0xF900, 0xFAFF),  # Han
    (0xFF66, 0xFFDC),  # kana and hangul of half width
    (0x1B000, 0x1B16F),  # kana
    (0x20000, 0x3FFFF),  # Han
)
_STEP = np.uint64(0x9FB21C651E98DF25)
_ONE = np.uint64(1)
_BASE = np.uint64(0x9E3779B97F4A7C15)
_ODD_1, _ODD_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Shingles(NamedTuple):
    """The n-grams of rows as 64-bit hashes.

    Row i has `hashes[offsets[i]:offsets[i + 1]]`; offsets: int64 [rows + 1], hashes: uint64.  Two different n-grams
    share a hash with probability 2^-64: between two texts of 10,000 words, about once in 10^11 pairs of texts.
    """

    offsets: np.ndarray
    hashes: np.ndarray


def shingles(texts: Texts, similarity: Similarity) -> Shingles:
    """The set of n-grams of each text, its hashes in ascending order; a null has none."""
    sets = [_as_sets(block) for block in shingle_blocks(texts, similarity)]
    counts = np.concatenate([np.zeros(1, np.int64), *(np.diff(offsets) for offsets, _ in sets)])
    return Shingles(np.cumsum(counts), np.concatenate([np.empty(0, np.uint64), *(hashes for _, hashes in sets)]))


def shingle_blocks(texts: Texts, similarity: Similarity) -> Iterator[Shingles]:
    """The n-grams of each text in the order of the text, repeated ones too; some rows at a time."""
    table, unstable = _code_points()
    for block in _blocks(texts):
        data, starts = _buffers(_stable(block, unstable))
        hashes = np.empty(starts[-1] - starts[0], np.uint64)  # a word or character has at least one byte
        offsets = np.zeros(len(starts), np.int64)
        _hash_rows(data, starts, table, similarity.unit == "characters", similarity.ngram, hashes, offsets)
        yield Shingles(offsets, hashes[: offsets[-1]])


def words(text: str) -> list[str]:
    """The words of a text as they are counted here, folded: for people, since it is slow."""
    table, _ = _code_points()
    found, inside = [], False
    for letter in _fold(text):
        kind = int(table[ord(letter)]) >> 24 << 24 if ord(letter) < _KNOWN else _SEPARATOR
        if inside and kind in (_LETTER, _MARK):
            found[-1] += letter
        elif kind in (_LETTER, _ALONE):
            found.append(letter)
        inside = kind == _LETTER or (inside and kind == _MARK)
    return found


def _blocks(texts: Texts) -> Iterator[pa.Array]:
    """Slices of at most BLOCK_BYTES, or of one row, without nulls."""
    for chunk in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
        whole = pc.fill_null(chunk.cast(pa.large_string()), "")
        _, starts = _buffers(whole)
        first = 0
        while first < len(whole):
            end = int(np.searchsorted(starts, starts[first] + BLOCK_BYTES, side="right")) - 1
            end = max(first + 1, end)
            yield whole.slice(first, end - first)
            first = end


def _stable(texts: pa.Array, unstable: np.ndarray) -> pa.Array:
    """Texts that can be folded code point by code point: those that cannot are folded here, as a whole."""
    data, starts = _buffers(texts)
    found = np.zeros(len(texts), np.bool_)
    _find(data, starts, unstable, found)
    if not found.any():
        return texts
    mask = pa.array(found)
    folded = [_fold(text) for text in texts.filter(mask).to_pylist()]
    return pc.replace_with_mask(texts, mask, pa.array(folded, pa.large_string()))


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-8 bytes, and where in them each text starts: uint8, int64 [rows + 1]; neither is copied."""
    _, starts, data = texts.buffers()
    if not len(texts):
        starts, data = pa.py_buffer(bytes(8)), None
    views = np.frombuffer(data or b"", np.uint8), np.frombuffer(starts, np.int64)[texts.offset :][: len(texts) + 1]
    for view in views:
        view.flags.writeable = False  # numba compiles once more for an array that can be written
    return views


@functools.cache
def _code_points() -> tuple[np.ndarray, np.ndarray]:
    """Of each code point the kind | the folded code point, or 0 for a separator: uint64; 1 if it is unstable: uint8.

    Unstable is what folds to several code points ("ß"), or changes beside others (a letter and its accent).
    """
    codes = np.arange(_KNOWN)
    others = "\n".join(map(chr, range(0x80, _HAN)))
    folded = [one if len(one) == 1 else "\0" for one in _fold(others).split("\n")]
    codes[0x80:_HAN] = list(map(ord, folded))
    codes[ord("A") : ord("Z") + 1] += 0x20

    letters = "".join(unicodedata.category(chr(code))[0] for code in range(_HAN)) + "L" * (_KNOWN - _HAN)
    category = np.frombuffer(letters.encode(), np.uint8)
    kinds = np.select([np.isin(category, list(b"LN")), category == ord("M")], [_LETTER, _MARK], _SEPARATOR)
    for first, last in _NO_SPACES:
        part = kinds[first : last + 1]
        part[part != _SEPARATOR] = _ALONE

    unstable = ((codes == 0) | (category == ord("M"))).astype(np.uint8)
    for first, last in (0x1100, 0x11FF), (0x2F800, 0x2FA1F):  # hangul that composes, Han that stands for other Han
        unstable[first : last + 1] = True
    codes[codes == 0] = np.flatnonzero(codes == 0)
    return np.where(kinds == _SEPARATOR, 0, kinds | codes).astype(np.uint64), unstable


@compiled
def _mix(value):
    """The finaliser of SplitMix64: every bit of the result depends on every bit of the value."""
    value = (value ^ (value >> np.uint64(30))) * _ODD_1
    value = (value ^ (value >> np.uint64(27))) * _ODD_2
    return value ^ (value >> np.uint64(31))


@compiled
def _look_up(table, text, at):
    """The table's entry for the code point at `at` in valid UTF-8, and the number of its bytes."""
    code = np.uint64(text[at])
    if code < 0x80:
        return table[code], _ONE
    size = np.uint64(2 if code < 0xE0 else 3 if code < 0xF0 else 4)
    code &= np.uint64(0x7F) >> size
    for byte in range(_ONE, size):
        code = (code << np.uint64(6)) | np.uint64(text[at + byte] & 0x3F)
    return table[code if code < _KNOWN else np.uint64(0)], size


@compiled
def _find(data, starts, unstable, found):
    """Mark the texts with an unstable code point."""
    for row in range(len(found)):
        text = data[starts[row] : starts[row + 1]]
        high = np.uint8(0)
        for byte in text:
            high = np.uint8(high | byte)
        for at in range(len(text) if high >= 0x80 else 0):
            if text[at] >= 0xC0:  # the first byte of a code point that is not ASCII
                found[row] |= _look_up(unstable, text, np.uint64(at))[0]


@compiled
def _hash_words(text, table, hashes, first):
    """Write a number for each word to hashes[first:]; returns how many there are.

    Without branches at the ends of words, which a processor cannot foresee: a word's number grows in its place, and the
    place moves on after the word.  Without signed numbers, which numba would test at each use as an index.
    """
    free = first
    word = inside = at = np.uint64(0)
    while at < len(text):
        entry, size = _look_up(table, text, at)
        at += size
        if entry >= _ALONE:
            free += inside
            hashes[free] = entry
            free += _ONE
            word = inside = np.uint64(0)
            continue
        is_letter, is_mark = entry >> np.uint64(24), entry >> np.uint64(25)
        belongs = (is_letter | (is_mark & inside)) & _ONE
        free += inside & ~belongs
        word = word * (_STEP & -belongs) + (entry & -belongs)
        hashes[free] = word
        inside = belongs
    return free + inside - first


@compiled
def _hash_characters(text, table, hashes, first):
    """Write a number for each character of the words and of the spaces between to hashes[first:]; returns how many."""
    free = first
    at = np.uint64(0)
    inside = False
    while at < len(text):
        entry, size = _look_up(table, text, at)
        at += size
        if entry == 0 or (_MARK <= entry < _ALONE and not inside):
            inside = False
            continue
        if not inside and free > first:
            hashes[free] = 0x20
            free += _ONE
        inside = True
        hashes[free] = entry
        free += _ONE
    return free - first


@compiled
def _join(hashes, count, ngram):
    """Turn the numbers of `count` words in place into the hashes of their n-grams; returns how many there are."""
    size = min(count, ngram)
    top = np.uint64(1)
    gram = np.uint64(0)
    for at in range(count):
        hashes[at] = _mix(hashes[at])
    for at in range(size):
        gram = gram * _BASE + hashes[at]
        top *= _BASE
    for at in range(count - size):
        following = gram * _BASE + hashes[at + size] - hashes[at] * top
        hashes[at] = _mix(gram)
        gram = following
    if size:
        hashes[count - size] = _mix(gram)
    return min(count, count - size + 1)


@compiled
def _hash_rows(data, starts, table, characters, ngram, hashes, offsets):
    """Write the n-grams of each row, row after row, and where each row starts in `hashes`."""
    for row in range(len(starts) - 1):
        text = data[starts[row] : starts[row + 1]]
        at = np.uint64(offsets[row])
        count = _hash_characters(text, table, hashes, at) if characters else _hash_words(text, table, hashes, at)
        offsets[row + 1] = offsets[row] + _join(hashes[offsets[row] :], np.int64(count), ngram)


def _as_sets(block: Shingles) -> Shingles:
    """Each row in ascending order and without repeats; the block's arrays are reused."""
    longest = int(np.diff(block.offsets).max(initial=0))
    _sort_rows(block.offsets, block.hashes, np.empty(longest, np.uint64), np.empty(longest, np.int64))
    return Shingles(block.offsets, block.hashes[: block.offsets[-1]].copy())


@compiled
def _sort_rows(offsets, hashes, ordered, heads):
    """Sort each row, drop its repeats, and close the gaps, all in place."""
    first = 0
    for row in range(len(offsets) - 1):
        last = offsets[row + 1]
        _sort(hashes, first, last, ordered, heads)
        end = offsets[row]
        for at in range(last - first):
            if at == 0 or ordered[at] != ordered[at - 1]:
                hashes[end] = ordered[at]
                end += 1
        offsets[row + 1] = end
        first = last


@compiled
def _sort(values, first, last, ordered, heads):
    """Write values[first:last] in ascending order to `ordered`.

    Hashes spread evenly, so each one's place is known but for a few; the time is linear in their number.
    """
    count = np.uint64(last - first)
    for at in range(last - first):
        heads[at] = 0
    for at in range(first, last):
        heads[((values[at] >> np.uint64(32)) * count) >> np.uint64(32)] += 1
    before = 0
    for at in range(last - first):
        heads[at], before = before, before + heads[at]
    for at in range(first, last):
        head = ((values[at] >> np.uint64(32)) * count) >> np.uint64(32)
        ordered[heads[head]] = values[at]
        heads[head] += 1
    for at in range(1, last - first):
        value = ordered[at]
        while at > 0 and ordered[at - 1] > value:
            ordered[at] = ordered[at - 1]
            at -= 1
        ordered[at] = value
