"""A white-box model that answers requests through the one token loop, alone or with drafters around it."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pilotfish.decoding.acceptance import Acceptance, Repeatable, Sampling, Typical, choose_acceptance, seeded
from pilotfish.decoding.constraints import constraint_of
from pilotfish.decoding.controller import Costs, FixedLength, SpeedController
from pilotfish.decoding.copying import Lookup
from pilotfish.decoding.drafting import Context, Drafter, SmallModel
from pilotfish.decoding.fused import Fused, View, begin
from pilotfish.decoding.fusion import Fusion
from pilotfish.decoding.loop import Stats, decode
from pilotfish.decoding.text import TextStream
from pilotfish.errors import InputError
from pilotfish.models.tokenizers import refuse_unheeded
from pilotfish.protocols import Tokenizer, WhiteBoxModel
from pilotfish.types import Reply, Request, TokenLogProb, Usage

__all__ = ["Decoder", "fuse", "speculate"]


class Decoder:
    """Answers requests by decoding a white-box model: a :class:`Model` that streams.

    Fields of a request beyond the usual: ``response_format`` (JSON object or schema), ``choices`` (a list of texts) and
    ``grammar`` (GBNF or Lark) say what may be written.

    Parameters
    ----------
    target : WhiteBoxModel
        The model whose answer it is, or several that are fused.
    drafters : sequence of Drafter
        Asked in order; without any the target is decoded plainly.
    typical : Typical, optional
        Accept typical drafts in place of exact ones when sampling: faster, and not the target's distribution.
    k : int, optional
        Draft always so many tokens; the speed controller decides unless given.
    name : str
        Stated in replies.

    Attributes
    ----------
    costs : Costs
        What was measured so far; shared by all replies.

    Examples
    --------
    >>> from pilotfish.models.ngram import NGramModel
    >>> target = NGramModel(4, "char").fit(["where is my card, and where is my money? "] * 3)
    >>> request = Request.of("where is my c", temperature=0, max_tokens=12)
    >>> fast = Decoder(target, [Lookup()])
    >>> fast.generate([request])[0].text == Decoder(target).generate([request])[0].text
    True
    """

    def __init__(
        self,
        target: WhiteBoxModel,
        drafters: Sequence[Drafter] = (),
        *,
        typical: Typical | None = None,
        k: int | None = None,
        name: str = "",
    ) -> None:
        self.target = target
        self.drafters = tuple(drafters)
        self.typical = typical
        self.k = k
        self.name = name
        self.costs = Costs()

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: one reply per request, in order.

        Raises
        ------
        ContextLengthError
            When a prompt is longer than the model's window.
        InputError
            When a drafter does not fit the target, or a request asks for something impossible.
        ModelError
            When the model gives NaN, or the memory does not suffice.
        """
        return [self.answer(request)[0] for request in requests]

    def answer(self, request: Request) -> tuple[Reply, Stats]:
        """Answer one request, and tell what it took."""
        stats = Stats()
        run = self.stream(request, stats)
        while True:
            try:
                next(run)
            except StopIteration as end:
                reply: Reply = end.value
                return reply, stats

    def stream(self, request: Request, stats: Stats | None = None) -> Generator[str, None, Reply]:
        """Yield the reply's text as it is written, and return the reply; leaving the iteration stops the model.

        Parameters
        ----------
        request : Request
            What is asked.
        stats : Stats, optional
            Told what the reply takes.

        Raises
        ------
        ContextLengthError, InputError, ModelError
            As of :meth:`generate`.

        Examples
        --------
        >>> from pilotfish.models.ngram import NGramModel
        >>> target = NGramModel(4, "char").fit(["where is my card, and where is my money? "] * 3)
        >>> "".join(Decoder(target).stream(Request.of("where is my c", temperature=0, max_tokens=3)))
        'ard'
        """
        stats = stats if stats is not None else Stats()
        tokenizer = self.target.tokenizer
        sampling = Sampling(
            1.0 if request.temperature is None else request.temperature, 1.0 if request.top_p is None else request.top_p
        )
        refuse_unheeded(request)
        session, prompt, room = begin(self.target, request)
        rng = seeded(request.seed)
        acceptance = self._acceptance(sampling, repeatable=request.seed is not None)
        context = Context(self.target, request, len(prompt), sampling, rng, isinstance(acceptance, Repeatable))
        proposers = [(f"{i} {type(d).__name__}", d.begin(context)) for i, d in enumerate(self.drafters)]
        start = time.perf_counter()  # models are loaded by now
        text = TextStream(tokenizer, request.stop)
        logs: list[TokenLogProb] = []
        pieces: list[str] = []
        finish = "length"
        steps = decode(
            session,
            prompt,
            acceptance,
            proposers=proposers,
            controller=SpeedController(self.costs) if self.k is None else FixedLength(self.k),
            constraint=constraint_of(request, tokenizer),
            rng=rng,
            room=room,
            costs=self.costs,
            stats=stats,
        )
        n_written, n_seen = 0, 0
        for step in steps:
            n_seen += len(step.tokens)
            for i, token in enumerate(step.tokens):
                n_written += 1
                if token in tokenizer.end_tokens:
                    finish = "stop"
                    break
                if request.log_probs is not None:
                    logs.append(_log_prob(tokenizer, step.logits.log_probs()[step.rows[i]], token, request.log_probs))
                piece = text.write(token)
                if piece:
                    pieces.append(piece)
                    yield piece
                if text.stopped:
                    finish = "stop"
                    break
            if finish == "stop":
                break
        else:
            finish = "stop" if n_seen < room else "length"
        steps.close()
        if rest := text.close():
            pieces.append(rest)
            yield rest
        stats.n_tokens -= n_seen - n_written
        n_kept = text.n_tokens if text.stopped else n_written
        return Reply(
            "".join(pieces),
            model=self.name or str(getattr(self.target, "model", type(self.target).__name__)),
            usage=Usage(len(prompt), n_kept, latency=time.perf_counter() - start),
            finish_reason=finish,
            log_probs=tuple(logs[: text.n_tokens]),
        )

    def _acceptance(self, sampling: Sampling, *, repeatable: bool) -> Acceptance:
        if self.typical is not None and sampling.temperature > 0:
            return replace(self.typical, sampling=sampling)
        return choose_acceptance(sampling, repeatable=repeatable)


