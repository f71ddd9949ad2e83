"""Quality by semantic tags: what each model did on prompts that carry the same tags."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from pilotfish.errors import NotFittedError
from pilotfish.protocols import FloatArray, Model
from pilotfish.scorers.quality import checked_scores
from pilotfish.scorers.spending import ask_aside
from pilotfish.types import Request

__all__ = ["KeywordTagger", "ModelTagger", "TagQuality"]

_WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|['-]){2,}|\d+")


class KeywordTagger:
    """Tags are the rarer words of a prompt that many prompts share, and a few of its form.

    Parameters
    ----------
    least, most : int, float
        A tag is on at least ``least`` prompts and at most a share ``most`` of them.
    """

    def __init__(self, least: int = 5, most: float = 0.25) -> None:
        self.least = least
        self.most = most

    def fit(self, prompts: Sequence[str]) -> Self:
        """Find the words that may be tags."""
        counts = Counter(word for prompt in prompts for word in self._words(prompt))
        limit = max(self.least, self.most * len(prompts))
        self.vocabulary_ = {word for word, k in counts.items() if self.least <= k <= limit}
        return self

    def __call__(self, prompt: str) -> frozenset[str]:
        """Tags of a prompt."""
        return frozenset(self._words(prompt) & self.vocabulary_)

    @staticmethod
    def _words(prompt: str) -> set[str]:
        found = {"#number" if word.isdigit() else word for word in _WORD.findall(prompt.lower())}
        found.add(f"#length{min(len(prompt).bit_length(), 14)}")
        return found


class ModelTagger:
    """Tags are what a model names when asked for the topics and skills of a prompt; equal prompts are asked once.

    Parameters
    ----------
    model : Model
        Asked for tags.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.known_: dict[str, frozenset[str]] = {}

    def __call__(self, prompt: str) -> frozenset[str]:
        """Tags of a prompt."""
        if prompt not in self.known_:
            asked = f"{prompt}\n\nName up to five topics and skills this needs, separated by commas. Only the names."
            [reply] = ask_aside(self.model, [Request.of(asked, temperature=0.0, max_tokens=32)])
            tags = (" ".join(_WORD.findall(part.lower())) for part in reply.text.split(",")[:5])
            self.known_[prompt] = frozenset(tag for tag in tags if tag)
        return self.known_[prompt]


class TagQuality:
    """Mean score of each model over a prompt's tags, each tag's mean shrunk to the model's own by its evidence.

    Parameters
    ----------
    tagger : callable, optional
        Prompt to set of tags; the default reads keywords.
    shrinkage : float
        Prompts' worth of evidence of the model's mean that every tag starts with.

    References
    ----------
    Chen et al. 2025 (TagRouter, arXiv:2506.12473): tag scores per model, added up over a query's tags.
    """

    def __init__(self, tagger: Callable[[str], frozenset[str]] | None = None, shrinkage: float = 10.0) -> None:
        self.tagger = tagger
        self.shrinkage = shrinkage

    def fit(
        self,
        prompts: Sequence[str],
        scores: FloatArray,
        models: Sequence[str],
        groups: Sequence[str] = (),  # noqa: ARG002
    ) -> Self:
        """Learn from scores (n, m), NaN where a model was not asked."""
        y = checked_scores(prompts, scores, models)
        self.models_ = tuple(models)
        self.tagger_ = self.tagger or KeywordTagger().fit(prompts)
        self.mean_ = np.nanmean(y, axis=0)
        sums: dict[str, FloatArray] = defaultdict(lambda: np.zeros((2, len(models))))
        for prompt, row in zip(prompts, y, strict=True):
            asked = np.isfinite(row)
            for tag in self.tagger_(prompt):
                sums[tag][0] += np.nan_to_num(row - self.mean_)
                sums[tag][1] += asked
        self.gain_ = {tag: total / (n + self.shrinkage) for tag, (total, n) in sums.items()}
        self.evidence_ = {tag: float(n.mean()) for tag, (_, n) in sums.items()}
        return self

    def predict(self, prompts: Sequence[str]) -> FloatArray:
        """Predict scores (n, m); a prompt without known tags gets each model's mean."""
        if not hasattr(self, "gain_"):
            raise NotFittedError("TagQuality was used before fit: call fit(prompts, scores, models) first.")
        out = np.tile(self.mean_, (len(prompts), 1))
        for i, prompt in enumerate(prompts):
            tags = [tag for tag in self.tagger_(prompt) if tag in self.gain_]
            if tags:
                weights = np.array([1 / (self.shrinkage + self.evidence_[tag]) ** 0.5 for tag in tags])
                gains = np.stack([self.gain_[tag] for tag in tags])
                out[i] += (weights[:, None] * gains).sum(axis=0) / weights.sum()
        return out
