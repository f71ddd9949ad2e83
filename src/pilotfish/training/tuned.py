"""A sentence encoder that is itself tuned on the calls of a task."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.files import refuse_changed, sha256_of
from pilotfish.models.embedder import OnnxEmbedder
from pilotfish.training.encoders import POOLINGS, tune_encoder

__all__ = ["TunedReader"]

_N_EPOCHS = 6
_BATCH_TOKENS = 500
_HELD_OUT = 0.1
_WEIGHTS = "model.safetensors"


class TunedReader:
    """MiniLM with all its layers tuned on the calls, and a linear head; a tenth of the calls is held out.

    Parameters
    ----------
    precision : {"int8", "fp32"}
        Of the tuned encoder in service.
    seed : int
        Of what is held out and of the order.

    Attributes
    ----------
    held_ : ndarray of int
        The calls held out.
    held_out_ : ndarray (n_held, n_classes)
        Their log-probabilities.

    References
    ----------
    Howard and Ruder 2018 (arXiv:1801.06146), section 3.2: a rate that rises, then falls.
    """

    def __init__(self, precision: Literal["int8", "fp32"] = "int8", seed: int = 0) -> None:
        self.precision = precision
        self.seed = seed

    def fit(self, texts: Sequence[str], targets: NDArray[np.float32]) -> Self:
        """Learn soft labels (n, n_classes).

        Raises
        ------
        MissingExtraError
            When torch or transformers is not installed.
        """
        from safetensors.numpy import load_file

        order = np.random.default_rng(self.seed).permutation(len(texts))
        n_held = round(_HELD_OUT * len(texts))
        self.held_, seen = np.sort(order[:n_held]), np.sort(order[n_held:])

        def loss(logits: Any, rows: Sequence[int]) -> Any:
            import torch

            return torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets[seen[list(rows)]]))

        self._made = TemporaryDirectory(prefix="pilotfish-")
        folder = Path(self._made.name) / "encoder"
        how: dict[str, Any] = {"n_epochs": _N_EPOCHS, "n_frozen": -1, "batch_tokens": _BATCH_TOKENS, "seed": self.seed}
        tune_encoder([texts[int(i)] for i in seen], targets.shape[1], loss, folder, **how)
        self._open(folder, load_file(folder / "head.safetensors"))
        self.held_out_ = self.read([texts[int(i)] for i in self.held_])[0]
        return self

    def read(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Log-probabilities (n, n_classes) of texts; it does not tell what is familiar, so that all are."""
        logits = self._encoder.embed(texts) @ self._weight + self._bias
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return np.asarray(logits, dtype=np.float32), np.ones(len(texts), dtype=np.bool_)

    def get_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """The fitted reader as plain data and arrays; the encoder itself is what :meth:`save` writes."""
        plain = {"precision": self.precision, "seed": self.seed, "sha256": sha256_of(self._folder / _WEIGHTS)}
        return {"tuned": plain}, {"weight": self._weight, "bias": self._bias}

    def save(self, folder: Path) -> None:
        """Write the tuned encoder into a folder, which is made."""
        shutil.copytree(self._folder, folder)

    @classmethod
    def load(cls, folder: Path, plain: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Bring a saved reader back.

        Raises
        ------
        InputError, IntegrityError
            When the encoder is gone, or not the one that was saved.
        """
        made = cls(plain["precision"], plain["seed"])
        refuse_changed(folder / _WEIGHTS, plain["sha256"])
        made._open(folder, arrays)
        return made

    def _open(self, folder: Path, head: Mapping[str, NDArray[Any]]) -> None:
        self._folder, self._weight, self._bias = folder, head["weight"], head["bias"]
        self._encoder = OnnxEmbedder(folder, precision=self.precision, poolings=POOLINGS, max_length=128)
