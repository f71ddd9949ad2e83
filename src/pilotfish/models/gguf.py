"""GGUF models in this process, through xllamacpp (llama.cpp)."""

from __future__ import annotations

import json
import math
import os
import queue
import secrets
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pilotfish.errors import ContextLengthError, InputError, ModelError, missing_extra
from pilotfish.models import catalog
from pilotfish.models.completions import log_probs_of
from pilotfish.types import Reply, Request, Usage

__all__ = ["GGUFModel"]

_NOT_PASSED = frozenset({"stream", "stream_options", "n", "choices"})


class GGUFModel:
    """A GGUF model run by llama.cpp in this process.

    Further fields of a request go on to llama.cpp: ``response_format`` (JSON object or schema), ``grammar`` (GBNF),
    ``top_k``, ``min_p``, ``cache_prompt``. Besides, ``choices``, a list of texts, lets the model answer only with one
    of them. The files are read and the threads started at the first call.

    Parameters
    ----------
    model : str or Path
        A name of the catalog (pulled when it is not there yet), or a ``.gguf`` file.
    n_ctx : int
        Longest prompt and reply together, in tokens.
    n_parallel : int
        Requests decoded at once; each has a window of its own.
    n_threads : int, optional
        Threads; all cores by default. Give fewer where other work keeps the cores busy: the threads wait for each
        other at every step.
    chat : bool, optional
        Use the model's chat template; else continue the text of the last user message. By default as the catalog says,
        and true for a file.

    Examples
    --------
    >>> GGUFModel("smollm2-135m-instruct", n_ctx=2048).n_ctx
    2048
    """

    def __init__(
        self,
        model: str | Path,
        n_ctx: int = 4096,
        n_parallel: int = 2,
        n_threads: int | None = None,
        *,
        chat: bool | None = None,
    ) -> None:
        self.model = model
        self.n_ctx = n_ctx
        self.n_parallel = n_parallel
        self.n_threads = n_threads
        self.chat = chat
        self._server: Any = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The catalog's name, or the name of the file."""
        return self.model if isinstance(self.model, str) and self.model in catalog.NAMES else Path(self.model).stem

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: one reply per request, in order.

        Raises
        ------
        MissingExtraError
            When xllamacpp is not installed.
        ContextLengthError
            When a prompt is longer than ``n_ctx``.
        InputError
            When a field of a request cannot be, or llama.cpp refuses it.
        ModelError
            When the file is no GGUF model, llama.cpp fails, or no tool is called though ``tool_choice`` asks for one.
        """
        if not requests:
            return []
        server = self._open()
        with ThreadPoolExecutor(min(self.n_parallel, len(requests)), "pilotfish-gguf") as pool:
            return list(pool.map(lambda request: self._complete(server, request), requests))

    def stream(self, request: Request) -> Generator[str, None, Reply]:
        """Yield the reply's text as it is written, and return the reply; leaving the iteration stops the model.

        A reply that calls tools or tells token probabilities is only whole from :meth:`generate`.

        Raises
        ------
        ContextLengthError, InputError, ModelError
            As of :meth:`generate`.
        """
        server = self._open()
        chunks: queue.Queue[Mapping[str, Any] | BaseException | None] = queue.Queue()
        left = threading.Event()

        def take(chunk: Mapping[str, Any]) -> bool:
            chunks.put(chunk)
            return left.is_set()

        def run() -> None:
            try:
                self._call(server, request, take)
                chunks.put(None)
            except BaseException as error:  # noqa: BLE001 - raised again in the reader's thread
                chunks.put(error)

        thread = threading.Thread(target=run, name="pilotfish-gguf")
        start = time.perf_counter()
        thread.start()
        texts: list[str] = []
        finish, usage = "stop", Usage()
        try:
            while (chunk := chunks.get()) is not None:
                if isinstance(chunk, BaseException):
                    raise chunk
                _raise_error(chunk)
                usage = _usage(chunk, start) if chunk.get("usage") else usage
                for choice in chunk.get("choices") or ():
                    finish = str(choice.get("finish_reason") or finish)
                    if text := (choice.get("delta") or {}).get("content") or choice.get("text"):
                        texts.append(str(text))
                        yield texts[-1]
            return Reply("".join(texts), model=self.name, usage=usage, finish_reason=finish)
        finally:
            left.set()
            thread.join()

    def close(self) -> None:
        """Free the model's memory; it is loaded again when it is used again."""
        with self._lock:
            self._server = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open(self) -> Any:
        with self._lock:
            if self._server is None:
                self._server = self._load()
            return self._server

    def _load(self) -> Any:
        try:
            import xllamacpp
        except ImportError:
            raise missing_extra("xllamacpp", "gguf", "Running GGUF models") from None
        if self.n_ctx < 1 or self.n_parallel < 1:
            raise InputError(
                f"GGUFModel has n_ctx {self.n_ctx} and n_parallel {self.n_parallel}: use at least 1 of each."
            )
        path = catalog.resolve(self.model)
        if not path.is_file() or not _is_gguf(path):
            raise ModelError(f"{path} is no GGUF file: give one, or a name of the catalog.")
        n_threads = self.n_threads or os.cpu_count() or 1
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = self.n_ctx * self.n_parallel
        params.n_parallel = self.n_parallel
        for cpu in (params.cpuparams, params.cpuparams_batch):
            cpu.n_threads = n_threads
            cpu.poll = 0  # waiting threads must not burn the cores that the caller needs
        params.verbosity = -1
        # llama.cpp's server also opens a local port: a key that nobody knows keeps it shut.
        params.api_keys = [secrets.token_urlsafe(32)]
        try:
            return xllamacpp.Server(params)
        except Exception as error:
            raise ModelError(f"llama.cpp could not load {path} ({error}): check the file and the memory.") from error

    def _is_chat(self) -> bool:
        if self.chat is not None:
            return self.chat
        return not (
            isinstance(self.model, str) and self.model in catalog.NAMES and catalog.entry(self.model).kind == "base"
        )

    def _call(self, server: Any, request: Request, callback: Any = None) -> Any:
        _check_sampling(request)
        body: dict[str, Any] = {key: value for key, value in request.to_json().items() if key not in _NOT_PASSED}
        body.pop("model")
        body["stop"] = [stop for stop in request.stop if stop]  # an empty one would end every reply at once
        body["stream"] = callback is not None
        if callback is not None:
            body["stream_options"] = {"include_usage": True}
        choices = request.extra.get("choices")
        if choices is not None:
            body["grammar"] = _choice_grammar(choices)
        chat = self._is_chat()
        if not chat:
            del body["messages"]
            body["prompt"] = request.prompt
            if request.log_probs is not None:
                body["logprobs"] = max(1, request.log_probs)
                body.pop("top_logprobs", None)
        try:
            # A copy in plain JSON: llama.cpp takes no tuples and no other mappings.
            body = json.loads(json.dumps(body, default=dict))
            call = server.handle_chat_completions if chat else server.handle_completions
            return call(body, callback) if callback is not None else call(body)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"llama.cpp refused the request ({error}): mend the field it names.") from error

    def _complete(self, server: Any, request: Request) -> Reply:
        start = time.perf_counter()
        data = self._call(server, request)
        _raise_error(data)
        choice = data["choices"][0]
        message = choice.get("message") or {"content": choice.get("text")}
        wanted = request.extra.get("tool_choice")
        if (wanted == "required" or isinstance(wanted, Mapping)) and not message.get("tool_calls"):
            raise ModelError(
                f"{self.name} called no tool, though tool_choice is {wanted!r}: ask a model that knows tools, or leave "
                "tool_choice out."
            )
        return Reply(
            text=str(message.get("content") or ""),
            model=self.name,
            usage=_usage(data, start),
            finish_reason=str(choice.get("finish_reason") or "stop"),
            log_probs=log_probs_of(choice.get("logprobs"), request.log_probs),
            extra={key: value for key, value in message.items() if key not in ("role", "content")},
        )


