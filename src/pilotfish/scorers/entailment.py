"""Does one text follow from another: a small cross-encoder, trained here or from the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pilotfish.errors import InputError, ModelError
from pilotfish.models.bert import Precision
from pilotfish.models.embedder import OnnxEmbedder
from pilotfish.models.transformers import pretrained
from pilotfish.protocols import FloatArray

__all__ = ["Entailment", "HubEntailment", "SmallEntailment", "joined", "named_entailment"]


class Entailment(Protocol):
    """Anything that tells whether a hypothesis follows from a premise."""

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> FloatArray:
        """Probabilities (n, 3) of entailment, neither and contradiction, for pairs of premise and hypothesis."""
        ...


def joined(premise: str, hypothesis: str) -> str:
    """The one text that the small cross-encoder reads: hypothesis first, so that a long premise is what is cut.

    Examples
    --------
    >>> joined("A man sleeps.", "He rests.")
    'He rests. [SEP] A man sleeps.'
    """
    return " [SEP] ".join(text.replace("[SEP]", " ").strip() for text in (hypothesis, premise))


class SmallEntailment:
    """A fine-tuned BERT encoder with a linear head, run by onnxruntime.

    Parameters
    ----------
    folder : str or Path
        Written by :func:`pilotfish.training.entailment.train_entailment`.
    precision : {"fp32", "int8"}
        Of the encoder.
    n_threads : int, optional
        Threads; all cores by default.
    """

    def __init__(self, folder: str | Path, *, precision: Precision = "fp32", n_threads: int | None = None) -> None:
        self.folder = folder
        self.precision = precision
        self.n_threads = n_threads
        self._loaded: tuple[OnnxEmbedder, Any] | None = None

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> FloatArray:
        """Probabilities (n, 3) of entailment, neither and contradiction.

        Raises
        ------
        ModelError
            When the folder holds no such model.
        """
        if not len(pairs):
            return np.empty((0, 3))
        encoder, head = self._parts()
        logits = encoder.embed([joined(*pair) for pair in pairs]) @ head["weight"] + head["bias"]
        logits = np.asarray(logits, dtype=np.float64) - logits.max(axis=1, keepdims=True)
        return np.asarray(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))

    def _parts(self) -> tuple[OnnxEmbedder, Any]:
        if self._loaded is None:
            from safetensors.numpy import load_file

            place = Path(self.folder) / "head.safetensors"
            if not place.is_file():
                raise ModelError(f"{self.folder} has no head.safetensors: give a folder that train_entailment wrote.")
            encoder = OnnxEmbedder(
                Path(self.folder),
                precision=self.precision,
                poolings=("mean", "max"),
                max_length=256,
                n_threads=self.n_threads,
            )
            self._loaded = encoder, load_file(place)
        return self._loaded


class HubEntailment:
    """A cross-encoder for natural language inference through transformers, such as cross-encoder/nli-deberta-v3-small.

    Of a pair that is too long for it, the end of the longer text is left out.

    Parameters
    ----------
    model : str or Path
        A folder saved by transformers, or a repository of the hub; its labels must name entailment, neutral and
        contradiction, or be two.
    batch_size : int
        Pairs read at once.
    """

    def __init__(self, model: str | Path, *, batch_size: int = 16) -> None:
        self.model = model
        self.batch_size = batch_size
        self._loaded: tuple[Any, Any, list[int]] | None = None

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> FloatArray:
        """Probabilities (n, 3) of entailment, neither and contradiction; two labels leave contradiction at 0.

        Raises
        ------
        MissingExtraError
            When torch or transformers is not installed.
        """
        if self._loaded is None:
            kind = "AutoModelForSequenceClassification"
            tokenizer, model = pretrained(kind, self.model, "Reading with a cross-encoder")
            self._loaded = tokenizer, model, _order(model.config.id2label)
        import torch

        tokenizer, model, order = self._loaded
        # Some tokenizers do not say how much their model can hold; of its positions two may be no places of tokens.
        stated, positions = tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 0)
        size = positions - 2 if stated > 1_000_000 and positions > 2 else stated
        rows = [np.empty((0, 3))]
        for start in range(0, len(pairs), self.batch_size):
            premises, hypotheses = zip(*pairs[start : start + self.batch_size], strict=True)
            read = tokenizer(
                list(premises),
                list(hypotheses),
                truncation="longest_first",
                max_length=size,
                padding=True,
                return_tensors="pt",
            )
            with torch.inference_mode():
                p = torch.softmax(model(**read).logits.float(), dim=-1).double().numpy()[:, order]
            rows.append(np.pad(p, ((0, 0), (0, 3 - p.shape[1]))))
        return np.concatenate(rows)


def named_entailment(name: str, n_threads: int | None = None) -> SmallEntailment | HubEntailment:
    """A folder that ``train_entailment`` wrote, or else a cross-encoder by its folder or name of the hub.

    Examples
    --------
    >>> named_entailment("cross-encoder/nli-deberta-v3-small").batch_size
    16
    """
    own = Path(name).expanduser()
    return SmallEntailment(own, n_threads=n_threads) if (own / "head.safetensors").is_file() else HubEntailment(name)


def _order(labels: dict[int, str]) -> list[int]:
    """Columns of entailment, neither and contradiction among a model's labels."""
    columns = {}
    for i, label in labels.items():
        name = label.casefold().replace("-", "_")
        kind = "neither" if name.startswith(("not", "neutral")) else name[:6]
        columns[kind] = int(i)
    if not {"entail", "neither"} <= set(columns):
        raise InputError(f"The model's labels are {sorted(labels.values())}: give one trained for inference.")
    return [columns[kind] for kind in ("entail", "neither", "contra") if kind in columns]
