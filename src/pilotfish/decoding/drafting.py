"""Drafters: what may come next, cheaply."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pilotfish.decoding.acceptance import Draft, Sampling
from pilotfish.decoding.vocabulary import VocabularyMap, same_vocabulary
from pilotfish.errors import InputError
from pilotfish.models.sessions import n_common
from pilotfish.protocols import LogProbs, Session, WhiteBoxModel
from pilotfish.types import Request

__all__ = [
    "Context",
    "Drafter",
    "EarlyExit",
    "OtherVocabulary",
    "Proposer",
    "SmallModel",
    "TokenIntersection",
]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What a drafter is told when a reply begins.

    Parameters
    ----------
    target : WhiteBoxModel
        Whose tokens are drafted.
    request : Request
        What was asked.
    n_prompt : int
        How many tokens of the target come before the reply.
    sampling : Sampling
        Of the target; a drafter that draws, draws with it.
    rng : numpy.random.Generator
        Of the reply.
    repeats : bool
        Whether a seed is to repeat the text, whatever is drafted.
    """

    target: WhiteBoxModel
    request: Request
    n_prompt: int
    sampling: Sampling
    rng: np.random.Generator
    repeats: bool = False

    def draws(self) -> np.random.Generator:
        """What a draft is drawn with.

        Where a seed repeats the text, a copy: the draft then takes the very numbers that its tokens will be drawn with,
        so that a drafter like the target drafts what stands, and it leaves them to be taken.
        """
        return copy.deepcopy(self.rng) if self.repeats else self.rng


class Proposer(Protocol):
    """A drafter in the middle of one reply."""

    def draft(self, prefix: Sequence[int], k: int) -> Draft:
        """Propose at most ``k`` tokens after a prefix that only grows; nothing is a fine answer."""
        ...


class Drafter(Protocol):
    """Anything that proposes tokens."""

    def begin(self, context: Context) -> Proposer:
        """Begin a reply.

        Raises
        ------
        InputError
            When the drafter does not fit the target.
        """
        ...


class SmallModel:
    """A small model of the target's vocabulary.

    Parameters
    ----------
    model : WhiteBoxModel
        The small model.
    least : float
        Drafting ends where the small model gives its token less than this probability.

    References
    ----------
    Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318.

    Examples
    --------
    >>> from pilotfish.models.ngram import NGramModel
    >>> texts = ["where is my card, and where is my money? "] * 3
    >>> target, small = NGramModel(4, "char").fit(texts), NGramModel(2, "char").fit(texts)
    >>> from pilotfish.decoding.decoder import Decoder
    >>> from pilotfish.types import Request
    >>> ask = Request.of("where is my c", temperature=0, max_tokens=12)
    >>> reply, stats = Decoder(target, [SmallModel(small)], k=4).answer(ask)
    >>> reply.text == Decoder(target).generate([ask])[0].text
    True
    >>> stats.n_accepted > 0
    True
    """

    def __init__(self, model: WhiteBoxModel, least: float = 0.4) -> None:
        self.model = model
        self.least = least

    def begin(self, context: Context) -> Proposer:
        """Begin a reply.

        Raises
        ------
        InputError
            When the vocabularies differ.
        """
        if not same_vocabulary(self.model.tokenizer, context.target.tokenizer):
            name = getattr(self.model, "model", type(self.model).__name__)
            raise InputError(
                f"The drafter {name} has another vocabulary than the target: wrap it in OtherVocabulary or "
                "TokenIntersection."
            )
        prompt = self.model.tokenizer.encode_request(context.request)
        return _ModelProposer(self.model, context, self.least, "model", prompt)


class EarlyExit:
    """The first layers of the target itself.

    Parameters
    ----------
    n_layers : int
        How many.
    least : float
        As of :class:`SmallModel`.

    References
    ----------
    Layer skip and early exit: Xia et al., arXiv:2401.07851, section 5.

    Examples
    --------
    >>> from pilotfish.decoding.decoder import Decoder
    >>> from pilotfish.models.transformers import TransformersModel
    >>> fast = Decoder(TransformersModel("smollm2-135m-instruct"), [EarlyExit(8)])
    >>> fast.drafters[0].n_layers
    8
    """

    def __init__(self, n_layers: int, least: float = 0.4) -> None:
        self.n_layers = n_layers
        self.least = least

    def begin(self, context: Context) -> Proposer:
        """Begin a reply.

        Raises
        ------
        InputError
            When the target cannot be cut.
        """
        cut = getattr(context.target, "first_layers", None)
        if cut is None:
            raise InputError("This target cannot stop at an early layer: give a TransformersModel.")
        prompt = context.target.tokenizer.encode_request(context.request)
        return _ModelProposer(cut(self.n_layers), context, self.least, "early exit", prompt)


