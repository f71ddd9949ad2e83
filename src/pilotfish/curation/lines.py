"""Documents of JSON lines as they lie in a file, without a Python object for each: texts in, and lines copied out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pilotfish.curation.documents import Document, Rejected, Shard
from pilotfish.curation.reading import line_blocks, marked, records
from pilotfish.curation.scan import Batch

__all__ = ["Lines", "copy_lines", "documents_at", "read_lines"]

_QUOTE, _SLASH, _LETTER_U, _NEWLINE = 34, 92, 117, 10
# 0 is copied as it is, 1 ends a string or escapes, 2 may not stand in one; from 3 on, bytes of a longer character.
_KINDS = np.zeros(256, dtype=np.uint8)
_KINDS[:0x20] = 2
_KINDS[[_QUOTE, _SLASH]] = 1
_KINDS[0x80:0xC2], _KINDS[0xC2:0xE0], _KINDS[0xE0:0xF0], _KINDS[0xF0:0xF5], _KINDS[0xF5:] = 2, 3, 4, 5, 2
_ESCAPED = np.zeros(256, dtype=np.uint8)
for _letter, _byte in zip(b'"\\/bfnrt', b'"\\/\b\f\n\r\t', strict=True):
    _ESCAPED[_letter] = _byte
_WORDS = np.frombuffer(b"truefalsenull", dtype=np.uint8)
_WORD_BOUNDS = np.array([0, 4, 9, 13])


class Lines(NamedTuple):
    """Some documents of a file.

    Parameters
    ----------
    batch : Batch
        Their texts.
    places : ndarray of int64, (n, 4)
        Where each one's line begins and ends in the file, the number of its characters, and that of the lines up to it.
    rejected : list of Rejected
        What is no document.
    """

    batch: Batch
    places: NDArray[np.int64]
    rejected: list[Rejected]


def read_lines(shard: Shard, field: str, longest: int) -> Iterator[Lines]:
    """Yield the documents of a shard of plain JSON lines: those that ``documents.read`` yields.

    A block of lines that are all flat objects with plain keys is read by a kernel, any other by a parser of JSON.
    """
    key = np.frombuffer(field.encode(), dtype=np.uint8)
    with Path(shard.path).open("rb") as file:
        for content, at, n in line_blocks(file, shard, longest):
            if isinstance(content, Rejected):
                yield Lines(Batch([]), np.zeros((0, 4), dtype=np.int64), [content])
                continue
            buffer = np.frombuffer(content, dtype=np.uint8)
            n_lines = content.count(b"\n") + (not content.endswith(b"\n"))
            text, offsets = np.empty(buffer.size, dtype=np.uint8), np.zeros(n_lines + 1, dtype=np.int64)
            places = np.empty((n_lines, 4), dtype=np.int64)
            plain = _extract(buffer, key, text, offsets, places)
            if plain and (places[:, 1] - places[:, 0]).max(initial=0) <= longest:
                places[:, :2] += at
                places[:, 3] = np.arange(n + 1, n + 1 + n_lines)
                yield Lines(Batch.of(text[: offsets[-1]], offsets), places, [])
            else:
                yield _parsed(content, at, marked(shard), n, field, longest)


def _parsed(content: bytes, at: int, mark: str, n: int, field: str, longest: int) -> Lines:
    documents, rejected = records(content, mark, n, field, longest)
    places = np.empty((len(documents), 4), dtype=np.int64)
    k = 0
    for number, line in enumerate(content.split(b"\n"), n + 1):
        if k < len(documents) and documents[k].raw == line:
            places[k] = at, at + len(line), len(documents[k].text), number
            k += 1
        at += len(line) + 1
    return Lines(Batch([d.text for d in documents]), places, rejected)


def documents_at(shard: Shard, places: NDArray[np.int64], field: str) -> list[Document]:
    """The documents whose lines lie at some places of a shard's file."""
    with Path(shard.path).open("rb") as file:
        found = []
        for start, end, _, number in places.tolist():
            file.seek(start)
            found += records(file.read(end - start), marked(shard), number - 1, field, end - start)[0]
    return found


