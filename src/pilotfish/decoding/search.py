"""Search: steer a large model by what tuning did to a small one, chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pilotfish.decoding.acceptance import Lossless, Sampling, seeded
from pilotfish.decoding.constraints import constraint_of
from pilotfish.decoding.drafting import Follower
from pilotfish.decoding.fused import begin
from pilotfish.decoding.loop import decode
from pilotfish.errors import InputError
from pilotfish.models.tokenizers import refuse_unheeded
from pilotfish.protocols import Model, Session, WhiteBoxModel
from pilotfish.types import Message, Reply, Request, Usage

__all__ = ["BlackBoxSearch", "ChunkSearch", "LogRatio"]


class LogRatio:
    """Scores a reply to a request by log p_tuned - log p_untuned of its text; higher is better, in nats.

    Parameters
    ----------
    tuned, untuned : WhiteBoxModel
        The small model after and before it was tuned; each reads the text in its own tokens.

    References
    ----------
    Weak-to-strong search: Zhou et al., arXiv:2405.19262, eq. 4.

    Examples
    --------
    >>> from pilotfish.models.ngram import NGramModel
    >>> texts = ["good cards, good money. ", "bad cards, bad money. "] * 4
    >>> untuned = NGramModel(4, "char").fit(texts)
    >>> tuned = NGramModel(4, "char").fit(texts[::2] * 3 + texts[1::2])
    >>> good, bad = LogRatio(tuned, untuned).score(Request.of("My "), ["good money.", "bad money."])
    >>> good > bad
    True
    """

    def __init__(self, tuned: WhiteBoxModel, untuned: WhiteBoxModel) -> None:
        self.tuned = tuned
        self.untuned = untuned

    def score(self, request: Request, texts: Sequence[str]) -> list[float]:
        """One number for each text."""
        sides = [Follower(m, m.tokenizer.encode_request(request)) for m in (self.tuned, self.untuned)]
        encoders = (self.tuned.tokenizer, self.untuned.tokenizer)
        scores = []
        for text in texts:
            a, b = (side.log_prob(t.encode(text)) for side, t in zip(sides, encoders, strict=True))
            scores.append(a - b)
        return scores


@dataclass(slots=True)
class _Beam:
    session: Session
    tokens: list[int]
    unread: list[int]
    text: str = ""
    ended: bool = False
    score: float = 0.0


class ChunkSearch:
    """Chunk-level beam search: from each of W beams K chunks are drawn, and the W best by the ratio go on.

    Chunks are drawn at the request's temperature, 1 unless it states one; at 0 they would all be the same.

    W = 1 is chunk-wise best-of-K; a chunk as long as the reply is best-of-(W K).

    Parameters
    ----------
    model : WhiteBoxModel
        The large model.
    tuned, untuned : WhiteBoxModel
        The small pair, of any vocabulary.
    n_beams, n_draws, chunk : int
        W, K and the tokens of a chunk.
    max_tokens : int
        Longest reply, where the request states none.

    References
    ----------
    Zhou et al., arXiv:2405.19262, algorithm 1.

    Examples
    --------
    >>> from pilotfish.models.ngram import NGramModel
    >>> texts = ["good cards, good money. ", "bad cards, bad money. "] * 4
    >>> large, untuned = NGramModel(5, "char").fit(texts), NGramModel(4, "char").fit(texts)
    >>> tuned = NGramModel(4, "char").fit(texts[::2] * 3 + texts[1::2])
    >>> search = ChunkSearch(large, tuned, untuned, n_draws=4, chunk=6)
    >>> len(search.generate([Request.of(", ", max_tokens=12, seed=0)])[0].text)
    12
    """

    def __init__(
        self,
        model: WhiteBoxModel,
        tuned: WhiteBoxModel,
        untuned: WhiteBoxModel,
        *,
        n_beams: int = 2,
        n_draws: int = 2,
        chunk: int = 8,
        max_tokens: int = 128,
    ) -> None:
        self.model = model
        self.tuned = tuned
        self.untuned = untuned
        self.n_beams = n_beams
        self.n_draws = n_draws
        self.chunk = chunk
        self.max_tokens = max_tokens

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: one reply per request, in order.

        Raises
        ------
        ContextLengthError
            When a prompt is longer than the model's window.
        InputError
            When a size is below 1, or a request has temperature 0, a form to keep, log-probabilities to tell or no
            prompt.
        """
        _check_sizes(self.n_beams, self.n_draws, self.chunk)
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Reply:
        start = time.perf_counter()
        _check_drawn(request)
        refuse_unheeded(request)
        tokenizer, rng = self.model.tokenizer, seeded(request.seed)
        if constraint_of(request, tokenizer) is not None:
            raise InputError("A search keeps to no form: leave out choices, grammar and response_format.")
        ratio = LogRatio(self.tuned, self.untuned)
        session, prompt, room = begin(self.model, request)
        if request.max_tokens is None:
            room = min(room, self.max_tokens)
        # Read once for all draws, which fork the session: only the last token is read again, for what it expects.
        session.extend(prompt, 1)
        session.rewind(1)
        beams = [_Beam(session, [], prompt[-1:])]
        while room > 0 and not all(beam.ended for beam in beams):
            drawn: list[_Beam] = []
            for beam in beams:
                n = 1 if beam.ended else self.n_draws * (self.n_beams if len(beams) == 1 else 1)
                drawn += (
                    [beam] if beam.ended else [self._draw(beam, request, min(room, self.chunk), rng) for _ in range(n)]
                )
            for beam, score in zip(drawn, ratio.score(request, [beam.text for beam in drawn]), strict=True):
                beam.score = score
            drawn.sort(key=lambda beam: -beam.score)
            beams = drawn[: self.n_beams]
            room -= self.chunk
        best = beams[0]
        return Reply(
            best.text,
            model=str(getattr(self.model, "model", "search")),
            usage=Usage(len(prompt), len(best.tokens), latency=time.perf_counter() - start),
            finish_reason="stop" if best.ended else "length",
        )

    def _draw(self, beam: _Beam, request: Request, n: int, rng: np.random.Generator) -> _Beam:
        ends = self.model.tokenizer.end_tokens
        session, tokens = beam.session.fork(), list(beam.tokens)
        temperature = 1.0 if request.temperature is None else request.temperature
        acceptance = Lossless(Sampling(temperature, request.top_p or 1.0))
        unread = beam.unread
        for step in decode(session, beam.unread, acceptance, rng=rng, room=n):
            if step.tokens[0] in ends:
                return _Beam(session, tokens, unread, self.model.tokenizer.decode(tokens), ended=True)
            tokens += step.tokens
            unread = step.tokens
        text = self.model.tokenizer.decode(tokens)
        stops = [at for stop in request.stop if stop and (at := text.find(stop)) >= 0]
        return _Beam(session, tokens, unread, text[: min(stops)] if stops else text, ended=bool(stops))


