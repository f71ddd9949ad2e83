"""How likely a language model finds a text: log-probability, rank, entropy and its variance, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pilotfish.errors import InputError
from pilotfish.models.embedder import batches
from pilotfish.models.transformers import TransformersModel, pretrained
from pilotfish.protocols import FloatArray

__all__ = ["CausalReader", "Reader", "Reading", "Seq2SeqReader"]


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What a model thinks of each token of a text, given those before it.

    Parameters
    ----------
    log_probs : ndarray (n_tokens,)
        Natural log-probability of the token.
    ranks : ndarray (n_tokens,)
        How many tokens were likelier, 0 for the likeliest.
    expected : ndarray (n_tokens,)
        Expected log-probability under the model itself: minus the entropy, in nats.
    variances : ndarray (n_tokens,)
        Variance of that log-probability.
    """

    log_probs: FloatArray
    ranks: FloatArray
    expected: FloatArray
    variances: FloatArray


class Reader(Protocol):
    """Anything that reads texts after prefixes."""

    def read(self, texts: Sequence[str], prefixes: Sequence[str] | None = None) -> list[Reading]:
        """Read each text after its prefix; a text without a token gives empty arrays."""
        ...


class CausalReader:
    """Read with a causal language model; a text longer than the window is read by windows that overlap by half.

    Parameters
    ----------
    model : TransformersModel or str
        The model, or its name.
    max_length : int
        Tokens of a window, at most as many as the model has positions.
    batch_tokens : int
        Tokens read at once.

    Examples
    --------
    >>> CausalReader("smollm2-135m-instruct").max_length
    1024
    """

    def __init__(self, model: TransformersModel | str, *, max_length: int = 1024, batch_tokens: int = 2048) -> None:
        self.model = model
        self.max_length = max_length
        self.batch_tokens = batch_tokens

    def read(self, texts: Sequence[str], prefixes: Sequence[str] | None = None) -> list[Reading]:
        """Read each text after its prefix.

        A prefix that leaves less than half of the window to its text loses its beginning. The first token of a text
        without a prefix is not scored, unless the model has a token that begins texts.

        Raises
        ------
        InputError
            When there are not as many prefixes as texts.
        """
        return [
            Reading(*(np.concatenate([part[i] for part in parts]) for i in range(4)))
            for parts in self._parts_of(texts, prefixes, _statistics)
        ]

    def crossed(self, other: CausalReader, texts: Sequence[str]) -> FloatArray:
        """Mean cross-entropy in nats between this model's distribution and another's of the same tokens, (n,).

        Raises
        ------
        InputError
            When the two models do not share their vocabulary.
        """
        import torch

        if self.tokens_of("A test, of 3 words.") != other.tokens_of("A test, of 3 words."):
            raise InputError("The two models split text into different tokens: give two models of one family.")

        def cross(logits: Any, ids: Any) -> tuple[FloatArray, ...]:
            own = torch.log_softmax(logits[0], dim=-1)
            theirs = torch.log_softmax(logits[1], dim=-1)
            n = min(own.shape[-1], theirs.shape[-1])
            return (-(own[..., :n].exp() * theirs[..., :n]).sum(-1).double().numpy()[: ids.shape[0]],)

        found = self._parts_of(texts, None, cross, other)
        return np.array([np.concatenate([p[0] for p in parts]).mean() if parts else np.nan for parts in found])

    def tokens_of(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return list(self._loaded()[0](text, add_special_tokens=False)["input_ids"])

    def _loaded(self) -> tuple[Any, Any]:
        if isinstance(self.model, str):
            self.model = TransformersModel(self.model)
        return self.model._parts()

    def _parts_of(
        self, texts: Sequence[str], prefixes: Sequence[str] | None, measure: Any, other: CausalReader | None = None
    ) -> list[list[tuple[FloatArray, ...]]]:
        """What ``measure`` makes of the logits of each window of each text."""
        import torch

        if prefixes is not None and len(prefixes) != len(texts):
            raise InputError(f"{len(prefixes)} prefixes for {len(texts)} texts: give one each.")
        tokenizer, model = self._loaded()
        models = [model] + ([other._loaded()[1]] if other else [])
        begin = tokenizer.bos_token_id
        windows = []
        for i, text in enumerate(texts):
            head = self.tokens_of(prefixes[i]) if prefixes is not None and prefixes[i] else []
            windows += [(i, *w) for w in self._windows([] if begin is None else [begin], head, self.tokens_of(text))]
        lengths = np.array([len(window) for _, window, _ in windows], dtype=np.int64)
        parts: list[tuple[FloatArray, ...]] = [()] * len(windows)
        pad = tokenizer.pad_token_id or 0
        for rows in batches(lengths, self.batch_tokens):
            batch, longest = [windows[row] for row in rows], int(lengths[rows[0]])
            ids = torch.tensor([list(row) + [pad] * (longest - len(row)) for _, row, _ in batch])
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for _, row, _ in batch])
            with torch.inference_mode():
                logits = [m(ids, attention_mask=mask).logits.float() for m in models]
            for row, (at, (_, window, first)) in enumerate(zip(rows, batch, strict=True)):
                kept = [each[row, first - 1 : len(window) - 1] for each in logits]
                parts[at] = measure(kept if other else kept[0], ids[row, first : len(window)])
        found: list[list[tuple[FloatArray, ...]]] = [[] for _ in texts]
        for (i, _, _), part in zip(windows, parts, strict=True):
            found[i].append(part)
        empty = tuple(np.empty(0) for _ in range(4))
        return [own or ([] if other else [empty]) for own in found]

    def _windows(self, begin: list[int], head: list[int], tokens: list[int]) -> Iterator[tuple[list[int], int]]:
        """Ids of each window, in order, and where its new tokens begin in it."""
        size = min(self.max_length, int(getattr(self._loaded()[1].config, "max_position_embeddings", self.max_length)))
        # What comes before keeps half of the window, or all that a short text leaves.
        room = max(size // 2, size - len(tokens)) - len(begin)
        head = begin + (head if len(head) <= room else head[len(head) - room :])
        whole = head + tokens
        first = done = max(len(head), 1)
        while done < len(whole):
            start = 0 if done == first else done - size // 2
            stop = min(start + size, len(whole))
            yield whole[start:stop], done - start
            done = stop


def _statistics(logits: Any, ids: Any) -> tuple[FloatArray, ...]:
    import torch

    logs = torch.log_softmax(logits, dim=-1)
    own = logs.gather(1, ids[:, None])
    p = logs.exp()
    expected = (p * logs).sum(-1)
    variances = (p * logs.square()).sum(-1) - expected.square()
    ranks = (logs > own).sum(-1)
    return tuple(x.double().numpy() for x in (own[:, 0], ranks, expected, variances))


class Seq2SeqReader:
    """Read with an encoder-decoder of transformers, such as BART or T5: the prefix is encoded, the text decoded.

    Parameters
    ----------
    model : str or Path
        A folder saved by transformers, or a repository of the hub.
    max_length : int
        Tokens kept of the prefix and of the text.
    """

    def __init__(self, model: str | Path, *, max_length: int = 1024) -> None:
        self.model = model
        self.max_length = max_length
        self._loaded: tuple[Any, Any] | None = None

    def read(self, texts: Sequence[str], prefixes: Sequence[str] | None = None) -> list[Reading]:
        """Read each text after its prefix.

        Raises
        ------
        MissingExtraError
            When torch or transformers is not installed.
        """
        if self._loaded is None:
            self._loaded = pretrained("AutoModelForSeq2SeqLM", self.model, "Reading with an encoder-decoder")
        import torch

        tokenizer, model = self._loaded
        readings = []
        for text, prefix in zip(texts, prefixes or [""] * len(texts), strict=True):
            cut = {"return_tensors": "pt", "truncation": True, "max_length": self.max_length}
            labels = tokenizer(text_target=text, **cut)["input_ids"]
            with torch.inference_mode():
                logits = model(**tokenizer(prefix, **cut), labels=labels).logits[0].float()
            readings.append(Reading(*_statistics(logits, labels[0])))
        return readings
