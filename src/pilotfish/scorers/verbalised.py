"""Confidence that a model states in words: asked for with each answer, read out of it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pilotfish.protocols import FloatArray, Model
from pilotfish.types import Exchange, Message, Reply, Request

__all__ = ["AskedConfidence", "VerbalisedConfidence"]


class VerbalisedConfidence:
    """The confidence written in the answer itself ("Confidence: 85 %"), as a probability; NaN where there is none.

    References
    ----------
    Tian et al. 2023, Just ask for calibration (arXiv:2305.14975).

    Examples
    --------
    >>> from pilotfish.types import Reply, Request
    >>> VerbalisedConfidence().score([Exchange(Request.of("2+2?"), Reply("4. Confidence: 85%"))])
    array([0.85])
    """

    instruction = "After the answer, write 'Confidence: ' and the probability in percent that your answer is right."
    _pattern = re.compile(
        r"(?:confidence|probability)\D{0,20}?(\d+(?:\.\d+)?)\s*(%|(?:/|out\s+of)\s*([1-9]\d*))?", re.IGNORECASE
    )

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Probability that each answer is right, (n,): the one taken out of the text, where that was done already."""
        return np.array(
            [self.read(e.reply.text)[0] if e.reply.confidence is None else e.reply.confidence for e in items]
        )

    @classmethod
    def read(cls, text: str) -> tuple[float, str]:
        """Read the last confidence that an answer states, NaN where there is none, and the answer without it."""
        found = list(cls._pattern.finditer(text))
        if not found:
            return math.nan, text
        last = found[-1]
        value, unit, most = float(last.group(1)), last.group(2), last.group(3)
        share = value / float(most) if most else value / 100 if unit or value > 1 else value
        # What only speaks of a probability, or stands amid the answer, is part of it.
        apart = last.group().casefold().startswith("confidence") and not text[last.end() :].strip(" .*_)")
        return min(share, 1.0), (text[: last.start()].rstrip(" \n*_(") if apart else text)


class AskedConfidence:
    """A model that is asked to state its confidence with each answer; the answer is returned without it.

    Parameters
    ----------
    model : Model
        Asked.

    Examples
    --------
    >>> from pilotfish.models.fake import FakeModel
    >>> from pilotfish.types import Request
    >>> [reply] = AskedConfidence(FakeModel("4. Confidence: 85%")).generate([Request.of("2+2?")])
    >>> reply.text, reply.confidence
    ('4.', 0.85)
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: one reply per request, in order."""
        replies = []
        for reply in self.model.generate([_instructed(request) for request in requests]):
            value, text = VerbalisedConfidence.read(reply.text)
            replies.append(reply if math.isnan(value) else reply.replace(text=text, confidence=value))
        return replies


def _instructed(request: Request) -> Request:
    said = VerbalisedConfidence.instruction
    first, *rest = request.messages
    if first.role not in ("system", "developer"):
        return request.replace(messages=(Message("system", said), *request.messages))
    if isinstance(first.content, str):
        return request.replace(messages=(replace(first, content=f"{first.content}\n\n{said}"), *rest))
    return request.replace(messages=(replace(first, content=(*first.content, {"type": "text", "text": said})), *rest))
