"""Routes behind the gateway: policies that are fitted while it listens, and know whose prompt cache is warm."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from pilotfish.errors import InputError, ModelError, PilotfishError
from pilotfish.gateway.config import GatewayConfig, LimitsConfig, RouteConfig
from pilotfish.models.openai import OpenAIModel
from pilotfish.protocols import Model
from pilotfish.types import Message, Reply, Request

if TYPE_CHECKING:
    from pilotfish.route.router import Candidate

__all__ = ["ServedRoute", "Warm", "fit_in_background", "make_route"]

WARM_SECONDS = 300.0
MOST_WARM = 10_000

_logger = logging.getLogger("pilotfish.gateway")


class ServedRoute:
    """A policy that is fitted while the gateway already listens; until then its last model answers.

    Parameters
    ----------
    name : str
        As clients ask for it.
    make : callable
        Fits the policy.
    meanwhile : Model
        Answers until then: the model that the policy falls back to.
    warm : Warm or None
        Where the policy weighs prompt caches: who answered which conversation.
    unpriced : sequence of str
        Models at the endpoint that have no price.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Model],
        meanwhile: Model,
        warm: Warm | None = None,
        unpriced: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.unpriced = tuple(unpriced)
        self.state = "being fitted"
        self._make = make
        self._model = meanwhile
        self._warm = warm
        self._failed = False

    @property
    def failed(self) -> bool:
        """Whether it could not be fitted."""
        return self._failed

    def fit(self) -> None:
        """Fit the policy; what goes wrong is told to who asks for it."""
        try:
            self._model = self._make()
            self.state = "ready"
            for said in getattr(self._model, "warnings", ()):
                _logger.warning("Route %r: %s", self.name, said)
        except PilotfishError as error:
            self._fail(str(error).rstrip("."))
            _logger.error("Route %r could not be fitted: %s", self.name, error)
        except Exception as error:
            self._fail(f"{type(error).__name__}: the gateway's log says more")
            _logger.exception("Route %r could not be fitted.", self.name)

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: one reply per request, in order.

        Raises
        ------
        ModelError
            When the policy could not be fitted.
        """
        if self._failed:
            raise ModelError(f"Route {self.name!r} {self.state}; mend its section and start the gateway anew.")
        if self.state != "ready":
            replies = self._model.generate(requests)
            return [reply.replace(reason=f"route {self.name} is being fitted: its last model") for reply in replies]
        if self._warm is None:
            return self._model.generate(requests)
        replies = self._model.generate([self._warm.told(request) for request in requests])
        for request, reply in zip(requests, replies, strict=True):
            self._warm.note(request, reply)
        return replies

    def _fail(self, why: str) -> None:
        self.state = f"could not be fitted ({why})"
        self._failed = True


class Warm:
    """Who answered the turn before of a conversation, as long as a provider keeps its prompt in a cache.

    Parameters
    ----------
    seconds : float
        How long that is taken to be.

    Examples
    --------
    >>> warm, first = Warm(), Request.of("Hi")
    >>> warm.note(first, Reply("Hello.", "large"))
    >>> turns = (*first.messages, Message("assistant", "Hello."), Message("user", "And now?"))
    >>> warm.told(Request(turns)).metadata["answered_by"]
    'large'
    """

    def __init__(self, seconds: float = WARM_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, request: Request, reply: Reply) -> None:
        """Remember which model answered."""
        extra = {"tool_calls": calls} if (calls := reply.extra.get("tool_calls")) else {}
        key = _key((*request.messages, Message("assistant", reply.text, extra)))
        with self._lock:
            self._known[key] = reply.model, self._clock()
            self._known.move_to_end(key)
            if len(self._known) > MOST_WARM:
                self._known.popitem(last=False)

    def told(self, request: Request) -> Request:
        """The request, told in its metadata who answered the turn before."""
        turns = [k for k, message in enumerate(request.messages) if message.role == "assistant"]
        if not turns:
            return request
        with self._lock:
            model, since = self._known.get(_key(request.messages[: turns[-1] + 1]), ("", 0.0))
        if not model or self._clock() - since > self.seconds:
            return request
        return request.replace(metadata={**request.metadata, "answered_by": model})


def _key(messages: Iterable[Message]) -> bytes:
    said = blake2b(digest_size=16)
    for message in messages:
        calls = [call.get("id") for call in message.extra.get("tool_calls") or ()]
        said.update(repr((message.role, message.text, calls)).encode())
    return said.digest()


def fit_in_background(routes: Sequence[ServedRoute]) -> None:
    """Fit routes one after another; a gateway that is told to stop does not wait for them."""

    def run() -> None:
        for route in routes:
            if route.unpriced:
                said = "Route %r: calls of %s count as $0, for want of a section [prices.NAME]."
                _logger.warning(said, route.name, ", ".join(route.unpriced))
            route.fit()

    if routes:
        threading.Thread(target=run, name="pilotfish-fit", daemon=True).start()


def make_route(name: str, route: RouteConfig, local: Mapping[str, Model], config: GatewayConfig) -> ServedRoute:
    """Make a route of a configuration, not fitted yet.

    Raises
    ------
    InputError
        When its settings, its table, or what was saved is wrong in a way that shows before fitting.
    """
    from pilotfish.methods.build import Route, by_cost, check_route, models_of
    from pilotfish.route.router import Candidate, Router
    from pilotfish.traffic.table import ReplyTable

    if route.saved is not None and not route.saved.is_dir():
        candidates = Router.candidates_in(route.saved)
        answering = _answering([c.name for c in candidates], local, config)
        router = Router.load(route.saved, answering)
        router.candidates = _candidates(candidates, route.limits, config)
        unpriced = _unpriced(answering, local, config)
        served = ServedRoute(name, lambda: router, router, _warm(router.candidates), unpriced)
        served.fit()
        return served
    settings: dict[str, Any]
    if route.saved is not None:
        settings, table = Route.read(route.saved)
    else:
        assert route.table is not None, "a route that was not saved has a table"
        settings = route.model_dump(include={"policy", "budget", "level", "models", "options"})
        table = ReplyTable.from_jsonl(route.table)
    last = (settings.get("models") or by_cost(table))[-1]
    names = models_of(settings, table)
    answering = _answering(names, local, config)
    limited = _candidates([Candidate(model) for model in names], route.limits, config)
    check_route(settings, table, answering)
    unpriced = _unpriced(names, local, config)
    make = partial(Route, settings, table, answering, limited)
    return ServedRoute(name, make, answering[last], _warm(limited), unpriced)


def _answering(names: Iterable[str], local: Mapping[str, Model], config: GatewayConfig) -> dict[str, Model]:
    return {name: local.get(name) or _at_endpoint(name, config) for name in names}


def _unpriced(names: Iterable[str], local: Mapping[str, Model], config: GatewayConfig) -> list[str]:
    return [name for name in names if name not in local and name not in config.prices]


def _at_endpoint(name: str, config: GatewayConfig) -> Model:
    upstream, price = config.upstream, config.prices.get(name)
    key = upstream.api_key
    return OpenAIModel(
        name,
        upstream.base_url,
        key.get_secret_value() if key is not None else "",  # no key of the environment, which may be another's
        prompt_price=price.input if price is not None else 0.0,
        completion_price=price.output if price is not None else 0.0,
        timeout=upstream.total_timeout_s,
        n_retries=upstream.retries,
    )


def _candidates(
    known: Sequence[Candidate], limits: Mapping[str, LimitsConfig], config: GatewayConfig
) -> tuple[Candidate, ...]:
    """What the configuration says of each model, over what was known of it."""
    names = [candidate.name for candidate in known]
    for name in limits:
        if name not in names:
            raise InputError(f"limits names {name!r}, which the route does not ask: give {', '.join(names)}.")
    made = []
    for candidate in known:
        local, price = config.models.get(candidate.name), config.prices.get(candidate.name)
        if local is not None:
            text_alone = {"tools": False} if local.decodes else {"context": local.n_ctx}
            candidate = replace(candidate, images=False, **text_alone)
        if candidate.name in limits:
            candidate = replace(candidate, **limits[candidate.name].model_dump(exclude_unset=True))
        if price is not None:
            cached = price.input if price.cached_input is None else price.cached_input
            candidate = replace(candidate, price_in=price.input, price_cached=cached)
        made.append(candidate)
    return tuple(made)


def _warm(candidates: Iterable[Candidate]) -> Warm | None:
    return Warm() if any(candidate.price_cached < candidate.price_in for candidate in candidates) else None
