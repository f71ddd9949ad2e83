"""Run the gateway: one process or several that share a socket and the log."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import uvicorn

from pilotfish.errors import ConfigError
from pilotfish.gateway.app import Gateway
from pilotfish.gateway.checks import check_scorers
from pilotfish.gateway.config import GatewayConfig
from pilotfish.gateway.corked import CorkedProtocol
from pilotfish.gateway.local import make_models
from pilotfish.gateway.sources import handed_over, taken_over
from pilotfish.gateway.takeover import make_takeover
from pilotfish.traffic import TrafficLog

__all__ = ["serve"]

KEEP_ALIVE_SECONDS = 75
BACKLOG = 4096
SWITCH_SECONDS = 0.0005
COLLECTION_THRESHOLDS = (2_000, 20, 50)
CONFIG_NAME = "config.json"
FOLDER_VARIABLE = "PILOTFISH_WORKER_FOLDER"


def serve(config: GatewayConfig, checked: Callable[[], None] = lambda: None) -> None:
    """Serve until told to stop; calls in flight are then finished and the log is written to its end.

    Parameters
    ----------
    config : GatewayConfig
        What the gateway is told.
    checked : callable
        Called before it listens, when nothing was found wrong.

    Raises
    ------
    InputError
        When a route, a model or a check is wrong, or the address is taken.
    LogError
        When the log cannot be opened.
    """
    _check(config)
    checked()
    if config.server.workers == 1:
        _prepare_process()
        uvicorn.run(Gateway(config, partial(make_takeover, config, learns=True)), **settings(config))
        return
    with tempfile.TemporaryDirectory(prefix="pilotfish-") as folder:
        # The folder is open to its owner only: the configuration holds keys.
        (Path(folder) / CONFIG_NAME).write_bytes(handed_over(config, keys=True))
        os.environ[FOLDER_VARIABLE] = folder
        uvicorn.run("pilotfish.gateway.serve:worker", factory=True, workers=config.server.workers, **settings(config))


def _check(config: GatewayConfig) -> None:
    """Tell here, in one sentence, what else each worker would fail with: the server exits with a status of its own."""
    TrafficLog(config.log.path, config.log.durability).close()
    make_models(config)
    if config.checks is not None:
        check_scorers(config.checks)
    server = config.server
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    try:
        socket.create_server((server.host, server.port), family=family).close()
    except OSError as error:
        raise ConfigError(
            f"Field 'server.port' is {server.port}, which {server.host} cannot be listened on ({error.strerror}): "
            "give another address, or end what listens there."
        ) from None


def worker() -> Gateway:
    """Make the application in a worker process, from what its parent left for it."""
    _prepare_process()
    folder = Path(os.environ[FOLDER_VARIABLE])
    config = taken_over((folder / CONFIG_NAME).read_bytes())
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent, folder / CONFIG_NAME), daemon=True).start()
    counts = folder / "metrics"
    counts.mkdir(exist_ok=True)
    made = partial(make_takeover, config, learns=True)
    return Gateway(config, made, metrics_folder=counts, worker=str(os.getpid()))


def _end_after(parent: BaseProcess, config: Path) -> None:
    """End when the parent was killed: whoever starts the gateway again finds the port taken else, and nobody's."""
    parent.join()
    config.unlink(missing_ok=True)
    os.kill(os.getpid(), signal.SIGTERM)


def settings(config: GatewayConfig) -> dict[str, Any]:
    """How uvicorn is set up: it adds no header of its own and writes no line for a call."""
    return {
        "host": config.server.host,
        "port": config.server.port,
        "loop": "uvloop",
        "http": CorkedProtocol,
        "ws": "none",
        "lifespan": "on",
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "date_header": False,
        "proxy_headers": False,
        "backlog": BACKLOG,
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": int(config.server.shutdown_timeout_s),
    }


def _prepare_process() -> None:
    """Set the interpreter up for short waits of the event loop."""
    logging.getLogger("uvicorn.error").addFilter(_not_cut_off)
    # The other threads hand the interpreter back sooner than after the usual 5 ms.
    sys.setswitchinterval(SWITCH_SECONDS)
    # What was imported stays for good: a full collection need not walk through it, and need not come often. A call
    # leaves no cycles behind; the young are few at a time, so that no call waits long while they are looked through.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTION_THRESHOLDS)


def _not_cut_off(record: logging.LogRecord) -> bool:
    """Leave out what uvicorn says of replies that are cut off on purpose, as the upstream's was."""
    return "without completing response" not in record.getMessage()
