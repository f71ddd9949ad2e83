"""Selections that look at all documents at once, by name: for files, and as the step of a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from pilotfish.curation.barriers import Fates
from pilotfish.curation.documents import Document
from pilotfish.curation.importance import ImportanceWeight
from pilotfish.curation.influence import chosen_by_gradients
from pilotfish.curation.run import curate
from pilotfish.curation.scan import Batch, Plan
from pilotfish.curation.selection import diverse_best, herded, in_context_worth, needed, representative
from pilotfish.curation.semantic import SemanticDedup, prototypicality
from pilotfish.errors import InputError
from pilotfish.models.embedder import StaticEmbedder
from pilotfish.protocols import FloatArray, IntArray
from pilotfish.rules import TopK

__all__ = ["OF_A_MODEL", "PICKS", "Pick", "Picked", "likeness", "pick"]

Pick = Callable[[Sequence[Document], Sequence[Document]], IntArray]


def likeness(pool: Sequence[Document], target: Sequence[Document]) -> FloatArray:
    """Log-ratio to the target of each document, (n,), in nats a word."""
    texts = [d.text for d in pool]
    scores = ImportanceWeight().fit([d.text for d in target], texts).score(texts)
    return np.asarray(scores / np.array([max(len(text.split()), 1) for text in texts]))


def _vectors(documents: Sequence[Document]) -> FloatArray:
    return StaticEmbedder().embed([d.text for d in documents]).astype(np.float64)


def _representative(pool: Sequence[Document], target: Sequence[Document], k: int, seed: int) -> IntArray:  # noqa: ARG001
    return representative(_vectors(pool), _vectors(target), k)


def _lima(pool: Sequence[Document], target: Sequence[Document], k: int, seed: int) -> IntArray:
    return diverse_best(_vectors(pool), likeness(pool, target), k, seed)


def _mods(pool: Sequence[Document], target: Sequence[Document], k: int, seed: int) -> IntArray:  # noqa: ARG001
    quality, vectors = likeness(pool, target), _vectors(pool)

    def tuned(chosen: IntArray) -> FloatArray:
        """How near each document is to one that was tuned on: what is far is not learned yet."""
        return np.asarray((vectors @ vectors[chosen].T).max(axis=1))

    # Half of the pool is good, or as much of it as is wanted.
    good = max(len(pool) - len(pool) // 2, min(k, len(pool)))
    return needed(vectors, quality, k, tuned, float(np.sort(quality)[-good]))


def _d4(pool: Sequence[Document], target: Sequence[Document], k: int, seed: int) -> IntArray:  # noqa: ARG001
    numbered = [document._replace(id=str(i)) for i, document in enumerate(pool)]
    apart = np.array([int(d.id) for d in curate(numbered, [SemanticDedup()])])
    typical = prototypicality([_vectors([pool[i] for i in apart])], 100, seed)
    return np.asarray(apart[TopK(k).decide(-typical).indices])


def _herding(pool: Sequence[Document], target: Sequence[Document], k: int, seed: int) -> IntArray:  # noqa: ARG001
    return herded(_vectors(pool), k, seed=seed)


def _random(pool: Sequence[Document], target: Sequence[Document], k: int, seed: int) -> IntArray:  # noqa: ARG001
    return np.random.default_rng(seed).permutation(len(pool))[:k]


def _examples(documents: Sequence[Document], answer: str) -> list[tuple[str, str]]:
    if not any(d.fields.get(answer) for d in documents):
        raise InputError(f"None of {len(documents)} documents has an answer in field {answer!r}: name the field.")
    return [(d.text, str(d.fields.get(answer, ""))) for d in documents]


def _less(pool: Sequence[Document], target: Sequence[Document], k: int, seed: int, model: str, answer: str) -> IntArray:
    return chosen_by_gradients(model, _examples(pool, answer), _examples(target, answer), k, seed)


def _data_whisperer(
    pool: Sequence[Document],
    target: Sequence[Document],  # noqa: ARG001
    k: int,
    seed: int,
    model: str,
    answer: str,
) -> IntArray:
    return TopK(k).decide(in_context_worth(model, _examples(pool, answer), seed=seed)).indices


_BY_TEXT: Mapping[str, Callable[..., IntArray]] = {
    "representative_selection": _representative,
    "lima": _lima,
    "mods": _mods,
    "d4": _d4,
    "herding": _herding,
    "random": _random,
}
_BY_MODEL: Mapping[str, Callable[..., IntArray]] = {"less": _less, "data_whisperer": _data_whisperer}
OF_A_MODEL = tuple(_BY_MODEL)
PICKS = (*_BY_TEXT, *OF_A_MODEL)


def pick(method: str, k: int, *, model: str = "", answer: str = "answer", seed: int = 0) -> Pick:
    """The function of a pool and a target that chooses ``k`` documents of the pool.

    Parameters
    ----------
    method : str
        One of ``PICKS``. Where a quality is wanted it is likeness to the target, and what is learned is what lies near
        a chosen document.
    k : int
        Documents chosen.
    model : str
        Name or folder of a causal language model, for ``less`` and ``data_whisperer``.
    answer : str
        Field of the answer, for the same.
    seed : int
        Seed of what is random.

    Raises
    ------
    InputError
        When there is no such method, or it has no model.
    """
    if method not in PICKS:
        raise InputError(f"The method is {method!r}: use one of importance_resampling, {', '.join(PICKS)}.")
    if k < 1:
        raise InputError(f"Method {method} is to choose {k} documents: give a number from 1 on.")
    if method in _BY_TEXT:
        return partial(_BY_TEXT[method], k=k, seed=seed)
    if not model:
        raise InputError(
            f"Method {method} needs a model: give the name or the folder of a small causal language model."
        )
    return partial(_BY_MODEL[method], k=k, seed=seed, model=model, answer=answer)


def _line(document: Document) -> bytes:
    parts = [document.text, document.id, document.fields]
    try:
        return orjson.dumps(parts, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
    except TypeError:  # halves of characters, and numbers past 64 bits
        said = json.dumps(parts, default=str, skipkeys=True, ensure_ascii=False)
        return said.encode("utf-8", "replace") + b"\n"


class Picked:
    """Keep the documents that a function of all of them and of the target's chooses; all are kept in memory.

    Parameters
    ----------
    name : str
        Name of the step.
    pick : Pick
        Gives the numbers of the chosen documents.
    target : sequence of Document
        What is wanted.

    Examples
    --------
    >>> first = Picked("first", lambda pool, target: np.arange(1), [Document("fish")])
    >>> [d.text for d in curate(["fish swim", "stones fall"], [first])]
    ['fish swim']
    """

    rule = "not_chosen"
    by_bytes = False

    def __init__(self, name: str, pick: Pick, target: Sequence[Document]) -> None:
        self.name = name
        self.pick = pick
        self.target = tuple(target)

    def __getstate__(self) -> dict[str, Any]:
        # A task gathers; the choice is made where the run was started.
        return {"name": self.name}

    def plan(self, plan: Plan) -> None:
        """Nothing is needed of the pass."""

    def numbers(self, batch: Batch, documents: Sequence[Document]) -> NDArray[Any]:  # noqa: ARG002
        """The documents as lines of JSON, in bytes."""
        lines = [_line(d) for d in documents]
        return np.frombuffer(b"".join(lines), dtype=np.uint8)

    def joined(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The lines of the shard, in bytes."""
        return np.concatenate(parts)

    def choose(self, shards: Sequence[NDArray[Any]]) -> list[Fates]:
        """Choose among all; the score is the likeness to the target."""
        read = [[Document(*json.loads(line)) for line in shard.tobytes().split(b"\n")[:-1]] for shard in shards]
        pool = [document for documents in read for document in documents]
        kept = np.zeros(len(pool), dtype=bool)
        kept[self.pick(pool, self.target)] = True
        return Fates.split(kept, likeness(pool, self.target), [len(documents) for documents in read])
