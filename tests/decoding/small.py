"""Small white-box models made of functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pilotfish.models.sessions import FunctionSession
from pilotfish.models.transformers import TransformersModel
from pilotfish.protocols import LogProbs
from pilotfish.training.tuning import save_model
from pilotfish.types import Request

LETTERS = "abcdefgh"


class Letters:
    """A tokenizer of the letters a to h and an end mark."""

    def __init__(self, pieces: Sequence[bytes] = (*(c.encode() for c in LETTERS), b"")) -> None:
        self.tokens = list(pieces)
        self.n_vocabulary = len(pieces)
        self.end_tokens = frozenset([len(pieces) - 1])

    def encode(self, text: str) -> list[int]:
        raw, found = text.encode(), []
        while raw:
            token = max((t for t in self.tokens if t and raw.startswith(t)), key=len, default=raw)
            if token not in self.tokens:
                break
            found.append(self.tokens.index(token))
            raw = raw[len(token) :]
        return found

    def encode_request(self, request: Request) -> list[int]:
        return self.encode(request.prompt)

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(self.tokens[t] for t in tokens).decode("utf-8", errors="replace")


class Scripted:
    """A white-box model of a function from the tokens so far to log-probabilities."""

    def __init__(
        self, function: Callable[[Sequence[int]], LogProbs], tokenizer: Letters | None = None, window: int = 10_000
    ) -> None:
        self.function = function
        self.tokenizer = tokenizer or Letters()
        self.window = window

    def session(self) -> FunctionSession:
        return FunctionSession(self.function)


def random_model(seed: int, n: int = 9, order: int = 2, sharp: float = 2.0) -> Scripted:
    """A model whose distribution after each few tokens is drawn once; it never ends."""

    def after(tokens: Sequence[int]) -> LogProbs:
        rng = np.random.default_rng([seed, *tokens[-order:]])
        logits = rng.normal(size=n) * sharp
        logits[-1] = -30.0
        return np.asarray(logits - np.log(np.exp(logits).sum()), dtype=np.float32)

    return Scripted(after)


def saying(tokens: Sequence[int], n: int) -> Scripted:
    """A model that writes these tokens whatever it reads, given one prompt token."""

    def after(read: Sequence[int]) -> LogProbs:
        at = len(read) - 1
        row = np.full(n, -20.0, dtype=np.float32)
        row[tokens[at] if at < len(tokens) else n - 1] = 0.0
        return row

    return Scripted(after)


def tiny_model(folder: Path) -> Path:
    """Save a random model of three layers of the Llama family over letters; it answers at once."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(0)
    torch.set_num_threads(1)
    letters = {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz.")} | {"Ġ": 27, "<end>": 28}
    raw = Tokenizer(models.BPE(letters, [], unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")
    config = transformers.LlamaConfig(
        vocab_size=29, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=28, bos_token_id=None,
    )  # fmt: skip
    model = TransformersModel(folder)
    model._loaded = (tokenizer, transformers.LlamaForCausalLM(config).eval())
    save_model(model, folder)
    return folder
