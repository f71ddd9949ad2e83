"""What reads the prompts of the routing benchmarks, each text once: the seeds of a benchmark share their texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Run
from benchmarks.kept import kept_arrays
from pilotfish.errors import DownloadError
from pilotfish.models.embedder import OnnxEmbedder
from pilotfish.models.states import StateEmbedder
from pilotfish.protocols import Embedder, PromptKind
from pilotfish.scorers.prompts import PromptFeatures

__all__ = ["have_embedders", "neighbour_features", "read_by", "read_states", "sentences"]

_TEXTS_KEPT_AT_ONCE = 1000


class Remembered:
    """An embedder that embeds each text once."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.known: dict[str, NDArray[np.float32]] = {}

    @property
    def n_dimensions(self) -> int:
        return self.embedder.n_dimensions

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        for start in range(0, len(new), 512):
            part = new[start : start + 512]
            self.known.update(zip(part, self.embedder.embed(part), strict=True))
        return np.array([self.known[text] for text in texts])


def have_embedders() -> bool:
    """Whether the embedders can be had; one line says so where not."""
    try:
        sentences().embed(["warm"])
        read_by("static").fit(["warm", "up"])
    except DownloadError as error:
        print(f"no embedder: {error}")
        return False
    return True


@cache
def sentences() -> Remembered:
    """Sentence vectors: what peers and nearest neighbours are given."""
    return Remembered(OnnxEmbedder("all-minilm-l6-v2", precision="int8"))


@cache
def _remembered(embedder: Embedder) -> Remembered:
    return Remembered(embedder)


def read_by(kind: PromptKind, instruction: str = "") -> PromptFeatures:
    """Features of a kind, whose embedders embed each text once."""
    made = PromptFeatures.of(kind, instruction)
    made.embedders = [_remembered(embedder) for embedder in made.embedders]
    return made


def neighbour_features(run: Run) -> PromptFeatures:
    """What nearest neighbours are near by: static and sentence vectors, and a little of the form."""
    static = read_by("static").embedders
    return PromptFeatures(0, 0.1, [*static] if run.quick else [*static, sentences()])


def read_states(run: Run, texts: Sequence[str], instruction: str) -> None:
    """Have the language model read texts that :func:`read_by` will be asked for; what was read is kept.

    An hour for 14,000 questions on two cores.
    """
    remembered = _remembered(PromptFeatures.of("language", instruction).embedders[-1])
    embedder = remembered.embedder
    assert isinstance(embedder, StateEmbedder)
    for start in range(0, len(texts), _TEXTS_KEPT_AT_ONCE):
        part = list(texts[start : start + _TEXTS_KEPT_AT_ONCE])

        def read(part: list[str] = part) -> dict[str, NDArray[np.float16]]:
            return {"states": embedder.embed(part).astype(np.float16)}

        rows = kept_arrays(run, "language-states", (instruction, embedder.max_length, part), read)["states"]
        remembered.known.update(zip(part, rows.astype(np.float32), strict=True))
        print(f"read {start + len(part):,} of {len(texts):,} texts", flush=True)
