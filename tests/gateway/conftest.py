"""Fixtures: a scripted upstream and gateways in front of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from pilotfish.gateway import GatewayConfig
from tests.gateway.rig import Running, Scripted, running


@pytest.fixture
def upstream() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


@pytest.fixture
def start(tmp_path, upstream):
    """Start a gateway in front of the scripted upstream, with sections of configuration."""
    open_: list[Any] = []

    def _start(answerer: Any = None, **sections: Any) -> Running:
        data = {
            "server": {"port": 0, "shutdown_timeout_s": 3} | sections.pop("server", {}),
            "upstream": {"base_url": upstream.url, "retries": 0} | sections.pop("upstream", {}),
            "log": {"path": tmp_path / "traffic.db", "durability": "fast"} | sections.pop("log", {}),
            **sections,
        }
        more = {"answerer": lambda _log: answerer} if answerer is not None else {}
        manager = running(GatewayConfig.model_validate(data), **more)
        run = manager.__enter__()
        open_.append(manager)
        return run

    logging.getLogger("uvicorn.error").addFilter(_no_line)
    yield _start
    for manager in reversed(open_):
        manager.__exit__(None, None, None)
    logging.getLogger("uvicorn.error").removeFilter(_no_line)


def _no_line(record: logging.LogRecord) -> bool:
    return "without completing response" not in record.getMessage()
