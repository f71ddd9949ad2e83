"""Overlap with references: BLEU, chrF and ROUGE, by the libraries that everybody compares with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pilotfish.errors import InputError, missing_extra
from pilotfish.protocols import FloatArray
from pilotfish.scorers.passages import words
from pilotfish.types import Exchange

__all__ = ["Bleu", "Chrf", "Length", "Rouge"]

_MOST_WORDS = 3000
_ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def _each(items: Sequence[Exchange], measure: Callable[[str, list[str]], float]) -> FloatArray:
    """What ``measure`` gives for each reply and its references; NaN where there is none."""
    return np.array([measure(e.reply.text, list(e.references)) if e.references else math.nan for e in items])


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError:
        raise missing_extra("sacrebleu", "metrics", "BLEU and chrF") from None
    return sacrebleu


class Bleu:
    """BLEU of each answer against its references, in [0, 1], with orders that the answer is too short for left out.

    NaN where an answer has no reference; an empty answer scores 0. Chinese and Japanese texts need a tokenizer of their
    own: by the default one a whole clause is one word.

    Parameters
    ----------
    tokenize : str
        What splits texts into words, by sacrebleu's names, such as ``13a``, ``zh``, ``ja-mecab`` and ``char``.

    References
    ----------
    Papineni et al. 2002; Post 2018 (arXiv:1804.08771).

    Examples
    --------
    >>> from pilotfish.types import Reply, Request
    >>> asked = Request.of("Say hello.")
    >>> Bleu().score([Exchange(asked, Reply("hello you there"), ["hello you there"]), Exchange(asked, Reply("hello"))])
    array([ 1., nan])
    """

    def __init__(self, tokenize: str = "13a") -> None:
        self.tokenize = tokenize

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Score answers, (n,)."""
        bleu = self._made(effective_order=True)
        return _each(items, lambda text, references: min(1.0, bleu.sentence_score(text, references).score / 100))

    def corpus_score(self, items: Sequence[Exchange]) -> float:
        """BLEU of all answers together, in [0, 1]: counts are added up before they are divided.

        Raises
        ------
        InputError
            When an answer has no reference.
        """
        return _corpus(self._made(effective_order=False), items)

    def _made(self, effective_order: bool) -> Any:
        library = _sacrebleu()
        if self.tokenize not in library.BLEU.TOKENIZERS:
            raise InputError(f"Bleu tokenize is {self.tokenize!r}: use one of {', '.join(library.BLEU.TOKENIZERS)}.")
        try:
            return library.BLEU(tokenize=self.tokenize, effective_order=effective_order)
        except (ImportError, RuntimeError) as error:
            why = str(error).strip().split("\n")[0].rstrip(".:")
            raise InputError(
                f"Bleu tokenize is {self.tokenize!r}, which lacks a package ({why}): install it."
            ) from error


class Chrf:
    """chrF2 of each answer against its references, in [0, 1]: F-score of character n-grams.

    NaN where an answer has no reference; an empty answer scores 0.

    References
    ----------
    Popovic 2015.

    Examples
    --------
    >>> from pilotfish.types import Reply, Request
    >>> Chrf().score([Exchange(Request.of("Say hello."), Reply("hello"), ["hello"])])
    array([1.])
    """

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Score answers, (n,)."""
        chrf = _sacrebleu().CHRF()
        return _each(items, lambda text, references: chrf.sentence_score(text, references).score / 100)

    def corpus_score(self, items: Sequence[Exchange]) -> float:
        """ChrF2 of all answers together, in [0, 1].

        Raises
        ------
        InputError
            When an answer has no reference.
        """
        return _corpus(_sacrebleu().CHRF(), items)


def _corpus(metric: Any, items: Sequence[Exchange]) -> float:
    missing = sum(not e.references for e in items)
    if missing or not items:
        raise InputError(f"{missing} of {len(items)} answers have no reference: leave them out first.")
    longest = max(len(e.references) for e in items)
    streams = [[e.references[k] if k < len(e.references) else None for e in items] for k in range(longest)]
    return float(metric.corpus_score([e.reply.text for e in items], streams).score) / 100


class _Words:
    """Words of any script; what the library's own tokenizer gives for plain ASCII."""

    def __init__(self, own: Any) -> None:
        self.own = own

    def tokenize(self, text: str) -> list[str]:
        text = text[: 10 * _MOST_WORDS]
        if text.isascii():
            tokens: list[str] = self.own.tokenize(text)
            return tokens[:_MOST_WORDS]
        # A plain word has the same stem beside a dash or an emoji as without one.
        found = words(text.lower())[:_MOST_WORDS]
        return [t for word in found for t in (self.own.tokenize(word) if word.isascii() else [word])]


class Rouge:
    """ROUGE F-score of each answer, in [0, 1], against the reference it fits best.

    NaN where an answer has no reference; an empty answer scores 0. Text that is not plain ASCII is split into words of
    any script, where the library alone would drop them. Of a long text the first 3,000 words and 30,000 characters are
    looked at: the longest common subsequence takes time by the product of the lengths.

    Parameters
    ----------
    kind : {"rougeL", "rouge1", "rouge2", "rougeLsum"}
        Longest common subsequence, words, pairs of words, or the subsequence by lines.
    stem : bool
        Compare stems of English words.

    References
    ----------
    Lin 2004.

    Examples
    --------
    >>> from pilotfish.types import Reply, Request
    >>> Rouge().score([Exchange(Request.of("Say hello."), Reply("hello there"), ["hello you"])])
    array([0.5])
    """

    def __init__(self, kind: str = "rougeL", stem: bool = True) -> None:
        self.kind = kind
        self.stem = stem

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Score answers, (n,)."""
        if self.kind not in _ROUGES:
            raise InputError(f"Rouge kind is {self.kind!r}: use one of {', '.join(_ROUGES)}.")
        try:
            from rouge_score.rouge_scorer import RougeScorer
            from rouge_score.tokenizers import DefaultTokenizer
        except ImportError:
            raise missing_extra("rouge-score", "metrics", "ROUGE") from None
        rouge = RougeScorer([self.kind], tokenizer=_Words(DefaultTokenizer(self.stem)))

        def best(text: str, references: list[str]) -> float:
            return max(float(rouge.score(reference, text)[self.kind].fmeasure) for reference in references)

        return _each(items, best)


class Length:
    """Logarithm of the number of characters: what any score must be more than.

    Examples
    --------
    >>> from pilotfish.types import Reply, Request
    >>> Length().score([Exchange(Request.of("hi"), Reply(""))])
    array([0.])
    """

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Score answers, (n,)."""
        return np.array([math.log1p(len(e.reply.text)) for e in items])
