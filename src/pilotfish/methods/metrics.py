"""Metrics by name: what the command line and the gateway's checks call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from pilotfish.errors import InputError
from pilotfish.methods import find
from pilotfish.methods.options import missing, read_options
from pilotfish.protocols import Scorer
from pilotfish.types import Exchange

__all__ = ["make_metrics", "metric_parts"]


def make_metrics(
    names: Sequence[str],
    parts: Mapping[str, Any] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Scorer[Exchange]]:
    """Make scorers of answers by their methods' names.

    Parameters
    ----------
    names : sequence of str
        Methods that score answers, as ``pilotfish methods`` lists them.
    parts : mapping of str to object
        Given to every method that has an argument of that name: ``reader``, ``embedder``, ``entailment``, ``judge``,
        ``encoder``.
    options : mapping of str to mapping
        Further arguments of single methods, by their names.

    Raises
    ------
    InputError
        When there is no such metric or option, or a metric needs a part that was not given.

    Examples
    --------
    >>> sorted(make_metrics(["selfcheck", "rouge"], options={"rouge": {"kind": "rouge2"}}))
    ['rouge', 'selfcheck']
    """
    own = options or {}
    strangers = sorted(set(own) - set(names))
    if strangers:
        raise InputError(f"There are options of {strangers[0]!r}, which is not measured: name it among the metrics.")
    made: dict[str, Scorer[Exchange]] = {}
    for name in names:
        card = find(name)
        parameters = inspect.signature(card.make).parameters
        given = {k: v for k, v in (parts or {}).items() if k in parameters}
        given |= read_options("Metric", name, own.get(name, {}), card.make)
        if lacking := missing(card.make, given):
            part = lacking[0]
            raise InputError(f"Metric {name!r} needs --{part}, or {part!r} under [checks]: run it as '{card.command}'.")
        scorer = card.make(**given)
        if not hasattr(scorer, "score"):
            raise InputError(f"Method {name!r} does not score answers: run it as '{card.command}'.")
        made[name] = scorer
    if not made:
        raise InputError("There are no metrics: name at least one, such as rouge.")
    return made


def metric_parts(
    *, nli: str = "", judge: str = "", reader: str = "", embedder: str = "", n_threads: int | None = None
) -> dict[str, Any]:
    """The models that metrics share, by the names of the methods' arguments; nothing is loaded before it is used.

    Parameters
    ----------
    nli : str
        A folder that :func:`~pilotfish.training.entailment.train_entailment` wrote, or a cross-encoder of the hub.
    judge : str
        ``small``, or a name of the catalog or a GGUF file.
    reader : str
        A small language model by name, file or folder.
    embedder : str
        ``static``, ``minilm``, or a folder.
    n_threads : int, optional
        Threads of each; all cores by default.

    Examples
    --------
    >>> metric_parts(embedder="minilm")["embedder"].model
    'all-minilm-l6-v2'
    """
    parts: dict[str, Any] = {}
    if nli:
        from pilotfish.scorers.entailment import named_entailment

        parts["entailment"] = named_entailment(nli, n_threads)
    if judge:
        from pilotfish.scorers.judges import named_judge

        parts["judge"] = named_judge(judge, n_threads)
    if reader:
        from pilotfish.models.reading import CausalReader

        parts["reader"] = CausalReader(reader)
    if embedder:
        from pilotfish.models.embedder import OnnxEmbedder, StaticEmbedder

        named = {"static": StaticEmbedder, "minilm": OnnxEmbedder}
        parts["embedder"] = named[embedder]() if embedder in named else OnnxEmbedder(embedder)
    return parts
