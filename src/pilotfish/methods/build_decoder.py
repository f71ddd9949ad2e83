"""Decoders by name: what the command line and the gateway's configuration call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pilotfish.decoding.acceptance import Typical
from pilotfish.decoding.branches import Branches
from pilotfish.decoding.copying import Lookup, Retrieval
from pilotfish.decoding.decoder import Decoder
from pilotfish.decoding.drafting import Drafter, EarlyExit, OtherVocabulary, SmallModel, TokenIntersection
from pilotfish.decoding.fused import Fused
from pilotfish.decoding.fusion import (
    ContextAware,
    Contrastive,
    Fusion,
    Mixture,
    Product,
    ProxyTuning,
    SourceContrastive,
)
from pilotfish.decoding.search import ChunkSearch
from pilotfish.decoding.vocabulary import same_vocabulary
from pilotfish.errors import InputError
from pilotfish.models.transformers import TransformersModel
from pilotfish.protocols import WhiteBoxModel
from pilotfish.traffic.log import TrafficLog
from pilotfish.training.combination import LearnedCombination
from pilotfish.types import Message, Request

__all__ = ["FUSIONS", "make_decoder", "make_fusion", "make_search", "without_context", "wrong_source"]


Dtype = Literal["float32", "bfloat16", "float16"]
Loaded = dict[tuple[str, str], TransformersModel]


def _learned(file: str) -> Fusion:
    return LearnedCombination.load(file)


FUSIONS: dict[str, Callable[..., Fusion]] = {
    "contrastive": Contrastive,
    "context_aware": ContextAware,
    "source_contrastive": SourceContrastive,
    "proxy_tuning": ProxyTuning,
    "product": Product,
    "mixture": Mixture,
    "private": Mixture,
    "comblm": _learned,
}


def without_context(request: Request) -> Request:
    """The request without its system messages, which hold the context."""
    left = tuple(m for m in request.messages if m.role not in ("system", "developer"))
    return request.replace(messages=left or (Message("user", ""),))


def wrong_source(request: Request) -> Request:
    """The request with the text of its field ``wrong_source`` as system message in the place of its own."""
    text = request.extra.get("wrong_source")
    bare = without_context(request)
    return bare.replace(messages=(Message("system", str(text)), *bare.messages)) if text else bare


_N_REPLIES = 20_000
_OPTION_KINDS: dict[type, str] = {bool: "true or false", float: "a number", str: "a file's name"}
_VIEWS: dict[str, dict[str, Callable[[Request], Request]]] = {
    "context_aware": {"without_context": without_context},
    "source_contrastive": {"wrong_source": wrong_source},
    "private": {"other": without_context},
}


class AnyModel:
    """Drafts with a model of whichever vocabulary: token by token where it is the target's, else through text.

    Parameters
    ----------
    model : WhiteBoxModel
        The small model.
    """

    def __init__(self, model: WhiteBoxModel) -> None:
        self.model = model

    def begin(self, context: Any) -> Any:
        """Begin a reply."""
        same = same_vocabulary(self.model.tokenizer, context.target.tokenizer)
        drafter: Drafter = SmallModel(self.model) if same else OtherVocabulary(self.model)
        return drafter.begin(context)


class _Replies:
    """The newest distinct replies of a traffic log, read when they are iterated over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[str]:
        log = TrafficLog(self.path, read_only=True)
        try:
            calls = log.calls(limit=_N_REPLIES, newest_first=True)
            yield from dict.fromkeys(call.answer for call in calls if call.answer)
        finally:
            log.close()


