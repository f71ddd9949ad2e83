"""Kernels that measure a document for rules: words, lines, paragraphs, and what repeats. Numba, without the lock."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from pilotfish.curation.characters import ALPHA, SPACE, SYMBOL, TERMINAL
from pilotfish.curation.words import finish

__all__ = ["MEASURES", "measure"]

# The columns of a row of measures. Lengths are in characters.
MEASURES = (
    "bytes", "characters", "words", "plain_words", "plain_word_characters", "hashes", "ellipses", "alphabetic_words",
    "stop_words", "blocked_words", "lines", "bullet_lines", "ellipsis_lines", "paragraphs", "repeated_paragraphs",
    "repeated_paragraph_characters", "pieces", "repeated_pieces", "repeated_piece_characters",
    "top_2_grams", "top_3_grams", "top_4_grams", "repeated_5_grams", "repeated_6_grams", "repeated_7_grams",
    "repeated_8_grams", "repeated_9_grams", "repeated_10_grams", "filled_lines", "ended_lines", "short_lines",
    "repeated_line_characters", "newlines", "characters_in_lines", "sentences", "lorem_ipsum", "curly_brackets",
)  # fmt: skip
(
    _BYTES, _CHARACTERS, _WORDS, _PLAIN, _PLAIN_CHARACTERS, _HASHES, _ELLIPSES, _ALPHABETIC, _STOPS, _BLOCKED,
    _LINES, _BULLETS, _ELLIPSIS_LINES, _PARAGRAPHS, _PARAGRAPHS_AGAIN, _PARAGRAPH_CHARACTERS, _PIECES, _PIECES_AGAIN,
    _PIECE_CHARACTERS, _TOP, _, _, _AGAIN, _, _, _, _, _, _FILLED, _ENDED, _SHORT, _LINE_CHARACTERS, _NEWLINES,
    _IN_LINES, _SENTENCES, _LOREM, _CURLY,
) = range(len(MEASURES))  # fmt: skip

_SHORT_LINE, _LONGEST_WORD, _FEWEST_WORDS = 30, 1000, 3
_MIX = np.uint64(0x9E3779B97F4A7C15)
_ONE = np.uint64(1)


def _spelled(texts: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    codes = np.array([ord(c) for text in texts for c in text], dtype=np.uint32)
    return codes, np.cumsum([0, *(len(text) for text in texts)])


# C4: a line with one of these is left out; a page with the first is.
_PHRASES, _BOUNDS = _spelled(
    (
        "lorem ipsum", "javascript", "terms of use", "privacy policy", "cookie policy", "uses cookies",
        "use of cookies", "use cookies",
    )
)  # fmt: skip
_EDIT = _spelled(("[edit",))[0]
_NEEDED = _spelled(("[citation needed",))[0]


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _again(slots: Any, mask: Any, h: Any) -> bool:
    """Whether a hash is in the table already; put it there."""
    h |= _ONE
    at = (h >> np.uint64(20)) & mask
    while slots[at] != 0:
        if slots[at] == h:
            return True
        at = (at + _ONE) & mask
    slots[at] = h
    return False


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _cleared(slots: Any, n: int) -> Any:
    """Empty as much of the table as n entries need; return the mask of its places."""
    size = 16
    while size < 2 * n:
        size *= 2
    slots[:size] = 0
    return np.uint64(size - 1)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _repeats(n_words: int, starts: Any, ends: Any, hashes: Any, grams: Any, slots: Any, counts: Any, row: Any) -> None:
    """Characters of the commonest n-gram of 2 to 4 words, and of repeated n-grams of 5 to 10."""
    for w in range(n_words):
        grams[w] = hashes[w]
    for n in range(2, 11):
        n_grams = n_words - n + 1
        if n_grams < 1:
            break
        for w in range(n_grams):
            grams[w] = grams[w] * _MIX + hashes[w + n - 1]
        mask = _cleared(slots, n_grams)
        if n < 5:
            counts[: np.int64(mask) + 1] = 0
            for w in range(n_grams):
                h = finish(grams[w]) | _ONE
                at = (h >> np.uint64(20)) & mask
                while slots[at] != 0 and slots[at] != h:
                    at = (at + _ONE) & mask
                slots[at] = h
                counts[at] += 1
            top = counts[: np.int64(mask) + 1].max()
            for w in range(n_grams):
                h = finish(grams[w]) | _ONE
                at = (h >> np.uint64(20)) & mask
                while slots[at] != h:
                    at = (at + _ONE) & mask
                if counts[at] == top:
                    row[_TOP + n - 2] = (n - 1 + (ends[w : w + n] - starts[w : w + n]).sum()) * top
                    break
        else:
            again, w = 0, 0
            while w < n_grams:
                if _again(slots, mask, finish(grams[w])):
                    for k in range(w, w + n):
                        again += ends[k] - starts[k]
                    w += n
                else:
                    w += 1
            row[_AGAIN + n - 5] = again


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _phrase(codes: Any, i: int, n: int) -> int:
    """The number of the phrase that starts at i, its case aside; -1 where none does."""
    first = codes[i] | 32
    if not 99 <= first <= 117:
        return -1
    for p in range(_BOUNDS.size - 1):
        begin, end = _BOUNDS[p], _BOUNDS[p + 1]
        if _PHRASES[begin] != first or i + end - begin > n:
            continue
        same = True
        for k in range(begin + 1, end):
            c = codes[i + k - begin]
            if 65 <= c <= 90:
                c |= np.uint32(32)
            if c != _PHRASES[k]:
                same = False
                break
        if same:
            return p
    return -1


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _without_citations(codes: Any, s: int, e: int) -> int:
    """The end of a line s to e before the citation marks, such as [12], that close it."""
    while e - s > 1 and codes[e - 1] == 93:
        i = e - 2
        while i >= s and 48 <= codes[i] <= 57:
            i -= 1
        if i >= s and codes[i] == 91:
            e = i
            continue
        found = False
        for mark in (_EDIT, _NEEDED):
            begin = e - 1 - mark.size
            if begin >= s:
                same = True
                for k in range(mark.size):
                    same &= codes[begin + k] == mark[k]
                if same:
                    e, found = begin, True
                    break
        if not found:
            break
    return e


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _line(
    codes: Any, kinds: Any, s: int, e: int, first: int, n_words: int, starts: Any, ends: Any, state: Any, row: Any
) -> int:
    """Measure one line s to e whose words begin at number ``first``; return the number of its last word plus one."""
    row[_LINES] += 1
    last = first
    while last < n_words and starts[last] < e:
        last += 1
    while s < e and kinds[s] & SPACE:
        s += 1
    while e > s and kinds[e - 1] & SPACE:
        e -= 1
    if s == e:
        return last
    row[_BULLETS] += codes[s] == 0x2022 or codes[s] == 45
    dots = e - s >= 3 and codes[e - 1] == 46 and codes[e - 2] == 46 and codes[e - 3] == 46
    row[_ELLIPSIS_LINES] += dots or codes[e - 1] == 0x2026
    if state[0] < 0:  # the page is out already
        return last
    n_chunks, run, longest = 0, 0, 0
    for i in range(s, e):
        if kinds[i] & SPACE:
            run = 0
        else:
            n_chunks += run == 0
            run += 1
            longest = max(longest, run)
    if longest > _LONGEST_WORD:
        return last
    end = _without_citations(codes, s, e)
    if end == s:
        return last
    c = codes[end - 1]
    dots = end - s >= 3 and c == 46 and codes[end - 2] == 46 and codes[end - 3] == 46
    if not (c == 46 or c == 63 or c == 33 or c == 34 or c == 39) or dots or n_chunks < _FEWEST_WORDS:
        return last
    curly, found = False, False
    for i in range(s, end):
        curly |= codes[i] == 123
        p = _phrase(codes, i, end) if codes[i] < 128 else -1
        if p == 0:
            row[_LOREM] = 1
            state[0] = -1
            return last
        found |= p == 1
    if found:
        return last
    if curly:
        row[_CURLY] = 1
        state[0] = -1
        return last
    for i in range(s, end):
        if codes[i] < 128 and _phrase(codes, i, end) > 1:
            return last
    row[_SENTENCES] += 1
    stopped = False
    for w in range(first, last):
        i = starts[w]
        if ends[w] - i == 1 and kinds[i] & TERMINAL:
            stopped = True
        elif stopped:
            mark = True
            for k in range(i, ends[w]):
                mark &= (kinds[k] & SYMBOL) != 0
            if not mark and i < end:
                row[_SENTENCES] += 1
                stopped = False
    return last


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def measure(
    codes: Any,
    kinds: Any,
    n: int,
    n_words: int,
    starts: Any,
    ends: Any,
    hashes: Any,
    stop_words: Any,
    blocked: Any,
    grams: Any,
    slots: Any,
    counts: Any,
    row: Any,
) -> None:
    """Fill a row of measures of one document from its characters and words.

    ``grams`` (n + 1,), ``slots`` and ``counts`` (a power of two of at least 2 n + 16) are working space.
    """
    row[_CHARACTERS], row[_WORDS] = n, n_words
    seen_stops = np.uint64(0)
    for w in range(n_words):
        alphabetic, plain = False, False
        for i in range(starts[w], ends[w]):
            alphabetic |= (kinds[i] & ALPHA) != 0
            plain |= (kinds[i] & SYMBOL) == 0
        row[_ALPHABETIC] += alphabetic
        if plain:
            row[_PLAIN] += 1
            row[_PLAIN_CHARACTERS] += ends[w] - starts[w]
        if alphabetic and ends[w] - starts[w] < 8:
            for k in range(stop_words.size):
                if hashes[w] == stop_words[k]:
                    seen_stops |= _ONE << np.uint64(k)
    while seen_stops:
        row[_STOPS] += 1
        seen_stops &= seen_stops - _ONE
    if blocked.size:
        for w in range(n_words):
            at = np.searchsorted(blocked, hashes[w])
            row[_BLOCKED] += at < blocked.size and blocked[at] == hashes[w]
    _repeats(n_words, starts, ends, hashes, grams, slots, counts, row)

    i = 0
    while i < n:
        c = codes[i]
        if c == 35:
            row[_HASHES] += 1
        elif c == 0x2026:
            row[_ELLIPSES] += 1
        elif c == 46 and i + 2 < n and codes[i + 1] == 46 and codes[i + 2] == 46:
            row[_ELLIPSES] += 1
            i += 2
        elif c == 10:
            row[_NEWLINES] += 1
        i += 1
    row[_IN_LINES] = n - row[_NEWLINES]

    # Lines apart by line feeds, three ways: as they are, grouped to paragraphs, and, inside them, every line break.
    n_lines = int(row[_NEWLINES]) + 1
    lines_mask = _cleared(slots, n_lines)
    half = np.int64(lines_mask) + 1
    paragraph_slots = slots[half : 2 * half]
    paragraph_slots[:] = 0
    left, right = 0, n
    while left < n and kinds[left] & SPACE:
        left += 1
    while right > left and kinds[right - 1] & SPACE:
        right -= 1
    state = np.zeros(1, dtype=np.int64)
    word, begin = 0, 0
    paragraph, length, open_ = np.uint64(0), 0, False
    row[_PIECES] = (n > 0 and codes[0] == 10) + (n > 0 and codes[n - 1] == 10)
    if row[_PIECES] == 2:
        row[_PIECES_AGAIN] += 1
    while begin <= n:
        end, h, filled, breaks = begin, np.uint64(0xCBF29CE484222325), False, False
        while end < n and codes[end] != 10:
            c = codes[end]
            h = (h ^ np.uint64(c)) * np.uint64(0x100000001B3)
            filled |= (kinds[end] & SPACE) == 0
            breaks |= (c < 32 and c != 9) or c == 0x85 or c == 0x2028 or c == 0x2029
            end += 1
        h = finish(h ^ np.uint64(end - begin))
        if end > begin:
            again = _again(slots, lines_mask, h)
            row[_PIECES] += 1
            if again:
                row[_PIECES_AGAIN] += 1
                row[_PIECE_CHARACTERS] += end - begin
            if filled:
                row[_FILLED] += 1
                row[_ENDED] += (kinds[end - 1] & TERMINAL) != 0
                row[_SHORT] += end - begin <= _SHORT_LINE
                if again:
                    row[_LINE_CHARACTERS] += end - begin
        # Paragraphs of the text without the white space around it.
        low, high = max(begin, left), min(end, right)
        if high > low or (begin == n and n == 0):
            clipped = h
            if low != begin or high != end:
                clipped = np.uint64(0xCBF29CE484222325)
                for k in range(low, high):
                    clipped = (clipped ^ np.uint64(codes[k])) * np.uint64(0x100000001B3)
                clipped = finish(clipped ^ np.uint64(high - low))
            paragraph = paragraph * _MIX + clipped
            length += high - low + open_
            open_ = True
        if open_ and (end >= right or (end + 1 < n and codes[end + 1] == 10)):
            row[_PARAGRAPHS] += 1
            if _again(paragraph_slots, lines_mask, finish(paragraph)):
                row[_PARAGRAPHS_AGAIN] += 1
                row[_PARAGRAPH_CHARACTERS] += length
            paragraph, length, open_ = np.uint64(0), 0, False
        if breaks:
            s = begin
            for k in range(begin, end):
                c = codes[k]
                if (10 <= c <= 13) or (28 <= c <= 30) or c == 0x85 or c == 0x2028 or c == 0x2029:
                    if not (c == 13 and k + 1 == end and end < n):
                        word = _line(codes, kinds, s, k, word, n_words, starts, ends, state, row)
                        s = k + 1
                    else:
                        word = _line(codes, kinds, s, k, word, n_words, starts, ends, state, row)
                        s = end + 1
            if s < end or (s == end and end < n):
                word = _line(codes, kinds, s, end, word, n_words, starts, ends, state, row)
        elif end > begin or end < n:
            word = _line(codes, kinds, begin, end, word, n_words, starts, ends, state, row)
        begin = end + 1
    if state[0] < 0:
        row[_SENTENCES] = 0