class _ModelProposer:
    """Drafts token by token; its session follows the prefix."""

    def __init__(
        self, model: WhiteBoxModel, context: Context, least: float, source: str, prompt: Sequence[int]
    ) -> None:
        self._follower = Follower(model, prompt)
        self._context = context
        self._least = least
        self._source = source
        self._n_vocabulary = context.target.tokenizer.n_vocabulary

    def draft(self, prefix: Sequence[int], k: int) -> Draft:
        written = prefix[self._context.n_prompt :]
        return _drafted(self._follower, written, k, self._context, self._least, self._source, self._seen)

    def _seen(self, logs: LogProbs) -> LogProbs:
        """As wide as the target's: padding of the last layer may differ between sizes of one family."""
        n_missing = self._n_vocabulary - logs.shape[1]
        if n_missing > 0:
            return np.pad(logs, ((0, 0), (0, n_missing)), constant_values=-np.inf)
        return logs[:, : self._n_vocabulary]


class OtherVocabulary:
    """A small model of any vocabulary: it writes text, which is read as tokens of the target.

    Lossless: the target checks tokens, whatever wrote them.

    Parameters
    ----------
    model : WhiteBoxModel
        The small model.

    References
    ----------
    String-level exact match (SLEM): Timor et al., arXiv:2502.05202, algorithm 2.

    Examples
    --------
    >>> from pilotfish.models.ngram import NGramModel
    >>> texts = ["where is my card, and where is my money? "] * 3
    >>> target, small = NGramModel(4, "char").fit(texts), NGramModel(2, "char").fit(texts)
    >>> from pilotfish.decoding.decoder import Decoder
    >>> from pilotfish.types import Request
    >>> ask = Request.of("where is my c", temperature=0, max_tokens=12)
    >>> reply, stats = Decoder(target, [OtherVocabulary(small)], k=4).answer(ask)
    >>> reply.text == Decoder(target).generate([ask])[0].text
    True
    >>> stats.n_accepted > 0
    True
    """

    def __init__(self, model: WhiteBoxModel) -> None:
        self.model = model

    def begin(self, context: Context) -> Proposer:
        """Begin a reply."""
        return _StringProposer(self.model, context)


class _StringProposer:
    def __init__(self, model: WhiteBoxModel, context: Context) -> None:
        self._own = model.tokenizer
        self._target = context.target.tokenizer
        self._n_prompt = context.n_prompt
        self._follower = Follower(model, self._own.encode_request(context.request))

    def draft(self, prefix: Sequence[int], k: int) -> Draft:
        written = list(prefix[self._n_prompt :])
        text = self._target.decode(written)
        own = self._own.encode(text)
        k = min(k, self._follower.room(own) - 1)
        if k < 1 or text.endswith("\ufffd"):
            return Draft()
        logits = self._follower.follow(own)
        new: list[int] = []
        while True:
            token = int(logits.best()[0])
            if token in self._own.end_tokens:
                break
            new.append(token)
            if len(new) == k:
                break
            logits = self._follower.extend([token])
        whole = self._target.encode(self._own.decode([*own, *new]))
        same = whole[: len(written)] == written
        tokens = whole[len(written) :] if same else self._target.encode(self._own.decode(new))
        if len(new) < k:
            tokens = [*tokens, *sorted(self._target.end_tokens)[:1]]
        return Draft(tokens[:k], source="string model", strength=int(same))


class TokenIntersection:
    """A small model of another vocabulary that drafts only tokens both vocabularies have.

    Parameters
    ----------
    model : WhiteBoxModel
        The small model.
    least : float
        As of :class:`SmallModel`.

    References
    ----------
    Token-level intersection (TLI): Timor et al., arXiv:2502.05202, algorithm 4.

    Examples
    --------
    >>> from pilotfish.models.ngram import NGramModel
    >>> texts = ["where is my card, and where is my money? "] * 3
    >>> target, small = NGramModel(4, "char").fit(texts), NGramModel(2, "char").fit(texts)
    >>> from pilotfish.decoding.decoder import Decoder
    >>> from pilotfish.types import Request
    >>> ask = Request.of("where is my c", temperature=0, max_tokens=12)
    >>> reply, stats = Decoder(target, [TokenIntersection(small)], k=4).answer(ask)
    >>> reply.text == Decoder(target).generate([ask])[0].text
    True
    >>> stats.n_accepted > 0
    True
    """

    def __init__(self, model: WhiteBoxModel, least: float = 0.4) -> None:
        self.model = model
        self.least = least

    def begin(self, context: Context) -> Proposer:
        """Begin a reply.

        Raises
        ------
        InputError
            When the vocabularies share nothing.
        """
        return _SharedProposer(self.model, context, self.least)