def speculate(target: WhiteBoxModel | Decoder, drafter: Drafter | WhiteBoxModel | Sequence[Any] = ()) -> Decoder:
    """Make a model faster without changing what it answers.

    Parameters
    ----------
    target : WhiteBoxModel or Decoder
        The model to speed up; one that :func:`fuse` made is taken as well.
    drafter : Drafter, WhiteBoxModel or sequence of them
        Asked in order; a model stands for :class:`SmallModel`. Prompt look-up unless given.

    Returns
    -------
    Decoder
        The same replies as the target's, sooner: identical at temperature 0, of the same distribution above it.

    Raises
    ------
    InputError
        When something is neither a drafter nor a model.

    Examples
    --------
    >>> from pilotfish.models.ngram import NGramModel
    >>> texts = ["where is my card, and where is my money? "] * 3
    >>> target, small = NGramModel(4, "char").fit(texts), NGramModel(2, "char").fit(texts)
    >>> fast = speculate(target, [Lookup(), small])
    >>> len(fast.drafters)
    2
    """
    if not isinstance(target, Decoder) and not hasattr(target, "session"):
        raise InputError(f"target is a {type(target).__name__}: give a white-box model, or what fuse made.")
    given: Sequence[Any] = drafter if isinstance(drafter, Sequence) else [drafter]
    made: list[Drafter] = []
    for one in given or [Lookup()]:
        if hasattr(one, "begin"):
            made.append(one)
        elif hasattr(one, "session"):
            made.append(SmallModel(one))
        else:
            raise InputError(f"drafter has a {type(one).__name__}: give a drafter or a white-box model.")
    return Decoder(target.target if isinstance(target, Decoder) else target, made)


def fuse(
    *, fusion: Fusion, gate: float | None = None, views: Mapping[str, View] | None = None, **models: WhiteBoxModel
) -> Decoder:
    """Let several models write one text together.

    Parameters
    ----------
    fusion : Fusion
        How their distributions become one.
    gate : float, optional
        Ask the further models only where the first gives its likeliest token less than this probability.
    views : mapping of str to callable, optional
        What a role is asked in the place of the request.
    **models : WhiteBoxModel
        One for each role of the fusion, under its name.

    Raises
    ------
    InputError
        When a role is missing or unknown.

    Examples
    --------
    >>> from pilotfish.decoding.fusion import Contrastive
    >>> from pilotfish.models.ngram import NGramModel
    >>> texts = ["where is my card, and where is my money? "] * 3
    >>> large, small = NGramModel(5, "char").fit(texts), NGramModel(1, "char").fit(texts)
    >>> fused = fuse(expert=large, amateur=small, fusion=Contrastive(alpha=0.1, beta=0.5))
    >>> fused.generate([Request.of("where is my c", temperature=0, max_tokens=3)])[0].text
    'ard'
    """
    return Decoder(Fused(fusion, models, views=views, gate=gate))


def _log_prob(tokenizer: Tokenizer, logs: Any, token: int, n_top: int) -> TokenLogProb:
    best = np.argsort(-logs, kind="stable")[:n_top].tolist()
    top = tuple((tokenizer.decode([int(i)]), float(logs[i])) for i in best)
    return TokenLogProb(tokenizer.decode([token]), min(0.0, float(logs[token])), top)
