"""Fine-tune a small encoder to tell what follows from what, in a few minutes of one core."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pilotfish.errors import InputError
from pilotfish.scorers.entailment import joined
from pilotfish.training.encoders import tune_encoder

__all__ = ["Inference", "corrupted", "train_entailment"]

LABELS = ("entailment", "neutral", "contradiction", "not entailment")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'])")
_NUMBER = re.compile(r"\b\d[\d,.]*\d\b|\b\d\b")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+(?: [A-Z][a-z]+)*")


@dataclass(frozen=True, slots=True)
class Inference:
    """A premise, a hypothesis, and what holds between them: one of ``LABELS``."""

    premise: str
    hypothesis: str
    label: str


def corrupted(documents: Sequence[str], n: int, seed: int = 0) -> list[Inference]:
    """Make examples from plain documents: sentences of a passage, and such with a name or number taken from elsewhere.

    Parameters
    ----------
    documents : sequence of str
        Plain texts; those of fewer than four sentences are passed over.
    n : int
        Examples wanted; fewer where the documents give fewer.
    seed : int
        Seed of the choices.

    References
    ----------
    Kryscinski et al. 2020 (FactCC, arXiv:1910.12840), section 3.1.
    """
    rng = np.random.default_rng(seed)
    split = [[s.strip() for s in _SENTENCE.split(d.replace("\n", " ")) if 30 < len(s) < 300] for d in documents]
    split = [s for s in split if len(s) >= 4]
    names = sorted({m for s in split for x in s for m in _NAME.findall(x)})
    made: list[Inference] = []
    for _ in range(4 * n):
        if len(made) >= n or not split:
            break
        sentences = split[int(rng.integers(len(split)))]
        start = int(rng.integers(0, len(sentences) - 2))
        passage = sentences[start : start + int(rng.integers(2, 6))]
        chosen = passage[int(rng.integers(len(passage)))]
        premise, kind = " ".join(passage), int(rng.integers(4))
        if kind == 0:
            made.append(Inference(premise, chosen, "entailment"))
        elif kind == 1:
            outside = [s for s in sentences if s not in passage]
            if outside:
                made.append(Inference(premise, outside[int(rng.integers(len(outside)))], "not entailment"))
        else:
            changed = _swapped(chosen, premise, _NUMBER if kind == 2 else _NAME, names, rng)
            if changed is not None:
                made.append(Inference(premise, changed, "not entailment"))
    return made


def _swapped(
    sentence: str, passage: str, pattern: re.Pattern[str], names: Sequence[str], rng: np.random.Generator
) -> str | None:
    found = list(pattern.finditer(sentence))
    if not found or not names:
        return None
    at = found[int(rng.integers(len(found)))]
    others = [m for m in dict.fromkeys(pattern.findall(passage)) if m != at.group()]
    if pattern is _NUMBER and not others:
        new = str(int(rng.integers(2, 2000)))
    else:
        new = others[int(rng.integers(len(others)))] if others else names[int(rng.integers(len(names)))]
    return None if new == at.group() else sentence[: at.start()] + new + sentence[at.end() :]


def train_entailment(
    examples: Sequence[Inference],
    folder: str | Path,
    *,
    base: str | Path = "all-minilm-l6-v2",
    n_epochs: int = 2,
    learning_rate: float = 1e-4,
    n_frozen: int = 2,
    batch_tokens: int = 1500,
    max_length: int = 128,
    seed: int = 0,
) -> Path:
    """Fine-tune an encoder on examples and write it where :class:`~pilotfish.scorers.entailment.SmallEntailment` looks.

    Parameters
    ----------
    examples : sequence of Inference
        At least 100; ``not entailment`` is enough of a label where nobody said more.
    folder : str or Path
        Where the model goes; written under another name, then renamed.
    base : str or Path
        The encoder to start from, or a folder written before, to go on from.
    n_epochs, learning_rate : int, float
        Passes over the examples; greatest step of Adam, which rises over a tenth of the steps and falls to 0.
    n_frozen : int
        Lowest layers that keep their weights, the embeddings with them.
    batch_tokens, max_length : int
        Tokens of a step, and of an example.
    seed : int
        Of the order and the dropout.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        When there are too few examples or a label is unknown.
    MissingExtraError
        When torch or transformers is not installed.
    """
    unknown = sorted({e.label for e in examples} - set(LABELS))
    if len(examples) < 100 or unknown:
        raise InputError(f"{len(examples)} examples, unknown labels {unknown}: give at least 100, of {LABELS}.")
    labels = [LABELS.index(e.label) for e in examples]

    def loss(logits: Any, rows: Sequence[int]) -> Any:
        import torch

        logs = torch.log_softmax(logits, dim=-1)
        # "Not entailment" is either of the two others: their probability is added up.
        either = torch.cat([logs, torch.logsumexp(logs[:, 1:], dim=1, keepdim=True)], dim=1)
        return -either[torch.arange(len(rows)), torch.tensor([labels[i] for i in rows])].mean()

    how: dict[str, Any] = {"n_epochs": n_epochs, "learning_rate": learning_rate, "n_frozen": n_frozen, "seed": seed}
    sizes = {"batch_tokens": batch_tokens, "max_length": max_length}
    return tune_encoder([joined(e.premise, e.hypothesis) for e in examples], 3, loss, folder, base=base, **how, **sizes)
