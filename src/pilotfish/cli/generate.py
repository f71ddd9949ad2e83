"""The command that writes one reply through the token loop: speculation, fusion and constraints from the shell."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilotfish.errors import InputError

if TYPE_CHECKING:
    from pilotfish.decoding.search import ChunkSearch
    from pilotfish.types import Reply

__all__ = ["generate"]


def generate(
    prompt: Annotated[str, typer.Argument(help="what to ask; - reads standard input")],
    target: Annotated[str, typer.Option("--target", "-t", help="model that answers: catalog name, file or folder")],
    draft: Annotated[
        list[str] | None,
        typer.Option(
            "--draft", "-d", help="lookup, exit:N, log:FILE, corpus:FILE, a model, tokens:NAME, or branches:A,B"
        ),
    ] = None,
    typical: Annotated[
        bool, typer.Option("--typical", help="accept typical drafts when sampling: faster, another distribution")
    ] = False,
    fusion: Annotated[str, typer.Option("--fusion", "-f", help="such as contrastive:alpha=0.1,beta=0.5")] = "",
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="ROLE=NAME of the fusion; repeat")] = None,
    search: Annotated[str, typer.Option("--search", help="tuned=NAME,untuned=NAME,n_beams=2,n_draws=2,chunk=8")] = "",
    gate: Annotated[float | None, typer.Option("--gate", help="fuse only below this probability")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="system message")] = None,
    schema: Annotated[Path | None, typer.Option("--schema", help="file of the JSON schema to follow")] = None,
    choice: Annotated[list[str] | None, typer.Option("--choice", help="answer only with one of these; repeat")] = None,
    grammar: Annotated[Path | None, typer.Option("--grammar", help="file of the GBNF or Lark grammar to keep")] = None,
    wrong_source: Annotated[
        str | None, typer.Option("--wrong-source", help="what source_contrastive holds the system message against")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="end the reply before this; repeat")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="longest reply")] = 256,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="0, the default, takes the likeliest token; 1 for a search")
    ] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="draw from the likeliest tokens of this share")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="seed of the sampling")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16")] = "float32",
    stats: Annotated[bool, typer.Option("--stats", help="say what it took, on standard error")] = False,
) -> None:
    """Answer a prompt with a local model, faster by drafts or changed by fusion; what is written is shown at once."""
    from pilotfish.decoding.loop import Stats
    from pilotfish.methods.build_decoder import make_decoder
    from pilotfish.types import Request

    if dtype not in ("float32", "bfloat16", "float16"):
        raise InputError(f"dtype is {dtype!r}: use float32, bfloat16 or float16.")
    fused: dict[str, Any] | None = None
    if fusion:
        kind, _, options = fusion.partition(":")
        fused = {
            "kind": kind,
            "options": {
                k: v if k == "file" else _value(k, v)
                for k, v in _pairs("fusion", options.split(",") if options else [])
            },
            "models": dict(_pairs("model", model or [])),
            "gate": gate,
        }
    elif model or gate is not None:
        raise InputError("model and gate belong to a fusion: give --fusion too.")
    extra: dict[str, Any] = {"choices": choice} if choice else {}
    if schema is not None:
        extra["response_format"] = {"type": "json_schema", "json_schema": {"schema": _json(schema)}}
    if grammar is not None:
        extra["grammar"] = _text(grammar)
    if wrong_source is not None:
        if fused is None or fused["kind"] != "source_contrastive":
            raise InputError("wrong-source belongs to a fusion: give --fusion source_contrastive too.")
        extra["wrong_source"] = wrong_source
    try:
        text = sys.stdin.read() if prompt == "-" else prompt
    except UnicodeDecodeError as error:
        raise InputError(f"Standard input is no UTF-8 ({error}): give text.") from None
    if temperature is None and not search:
        temperature = 0.0
    request = Request.of(
        text,
        system,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
        seed=seed,
        extra=extra,
    )
    if search:
        if draft or typical or fused or extra or stats:
            raise InputError(
                "search goes without draft, typical, fusion, schema, choice, grammar and stats: leave them out."
            )
        print(_searched(target, search, dtype).generate([request])[0].text)
        return
    if typical and not draft:
        raise InputError("typical is given, but there are no drafts to accept: give --draft too.")
    decoder = make_decoder(target, draft or [], fusion=fused, typical=typical, dtype=dtype)  # type: ignore[arg-type]
    took = Stats()
    reply = _shown(decoder.stream(request, took))
    if stats:
        rate = took.n_tokens / max(reply.usage.latency, 1e-9)
        print(
            f"{took.n_tokens} tokens in {reply.usage.latency:.2f} s ({rate:.1f} a second), {took.n_passes} passes, "
            f"{took.tokens_per_pass:.2f} tokens a pass",
            file=sys.stderr,
        )
        for source, (n_drafted, n_accepted) in took.sources.items():
            print(f"{source}: {n_accepted} of {n_drafted} drafted tokens stood", file=sys.stderr)


def _shown(texts: Generator[str, None, Reply]) -> Reply:
    """Print a reply as it is written."""
    while True:
        try:
            print(next(texts), end="", flush=True)
        except StopIteration as end:
            print()
            reply: Reply = end.value
            return reply


def _searched(target: str, search: str, dtype: Any) -> ChunkSearch:
    from pilotfish.methods.build_decoder import make_search

    given = dict(_pairs("search", search.split(",")))
    small = [given.pop(name, "") for name in ("tuned", "untuned")]
    if not all(small):
        raise InputError(f"search is {search!r}: give tuned=NAME and untuned=NAME.")
    sizes = {name: _size(name, text) for name, text in given.items()}
    return make_search(target, small[0], small[1], sizes, dtype=dtype)


def _pairs(field: str, texts: list[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise InputError(f"{field} has {text!r}: give NAME=VALUE.")
        pairs.append((key.strip(), value.strip()))
    return pairs


def _value(name: str, text: str) -> bool | float:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        raise InputError(f"Option {name!r} is {text!r}: give a number, true or false.") from None


def _size(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"Option {name!r} is {text!r}: give a whole number of at least 1.")
    return int(text)


def _json(path: Path) -> Any:
    import json

    text = _text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"The schema {path} cannot be read ({error}): give a file of JSON.") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"The file {path} cannot be read ({error}): give a file of text.") from None
