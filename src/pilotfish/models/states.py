"""What a small language model makes of a text that it was told to answer, as a vector."""

from __future__ import annotations

import copy
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from pilotfish.errors import InputError
from pilotfish.models.embedder import batches, checked_texts
from pilotfish.models.packed import multiplies_bfloat16
from pilotfish.models.sessions import memory_told, n_common
from pilotfish.models.tokenizers import HubTokenizer
from pilotfish.models.transformers import TransformersModel
from pilotfish.protocols import Progress
from pilotfish.types import Request
from pilotfish.vectors import unit_rows

__all__ = ["StateEmbedder", "reading_told"]

_Vectors = NDArray[np.float32]
# Of the layers: where a language model knows most of what a text means, and not yet what comes next.
_MIDDLE = 0.6
_CHARACTERS_PER_TOKEN = 16
_told: ContextVar[Progress | None] = ContextVar("told", default=None)


@contextmanager
def reading_told(progress: Progress) -> Iterator[None]:
    """Tell ``progress`` of all that is read within, however deep: what is fitted on texts may read them for an hour.

    Examples
    --------
    >>> with reading_told(lambda done, total: print(done, "of", total)):
    ...     pass
    """
    before = _told.set(progress)
    try:
        yield
    finally:
        _told.reset(before)


class StateEmbedder:
    """Texts as the hidden states of a small language model that was told what to do with them.

    Each text is read as a user's message after an instruction, up to where the reply would begin. The vector joins what
    the model is about to say, its last layer's state at the last token, and what the text means to it, the mean of a
    middle layer over the text's tokens. States have a few axes that outweigh all others: each number is replaced by its
    square root, its sign kept. The instruction is read once.

    Parameters
    ----------
    model : TransformersModel or str
        The model, or its name; a name is read in bfloat16 where the processor multiplies it, else in float32.
    instruction : str
        The system's message; none where it is empty.
    max_length : int
        Tokens kept of each text.
    batch_tokens : int
        Tokens read at once.

    Examples
    --------
    >>> StateEmbedder("smollm2-135m-instruct", instruction="Is this film liked? Answer yes or no.").max_length
    256

    References
    ----------
    Azaria and Mitchell 2023, The internal state of an LLM knows when it's lying (arXiv:2304.13734), which reads states
    of single layers; Skean et al. 2025, Layer by layer (arXiv:2502.02013), on what middle layers know.
    """

    def __init__(
        self,
        model: TransformersModel | str = "qwen2.5-coder-0.5b-instruct",
        *,
        instruction: str = "",
        max_length: int = 256,
        batch_tokens: int = 768,
    ) -> None:
        self.model = model
        self.instruction = instruction
        self.max_length = max_length
        self.batch_tokens = batch_tokens
        self._begun: tuple[Any, list[int]] | None = None
        self._lock = threading.Lock()

    @property
    def n_dimensions(self) -> int:
        """Length of each vector."""
        return 2 * int(self._parts()[1].config.hidden_size)

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> _Vectors:
        """Embed a batch as an array (n, n_dimensions), the two halves of unit length; one pass of the model at a time.

        ``progress`` is told how many texts were read, and of how many.

        Raises
        ------
        InputError
            When ``texts`` is not a sequence of texts, or the chat template refuses the instruction.
        ModelError
            When the model cannot be loaded, or the memory does not suffice.
        """
        texts, progress = checked_texts(texts), progress or _told.get()
        with self._lock:
            self._parts()
            with _threads().limit(limits=os.cpu_count() or 1, user_api="openmp"):
                return self._embedded(texts, progress)

    def _embedded(self, texts: Sequence[str], progress: Progress | None) -> _Vectors:
        import torch

        tokenizer, network = self._parts()
        cache, tail = self._instructed()
        limit = _CHARACTERS_PER_TOKEN * self.max_length
        # Half of a surrogate pair has no UTF-8 form.
        clean = [text[:limit].encode("utf-8", "replace").decode() for text in texts]
        ids = [tokenizer.encode(text)[: self.max_length] for text in clean]
        size = network.config.hidden_size
        middle = round(_MIDDLE * network.config.num_hidden_layers)
        vectors, n_read = np.empty((len(texts), 2 * size), dtype=np.float32), 0
        for rows in batches(np.array([len(own) + len(tail) for own in ids], dtype=np.int64), self.batch_tokens):
            longest = len(ids[rows[0]])
            # What pads a text comes behind it, where none of its tokens looks.
            padded = torch.tensor([ids[row] + tail + tail[-1:] * (longest - len(ids[row])) for row in rows])
            with memory_told(f"{len(rows)} texts", "give a smaller batch_tokens"), torch.inference_mode():
                before = copy.deepcopy(cache)
                before.batch_repeat_interleave(len(rows))
                states = network.model(padded, past_key_values=before, output_hidden_states=True).hidden_states
            for at, row in enumerate(rows):
                n = len(ids[row])
                vectors[row, :size] = states[-1][at, n + len(tail) - 1].float().numpy()
                vectors[row, size:] = states[middle][at, : max(n, 1)].float().mean(dim=0).numpy()
            n_read += len(rows)
            if progress is not None:
                progress(n_read, len(texts))
        vectors = np.sign(vectors) * np.sqrt(np.abs(vectors))
        return np.hstack([unit_rows(vectors[:, :size]), unit_rows(vectors[:, size:])])

    def _parts(self) -> tuple[HubTokenizer, Any]:
        if isinstance(self.model, str):
            self.model = _by_name(self.model)
        network = self.model._parts()[1]
        if not hasattr(network, "model"):
            raise InputError(
                f"{self.model.model} has no 'model' beneath its last layer, as most decoders do: use another."
            )
        return self.model.tokenizer, network

    def _instructed(self) -> tuple[Any, list[int]]:
        """Keys and values of what comes before each text, and the tokens that come after it."""
        if self._begun is None:
            import torch
            import transformers

            tokenizer, network = self._parts()
            head, tail = _around(tokenizer, self.instruction)
            cache = transformers.DynamicCache(config=network.config)
            with memory_told("the instruction", "shorten it"), torch.inference_mode():
                network.model(torch.tensor([head]), past_key_values=cache)
            self._begun = cache, tail
        return self._begun


@functools.lru_cache(maxsize=1)
def _by_name(name: str) -> TransformersModel:
    """The model of all who read by its name: each would take a gigabyte."""
    return TransformersModel(name, dtype="bfloat16" if multiplies_bfloat16() else "float32")


@functools.cache
def _threads() -> ThreadpoolController:
    """The libraries that have threads, looked for once, when torch is among them."""
    return ThreadpoolController()


def _around(tokenizer: HubTokenizer, instruction: str) -> tuple[list[int], list[int]]:
    """Tokens before and after a user's message, at least one each."""
    if tokenizer.tokenizer.chat_template is None:
        one, other = (tokenizer.encode_request(Request.of(f"{instruction}\n\n{text}\n")) for text in ("x", "7"))
    else:
        system = instruction or None
        one, other = (tokenizer.encode_request(Request.of(text, system)) for text in ("x", "7"))
    head, n_tail = one[: n_common(one, other)], n_common(one[::-1], other[::-1])
    return head, one[len(one) - n_tail :]
