"""Sessions: models in the middle of a text, through torch or as plain functions of the tokens so far."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from pilotfish.errors import ContextLengthError, InputError, ModelError
from pilotfish.models.packed import new_cache, takes_trees
from pilotfish.protocols import IntArray, LogProbs

__all__ = [
    "ArrayLogits",
    "FunctionSession",
    "TextSession",
    "TorchLogits",
    "TorchSession",
    "check_rewind",
    "memory_told",
    "n_common",
]


@contextmanager
def memory_told(what: str, mend: str) -> Iterator[None]:
    """Tell a want of memory as an error of ours; other errors pass.

    Parameters
    ----------
    what, mend : str
        What the memory was for, and what to do.

    Raises
    ------
    ModelError
        When the memory does not suffice.

    Examples
    --------
    >>> with memory_told("the prompt", "shorten it"):
    ...     raise MemoryError
    Traceback (most recent call last):
    ...
    pilotfish.errors.ModelError: The memory does not suffice for the prompt: shorten it.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # Torch says it with a RuntimeError, on a GPU too.
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        why = str(error).strip().partition("\n")[0].rstrip(".")
        raise ModelError(f"The memory does not suffice for {what}{f' ({why})' if why else ''}: {mend}.") from error


class ArrayLogits:
    """Logits that are log-probabilities already.

    Parameters
    ----------
    values : ndarray of float32, (n, n_vocabulary)
        Natural log-probabilities; minus infinity for what cannot come.

    Examples
    --------
    >>> ArrayLogits(np.log(np.array([[0.2, 0.8]], dtype=np.float32))).best().tolist()
    [1]
    """

    def __init__(self, values: LogProbs) -> None:
        self.values = values

    def best(self) -> IntArray:
        """The likeliest token at each position, (n,)."""
        best: IntArray = self.values.argmax(axis=1)
        _check(float(self.values[np.arange(best.size), best].sum()))
        return best

    def log_probs(self) -> LogProbs:
        """Natural log-probabilities, (n, n_vocabulary)."""
        _check(float(self.values.max(axis=1).sum()))
        return self.values


class TorchLogits:
    """Logits of a torch model, normalised only when the probabilities are asked for.

    Parameters
    ----------
    values : torch.Tensor, (n, n_vocabulary)
        As the model's last layer gives them.
    name : str
        The model's, for errors.
    """

    def __init__(self, values: Any, name: str = "") -> None:
        self.values = values
        self.name = name

    def best(self) -> IntArray:
        """The likeliest token at each position, (n,)."""
        top, at = self.values.max(dim=-1)
        _check(float(top.sum()), self.name)
        best: IntArray = at.cpu().numpy()
        return best

    def log_probs(self) -> LogProbs:
        """Natural log-probabilities, (n, n_vocabulary)."""
        logs: LogProbs = self.values.float().log_softmax(dim=-1).cpu().numpy()
        _check(float(logs.max(axis=1).sum()), self.name)
        return logs