class _Lines:
    """The paragraphs of a text file, read when they are iterated over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[str]:
        yield from self.path.read_text(encoding="utf-8", errors="replace").split("\n\n")


def make_fusion(kind: str, options: Mapping[str, bool | float | str] | None = None) -> Fusion:
    """A fusion by its name; ``comblm`` has the option ``file``, where its learned combination was saved.

    Raises
    ------
    InputError
        When there is none of that name, or an option is unknown or out of range.

    Examples
    --------
    >>> make_fusion("contrastive", {"alpha": 0.2}).alpha
    0.2
    """
    if kind not in FUSIONS:
        raise InputError(f"fusion is {kind!r}: use one of {', '.join(FUSIONS)}.")
    known = inspect.signature(FUSIONS[kind]).parameters
    for name, value in (options or {}).items():
        if name not in known:
            raise InputError(f"Fusion {kind!r} has no option {name!r}: it takes {', '.join(known)}.")
        wanted = str if name == "file" else bool if isinstance(known[name].default, bool) else float
        if (float if type(value) is int else type(value)) is not wanted:
            raise InputError(f"Option {name!r} of fusion {kind!r} is {value!r}: give {_OPTION_KINDS[wanted]}.")
    if kind == "comblm" and "file" not in (options or {}):
        raise InputError("Fusion 'comblm' has no option 'file': give the file of a saved LearnedCombination.")
    return FUSIONS[kind](**(options or {}))


def make_decoder(
    target: str,
    draft: Sequence[str] = (),
    *,
    fusion: Mapping[str, Any] | None = None,
    typical: bool = False,
    dtype: Dtype = "float32",
    name: str = "",
    loaded: Loaded | None = None,
) -> Decoder:
    """Make a decoder from names; model files are read at the first call.

    Parameters
    ----------
    target : str
        As of :class:`TransformersModel`.
    draft : sequence of str
        ``lookup``, ``exit:N``, ``log:FILE`` (replies of a traffic log), ``corpus:FILE`` (a text), or a model; of a
        model of another family ``tokens:NAME`` drafts by the tokens both have, not by text; ``branches:A,B`` checks
        what several propose side by side.
    fusion : mapping, optional
        ``kind``, ``models`` by role (the target unless given), ``gate`` and ``options``.
    typical : bool
        Accept typical drafts when sampling: faster, and not the target's distribution.
    dtype : str
        Of all weights.
    name : str
        Stated in replies.
    loaded : dict, optional
        Models made before by source and dtype, used again and added to: decoders share weights.

    Raises
    ------
    InputError
        When a drafter, the fusion or a role is wrong.

    Examples
    --------
    >>> len(make_decoder("smollm2-135m-instruct", ["lookup", "exit:6"]).drafters)
    2
    """
    model = _sharing(loaded, dtype)
    whole: WhiteBoxModel = model(target)
    if fusion is not None:
        made = make_fusion(fusion["kind"], fusion.get("options"))
        given = fusion.get("models") or {}
        unknown = sorted(set(given) - set(made.roles))
        if unknown:
            raise InputError(f"Fusion {fusion['kind']!r} has no role {unknown[0]!r}: it has {', '.join(made.roles)}.")
        if fusion["kind"] not in ("context_aware", "source_contrastive") and (
            missing := [r for r in made.roles[1:] if r not in given]
        ):
            raise InputError(f"Fusion {fusion['kind']!r} has no model for the role {missing[0]!r}: name one.")
        models = {role: model(given.get(role, target)) for role in made.roles}
        whole = Fused(made, models, views=_VIEWS.get(fusion["kind"]), gate=fusion.get("gate"))
    drafters = [_drafter(text, model) for text in draft]
    return Decoder(whole, drafters, typical=Typical() if typical else None, name=name or target)


def make_search(
    target: str,
    tuned: str,
    untuned: str,
    sizes: Mapping[str, int] | None = None,
    *,
    dtype: Dtype = "float32",
    loaded: Loaded | None = None,
) -> ChunkSearch:
    """Make a weak-to-strong search from names; model files are read at the first call.

    Parameters
    ----------
    target : str
        The large model, as of :class:`TransformersModel`.
    tuned, untuned : str
        The small pair.
    sizes : mapping of str to int, optional
        ``n_beams``, ``n_draws`` and ``chunk`` of :class:`ChunkSearch`.
    dtype : str
        Of all weights.
    loaded : dict, optional
        As of :func:`make_decoder`.

    Raises
    ------
    InputError
        When a size is unknown.

    Examples
    --------
    >>> make_search("qwen2.5-coder-0.5b-instruct", "tuned-folder", "smollm2-135m-instruct", {"n_beams": 3}).n_beams
    3
    """
    for name in sizes or {}:
        if name not in ("n_beams", "n_draws", "chunk"):
            raise InputError(f"Search has no option {name!r}: it takes tuned, untuned, n_beams, n_draws and chunk.")
    model = _sharing(loaded, dtype)
    return ChunkSearch(model(target), model(tuned), model(untuned), **(sizes or {}))


def _sharing(loaded: Loaded | None, dtype: Dtype) -> Callable[[str], TransformersModel]:
    """Makes each model once."""
    made: Loaded = {} if loaded is None else loaded
    return lambda source: made.setdefault((source, dtype), TransformersModel(source, dtype=dtype))


def _drafter(text: str, model: Callable[[str], TransformersModel]) -> Drafter:
    if text == "lookup":
        return Lookup()
    kind, colon, n = text.partition(":")
    if kind == "branches" and colon:
        return Branches([_drafter(part, model) for part in n.split(",") if part])
    if kind in ("log", "corpus") and colon:
        if not Path(n).is_file():
            raise InputError(f"draft is {text!r}, but there is no file {n}: give {kind}:FILE.")
        return Retrieval(_Replies(Path(n)) if kind == "log" else _Lines(Path(n)))
    if kind == "exit" and colon:
        if not n.isdecimal():
            raise InputError(f"draft is {text!r}: give exit:N with a number of layers.")
        return EarlyExit(int(n))
    if kind == "tokens" and colon:
        return TokenIntersection(model(n))
    return AnyModel(model(text))
