"""Templates: what texts written from one instruction share, and what varies in each."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

__all__ = ["LEAST_WORDS", "Template"]

LEAST_WORDS = 4
_TOKEN = re.compile(r"\w+|\s+|[^\w\s]")
_RUN_WORDS = 3
_LEAST_ALIKE = 0.6
_LONGEST = 20_000
_MOST_PAIRS = 1_000_000
_ANCHOR_TOKENS = 5
_PROFILES = 256

_Block = tuple[int, int, int]


@dataclass(frozen=True)
class Template:
    """Literal pieces of text with gaps between them.

    Parameters
    ----------
    pieces : tuple of str
        The literals in order; a gap lies between any two, and an empty first or last piece means the text begins or
        ends with a gap. A single piece is a text without gaps.

    Examples
    --------
    >>> made = Template.align(
    ...     "Classify this message please. Message: hi there",
    ...     "Classify this message please. Message: bye",
    ... )
    >>> made.pieces
    ('Classify this message please. Message: ', '')
    >>> made.match("Classify this message please. Message: where is it?")
    ('where is it?',)
    """

    pieces: tuple[str, ...]

    @property
    def n_words(self) -> int:
        """Number of literal words."""
        return sum(len(re.findall(r"\w+", piece)) for piece in self.pieces)

    def match(self, text: str) -> tuple[str, ...] | None:
        """The text in each gap, or None when the literals are not all there in order; linear in the text's length."""
        first, *rest = self.pieces
        if not rest:
            return () if text == first else None
        *middle, last = rest
        end = len(text) - len(last)
        if not text.startswith(first) or not text.endswith(last) or end < len(first):
            return None
        gaps, at = [], len(first)
        for piece in middle:
            found = text.find(piece, at, end)
            if found < 0:
                return None
            gaps.append(text[at:found])
            at = found + len(piece)
        return (*gaps, text[at:end])

    @classmethod
    def align(cls, a: str, b: str) -> Template | None:
        """The template two texts share, or None when they are not alike.

        Alike means: they begin or end with the same token, and their shared runs hold at least four words and 60 % of
        the shorter text's tokens. Texts of more than 20,000 characters are compared by equality alone.
        """
        if len(a) > _LONGEST or len(b) > _LONGEST:
            return None
        if not _may_be_alike(_profile(a), _profile(b)):
            return None
        left, right = _TOKEN.findall(a), _TOKEN.findall(b)
        blocks = _blocks(left, right)
        runs = [left[at : at + size] for at, _, size in blocks]
        spans = [(at, at + size, over, over + size) for at, over, size in blocks]
        kept = [
            (run, span)
            for run, span in zip(runs, spans, strict=True)
            if sum(map(_is_word, run)) >= _RUN_WORDS or span[0] == 0 == span[2] or span[1:4:2] == _ends(left, right)
        ]
        kept = [(run, span) for run, span in kept if run]
        n_shared = sum(len(run) for run, _ in kept)
        if n_shared < _LEAST_ALIKE * min(len(left), len(right)):
            return None
        pieces = ["".join(run) for run, _ in kept]
        if kept and (kept[0][1][0] != 0 or kept[0][1][2] != 0):
            pieces.insert(0, "")
        if kept and kept[-1][1][1:4:2] != _ends(left, right):
            pieces.append("")
        made = cls(tuple(pieces))
        return made if made.n_words >= LEAST_WORDS else None


def _ends(left: list[str], right: list[str]) -> tuple[int, int]:
    return len(left), len(right)


def _is_word(token: str) -> bool:
    return token[0].isalnum()


@dataclass(frozen=True, slots=True)
class _Profile:
    """What tells without an alignment that two texts are not alike.

    ``runs`` has, for every three words in a row, their hash and the tokens from the word before them to the word after.
    """

    ends: tuple[str, str]
    words: frozenset[str]
    n_tokens: int
    n_at_ends: int
    runs: tuple[tuple[int, int, int], ...]
    hashes: frozenset[int]