class BlackBoxSearch:
    """The same search over a model that only answers: chunks are asked for as continuations of an assistant turn.

    Parameters
    ----------
    model : Model
        The large model.
    tuned, untuned : WhiteBoxModel
        The small pair.
    n_beams, n_draws, chunk : int
        W, K and the tokens of a chunk.
    n_chunks : int
        Longest reply, in chunks.
    go_on : callable, optional
        From a request and the text so far to the request for the next chunk; unless given, the text is put at the end
        of the prompt to be continued.

    References
    ----------
    Zhou et al., arXiv:2405.19262, section 4.2.

    Examples
    --------
    >>> from pilotfish.models.ngram import NGramModel
    >>> texts = ["good cards, good money. ", "bad cards, bad money. "] * 4
    >>> large, untuned = NGramModel(5, "char").fit(texts), NGramModel(4, "char").fit(texts)
    >>> tuned = NGramModel(4, "char").fit(texts[::2] * 3 + texts[1::2])
    >>> search = BlackBoxSearch(large, tuned, untuned, n_draws=4, chunk=6, n_chunks=2)
    >>> len(search.generate([Request.of(", ", seed=0)])[0].text)
    12
    """

    def __init__(
        self,
        model: Model,
        tuned: WhiteBoxModel,
        untuned: WhiteBoxModel,
        *,
        n_beams: int = 2,
        n_draws: int = 2,
        chunk: int = 8,
        n_chunks: int = 8,
        go_on: Callable[[Request, str], Request] | None = None,
    ) -> None:
        self.model = model
        self.tuned = tuned
        self.untuned = untuned
        self.n_beams = n_beams
        self.n_draws = n_draws
        self.chunk = chunk
        self.n_chunks = n_chunks
        self.go_on = go_on

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: one reply per request, in order.

        Raises
        ------
        InputError
            When a size is below 1, or a request has temperature 0.
        """
        _check_sizes(self.n_beams, self.n_draws, self.chunk)
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Reply:
        _check_drawn(request)
        ratio = LogRatio(self.tuned, self.untuned)
        go_on = self.go_on or _continued
        beams: list[tuple[str, bool]] = [("", False)]
        usage, name = Usage(), ""
        for step in range(self.n_chunks):
            if all(ended for _, ended in beams):
                break
            drawn = [beam for beam in beams if beam[1]]
            asked: list[Request] = []
            texts: list[str] = []
            for text, ended in beams:
                for draw in range(0 if ended else self.n_draws * (self.n_beams if len(beams) == 1 else 1)):
                    seed = (request.seed or 0) * 7919 + 101 * step + draw + len(asked)
                    asked.append(go_on(request, text).replace(max_tokens=self.chunk, seed=seed))
                    texts.append(text)
            for text, reply in zip(texts, self.model.generate(asked), strict=True):
                usage, name = usage + reply.usage, reply.model
                drawn.append((text + reply.text, reply.finish_reason == "stop" or not reply.text))
            drawn = list(dict.fromkeys(drawn))
            scores = ratio.score(request, [text for text, _ in drawn])
            order = sorted(range(len(drawn)), key=lambda i: -scores[i])
            beams = [drawn[i] for i in order[: self.n_beams]]
        return Reply(beams[0][0], model=name, usage=usage, finish_reason="stop" if beams[0][1] else "length")


def _continued(request: Request, text: str) -> Request:
    if not text:
        return request
    asked = f"{request.prompt}\n\nGo on with this answer exactly where it ends, and write only what follows:\n{text}"
    return request.replace(messages=(*request.messages[:-1], Message("user", asked)))


def _check_drawn(request: Request) -> None:
    if request.log_probs is not None:
        raise InputError("Field 'logprobs' is set, but a search tells no probabilities of its tokens: leave it out.")
    if request.temperature == 0:
        raise InputError("Field 'temperature' is 0, where all chunks are the same: give more, or leave it out.")


def _check_sizes(*sizes: int) -> None:
    if min(sizes) < 1:
        raise InputError(f"n_beams, n_draws and chunk are {sizes}: give at least 1 of each.")
