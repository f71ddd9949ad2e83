"""The gateway as one ASGI application."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from pilotfish.errors import LogError, PilotfishError
from pilotfish.gateway.admission import Receive, Scope, Send, respond
from pilotfish.gateway.checks import Checks, make_checks
from pilotfish.gateway.config import GatewayConfig
from pilotfish.gateway.feedback import give_feedback
from pilotfish.gateway.keys import REFRESH_SECONDS
from pilotfish.gateway.local import LocalModels, make_models
from pilotfish.gateway.metrics import CONTENT_TYPE, Metrics
from pilotfish.gateway.proxy import Proxy
from pilotfish.gateway.routes import ServedRoute, fit_in_background
from pilotfish.gateway.shapes import error_body
from pilotfish.gateway.upstream import Upstream
from pilotfish.protocols import Model
from pilotfish.traffic import Answerer, PatternMasker, TrafficLog

__all__ = ["Gateway"]

PRUNE_SECONDS = 60.0
DAY = 86_400.0
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_logger = logging.getLogger("pilotfish.gateway")


class Gateway:
    """The ASGI application: calls under ``/v1``, ``/healthz``, ``/metrics``, and pages for people.

    Parameters
    ----------
    config : GatewayConfig
        What it was told.
    answerer : callable or None
        Makes, from the log, who may answer calls locally.
    pages : ASGI application or None
        Serves every path that is not the gateway's own.
    metrics_folder : Path or None
        Where several workers leave their counts for each other.
    worker : str
        Name of this worker.
    """

    def __init__(
        self,
        config: GatewayConfig,
        answerer: Callable[[TrafficLog], Answerer] | None = None,
        pages: ASGIApp | None = None,
        metrics_folder: Path | None = None,
        worker: str = "0",
    ) -> None:
        self.config = config
        self.metrics = Metrics(metrics_folder, worker)
        self._make_answerer = answerer
        self._pages = pages
        self._proxy: Proxy | None = None
        self._log: TrafficLog | None = None
        self._checks: Checks | None = None
        self._routes: list[ServedRoute] = []
        self._chores: list[asyncio.Task[None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request, or the server's own life."""
        if scope["type"] == "http":
            path: str = scope["path"]
            if path.startswith("/v1/") and path != "/v1/feedback":
                assert self._proxy is not None, "the application was not started"
                await self._proxy(scope, receive, send)
            else:
                await self._own(path, scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)

    async def start(self) -> None:
        """Open the log and the connections.

        Raises
        ------
        LogError
            When the log cannot be opened.
        """
        config = self.config
        log = TrafficLog(
            config.log.path,
            config.log.durability,
            mask=PatternMasker() if config.log.mask else None,
            on_written=self._written if self._make_answerer is not None or config.checks is not None else None,
        )
        models = self._models()
        near = partial(LocalModels, models) if models else None
        upstream = Upstream(config.upstream, lambda: self.metrics.add("upstream_retries_total"), near)
        upstream.open()
        fallback = None
        if config.fallback is not None:
            given, large = config.fallback, config.upstream
            elsewhere = given.base_url is not None
            # Another endpoint gets no key but its own.
            key = given.api_key or (None if elsewhere else large.api_key)
            place = {"base_url": given.base_url or large.base_url, "api_key": key}
            # At the large model's own endpoint too it has a circuit breaker of its own.
            fallback = Upstream(large.model_copy(update=place), near=None if elsewhere else near)
            fallback.open()
        if config.checks is not None:
            self._checks = make_checks(config.checks, log, self.metrics)
        answerer = self._make_answerer(log) if self._make_answerer is not None else None
        self._log = log
        self._proxy = Proxy(config, log, upstream, fallback, answerer, self.metrics, models)
        if self._proxy.students is not None:
            self._proxy.students.start()
        if self._proxy.admission.budgets.accounts:
            self._proxy.admission.budgets.refresh()
            self._every(REFRESH_SECONDS, self._proxy.admission.budgets.refresh)
        if self.metrics.folder is not None:
            self._every(1.0, self._leave_metrics)
        if config.log.retain_days is not None or config.log.max_rows is not None:
            self._every(PRUNE_SECONDS, self._prune)

    async def stop(self) -> None:
        """Let audits end, write the log to its end, close the connections."""
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        if self._proxy is None or self._log is None:
            return
        students = self._proxy.students
        if students is not None:
            await students.close(self.config.server.shutdown_timeout_s)
        try:
            if self._checks is not None:
                await asyncio.to_thread(self._log.flush)
                await asyncio.to_thread(self._checks.close)
            await asyncio.to_thread(self._log.close)
        except LogError as error:
            _logger.error("%s", error)
        if students is not None:
            await asyncio.to_thread(students.finish)
        await self._proxy.upstream.close()
        if self._proxy.fallback is not None:
            await self._proxy.fallback.close()

    def _models(self) -> Mapping[str, Model]:
        """Local models and routes by name; routes begin to be fitted."""
        if not self.config.models and not self.config.routes:
            return {}
        models = make_models(self.config)
        self._routes = [model for model in models.values() if isinstance(model, ServedRoute)]
        fit_in_background(self._routes)
        return models

    def _written(self, calls: Any) -> None:
        if self._proxy is not None and self._proxy.students is not None:
            self._proxy.students.written(calls)
        if self._checks is not None:
            self._checks.written(calls)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.start()
                except PilotfishError as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _own(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._proxy is not None, "the application was not started"
        assert self._log is not None, "the application was not started"
        if path == "/v1/feedback":
            await give_feedback(self._proxy.admission, self._log, scope, receive, send)
        elif path == "/healthz":
            status, body = self._health()
            await respond(send, status, body, [])
        elif path == "/metrics":
            self._gauge()
            await respond(send, 200, self.metrics.text().encode(), [], CONTENT_TYPE)
        elif self._pages is not None:
            await self._pages(scope, receive, send)
        else:
            message = f"There is nothing at {path}: calls go under /v1."
            await respond(send, 404, error_body(message, "invalid_request_error", "unknown_url"), [])

    def _health(self) -> tuple[int, bytes]:
        assert self._proxy is not None, "the application was not started"
        assert self._log is not None, "the application was not started"
        failure = self._log.failure
        breaker = self._proxy.upstream.breaker
        fine = failure is None and not breaker.is_open and not any(route.failed for route in self._routes)
        body: dict[str, Any] = {
            "status": "ok" if fine else "degraded",
            "log": "ok" if failure is None else str(failure),
            "upstream": "left alone after failures" if breaker.is_open else "ok",
        }
        if self._routes:
            body["routes"] = {route.name: route.state for route in self._routes}
        return 503 if failure is not None and self.config.log.refuses else 200, orjson.dumps(body)

    def _gauge(self) -> None:
        assert self._proxy is not None, "the application was not started"
        assert self._log is not None, "the application was not started"
        for name, value in (
            ("log_written_total", self._log.n_written),
            ("log_dropped_total", self._log.n_dropped),
            ("log_queued", self._log.n_queued),
            ("log_failed", self._log.failure is not None),
            ("breaker_open", self._proxy.upstream.breaker.is_open),
        ):
            self.metrics.set(name, float(value))

    def _leave_metrics(self) -> None:
        self._gauge()
        self.metrics.leave()

    def _prune(self) -> None:
        assert self._log is not None, "the application was not started"
        config = self.config.log
        before = time.time() - config.retain_days * DAY if config.retain_days is not None else None
        self._log.prune(before=before, max_rows=config.max_rows)

    def _every(self, seconds: float, chore: Callable[[], None]) -> None:
        async def repeat() -> None:
            while True:
                try:
                    await asyncio.to_thread(chore)
                except Exception:
                    _logger.exception("A chore of the gateway failed; it is tried again.")
                await asyncio.sleep(seconds)

        self._chores.append(asyncio.create_task(repeat()))