@lru_cache(_PROFILES)
def _profile(text: str) -> _Profile:
    tokens = _TOKEN.findall(text)
    at = [i for i, token in enumerate(tokens) if _is_word(token)]
    n = len(tokens)
    words = [tokens[i] for i in at]
    borders = [-1, *at, n]
    runs = tuple(
        (hash(tuple(words[i : i + _RUN_WORDS])), borders[i] + 1, borders[i + _RUN_WORDS + 1])
        for i in range(len(words) - _RUN_WORDS + 1)
    )
    n_at_ends = runs[0][2] + n - runs[-1][1] if runs else n
    ends = (tokens[0], tokens[-1]) if tokens else ("", "")
    return _Profile(ends, frozenset(tokens), n, n_at_ends, runs, frozenset(run[0] for run in runs))


def _may_be_alike(left: _Profile, right: _Profile) -> bool:
    """Whether an alignment can succeed, in linear time: most prompts are not alike, and each is held against many."""
    if not left.n_tokens or not right.n_tokens:
        return False
    if left.ends[0] != right.ends[0] and left.ends[1] != right.ends[1]:
        return False
    if len(left.words & right.words) < _LEAST_ALIKE / 2 * min(len(left.words), len(right.words)):
        return False
    # Whatever is shared lies in runs of three words or more, or at the ends.
    n_shared, reached = left.n_at_ends, 0
    for found, start, stop in left.runs:
        if found in right.hashes:
            n_shared += max(0, stop - max(start, reached))
            reached = stop
    return n_shared >= _LEAST_ALIKE * min(left.n_tokens, right.n_tokens)


def _blocks(left: Sequence[str], right: Sequence[str]) -> list[_Block]:
    """Runs that two texts share, in order: where each begins in the one and in the other, and its length."""
    if len(left) * len(right) <= _MOST_PAIRS:
        matcher = SequenceMatcher(None, left, right, autojunk=False)
        return [(block.a, block.b, block.size) for block in matcher.get_matching_blocks()]
    blocks: list[_Block] = []
    # The time of the exact matcher grows with the square of the length: runs between what each text says once do not.
    i = j = 0
    for a, b in [(0, 0), *_anchors(left, right), (len(left), len(right))]:
        if a < i or b < j:
            continue
        before = 0
        while a - before > i and b - before > j and left[a - before - 1] == right[b - before - 1]:
            before += 1
        end = a
        while end < len(left) and end - a + b < len(right) and left[end] == right[end - a + b]:
            end += 1
        blocks.append((a - before, b - before, end - a + before))
        i, j = end, end - a + b
    return blocks


def _anchors(left: Sequence[str], right: Sequence[str]) -> list[tuple[int, int]]:
    """Places of what each text says exactly once, in the longest row that has the same order in both."""
    theirs = _once(right)
    pairs = [(at, theirs[gram]) for gram, at in _once(left).items() if gram in theirs]
    tails: list[int] = []
    last: list[int] = []
    before: list[int] = []
    for n, (_, there) in enumerate(pairs):
        length = bisect_left(tails, there)
        before.append(last[length - 1] if length else -1)
        if length == len(tails):
            tails.append(there)
            last.append(n)
        else:
            tails[length], last[length] = there, n
    row: list[tuple[int, int]] = []
    n = last[-1] if last else -1
    while n >= 0:
        row.append(pairs[n])
        n = before[n]
    return row[::-1]


def _once(tokens: Sequence[str]) -> dict[tuple[str, ...], int]:
    places: dict[tuple[str, ...], int] = {}
    for at in range(len(tokens) - _ANCHOR_TOKENS + 1):
        gram = tuple(tokens[at : at + _ANCHOR_TOKENS])
        places[gram] = -1 if gram in places else at
    return {gram: at for gram, at in places.items() if at >= 0}
