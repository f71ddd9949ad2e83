"""Sentences of a text with their places and support, and the facts that can be looked up in another text by rule."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

__all__ = [
    "UNSPACED",
    "Support",
    "content_words",
    "facts",
    "known_facts",
    "missing_facts",
    "sentences",
    "unknown_facts",
    "windows",
    "words",
]

UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Letters of scripts whose words are not parted by spaces, as a range of a pattern."""
_CLOSING = "\"'\u2019\u201d)\u300d\u300f\uff09"
# Chinese and Japanese leave no space after a sentence.
_END = re.compile(
    rf"(?<=[.!?\u0964\u061f\u06d4])[{_CLOSING}]*(?:\s+|$)"
    rf"|(?<=[\u3002\uff01\uff1f])[{_CLOSING}]*(?![{_CLOSING}\u3002\uff01\uff1f])\s*|\n+"
)
_NUMBER = re.compile(rf"(?:(?<![\w.])|(?<=[{UNSPACED}]))\d+(?:[.,]\d+)*")
_NAME = re.compile(r"(?<![.!?\"'\s])\s+([^\W\d_][\w'\u2019-]+)")
_WORD = re.compile(r"[^\W_]+")
_DIGITS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty"""
_SMALL = {word: str(i) for i, word in enumerate(_DIGITS.split())}
_DATES = """january february march april may june july august september october november december
monday tuesday wednesday thursday friday saturday sunday"""
_CALENDAR = {w[:3]: w for w in _DATES.split()} | {w: w for w in _DATES.split()}
_PLAIN = """a an the and or but of to in on at by for from with as is are was were be been being it its this that these
those he she they we you i his her their our your him them us me my not no do does did has have had will would can could
may might shall should about into over after before between than then there here who whom which what when where why how
also more most some any each all both said say says one"""
_COMMON = frozenset(_PLAIN.split())


@dataclass(frozen=True, slots=True)
class Support:
    """How one sentence of an answer is supported, by its context or by other samples.

    Parameters
    ----------
    start, end : int
        Its characters in the answer.
    support : float
        Higher is better, as the scorer states it.
    missing : tuple of str
        Numbers, dates and names that the context does not have.
    """

    start: int
    end: int
    support: float
    missing: tuple[str, ...] = ()


def sentences(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence, by characters; line breaks end sentences too.

    Examples
    --------
    >>> [("It rains. Go home!")[a:b] for a, b in sentences("It rains. Go home!")]
    ['It rains.', 'Go home!']
    """
    spans, start = [], 0
    for end in [*_END.finditer(text), None]:
        stop = len(text) if end is None else end.start()
        piece = text[start:stop]
        if piece.strip():
            left = start + len(piece) - len(piece.lstrip())
            spans.append((left, left + len(piece.strip())))
        start = len(text) if end is None else end.end()
    return spans


def windows(text: str, n_characters: int = 350) -> list[str]:
    """Runs of whole sentences of about so many characters, each starting where the last one's second half does.

    As long as the premises that small entailment models learn from: longer ones cost more and are read worse. What goes
    on for four times as long without the end of a sentence, such as a table, is cut between words.
    """
    spans = [part for a, b in sentences(text) for part in _pieces(text, a, b, n_characters)]
    made: list[str] = []
    first = 0
    while first < len(spans):
        last = first
        while last + 1 < len(spans) and spans[last + 1][1] - spans[first][0] <= n_characters:
            last += 1
        made.append(text[spans[first][0] : spans[last][1]])
        if last + 1 >= len(spans):
            break
        first = max(first + 1, (first + last + 1) // 2 + 1)
    return made


def _pieces(text: str, start: int, end: int, n_characters: int) -> list[tuple[int, int]]:
    """A sentence, or parts of one that is too long, each half of a window at most."""
    if end - start <= 4 * n_characters:
        return [(start, end)]
    parts, most = [], max(1, n_characters // 2)
    while end - start > most:
        space = text.rfind(" ", start, start + most + 1)
        stop = space if space > start else start + most
        parts.append((start, stop))
        start = stop
    return [*parts, (start, end)]


def words(text: str) -> list[str]:
    """Words of any script as they are written; of scripts without spaces, each letter.

    Examples
    --------
    >>> words("It lies in Peru, 在秘鲁。")
    ['It', 'lies', 'in', 'Peru', '在', '秘', '鲁']
    """
    return _word_of_any_script().findall(text)


@cache
def _word_of_any_script() -> re.Pattern[str]:
    # Of Indic scripts vowels are marks, which \w leaves out.
    marks = "".join(c for c in map(chr, range(0x300, 0xFE00)) if unicodedata.category(c) in ("Mn", "Mc"))
    return re.compile(rf"[{UNSPACED}]|(?:[^\W_{UNSPACED}][{marks}]*)+")


def facts(sentence: str) -> list[str]:
    """Numbers, dates and names of a sentence, in the form in which they are compared; the first word is no name.

    Examples
    --------
    >>> facts("On 3 May two men left Lisbon with 1,200 euros.")
    ['3', '1200', 'may', '2', 'lisbon']
    """
    found = [_plain(m) for m in _NUMBER.findall(sentence)]
    words = _WORD.findall(sentence)
    found += [_CALENDAR[w.casefold()] for w in words if w[0].isupper() and w.casefold() in _CALENDAR]
    found += [_SMALL[w.casefold()] for w in words if w.casefold() in _SMALL and w.casefold() not in ("one", "zero")]
    names = [n.casefold().replace("\u2019", "'") for n in _NAME.findall(sentence) if n[0].isupper()]
    names = [n.removesuffix("'s").rstrip("'-") for n in names if n.partition("'")[0] not in ("i", *_CALENDAR)]
    return list(dict.fromkeys(found + names))


def _plain(number: str) -> str:
    plain = number.replace(",", "")
    try:
        return f"{float(plain):.15g}" if plain.count(".") <= 1 and len(plain) < 15 else plain
    except ValueError:
        return plain


def missing_facts(sentence: str, context: Sequence[str]) -> list[str]:
    """Facts of a sentence that no document of the context has.

    Examples
    --------
    >>> missing_facts("The bridge in Porto has 4 arches.", ["The Porto bridge has five arches."])
    ['4']
    """
    return unknown_facts(sentence, known_facts(context))


def known_facts(context: Sequence[str]) -> set[str]:
    """Words and numbers of documents, in the forms in which :func:`facts` are compared."""
    text = " ".join(context)
    known = {_plain(m) for m in _NUMBER.findall(text)}
    for word in _WORD.findall(text):
        low = word.casefold()
        known |= {low, _SMALL.get(low, low), _CALENDAR.get(low, low)}
        if low.endswith("s"):
            known.add(low[:-1])
    return known


def unknown_facts(sentence: str, known: Collection[str]) -> list[str]:
    """Facts of a sentence that are not among those that :func:`known_facts` found."""
    return [f for f in facts(sentence) if f not in known and not (f[0].isalpha() and _is_known(f, known))]


def _is_known(name: str, known: Collection[str]) -> bool:
    """Whether each word of a name is known, as it is or in the other number."""
    return all(w in known or w + "s" in known or w.removesuffix("s") in known for w in _WORD.findall(name))


def content_words(text: str) -> list[str]:
    """Words that carry meaning, in lower case and in order."""
    return [w for w in (x.casefold() for x in words(text)) if w not in _COMMON]
