"""Where the gateway's configuration comes from: ``pilotfish.toml``, the environment, the command line, or a parent."""

from __future__ import annotations

import math
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, SecretStr, ValidationError

from pilotfish.errors import ConfigError
from pilotfish.gateway.config import (
    OPENAI_BASE_URL,
    FallbackConfig,
    GatewayConfig,
    LogConfig,
    ServerConfig,
    StudentConfig,
    TakeoverConfig,
    UpstreamConfig,
)

__all__ = ["handed_over", "load_config", "taken_over"]

DEFAULT_FILE = "pilotfish.toml"
STANDARD_INPUT = Path("-")
_MENDS = {
    "list_type": "give a list, such as ['...']",
    "model_type": "give a section with fields of its own",
    "string_type": "give text in quotes",
}


def load_config(
    path: Path | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    environ: Mapping[str, str] | None = None,
) -> GatewayConfig:
    """Read the configuration.

    Later sources win: OPENAI_BASE_URL and OPENAI_API_KEY, the file, PILOTFISH_SECTION_FIELD, ``overrides``. The key is
    taken for its own endpoint alone, that of OPENAI_BASE_URL or OpenAI's.

    Parameters
    ----------
    path : Path or None
        The file; unless given that named by PILOTFISH_CONFIG, or ``pilotfish.toml`` where there is one. ``-`` takes a
        whole configuration, as :func:`handed_over` writes it, from standard input; the environment adds nothing to it.
    overrides : mapping of mapping or None
        Fields by section, from the command line.
    environ : mapping or None
        The environment; that of the process unless given.

    Raises
    ------
    ConfigError
        With one sentence for each wrong field.
    """
    if path == STANDARD_INPUT:
        return taken_over(sys.stdin.buffer.read(), overrides)
    environ = os.environ if environ is None else environ
    path = path or (Path(environ["PILOTFISH_CONFIG"]) if environ.get("PILOTFISH_CONFIG") else None)
    source = str(path or DEFAULT_FILE)
    data = _read(path)
    upstream = data.setdefault("upstream", {})
    added: list[tuple[str, Mapping[str, Any]]] = [*_from_environment(environ), *(overrides or {}).items()]
    home = environ.get("OPENAI_BASE_URL")
    if isinstance(upstream, dict):
        if home and "base_url" not in upstream:
            added.insert(0, ("upstream", {"base_url": home}))
        places = [values["base_url"] for section, values in added if section == "upstream" and "base_url" in values]
        place = places[-1] if places else upstream.get("base_url", OPENAI_BASE_URL)
        # A key belongs to its endpoint: another one, wherever it is named, must be given its own.
        own = str(place).rstrip("/") == (home or OPENAI_BASE_URL).rstrip("/")
        if own and environ.get("OPENAI_API_KEY") and "api_key" not in upstream:
            added.insert(0, ("upstream", {"api_key": environ["OPENAI_API_KEY"]}))
    return _made(data, added, source)


def handed_over(config: GatewayConfig, *, keys: bool) -> bytes:
    """Write a configuration for a process of ours that goes by it, to be read by :func:`taken_over`.

    Parameters
    ----------
    config : GatewayConfig
        All of it is written, so that it does not matter where it came from.
    keys : bool
        Whether with the keys of endpoints, which only a process that calls them needs.

    Examples
    --------
    >>> given = GatewayConfig(upstream=UpstreamConfig(api_key="sk-1"))
    >>> taken_over(handed_over(given, keys=True)) == given, b"sk-1" in handed_over(given, keys=False)
    (True, False)
    """

    def plain(value: object) -> str | None:
        if isinstance(value, SecretStr):
            return value.get_secret_value() if keys else None
        return str(value)

    return orjson.dumps(config.model_dump(), default=plain)


def taken_over(text: bytes, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> GatewayConfig:
    """Read what :func:`handed_over` wrote.

    Raises
    ------
    ConfigError
        When it is no such text, or a field of ``overrides`` is wrong.
    """
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise ConfigError("The configuration on standard input is no JSON object: name a file instead of '-'.")
    return _made(data, (overrides or {}).items(), "the configuration handed over")


def _made(data: dict[str, Any], added: Iterable[tuple[str, Mapping[str, Any]]], source: str) -> GatewayConfig:
    elsewhere: set[tuple[int | str, ...]] = set()
    for section, values in added:
        table = data.setdefault(section, {})
        if isinstance(table, dict):
            table.update(values)
        elsewhere |= {(section, name) for name in values}
    try:
        return GatewayConfig.model_validate(data)
    except ValidationError as error:
        said = [
            _sentence(item, "the environment or the command line" if item["loc"][:2] in elsewhere else source)
            for item in error.errors()
        ]
        raise ConfigError("\n".join(said)) from None


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        path = Path(DEFAULT_FILE)
        if not path.exists():
            return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"The configuration {path} cannot be read ({error.strerror}): give a readable file."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration {path} is not valid TOML ({error}): mend that place.") from None


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    sections: dict[str, type[BaseModel]] = {
        "server": ServerConfig,
        "upstream": UpstreamConfig,
        "fallback": FallbackConfig,
        "log": LogConfig,
        "student": StudentConfig,
        "takeover": TakeoverConfig,
    }
    found = []
    for section, model in sections.items():
        for field in model.model_fields:
            value = environ.get(f"PILOTFISH_{section}_{field}".upper())
            if value:
                found.append((section, {field: value}))
    return found


def _sentence(error: Any, source: str) -> str:
    name = ".".join(str(part) for part in error["loc"])
    what = _MENDS.get(error["type"], error["msg"].removeprefix("Value error, "))
    what = what[:1].lower() + what[1:]
    if not name:
        return f"In {source}, {what}."
    if error["type"] == "extra_forbidden":
        return f"Field '{name}' in {source} is unknown: remove it or mend its name."
    if error["type"] == "missing":
        return f"Field '{name}' in {source} is missing: give it."
    secret = error["loc"][-1] in ("api_key", "hash") or (error["loc"][-1] == "base_url" and "@" in str(error["input"]))
    if secret or isinstance(error["input"], dict | list):
        return f"Field '{name}' in {source} is wrong: {what}."
    value = error["input"]
    shown = "not a finite number" if isinstance(value, float) and not math.isfinite(value) else repr(value)
    return f"Field '{name}' in {source} is {shown}: {what}."
