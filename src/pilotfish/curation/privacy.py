"""Private data: patterns with check digits, and a small tagger learned from labelled text; found spans are masked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.curation.documents import Document
from pilotfish.curation.scan import Batch, Plan
from pilotfish.curation.steps import Verdict
from pilotfish.errors import InputError, NotFittedError
from pilotfish.files import ArrayFile
from pilotfish.protocols import IntArray, Transform
from pilotfish.traffic.masking import PatternMasker

__all__ = ["Privacy", "PrivacyTagger", "Span", "span_f1"]

Span = tuple[int, int, str]
_TOKEN = re.compile(r"\w+|[^\w\s]|\n")
_N_BUCKETS = 1 << 17


class PrivacyTagger(ArrayFile):
    """Find names, addresses and other private spans by the form and company of each word.

    A linear model over hashed features of a word and its two neighbours on either side, and of the tag before it.

    Parameters
    ----------
    least : float
        Least probability that a word is private.

    References
    ----------
    Subramani 2023 (arXiv:2302.13510) on what patterns find and miss.

    Examples
    --------
    >>> texts = ["Ask Ann Lee now", "Ask Bob Ray now", "Ask the boss now", "Go to the shop"] * 3
    >>> spans = [[(4, 11, "PERSON")], [(4, 11, "PERSON")], [], []] * 3
    >>> PrivacyTagger().fit(texts, spans).find("Ask Ann Ray now")
    [(4, 11, 'PERSON')]
    """

    _kept_as = "tagger"

    def __init__(self, least: float = 0.5) -> None:
        self.least = least

    def fit(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> Self:
        """Learn from texts with the spans (start, end, kind) in each.

        Raises
        ------
        InputError
            When there is no span at all.
        """
        from scipy.sparse import csr_array
        from sklearn.linear_model import SGDClassifier

        kinds = sorted({kind for found in spans for _, _, kind in found})
        if not kinds or len(texts) != len(spans):
            raise InputError(f"PrivacyTagger was given {len(texts)} texts and {len(spans)} lists of spans: give spans.")
        self.kinds_ = ["", *kinds]
        places: list[int] = []
        ends, targets = [0], []
        for text, found in zip(texts, spans, strict=True):
            tokens = list(_TOKEN.finditer(text))
            words = [t[0] for t in tokens]
            tags = [next((k for a, b, k in found if a <= t.start() < b), "") for t in tokens]
            for i, tag in enumerate(tags):
                places += _features(words, i, tags[i - 1] if i else "")
                ends.append(len(places))
                targets.append(self.kinds_.index(tag))
        rows = csr_array(
            (np.ones(len(places)), np.array(places, dtype=np.int32), np.array(ends, dtype=np.int32)),
            shape=(len(targets), _N_BUCKETS),
        )
        model = SGDClassifier(loss="log_loss", alpha=1e-6, max_iter=12, tol=None, random_state=0, average=True)
        model.fit(rows, targets)
        weights = np.zeros((len(self.kinds_), _N_BUCKETS), dtype=np.float32)
        intercepts = np.full(len(self.kinds_), -1e9)
        if len(model.classes_) == 2:
            weights[model.classes_[1]], intercepts[model.classes_] = model.coef_[0], [0.0, model.intercept_[0]]
        else:
            weights[model.classes_], intercepts[model.classes_] = model.coef_, model.intercept_
        self.weights_, self.intercepts_ = np.ascontiguousarray(weights.T), intercepts
        return self

    def find(self, text: str) -> list[Span]:
        """The private spans of a text (start, end, kind), in order."""
        if not hasattr(self, "weights_"):
            raise NotFittedError("PrivacyTagger is not fitted: call fit first.")
        tokens = list(_TOKEN.finditer(text))
        words = [t[0] for t in tokens]
        before, found = "", list[Span]()
        for i, token in enumerate(tokens):
            scores = self.weights_[_features(words, i, before)].sum(axis=0) + self.intercepts_
            powers = np.exp(scores - scores.max())
            # Private or not is the question; which kind comes after.
            private = 1 - powers[0] / powers.sum()
            kind = self.kinds_[1 + int(powers[1:].argmax())] if private >= self.least else ""
            if kind and kind == before and found and found[-1][2] == kind:
                found[-1] = (found[-1][0], token.end(), kind)
            elif kind:
                found.append((token.start(), token.end(), kind))
            before = kind
        return found

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Write what was learned as plain arrays."""
        kinds = np.frombuffer(json.dumps(self.kinds_).encode(), dtype=np.uint8)
        weights = self.weights_.astype(np.float16)
        return {"weights": weights, "intercepts": self.intercepts_, "kinds": kinds}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Read what :meth:`to_arrays` wrote."""
        made = cls()
        made.weights_ = arrays["weights"].astype(np.float32)
        made.intercepts_ = arrays["intercepts"]
        made.kinds_ = json.loads(arrays["kinds"].tobytes())
        return made


def _form(word: str) -> str:
    return re.sub(r"(.)\1+", r"\1", re.sub(r"\d", "0", re.sub(r"[a-z]", "a", re.sub(r"[A-Z]", "A", word))))


def _features(words: Sequence[str], i: int, before: str) -> list[int]:
    from zlib import crc32

    word = words[i]
    near = [words[k] if 0 <= k < len(words) else "" for k in (i - 2, i - 1, i + 1, i + 2)]
    form = _form(word)
    given = [
        f"w{word.lower()}", f"f{form}", f"p{word[:3].lower()}", f"s{word[-3:].lower()}", f"n{min(len(word), 12)}",
        f"b{before}", f"bf{before} {form}", f"fa{form} {near[1].lower()}", f"fn{form} {_form(near[2])}",
        *(f"{k}{other.lower()}" for k, other in enumerate(near)),
        *(f"{k}f{_form(other)}" for k, other in enumerate(near)),
        f"12{near[0].lower()} {near[1].lower()}", f"d{word.isdigit()}{len(word)}",
    ]  # fmt: skip
    return [crc32(one.encode("utf-8", "replace")) % _N_BUCKETS for one in given]


class Privacy:
    """Mask private data in documents: spans of the tagger, if any, then patterns; every document stays.

    Parameters
    ----------
    tagger : PrivacyTagger, optional
        Finds what has no pattern, such as names.
    patterns : Transform of str to str, optional
        Masks what has one: addresses, phone, card and bank numbers.
    most : float
        Drop a document with more masks than this in a hundred words; infinity keeps all.

    Examples
    --------
    >>> from pilotfish.curation import curate
    >>> [d.text for d in curate(["Mail jo@example.org."], [Privacy()])]
    ['Mail [EMAIL].']
    """

    name = "privacy"

    def __init__(
        self,
        tagger: PrivacyTagger | None = None,
        patterns: Transform[str, str] | None = None,
        most: float = float("inf"),
    ) -> None:
        self.tagger = tagger
        self.patterns = patterns
        self.most = most

    def __call__(self, items: Iterable[str]) -> Iterator[str]:
        """Yield each text with what was found masked."""
        patterns = self.patterns or PatternMasker()
        for text in items:
            if self.tagger is not None:
                for start, end, kind in reversed(self.tagger.find(text)):
                    text = f"{text[:start]}[{kind}]{text[end:]}"
            yield next(iter(patterns([text])))

    def plan(self, plan: Plan) -> None:
        """Nothing is needed of the pass."""

    def judge(self, batch: Batch, rows: IntArray, documents: Sequence[Document]) -> Verdict:  # noqa: ARG002
        """Mask the documents of the given rows of the batch."""
        given = [batch.texts[i] for i in rows]
        texts = list(self(given))
        # What stands in square brackets by itself, such as [A], is no mask.
        shares = np.array(
            [
                100 * (_n_masks(masked) - _n_masks(text)) / max(len(masked.split()), 1)
                for text, masked in zip(given, texts, strict=True)
            ]
        )
        return Verdict(shares <= self.most, ["private_data"] * rows.size, shares, texts)


def _n_masks(text: str) -> int:
    return len(re.findall(r"\[[A-Z_]+\]", text))


def span_f1(found: Sequence[Sequence[Span]], truth: Sequence[Sequence[Span]]) -> tuple[float, float, float]:
    """Precision, recall and F1 of characters found private, whatever their kind.

    Examples
    --------
    >>> span_f1([[(0, 4, "A")]], [[(2, 4, "B")]])
    (0.5, 1.0, 0.6666666666666666)
    """
    hit = n_found = n_true = 0
    for ours, theirs in zip(found, truth, strict=True):
        a = {k for start, end, _ in ours for k in range(start, end)}
        b = {k for start, end, _ in theirs for k in range(start, end)}
        hit, n_found, n_true = hit + len(a & b), n_found + len(a), n_true + len(b)
    precision, recall = hit / max(n_found, 1), hit / max(n_true, 1)
    return precision, recall, 2 * hit / max(n_found + n_true, 1)
