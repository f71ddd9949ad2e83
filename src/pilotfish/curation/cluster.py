"""Shards as tasks of a Ray cluster: the same work on the same files, on a file system that every node sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pilotfish.errors import InputError, missing_extra

__all__ = ["mapped"]

A = TypeVar("A")
B = TypeVar("B")


def mapped(work: Callable[[A], B], jobs: Sequence[A], address: str) -> Iterator[B]:
    """Yield the results of jobs in their order, from tasks of the cluster at ``ray://host:port``.

    ``ray://`` alone starts a cluster of this machine.

    Raises
    ------
    InputError
        When the address is of another kind.
    MissingExtraError
        When Ray is not installed.
    """
    if not address.startswith("ray://"):
        raise InputError(f"--on is {address!r}: give ray://host:port, or ray:// for this machine.")
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "scale", "Running on a cluster") from None
    if not ray.is_initialized():
        ray.init(address=address if address != "ray://" else None, log_to_driver=False)
    task = ray.remote(work)
    yield from (ray.get(reference) for reference in [task.remote(job) for job in jobs])
