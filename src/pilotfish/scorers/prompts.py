"""Numbers that describe a prompt: its form, the latent semantics of its words, and embeddings where given."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Self, get_args

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError, NotFittedError
from pilotfish.models.embedder import OnnxEmbedder, StaticEmbedder
from pilotfish.models.states import StateEmbedder
from pilotfish.protocols import Embedder, FloatArray, PromptKind
from pilotfish.vectors import unit_rows

__all__ = ["PromptFeatures", "form_of"]

_WORD = re.compile(r"(?u)\b\w+\b")
_OPTION = re.compile(r"(?m)^\s*\(?[A-H1-8][.):]\s")
_FORMULA = re.compile(r"[=^\\<>+$]|\b\d+\s*/\s*\d+\b")
_CODE = re.compile(r"\bdef |\bclass |\breturn\b|\bassert\b|[{};]\s*$|```", re.MULTILINE)
# What each is: words of which any will do, and phrases of which any will do, the latter with what must be around them.
# Sets of words and searches for literals take a tenth of the time of the same cues as expressions.
_CUES: tuple[tuple[frozenset[str], tuple[str, ...], re.Pattern[str] | None], ...] = tuple(
    (frozenset(words.split()), phrases, re.compile(around) if around else None)
    for words, phrases, around in (
        ("", ("how many", "how much"), r"\bhow m(any|uch)\b"),
        ("calculate compute find evaluate solve", ("what is the value",), r"\bwhat is the value\b"),
        ("not except false least", (), ""),
        (
            "iii",
            ("all of", "none of", "both of", "neither of", "i and ii"),
            r"\b((all|none|both|neither) of|i and ii)\b",
        ),
        ("", ("which of the following",), r"\bwhich of the following\b"),
        ("statement", (), ""),
        ("valid argument premise conclusion predicate logic", (), ""),
        ("prove theorem group ring field matrix integral vector", (), ""),
        ("moral wrong right", ("ethic",), r"\bethic"),
        ("plaintiff defendant contract court statute liable", (), ""),
        ("patient diagnosis blood", ("year-old", "symptom"), r"\b(year-old\b|symptom)"),
        ("passage author text", ("according to",), r"\baccording to\b"),
        ("percent ratio average profit interest rate", ("%",), ""),
        ("best most likely main primary", (), ""),
        ("explain why describe discuss", (), ""),
        ("write story poem essay email letter", (), ""),
        ("function python code program algorithm", (), ""),
        ("clue puzzle person house left", ("next to",), r"\bnext to\b"),
        ("suppose assume given let", (), ""),
        ("hour hours minute minutes day days week weeks year years", (), ""),
        ("if", (), ""),
        ("blank", ("__",), ""),
    )
)
# Of a prompt, by a language model: longer ones take it seconds.
_MOST_READ = 512
_CODE_WORDS = frozenset(("def", "class", "return", "assert"))


def form_of(prompt: str) -> list[float]:
    """Describe the form of a prompt: lengths, digits, options, formulas, code and cue words. Language: English.

    Examples
    --------
    >>> len(form_of("What is 2 + 2?")) == len(form_of(""))
    True
    """
    lowered = prompt.lower()
    return _form(prompt, lowered, _words(lowered))


def _form(prompt: str, lowered: str, words: list[str]) -> list[float]:
    n = max(len(prompt), 1)
    lines = prompt.split("\n")
    distinct = set(words)
    # Each distinct character is looked at once: a long prompt has as few of them as a short one.
    counts = Counter(prompt)
    digits = {c for c in counts if c.isdigit()}
    n_digits = sum(counts[c] for c in digits)
    options = [len(line) for line in lines if _OPTION.match(line)]
    stem = lines[0]
    longest, shortest = max(options, default=0), min(options, default=0)
    formulas = len(_FORMULA.findall(prompt)) if not counts.keys().isdisjoint("=^\\<>+$/") else 0
    code = 0
    if not (counts.keys().isdisjoint("{};`") and distinct.isdisjoint(_CODE_WORDS)):
        code = len(_CODE.findall(prompt))
    return [
        math.log1p(n),
        math.log1p(len(stem)),
        math.log1p(len(lines)),
        math.log1p(len(words)),
        len(distinct) / max(len(words), 1),
        sum(map(len, words)) / max(len(words), 1),
        n_digits / n,
        math.log1p(n_digits),
        sum(k for c, k in counts.items() if c.isupper()) / n,
        sum(k for c, k in counts.items() if not c.isalnum() and not c.isspace()) / n,
        float(len(options)),
        math.log1p(sum(options) / max(len(options), 1)),
        math.log1p(longest) - math.log1p(shortest),
        float(sum(not digits.isdisjoint(line) for line in lines) / len(lines)) if digits else 0.0,
        float(stem.rstrip().endswith("?")),
        float(stem.rstrip().endswith(":")),
        float(stem.rstrip().endswith(".")),
        float(stem.count(".")),
        math.log1p(formulas),
        math.log1p(code),
        *(
            float(
                not distinct.isdisjoint(wanted)
                or (any(p in lowered for p in phrases) and (around is None or around.search(lowered) is not None))
            )
            for wanted, phrases, around in _CUES
        ),
    ]


class PromptFeatures:
    """Turn prompts into rows of numbers: form, latent semantics of words and word pairs, and embeddings.

    Parameters
    ----------
    n_topics : int
        Dimensions of the latent semantic analysis; 0 leaves it out.
    form_weight : float
        Weight of the form against the words; the words have length 1.
    embedders : sequence of Embedder
        Each adds its vectors, centred and of length 1, beside the topics.
    max_terms : int
        Most words and word pairs looked at.
    seed : int
        Seed of the truncated decomposition.

    Examples
    --------
    >>> features = PromptFeatures(n_topics=2).fit(["add 1 and 2", "add 3 and 4", "who wrote it?", "who said it?"])
    >>> features.transform(["add 5 and 6"]).shape
    (1, 44)

    References
    ----------
    Deerwester et al. 1990, Indexing by latent semantic analysis.
    """

    def __init__(
        self,
        n_topics: int = 200,
        form_weight: float = 0.5,
        embedders: Sequence[Embedder] = (),
        max_terms: int = 40_000,
        seed: int = 0,
    ) -> None:
        self.n_topics = n_topics
        self.form_weight = form_weight
        self.embedders = embedders
        self.max_terms = max_terms
        self.seed = seed
        self.kind: PromptKind | None = None
        self.instruction = ""

    @classmethod
    def of(cls, kind: PromptKind, instruction: str = "") -> Self:
        """Make features by what reads the prompts, which is then written by its name with all that was learned.

        Parameters
        ----------
        kind : {"words", "static", "encoder", "language"}
            ``words`` are form and topics; ``static`` adds static token vectors. ``encoder`` has the middle layer of a
            sentence encoder in the place of both, and ``language`` adds to it what a language model of half a billion
            parameters has in mind where its answer would begin.
        instruction : str
            What the models are told to do with the prompts, for ``language`` to be told too.

        Raises
        ------
        InputError
            When there is no such kind.

        Examples
        --------
        >>> PromptFeatures.of("words").fit(["add 1 and 2", "who wrote it?", "who said it?"]).kind
        'words'
        """
        if kind not in get_args(PromptKind):
            raise InputError(f"kind is {kind!r}: use one of {', '.join(get_args(PromptKind))}.")
        instruction = instruction if kind == "language" else ""  # the others are told nothing, and are loaded once
        # Beside a middle layer, which keeps both words and meaning, topics and static vectors made routers worse.
        n_topics = 200 if kind in ("words", "static") else 0
        made = cls(n_topics, embedders=_readers(kind, instruction))
        made.kind, made.instruction = kind, instruction
        return made

    def fit(self, prompts: Sequence[str]) -> Self:
        """Learn the words, their weights and topics, and the spread of the form and of the vectors. Needs no labels."""
        self.fit_transform(prompts)
        return self

    def fit_transform(self, prompts: Sequence[str], unlabelled: Sequence[str] = ()) -> FloatArray:
        """Learn as :meth:`fit` does and describe the prompts; of ``unlabelled`` ones form and words are learned.

        Raises
        ------
        InputError
            When there are fewer than 2 prompts.
        """
        if len(prompts) < 2:
            raise InputError(f"prompts has {len(prompts)} texts: give at least 2.")
        known = [*prompts, *unlabelled]
        words, form = _read(known)
        self.form_mean_ = form.mean(axis=0)
        self.form_scale_ = form.std(axis=0) + 1e-6
        self.terms_: dict[str, int] = {}
        self.idf_ = np.empty(0, dtype=np.float32)
        self.topics_ = np.empty((0, 0), dtype=np.float32)
        if self.n_topics:
            self._fit_topics(known)
        vectors = self._vectors(prompts)
        self.means_ = [part.mean(axis=0) for part in vectors]
        return self._rows(words[: len(prompts)], form[: len(prompts)], vectors)

    def _fit_topics(self, prompts: Sequence[str]) -> None:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        least = 1 if len(prompts) < 50 else 2 if len(prompts) < 1000 else 3
        words = TfidfVectorizer(
            sublinear_tf=True,
            min_df=least,
            ngram_range=(1, 2),
            max_features=self.max_terms,
            tokenizer=_words,
            token_pattern=None,
            lowercase=True,
        )
        try:
            counts = words.fit_transform(prompts)
        except ValueError:  # no word occurs, or none in as many prompts as it must
            return
        if counts.shape[1] < 2:  # what every prompt has in common tells none from another
            return
        n = min(self.n_topics, min(counts.shape) - 1)
        with np.errstate(divide="ignore", invalid="ignore"):  # prompts that are all alike have no variance to explain
            svd = TruncatedSVD(max(n, 1), n_iter=3, random_state=self.seed).fit(counts)
        self.terms_ = {term: int(i) for term, i in words.vocabulary_.items()}
        self.idf_ = words.idf_.astype(np.float32)
        self.topics_ = np.ascontiguousarray(svd.components_.T, dtype=np.float32)

    def transform(self, prompts: Sequence[str]) -> FloatArray:
        """Describe prompts as rows, (n, n_features).

        Raises
        ------
        NotFittedError
            Before ``fit``.
        """
        if not hasattr(self, "form_mean_"):
            raise NotFittedError("PromptFeatures was used before fit: call fit(prompts) first.")
        return self._rows(*_read(prompts), self._vectors(prompts))

    def _vectors(self, prompts: Sequence[str]) -> list[FloatArray]:
        return [np.asarray(embedder.embed(list(prompts)), dtype=np.float64) for embedder in self.embedders]

    def _rows(self, words: list[list[str]], form: FloatArray, vectors: list[FloatArray]) -> FloatArray:
        form = np.clip((form - self.form_mean_) / self.form_scale_, -4, 4)
        parts = [form * (self.form_weight / math.sqrt(form.shape[1]))]
        meanings = []
        if self.topics_.size:
            meanings.append(np.array([self._topics_of(row) for row in words]).reshape(len(words), -1))
        # What all prompts have in common takes up most of a language model's states, and tells none from another.
        meanings += [unit_rows(part - mean) for part, mean in zip(vectors, self.means_, strict=True)]
        parts += [m / math.sqrt(len(meanings)) for m in meanings]
        return np.hstack(parts)

    def _topics_of(self, words: list[str]) -> NDArray[np.float64]:
        counts: dict[int, int] = {}
        terms = self.terms_
        for word in words:
            if (i := terms.get(word)) is not None:
                counts[i] = counts.get(i, 0) + 1
        for pair in pairwise(words):
            if (i := terms.get(" ".join(pair))) is not None:
                counts[i] = counts.get(i, 0) + 1
        if not counts:
            return np.zeros(self.topics_.shape[1])
        at = np.fromiter(counts, dtype=np.int64, count=len(counts))
        weights = (1 + np.log(np.fromiter(counts.values(), dtype=np.float64, count=len(counts)))) * self.idf_[at]
        vector = (weights @ self.topics_[at]) / np.linalg.norm(weights)
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Write what was learned as plain arrays; embedders without a name are brought by their owner."""
        return {
            "form_mean": self.form_mean_,
            "form_scale": self.form_scale_,
            "terms": np.frombuffer(json.dumps(self.terms_, ensure_ascii=False).encode(), dtype=np.uint8),
            "idf": self.idf_,
            "topics": self.topics_.astype(np.float16),
            "form_weight": np.array(self.form_weight),
            "kind": np.array(self.kind or ""),
            "instruction": np.array(self.instruction),
            **{f"mean.{i}": mean for i, mean in enumerate(self.means_)},
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], embedders: Sequence[Embedder] = ()) -> PromptFeatures:
        """Read what :meth:`to_arrays` wrote; ``embedders`` are those that have no name."""
        kind, instruction = (str(arrays.get(name, "")) for name in ("kind", "instruction"))
        read_by = _readers(kind, instruction) if kind else embedders
        made = cls(arrays["topics"].shape[-1], float(arrays["form_weight"]), read_by)
        made.kind, made.instruction = kind or None, instruction  # type: ignore[assignment]
        made.form_mean_, made.form_scale_ = arrays["form_mean"], arrays["form_scale"]
        made.terms_ = json.loads(arrays["terms"].tobytes().decode())
        made.idf_ = arrays["idf"]
        made.topics_ = arrays["topics"].astype(np.float32)
        # Vectors were not centred before they had a name.
        made.means_ = [arrays.get(f"mean.{i}", np.zeros(1)) for i in range(len(read_by))]
        return made


def _read(prompts: Sequence[str]) -> tuple[list[list[str]], FloatArray]:
    """The words of each prompt in lower case, and its form."""
    lowered = [p.lower() for p in prompts]
    words = [_words(text) for text in lowered]
    form = [_form(*row) for row in zip(prompts, lowered, words, strict=True)]
    return words, np.array(form).reshape(len(prompts), -1)


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


@lru_cache(maxsize=8)
def _readers(kind: PromptKind, instruction: str) -> tuple[Embedder, ...]:
    """What reads prompts of a kind; each is loaded once."""
    if kind == "static":
        return (StaticEmbedder("wordllama"),)
    if kind == "encoder":
        return (OnnxEmbedder("all-minilm-l6-v2", precision="int8", poolings=("mean@3",)),)
    if kind == "language":
        states = StateEmbedder(instruction=instruction, max_length=_MOST_READ)
        return (*_readers("encoder", ""), states)
    return ()