class TextSession(ABC):
    """What sessions of local models share: what may be read, and how a tree is read.

    Parameters
    ----------
    window : int
        Longest text, in tokens.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.n_tokens = 0

    def extend(self, tokens: Sequence[int], n_last: int | None = None) -> TorchLogits:
        """Read further tokens, and tell what is expected after each of the last ``n_last`` of them.

        Raises
        ------
        ContextLengthError
            When the text grows past the model's window.
        ModelError
            When the memory does not suffice; the state is as before.
        """
        return self._checked(tokens, n_last or len(tokens))

    def extend_tree(self, tokens: Sequence[int], branches: Sequence[int], parents: Sequence[int]) -> TorchLogits:
        """Read further tokens and a tree after them, and tell what is expected after the text and each of its tokens.

        A token of the tree sees the text and its own ancestors, and stands at the place of its depth.

        Raises
        ------
        ContextLengthError, ModelError
            As of :meth:`extend`.
        """
        n, m = len(tokens), len(branches)
        start = self.n_tokens + n
        seen = np.zeros((m, start + m), dtype=np.bool_)
        seen[:, :start] = True
        places = np.arange(self.n_tokens, start + m)
        for i, parent in enumerate(parents):
            if parent >= 0:
                seen[i] = seen[parent]
            seen[i, start + i] = True
            places[n + i] = places[n + parent if parent >= 0 else n - 1] + 1
        return self._checked([*tokens, *branches], m + 1, places, seen)

    def _checked(self, tokens: Sequence[int], n_last: int, *tree: Any) -> TorchLogits:
        if not tokens:
            raise InputError("There are no tokens to read: give at least one.")
        if self.n_tokens + len(tokens) > self.window:
            raise ContextLengthError(
                f"The text has {self.n_tokens + len(tokens)} tokens, but the model's window has {self.window}: "
                "shorten it."
            )
        with memory_told(f"{self.n_tokens + len(tokens)} tokens", "shorten the text"):
            logits = self._read(tokens, n_last, *tree)
        self.n_tokens += len(tokens)
        return logits

    @abstractmethod
    def _read(self, tokens: Sequence[int], n_last: int, places: Any = None, seen: Any = None) -> TorchLogits:
        """Read tokens; of a tree of m are given the places (n,) and what its own see (m, n_tokens + n)."""


class TorchSession(TextSession):
    """A causal language model of transformers with its key-value cache.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Its layers' cache must be able to forget: state-space models cannot.
    window : int
        Longest text, in tokens.
    """

    def __init__(self, model: Any, window: int) -> None:
        super().__init__(window)
        self.model = model
        self._cache: Any = None
        self._takes_trees: bool | None = None

    @property
    def takes_trees(self) -> bool:
        """Whether its model can read tokens side by side: those with a sliding window cannot."""
        if self._takes_trees is None:
            self._takes_trees = takes_trees(self.model, new_cache(self.model))
        return self._takes_trees

    def keep(self, n: int, places: Sequence[int]) -> None:
        """Of the last ``n`` tokens, the tree, keep those at these places, which follow one another."""
        if list(places) == list(range(len(places))):
            self.rewind(n - len(places))
            return
        import torch

        with torch.inference_mode():
            for layer in self._cache.layers:
                layer.keep(n, places)
        self.n_tokens -= n - len(places)

    def _read(self, tokens: Sequence[int], n_last: int, places: Any = None, seen: Any = None) -> TorchLogits:
        import torch

        device = self.model.device
        with torch.inference_mode():
            how: dict[str, Any] = {}
            if seen is not None:
                causal = np.tri(len(tokens) - len(seen), seen.shape[1], self.n_tokens, dtype=np.bool_)
                how = {
                    "attention_mask": torch.from_numpy(np.concatenate((causal, seen)))[None, None].to(device),
                    "position_ids": torch.from_numpy(places)[None].to(device),
                }
            ids = torch.tensor([tokens], device=device)
            try:
                if self._cache is None:
                    self._cache = new_cache(self.model)
                logits = self.model(
                    ids, past_key_values=self._cache, use_cache=True, logits_to_keep=n_last, **how
                ).logits[0]
            except (RuntimeError, MemoryError):
                self._restore()
                raise
        return TorchLogits(logits, str(getattr(self.model, "name_or_path", "")))

    def rewind(self, n: int) -> None:
        """Forget the last ``n`` tokens."""
        check_rewind(n, self.n_tokens)
        self.n_tokens -= n
        if self.n_tokens == 0:
            self._cache = None
        elif n:
            self._cache.crop(-n)

    def fork(self) -> TorchSession:
        """Copy the state. Tensors are shared until one of the two writes."""
        twin = TorchSession(self.model, self.window)
        twin.n_tokens = self.n_tokens
        if self._cache is not None:
            twin._cache = copy.copy(self._cache)
            twin._cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        return twin

    def _restore(self) -> None:
        """Make all layers as long as the text again: a pass that failed may have lengthened some of them."""
        if self.n_tokens == 0:
            self._cache = None
            return
        for layer in self._cache.layers:
            if (n_more := layer.get_seq_length() - self.n_tokens) > 0:
                layer.crop(-n_more)


class FunctionSession:
    """A session over a function of the tokens so far: n-gram models, and scripts for tests.

    Parameters
    ----------
    function : callable
        From all tokens so far to the natural log-probabilities of the next one, (n_vocabulary,).
    tokens : sequence of int
        Read already.

    Examples
    --------
    >>> session = FunctionSession(lambda tokens: np.log(np.eye(3, dtype=np.float32)[(tokens[-1] + 1) % 3] + 1e-9))
    >>> session.extend([0, 1]).best().tolist()
    [1, 2]
    >>> session.rewind(1)
    >>> session.n_tokens
    1
    """

    def __init__(self, function: Callable[[Sequence[int]], LogProbs], tokens: Sequence[int] = ()) -> None:
        self.function = function
        self.tokens = list(tokens)

    @property
    def n_tokens(self) -> int:
        """How many tokens it has read."""
        return len(self.tokens)

    def extend(self, tokens: Sequence[int], n_last: int | None = None) -> ArrayLogits:
        """Read further tokens, and tell what is expected after each of the last ``n_last`` of them."""
        if not tokens:
            raise InputError("There are no tokens to read: give at least one.")
        self.tokens.extend(tokens)
        n = len(self.tokens)
        rows = [self.function(self.tokens[:end]) for end in range(n - (n_last or len(tokens)) + 1, n + 1)]
        return ArrayLogits(np.asarray(rows, dtype=np.float32))

    takes_trees = True

    def extend_tree(self, tokens: Sequence[int], branches: Sequence[int], parents: Sequence[int]) -> ArrayLogits:
        """Read further tokens and a tree after them, and tell what is expected after the text and each token of it."""
        rows = [self.extend(tokens, 1).values[0]]
        paths: list[list[int]] = []
        for token, parent in zip(branches, parents, strict=True):
            paths.append([*(paths[parent] if parent >= 0 else []), token])
            rows.append(self.function([*self.tokens, *paths[-1]]))
        self.tokens.extend(branches)
        return ArrayLogits(np.asarray(rows, dtype=np.float32))

    def keep(self, n: int, places: Sequence[int]) -> None:
        """Of the last ``n`` tokens, the tree, keep those at these places, which follow one another."""
        start = len(self.tokens) - n
        self.tokens[start:] = [self.tokens[start + place] for place in places]

    def rewind(self, n: int) -> None:
        """Forget the last ``n`` tokens."""
        check_rewind(n, len(self.tokens))
        if n:
            del self.tokens[-n:]

    def fork(self) -> FunctionSession:
        """Copy the state."""
        return FunctionSession(self.function, self.tokens)


def n_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike.

    Examples
    --------
    >>> n_common([1, 2, 3], [1, 2, 4])
    2
    """
    n = min(len(one), len(other))
    if one[:n] == other[:n]:
        return n
    return next(i for i in range(n) if one[i] != other[i])


def _check(total: float, name: str = "") -> None:
    if total != total:
        who = f"The model {name}".rstrip()
        raise ModelError(f"{who} gave NaN in place of probabilities: check its weights, or use dtype float32.")


def check_rewind(n: int, n_tokens: int) -> None:
    if not 0 <= n <= n_tokens:
        raise InputError(f"rewind is {n}, but {n_tokens} tokens have been read: give 0 to {n_tokens}.")