def copy_lines(path: str, places: NDArray[np.int64], out: Any) -> None:
    """Copy the lines at some places of a file, in their order."""
    if not len(places):
        return
    # Lines that follow each other are copied at once.
    new = np.flatnonzero(np.append(True, places[1:, 0] != places[:-1, 1] + 1))
    with Path(path).open("rb", buffering=0) as file:
        for start, end in zip(
            places[new, 0].tolist(), places[np.append(new[1:], len(places)) - 1, 1].tolist(), strict=True
        ):
            file.seek(start)
            out.write(file.read(end - start))
            out.write(b"\n")


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _blank(buffer: Any, i: int) -> int:
    """The first place from i on that is no white space within a line."""
    while i < buffer.size and (buffer[i] == 32 or buffer[i] == 9 or buffer[i] == 13):
        i += 1
    return i


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _escape(buffer: Any, i: int, text: Any, out: int) -> tuple[int, int]:
    """Write what an escape at i stands for; return the places after it, -1 where it is none or half of a pair."""
    if i + 1 >= buffer.size:
        return -1, out
    letter = buffer[i + 1]
    if letter != _LETTER_U:
        text[out] = _ESCAPED[letter]
        return (i + 2 if _ESCAPED[letter] else -1), out + 1
    if i + 6 > buffer.size:
        return -1, out
    c = 0
    for k in range(i + 2, i + 6):
        digit = int(buffer[k])
        if 48 <= digit <= 57:
            c = 16 * c + digit - 48
        elif 97 <= digit | 32 <= 102:
            c = 16 * c + (digit | 32) - 87
        else:
            return -1, out
    if 0xD800 <= c < 0xE000:
        return -1, out
    if c < 0x80:
        text[out] = c
        return i + 6, out + 1
    if c < 0x800:
        text[out], text[out + 1] = 0xC0 | c >> 6, 0x80 | c & 0x3F
        return i + 6, out + 2
    text[out], text[out + 1], text[out + 2] = 0xE0 | c >> 12, 0x80 | c >> 6 & 0x3F, 0x80 | c & 0x3F
    return i + 6, out + 3


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _string(buffer: Any, i: int, text: Any, out: int) -> tuple[int, int, int]:
    """Write the string that begins at i; return the places after it and its characters, or -1 where it is broken."""
    n, size = 0, buffer.size
    while i < size:
        b = buffer[i]
        kind = _KINDS[b]
        n += 1
        if kind == 0:
            text[out] = b
            out += 1
            i += 1
        elif kind == 1:
            if b == _QUOTE:
                return i + 1, out, n - 1
            i, out = _escape(buffer, i, text, out)
            if i < 0:
                break
        elif kind == 2 or i + kind - 1 > size:
            break
        else:
            second = buffer[i + 1]
            # Longer forms than needed, halves of pairs, and what lies past the last character.
            least = 0xA0 if b == 0xE0 else (0x90 if b == 0xF0 else 0x80)
            most = 0x9F if b == 0xED else (0x8F if b == 0xF4 else 0xBF)
            whole = least <= second <= most
            for k in range(i + 2, i + kind - 1):
                whole &= buffer[k] & 0xC0 == 0x80
            if not whole:
                break
            for k in range(i, i + kind - 1):
                text[out] = buffer[k]
                out += 1
            i += kind - 1
    return -1, out, n


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _number(buffer: Any, i: int) -> int:
    """The place after a number of up to 18 digits without an exponent; -1 where there is none."""
    i += buffer[i] == 45
    start = i
    while i < buffer.size and 48 <= buffer[i] <= 57:
        i += 1
    if i == start or i - start > 18 or (buffer[start] == 48 and i - start > 1):
        return -1
    if i < buffer.size and buffer[i] == 46:
        start = i = i + 1
        while i < buffer.size and 48 <= buffer[i] <= 57:
            i += 1
        if i == start or i - start > 18:
            return -1
    return i


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _word(buffer: Any, i: int) -> int:
    """The place after true, false or null; -1 where there is none of them."""
    for w in range(3):
        begin, end = _WORD_BOUNDS[w], _WORD_BOUNDS[w + 1]
        if buffer[i] == _WORDS[begin] and i + end - begin <= buffer.size:
            for k in range(begin, end):
                if buffer[i + k - begin] != _WORDS[k]:
                    return -1
            return int(i + end - begin)
    return -1


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _extract(buffer: Any, key: Any, text: Any, offsets: Any, places: Any) -> bool:
    """Write the texts of lines end to end and where lines lie; False where one is no flat object with one text."""
    size, i, n, out = buffer.size, 0, 0, 0
    while i < size:
        places[n, 0] = i
        found = False
        i = _blank(buffer, i)
        if i >= size or buffer[i] != 123:
            return False
        closed = False
        while not closed:
            i = _blank(buffer, i + 1)
            start = i + 1
            if i >= size or buffer[i] != _QUOTE:
                return False
            i = start
            while i < size and _KINDS[buffer[i]] == 0:
                i += 1
            if i >= size or buffer[i] != _QUOTE:
                return False
            named = i - start == key.size
            for k in range(key.size):
                named = named and buffer[start + k] == key[k]
            i = _blank(buffer, i + 1)
            if i >= size or buffer[i] != 58:
                return False
            i = _blank(buffer, i + 1)
            if i >= size or (named and (found or buffer[i] != _QUOTE)):
                return False
            if buffer[i] == _QUOTE:
                i, end, n_characters = _string(buffer, i + 1, text, out)
                if named:
                    out, places[n, 2], found = end, n_characters, True
            elif buffer[i] == 45 or 48 <= buffer[i] <= 57:
                i = _number(buffer, i)
            else:
                i = _word(buffer, i)
            if i < 0:
                return False
            i = _blank(buffer, i)
            if i >= size or (buffer[i] != 44 and buffer[i] != 125):
                return False
            closed = buffer[i] == 125
        i = _blank(buffer, i + 1)
        if not found or (i < size and buffer[i] != _NEWLINE):
            return False
        places[n, 1] = i
        i += 1
        n += 1
        offsets[n] = out
    return True
