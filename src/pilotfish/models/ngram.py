"""An n-gram language model over words or characters."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError, NotFittedError
from pilotfish.files import read_arrays, write_arrays
from pilotfish.models.sessions import FunctionSession
from pilotfish.protocols import FloatArray, IntArray, LogProbs
from pilotfish.types import Reply, Request, TokenLogProb, Usage

__all__ = ["NGramModel"]

_BEGIN, _END, _UNKNOWN = 0, 1, 2
_SPECIAL = ["<begin>", "<end>", "<unknown>"]
_FORMAT = 1


class NGramModel:
    """A language model of modified, interpolated Kneser-Ney smoothing.

    Parameters
    ----------
    order : int
        Length of the longest n-gram.
    unit : {"word", "char"}
        What a token is: a word or punctuation mark, or a character.
    min_count : int
        Rarer tokens are taken as one unknown token.

    Attributes
    ----------
    vocabulary_ : list of str
        The tokens, the three special ones first.

    Examples
    --------
    >>> model = NGramModel(order=3, unit="char").fit(["the cat sat", "the cat ran"])
    >>> model.perplexity(["the cat"]) < model.perplexity(["tac eht"])
    True

    References
    ----------
    Chen and Goodman, An empirical study of smoothing techniques for language modeling, 1999, section 3.
    """

    def __init__(self, order: int = 3, unit: Literal["word", "char"] = "word", min_count: int = 1) -> None:
        self.order = order
        self.unit = unit
        self.min_count = min_count

    def fit(self, texts: Iterable[str]) -> Self:
        """Count the n-grams of the texts.

        Raises
        ------
        InputError
            When there is no text, or a parameter is out of range.
        """
        if self.order < 1 or self.min_count < 1 or self.unit not in ("word", "char"):
            raise InputError(
                f"NGramModel has order {self.order}, min_count {self.min_count} and unit {self.unit!r}: "
                "use at least 1, at least 1, and 'word' or 'char'."
            )
        split = [self._split(text) for text in texts]
        if not split:
            raise InputError("There are no texts to fit: give at least one.")
        counts = Counter(token for tokens in split for token in tokens)
        kept = sorted(token for token, count in counts.items() if count >= self.min_count)
        self._set_vocabulary(_SPECIAL + kept)
        tokens, offsets = self._encode(split)
        predicted = tokens != _BEGIN

        self._keys: list[IntArray] = []
        self._discounted: list[FloatArray] = []
        self._totals: list[FloatArray] = []
        self._backoffs: list[FloatArray] = []
        grams = np.zeros(tokens.size, dtype=np.int64)
        counted: list[tuple[IntArray, IntArray]] = []
        for n in range(1, self.order + 1):
            valid = offsets >= n - 1
            keys = self._joined(grams, tokens)[valid]
            unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
            places = np.flatnonzero(valid)
            if n > 1:
                # Of a shorter n-gram, the distinct tokens before it count: one for each distinct longer one.
                ends = places[first]
                counted[-1] = (
                    counted[-1][0],
                    np.bincount(grams[ends[predicted[ends]]], minlength=self._keys[-1].size),
                )
            grams = np.full(tokens.size, -1, dtype=np.int64)
            grams[places] = inverse
            self._keys.append(unique)
            counted.append((unique, np.bincount(inverse, weights=predicted[places], minlength=unique.size).astype(int)))
        n_contexts = 1
        for unique, count in counted:
            self._smooth(unique // len(self.vocabulary_), count, n_contexts)
            n_contexts = unique.size
        return self

    def log_prob(self, text: str) -> FloatArray:
        """Natural log-probability of each token of a text and of its end, (n_tokens + 1,)."""
        self._check_fitted()
        tokens, _ = self._encode([self._split(text)])
        probability = np.full(tokens.size, 1 / (len(self.vocabulary_) - 1))
        grams = np.zeros(tokens.size, dtype=np.int64)
        for keys, discounted, totals, backoffs in self._levels():
            contexts = np.concatenate([[0 if keys is self._keys[0] else -1], grams[:-1]])
            if keys is self._keys[0]:
                contexts[:] = 0
            wanted = contexts * len(self.vocabulary_) + tokens
            at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
            found = (keys[at] == wanted) & (contexts >= 0)
            known = (contexts >= 0) & (totals[contexts] > 0)
            share = np.where(found, discounted[at], 0.0)
            probability = np.where(
                known, share / np.where(known, totals[contexts], 1.0) + backoffs[contexts] * probability, probability
            )
            grams = np.where(found, at, -1)
        logs: FloatArray = np.log(probability[tokens != _BEGIN])
        return logs

    def perplexity(self, texts: Iterable[str]) -> float:
        """Exponential of the mean negative log-probability of a token; lower means more like the fitted texts."""
        logs = [self.log_prob(text) for text in texts]
        if not logs:
            raise InputError("There are no texts to take the perplexity of: give at least one.")
        return float(np.exp(-np.concatenate(logs).mean()))

    def distribution(self, prefix: str = "") -> FloatArray:
        """Probability of each token of the vocabulary after a prefix, (n_vocabulary,)."""
        self._check_fitted()
        tokens = [_BEGIN] * (self.order - 1) + [self._ids.get(t, _UNKNOWN) for t in self._split(prefix)]
        return self._after(tokens)

    def sample(self, prefix: str = "", n_tokens: int = 50, seed: int | None = None, temperature: float = 1.0) -> str:
        """Continue a prefix until the text ends or ``n_tokens`` are written.

        Parameters
        ----------
        prefix : str
            What comes before; not part of the result.
        n_tokens : int
            Longest continuation.
        seed : int, optional
            Seed of the sampling.
        temperature : float
            At 0 the likeliest token is taken each time.
        """
        return self._written(self._sampled(prefix, n_tokens, seed, temperature)[0])

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Continue the text of each request's last user message: one reply per request, in order."""
        return [self._reply(request) for request in requests]

    @property
    def tokenizer(self) -> NGramTokenizer:
        """The model's tokenizer."""
        self._check_fitted()
        return self._tokenizer

    @property
    def window(self) -> int:
        """The longest text it can read, in tokens: there is no limit."""
        return 2**31

    def session(self) -> FunctionSession:
        """Begin a text."""
        self._check_fitted()
        return FunctionSession(self._log_after)

    def _log_after(self, tokens: Sequence[int]) -> LogProbs:
        probability = self._after([_BEGIN] * (self.order - 1) + list(tokens[-self.order :]))
        probability[_UNKNOWN] = 0.0
        with np.errstate(divide="ignore"):
            logs: LogProbs = np.log(probability / probability.sum()).astype(np.float32)
        return logs

    def save(self, path: str | Path) -> None:
        """Save as a compressed npz archive, without pickle."""
        self._check_fitted()
        state = {"format": _FORMAT, "order": self.order, "unit": self.unit, "min_count": self.min_count}
        header = json.dumps({**state, "vocabulary": self.vocabulary_}).encode()
        arrays: dict[str, NDArray[np.generic]] = {"header": np.frombuffer(header, dtype=np.uint8)}
        for i, level in enumerate(self._levels()):
            for name, array in zip(("keys", "discounted", "totals", "backoffs"), level, strict=True):
                arrays[f"{name}{i}"] = array
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load what :meth:`save` wrote.

        Raises
        ------
        InputError
            When the file is something else.
        """
        with read_arrays(path, "n-gram model") as archive:
            header = json.loads(bytes(archive["header"]))
            if header["format"] != _FORMAT:
                raise InputError(f"{path} has format {header['format']}: save the model again with this version.")
            model = cls(header["order"], header["unit"], header["min_count"])
            model._set_vocabulary(header["vocabulary"])
            orders = range(model.order)
            model._keys = [archive[f"keys{i}"] for i in orders]
            model._discounted = [archive[f"discounted{i}"] for i in orders]
            model._totals = [archive[f"totals{i}"] for i in orders]
            model._backoffs = [archive[f"backoffs{i}"] for i in orders]
        return model

    def _levels(self) -> Iterable[tuple[IntArray, FloatArray, FloatArray, FloatArray]]:
        return zip(self._keys, self._discounted, self._totals, self._backoffs, strict=True)

    def _smooth(self, contexts: IntArray, counts: IntArray, n_contexts: int) -> None:
        """Discount the counts of one order, and note what each context leaves to the order below."""
        n1, n2, n3, n4 = (int((counts == i).sum()) for i in (1, 2, 3, 4))
        if min(n1, n2, n3, n4) > 0:
            share = n1 / (n1 + 2 * n2)
            discounts = np.array([0, 1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3])
            discounts = np.clip(discounts, [0, 0.05, 0.05, 0.05], [0, 0.95, 1.95, 2.95])
        else:  # too little text to estimate them from
            discounts = np.array([0, 0.5, 1, 1.5])
        taken = discounts[np.minimum(counts, 3)]
        totals = np.bincount(contexts, weights=counts, minlength=n_contexts).astype(np.float64)
        left = np.bincount(contexts, weights=taken, minlength=n_contexts)
        self._discounted.append(np.asarray(counts - taken, dtype=np.float64))
        self._totals.append(totals)
        self._backoffs.append(left / np.maximum(totals, 1.0))

    def _after(self, tokens: list[int]) -> FloatArray:
        size = len(self.vocabulary_)
        probability = np.full(size, 1 / (size - 1))
        probability[_BEGIN] = 0.0
        for n, (keys, discounted, totals, backoffs) in enumerate(self._levels()):
            context = self._context(tokens[len(tokens) - n :])
            if context < 0 or not totals[context]:
                break
            start, end = np.searchsorted(keys, [context * size, (context + 1) * size])
            probability *= backoffs[context]
            probability[keys[start:end] - context * size] += discounted[start:end] / totals[context]
        return probability

    def _context(self, tokens: Sequence[int]) -> int:
        """The number of an n-gram, -1 when it was never seen."""
        gram = 0
        for n, token in enumerate(tokens):
            wanted = gram * len(self.vocabulary_) + token
            gram = int(np.searchsorted(self._keys[n], wanted))
            if gram == self._keys[n].size or self._keys[n][gram] != wanted:
                return -1
        return gram

    def _sampled(
        self, prefix: str, n_tokens: int, seed: int | None, temperature: float
    ) -> tuple[list[int], list[float], bool]:
        """Tokens, their log-probabilities, and whether the text came to its end."""
        self._check_fitted()
        rng = np.random.default_rng(seed)
        tokens = [_BEGIN] * (self.order - 1) + [self._ids.get(t, _UNKNOWN) for t in self._split(prefix)]
        n_before, logs = len(tokens), list[float]()
        for _ in range(n_tokens):
            probability = self._after(tokens)
            probability[_UNKNOWN] = 0.0
            if temperature > 0:
                weights = probability ** (1 / temperature)
                token = int(rng.choice(weights.size, p=weights / weights.sum()))
            else:
                token = int(probability.argmax())
            if token == _END:
                return tokens[n_before:], logs, True
            tokens.append(token)
            logs.append(float(np.log(probability[token])))
        return tokens[n_before:], logs, False

    def _reply(self, request: Request) -> Reply:
        start = time.perf_counter()
        n_tokens = 100 if request.max_tokens is None else request.max_tokens
        temperature = 1.0 if request.temperature is None else request.temperature
        tokens, logs, ended = self._sampled(request.prompt, n_tokens, request.seed, temperature)
        text = self._written(tokens)
        cuts = [text.index(stop) for stop in request.stop if stop in text]
        if cuts:
            text, ended = text[: min(cuts)], True
        n_read = len(self._split(request.prompt))
        return Reply(
            text,
            model=f"{self.order}-gram",
            usage=Usage(n_read, len(tokens), latency=time.perf_counter() - start),
            finish_reason="stop" if ended else "length",
            log_probs=tuple(TokenLogProb(self.vocabulary_[token], log) for token, log in zip(tokens, logs, strict=True))
            if request.log_probs is not None
            else (),
        )

    def _written(self, tokens: Sequence[int]) -> str:
        words = [self.vocabulary_[token] for token in tokens]
        return "".join(words) if self.unit == "char" else re.sub(r" (?=[.,;:!?)\]])", "", " ".join(words))

    def _split(self, text: str) -> list[str]:
        return list(text) if self.unit == "char" else re.findall(r"\w+|[^\w\s]", text)

    def _set_vocabulary(self, vocabulary: list[str]) -> None:
        self.vocabulary_ = vocabulary
        self._tokenizer = NGramTokenizer(self)
        self._ids = {token: i for i, token in enumerate(vocabulary) if i >= len(_SPECIAL)}

    def _encode(self, split: Sequence[Sequence[str]]) -> tuple[IntArray, IntArray]:
        """All texts in one row, each with its begin and end, and each token's place in its text."""
        rows = [[_BEGIN] * (self.order - 1) + [self._ids.get(t, _UNKNOWN) for t in row] + [_END] for row in split]
        tokens = np.array([token for row in rows for token in row], dtype=np.int64)
        return tokens, np.concatenate([np.arange(len(row)) for row in rows])

    def _joined(self, grams: IntArray, tokens: IntArray) -> IntArray:
        """Each token with the number of the n-gram that ends before it."""
        before = np.zeros_like(grams)
        if self._keys:
            before[1:] = grams[:-1]
        return before * len(self.vocabulary_) + tokens

    def _check_fitted(self) -> None:
        if not hasattr(self, "vocabulary_"):
            raise NotFittedError("This n-gram model is not fitted: call fit first.")


class NGramTokenizer:
    """The words or characters of an n-gram model as tokens; a word is written with the space before it."""

    def __init__(self, model: NGramModel) -> None:
        self.model = model

    @property
    def n_vocabulary(self) -> int:
        """How many tokens the model gives a probability, the special ones included."""
        return len(self.model.vocabulary_)

    @property
    def end_tokens(self) -> frozenset[int]:
        """The token that ends a text."""
        return frozenset([_END])

    @property
    def tokens(self) -> Sequence[bytes]:
        """The bytes of each token; special tokens have none."""
        space = "" if self.model.unit == "char" else " "
        return [b""] * len(_SPECIAL) + [(space + token).encode() for token in self.model.vocabulary_[len(_SPECIAL) :]]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; what the model never saw is the unknown token."""
        return [self.model._ids.get(token, _UNKNOWN) for token in self.model._split(text)]

    def encode_request(self, request: Request) -> list[int]:
        """The tokens of the last user message; a begin mark where it is empty."""
        return self.encode(request.prompt) or [_BEGIN]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; special tokens have none."""
        return self.model._written([token for token in tokens if token >= len(_SPECIAL)])
