"""Kernels that read text: UTF-8 bytes to characters, characters to words. Numba, without the interpreter's lock."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from pilotfish.curation.characters import AFFIX, ALPHA, DIGIT, LOWER, N_KNOWN, SPACE, UPPER, WORD

__all__ = ["decode", "finish", "split_words"]

_SEED = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)
_DOT, _PLUS, _MINUS, _APOSTROPHE, _QUOTE, _SLASH, _COLON, _AT = 46, 43, 45, 39, 0x2019, 47, 58, 64
_ALNUM = WORD


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def finish(h: Any) -> Any:
    """Spread the bits of a 64-bit hash (the last steps of MurmurHash3)."""
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    h ^= h >> np.uint64(33)
    return h


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def character_at(buffer: Any, i: int) -> tuple[Any, int]:
    """The character of valid UTF-8 bytes that begins at i, and where the next one begins."""
    b = np.uint32(buffer[i])
    if b < 0x80:
        return b, i + 1
    low = np.uint32(0x3F)
    c = (b & np.uint32(0x1F)) << np.uint32(6) | np.uint32(buffer[i + 1]) & low
    if b < 0xE0:
        return c, i + 2
    c = (c & np.uint32(0x3FF)) << np.uint32(6) | np.uint32(buffer[i + 2]) & low
    if b < 0xF0:
        return c, i + 3
    return (c & np.uint32(0x7FFF)) << np.uint32(6) | np.uint32(buffer[i + 3]) & low, i + 4


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def decode(buffer: Any, start: int, end: int, classes: Any, codes: Any, kinds: Any) -> int:
    """Write the characters of valid UTF-8 bytes and their classes; return how many there are."""
    n, i = 0, start
    while i < end:
        c, i = character_at(buffer, i)
        codes[n] = c
        kinds[n] = classes[min(c, np.uint32(N_KNOWN))]
        n += 1
    return n


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _is_address(codes: Any, kinds: Any, s: int, e: int) -> bool:
    """Whether characters s to e look like a web or mail address, which is one word."""
    dot = -1
    for i in range(s, e):
        c = codes[i]
        if c == _COLON and i + 2 < e and codes[i + 1] == _SLASH and codes[i + 2] == _SLASH:
            return True
        if c == _AT and i > s and i + 1 < e:
            return True
        if c == _DOT:
            dot = i
        elif c == _SLASH:
            if dot <= s or i - dot < 3:
                return False
            letters = True
            for k in range(dot + 1, i):
                letters &= (kinds[k] & ALPHA) != 0
            return letters
        elif not (kinds[i] & _ALNUM or c == _MINUS):
            return False
    return False


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _contraction(codes: Any, s: int, e: int) -> int:
    """Characters of an English ending such as n't or 'll; 0 where there is none."""
    if e - s < 3:
        return 0
    last, before = codes[e - 1] | 32, codes[e - 2]
    if before in (_APOSTROPHE, _QUOTE):
        if last == 116 and codes[e - 3] | 32 == 110:
            return 3 if e - s > 3 else 0
        return 2 if last in (115, 109, 100) else 0
    if e - s > 3 and (codes[e - 3] in (_APOSTROPHE, _QUOTE)):
        pair = (before | 32, last)
        return 3 if pair in ((114, 101), (118, 101), (108, 108)) else 0
    return 0


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _infix(codes: Any, kinds: Any, i: int, s: int, e: int) -> int:
    """Length of a separator at i within a word s to e; 0 where there is none."""
    c, k = codes[i], kinds[i]
    if k & ALPHA and c < 128:
        return 0
    if c == _DOT:
        if i + 1 < e and codes[i + 1] == _DOT:
            j = i
            while j < e and codes[j] == _DOT:
                j += 1
            return j - i
        return 1 if i > s and i + 1 < e and kinds[i - 1] & LOWER and kinds[i + 1] & UPPER else 0
    if c == 0x2026 or (k & AFFIX and c > 0x2100 and not k & _ALNUM and c < 0x3000):
        return 1
    if i == s or i + 1 >= e:
        return 0
    left, right = kinds[i - 1], kinds[i + 1]
    if c == 44:
        return 1 if left & ALPHA and right & ALPHA else 0
    if c in (_MINUS, 0x2013, 0x2014, 126):
        if left & DIGIT and c == _MINUS and (right & DIGIT or codes[i + 1] == _MINUS):
            return 1
        j = i
        while j < e and j - i < 3 and codes[j] == c:
            j += 1
        return j - i if left & ALPHA and j < e and kinds[j] & ALPHA else 0
    if c in (_PLUS, 42, 94):
        return 1 if left & DIGIT and (right & DIGIT or codes[i + 1] == _MINUS) else 0
    if c in (_COLON, 60, 62, 61, _SLASH):
        return 1 if left & (ALPHA | DIGIT) and right & ALPHA else 0
    return 0


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _keep_dot(codes: Any, kinds: Any, s: int, e: int) -> bool:
    """Whether the full stop that ends a word s to e belongs to it: an initial, or an abbreviation such as e.g."""
    if e - s == 2:
        return bool(kinds[s] & ALPHA)
    before = kinds[e - 2]
    if before & UPPER:
        return not kinds[e - 3] & UPPER
    if not (before & (LOWER | DIGIT | AFFIX) or codes[e - 2] in (_MINUS, _PLUS)):
        return True
    if e - s == 4 and codes[s + 1] == _DOT and codes[s] in (101, 105, 97, 112):
        return True
    first, second = codes[s], codes[s + 1]
    if e - s == 3:  # Mr. Dr. Ms. St. Jr. vs.
        return (first, second) in ((77, 114), (68, 114), (77, 115), (83, 116), (74, 114))
    if e - s == 4:  # Mrs. Inc. Ltd. Gen. Rev. and months
        third = codes[s + 2]
        return (first, second, third) in (
            (77, 114, 115), (73, 110, 99), (76, 116, 100), (71, 101, 110), (82, 101, 118), (74, 97, 110),
            (70, 101, 98), (77, 97, 114), (65, 112, 114), (65, 117, 103), (83, 101, 112), (79, 99, 116),
            (78, 111, 118), (68, 101, 99),
        )  # fmt: skip
    return False


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _end_length(codes: Any, kinds: Any, s: int, e: int) -> int:
    """Characters to split off the end of s to e."""
    c, k = codes[e - 1], kinds[e - 1]
    if c == _DOT:
        if e - s > 1 and codes[e - 2] == _DOT:
            j = e
            while j > s and codes[j - 1] == _DOT:
                j -= 1
            return e - j
        return 0 if e - s > 1 and _keep_dot(codes, kinds, s, e) else 1
    if k & AFFIX:
        if c in (36, 37, 0xA3, 0x20AC, 0xA5):
            return 1 if e - s > 1 and kinds[e - 2] & DIGIT else 0
        return 1 if c != 61 and c != 0xA7 else 0
    if e - s > 2 and c | 32 == 115 and codes[e - 2] in (_APOSTROPHE, _QUOTE):
        return 2
    return 1 if c == _PLUS and e - s > 1 and kinds[e - 2] & DIGIT else 0


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def split_words(codes: Any, kinds: Any, n: int, starts: Any, ends: Any, hashes: Any) -> int:
    """Split characters into words and marks; write where each starts and ends, and its hash; return how many.

    White space separates; marks come off both ends one by one, English contractions are two words, a hyphen between
    letters is a word of its own, addresses stay whole.
    """
    n_words, i = 0, 0
    while i < n:
        while i < n and kinds[i] & SPACE:
            i += 1
        s = i
        plain = True
        while i < n and not kinds[i] & SPACE:
            plain &= (kinds[i] & ALPHA) != 0
            i += 1
        e = i
        if s == e:
            break
        last = e
        if not plain:
            while s < e:
                c = codes[s]
                if c == _DOT and s + 1 < e and codes[s + 1] == _DOT:
                    j = s
                    while j < e and codes[j] == _DOT:
                        j += 1
                elif kinds[s] & AFFIX or (c == _PLUS and s + 1 < e and not kinds[s + 1] & DIGIT):
                    if c == _APOSTROPHE and e - s == 2 and codes[s + 1] | 32 == 115:
                        break
                    j = s + 1
                else:
                    break
                starts[n_words], ends[n_words] = s, j
                n_words += 1
                s = j
            while s < e:
                taken = _end_length(codes, kinds, s, e)
                if taken == 0:
                    break
                e -= taken
            tail = e
            if s < e:
                if _is_address(codes, kinds, s, e):
                    starts[n_words], ends[n_words] = s, e
                    n_words += 1
                    s = e
                else:
                    short = _contraction(codes, s, e)
                    core = e - short
                    j = s
                    while j < core:
                        step = _infix(codes, kinds, j, s, core)
                        if step:
                            if j > s:
                                starts[n_words], ends[n_words] = s, j
                                n_words += 1
                            starts[n_words], ends[n_words] = j, j + step
                            n_words += 1
                            j += step
                            s = j
                        else:
                            j += 1
                    if s < core:
                        starts[n_words], ends[n_words] = s, core
                        n_words += 1
                    if short:
                        starts[n_words], ends[n_words] = core, e
                        n_words += 1
            s = tail
            # What came off the end, in the order of the text.
            while s < last:
                j = s + 1
                if codes[s] == _DOT:
                    while j < last and codes[j] == _DOT:
                        j += 1
                elif codes[s] in (_APOSTROPHE, _QUOTE) and j < last and codes[j] | 32 == 115:
                    j += 1
                starts[n_words], ends[n_words] = s, j
                n_words += 1
                s = j
        else:
            starts[n_words], ends[n_words] = s, e
            n_words += 1
    for w in range(n_words):
        h = _SEED
        for j in range(starts[w], ends[w]):
            h = (h ^ np.uint64(codes[j])) * _PRIME
        hashes[w] = finish(h)
    return n_words