def _usage(data: Mapping[str, Any], start: float) -> Usage:
    usage = data.get("usage") or {}
    n_read, n_written = (int(usage.get(f"{kind}_tokens", 0)) for kind in ("prompt", "completion"))
    return Usage(n_read, n_written, latency=time.perf_counter() - start)


def _check_sampling(request: Request) -> None:
    """Refuse what llama.cpp silently takes for something else."""
    if request.temperature is not None and not 0 <= request.temperature < math.inf:
        raise InputError(f"temperature is {request.temperature}: give 0 or more.")
    if request.top_p is not None and not 0 < request.top_p <= 1:
        raise InputError(f"top_p is {request.top_p}: give a share above 0 and at most 1.")


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _choice_grammar(choices: Any) -> str:
    if not isinstance(choices, list | tuple) or not choices or not all(isinstance(c, str) and c for c in choices):
        raise InputError(f"Field 'choices' is {choices!r}: give a list of texts.")
    return "root ::= " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def _raise_error(data: Mapping[str, Any]) -> None:
    error = data.get("error")
    if not error:
        return
    message = str(error.get("message", error)) if isinstance(error, Mapping) else str(error)
    kind = error.get("type") if isinstance(error, Mapping) else None
    if kind == "exceed_context_size_error":
        raise ContextLengthError(f"The prompt is too long for the model ({message}): shorten it or raise n_ctx.")
    if kind == "invalid_request_error":
        raise InputError(f"llama.cpp refused the request ({message}): mend the field it names.")
    raise ModelError(f"llama.cpp failed: {message}.")