class _SharedProposer:
    def __init__(self, model: WhiteBoxModel, context: Context, least: float) -> None:
        self._own = model.tokenizer
        self._context = context
        self._least = least
        self._follower = Follower(model, self._own.encode_request(context.request))
        exact = VocabularyMap.between(self._own, context.target.tokenizer).exact
        self._to = np.flatnonzero(exact >= 0)
        self._from = exact[self._to]
        self._own_of = dict(zip(self._to.tolist(), self._from.tolist(), strict=True))

    def draft(self, prefix: Sequence[int], k: int) -> Draft:
        text = self._context.target.tokenizer.decode(prefix[self._context.n_prompt :])
        if text.endswith("\ufffd"):
            return Draft()
        written = self._own.encode(text)
        return _drafted(
            self._follower, written, k, self._context, self._least, "shared tokens", self._seen, self._own_of
        )

    def _seen(self, logs: LogProbs) -> LogProbs:
        shared = np.full((1, self._context.target.tokenizer.n_vocabulary), -np.inf, dtype=np.float32)
        shared[0, self._to] = logs[0, self._from]
        return shared


def _drafted(
    follower: Follower,
    written: Sequence[int],
    k: int,
    context: Context,
    least: float,
    source: str,
    seen: Callable[[LogProbs], LogProbs],
    own_of: Mapping[int, int] | None = None,
) -> Draft:
    """Draft token by token, until the model is unsure of its token.

    ``seen`` gives the log-probabilities (1, n_vocabulary) of the target's tokens from the model's, ``own_of`` the
    model's token for each of the target's where they differ.
    """
    sampling = context.sampling
    k = min(k, follower.room(written) - 1)
    if k < 1:
        return Draft()
    logits = follower.follow(written)
    rng = context.draws()
    tokens: list[int] = []
    rows: list[Any] = []
    strength = 0
    while True:
        logs = seen(logits.log_probs())
        p = sampling.probabilities(logs)[0]
        top = float(p.max()) if sampling.temperature else float(np.exp(logs.max()))
        if not tokens:
            strength = min(15, int(top * 16))
        elif top < least:
            break
        token = int(rng.choice(p.size, p=p)) if sampling.temperature else int(p.argmax())
        tokens.append(token)
        rows.append(p)
        if len(tokens) == k:
            break
        logits = follower.extend([token if own_of is None else own_of[token]])
    return Draft(tokens, np.array(rows) if sampling.temperature else None, source, strength)


class Follower:
    """A session that is brought to any text by forgetting what differs and reading what is new.

    Parameters
    ----------
    model : WhiteBoxModel
        Whose session it is.
    prompt : sequence of int
        What every text begins with.
    """

    def __init__(self, model: WhiteBoxModel, prompt: Sequence[int]) -> None:
        self._session: Session = model.session()
        self._window = model.window
        self._prompt = list(prompt)
        self._read: list[int] = []

    def room(self, tokens: Sequence[int]) -> int:
        """How many tokens fit after a text."""
        return self._window - len(self._prompt) - len(tokens)

    def follow(self, tokens: Sequence[int]) -> Any:
        """The logits after the prompt and these tokens, (1, n_vocabulary)."""
        wanted = [*self._prompt, *tokens]
        n = min(n_common(self._read, wanted), len(wanted) - 1)
        self._session.rewind(len(self._read) - n)
        del self._read[n:]
        return self.extend(wanted[n:])

    def log_prob(self, tokens: Sequence[int]) -> float:
        """Natural log-probability of a text after the prompt."""
        if not tokens:
            return 0.0
        wanted = [*self._prompt, *tokens[:-1]]
        n = min(n_common(self._read, wanted), len(self._prompt) - 1)
        self._session.rewind(len(self._read) - n)
        logs = self._session.extend(wanted[n:], len(tokens)).log_probs()
        self._read = wanted
        return float(logs[np.arange(len(tokens)), list(tokens)].sum())

    def extend(self, tokens: Sequence[int]) -> Any:
        """The logits after further tokens, (1, n_vocabulary)."""
        logits = self._session.extend(tokens, 1)
        self._read.extend(tokens)
        return logits
