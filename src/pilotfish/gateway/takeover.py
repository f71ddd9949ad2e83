"""The takeover as the configuration asks for it."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

from pilotfish.gateway.config import GatewayConfig
from pilotfish.gateway.sources import handed_over
from pilotfish.takeover.certify import Target
from pilotfish.takeover.service import Takeover
from pilotfish.traffic.log import TrafficLog

__all__ = ["learn_in_process", "make_takeover", "students_folder", "target_of"]

_logger = logging.getLogger("pilotfish.takeover")


def target_of(config: GatewayConfig) -> Target:
    """The target the configuration states."""
    asked = config.takeover
    return Target(asked.measure, asked.level, asked.confidence, asked.max_spend)


def students_folder(log_path: Path) -> Path:
    """Where students are kept: beside the log, so that every process that shares the one finds the other."""
    return log_path.with_name(f"{log_path.stem}-students")


def make_takeover(config: GatewayConfig, log: TrafficLog, *, learns: bool = False) -> Takeover:
    """Make the takeover for a log.

    Parameters
    ----------
    config : GatewayConfig
        What the user asked for.
    log : TrafficLog
        The open log.
    learns : bool
        Whether due attempts to learn are started, each in a process of its own.
    """
    from pilotfish.training.closed_set import ClosedSetStudent

    # The log may have been opened elsewhere than the configuration says.
    config = config.model_copy(update={"log": config.log.model_copy(update={"path": log.path})})
    return Takeover(
        log,
        students_folder(log.path),
        ClosedSetStudent,
        settings={"features": config.student.features},
        target=target_of(config),
        audit_share=config.takeover.audit_share,
        auto=(lambda task: learn_in_process(task, config)) if learns and config.takeover.auto else None,
        aliases=frozenset(config.takeover.aliases),
    )


def learn_in_process(task: str, config: GatewayConfig) -> None:
    """Learn a task in a process of its own, so that calls in flight do not wait for it.

    It goes by the gateway's own configuration, wherever that came from. Learning asks no endpoint: the keys stay here.
    """
    command = [sys.executable, "-m", "pilotfish", "learn", task, "--auto", "--config", "-"]
    _logger.info("Learning task %s.", task)
    process = subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        with cast(IO[bytes], process.stdin) as given:
            given.write(handed_over(config, keys=False))
    except OSError as error:
        _logger.warning("Learning task %s ended at once: %s.", task, error)
