"""What calls take that are made on the way to a score: part of what the answer costs, though no part of the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from pilotfish.errors import ModelError
from pilotfish.protocols import Model
from pilotfish.types import Reply, Request, Usage

__all__ = ["ask_aside", "charged", "counted", "shared"]

_counts: ContextVar[list[Usage] | None] = ContextVar("counts", default=None)


def ask_aside(model: Model, requests: Sequence[Request]) -> list[Reply]:
    """Ask a model on the way to a score; what that takes is noted where it is :func:`counted`."""
    replies = model.generate(requests)
    counts = _counts.get()
    if counts is not None:
        counts += [reply.usage for reply in replies]
    return replies


@contextmanager
def counted() -> Iterator[list[Usage]]:
    """Collect what is asked aside within.

    Examples
    --------
    >>> from pilotfish.models.fake import FakeModel
    >>> with counted() as usages:
    ...     _ = ask_aside(FakeModel("Yes", completion_price=1e6), [Request.of("Is it?"), Request.of("Sure?")])
    >>> sum(usage.cost for usage in usages)
    2.0
    """
    usages: list[Usage] = []
    before = _counts.set(usages)
    try:
        yield usages
    finally:
        _counts.reset(before)


def shared(usages: Sequence[Usage], n: int) -> list[Usage]:
    """What was taken for a batch, as equal parts of its ``n`` items; tokens that are left over go to the first.

    Examples
    --------
    >>> [part.prompt_tokens for part in shared([Usage(3, 0, 0.5), Usage(2, 0, 0.5)], 2)]
    [3, 2]
    """
    total = sum(usages, Usage())
    return [
        Usage(
            total.prompt_tokens // n + (k < total.prompt_tokens % n),
            total.completion_tokens // n + (k < total.completion_tokens % n),
            total.cost / n,
            total.latency / n,
        )
        for k in range(n)
    ]


@contextmanager
def charged(usages: Sequence[Usage]) -> Iterator[None]:
    """Have an error of the model that is asked within carry what was spent before it.

    Examples
    --------
    >>> try:
    ...     with charged([Usage(cost=0.5)]):
    ...         raise ModelError("The model is away: try later.")
    ... except ModelError as error:
    ...     print(error.cost)
    0.5
    """
    try:
        yield
    except ModelError as error:
        error.cost += sum(usage.cost for usage in usages)
        raise
