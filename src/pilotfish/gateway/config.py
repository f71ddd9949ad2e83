"""The gateway's configuration, a section at a time; where it comes from is in :mod:`pilotfish.gateway.sources`."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from pilotfish.protocols import FeatureKind

__all__ = [
    "ChecksConfig",
    "FallbackConfig",
    "FusionConfig",
    "GatewayConfig",
    "KeyConfig",
    "LimitsConfig",
    "LogConfig",
    "ModelConfig",
    "PriceConfig",
    "RouteConfig",
    "ServerConfig",
    "StudentConfig",
    "TakeoverConfig",
    "UpstreamConfig",
]

OPENAI_BASE_URL = "https://api.openai.com/v1"


def _address(value: str) -> str:
    try:
        parts = urlsplit(value)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known or parts.query or parts.fragment or parts.username is not None:
        raise ValueError("give an address such as https://api.openai.com/v1, and its key as api_key")
    return value.rstrip("/")


def _key(value: SecretStr) -> SecretStr:
    # Keys read from a file end in a line break, which would end the header that they are sent in.
    key = value.get_secret_value().strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError("give the key in printable ASCII characters, or leave it out")
    return SecretStr(key)


def _budget(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Address = Annotated[str, AfterValidator(_address)]
Key = Annotated[SecretStr, AfterValidator(_key)]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerConfig(_Section):
    """Where and how the gateway listens.

    Parameters
    ----------
    host, port : str, int
        Address to bind.
    workers : int
        Processes that share the socket and the log.
    max_body_bytes : int
        Longest request body; longer ones get status 413.
    shutdown_timeout_s : float
        How long calls in flight may take to end after the gateway was told to stop.
    """

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8777
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    max_body_bytes: Annotated[int, Field(ge=1024)] = 64 << 20
    shutdown_timeout_s: Seconds = 30.0


class UpstreamConfig(_Section):
    """The large model's endpoint.

    Parameters
    ----------
    base_url : str
        Address up to and with ``/v1``.
    api_key : str or None
        Replaces the client's Authorization; without one the client's is sent on.
    connect_timeout_s, read_timeout_s, total_timeout_s : float
        Longest time to connect; longest silence, before the first byte or between two; longest whole call.
    retries : int
        Further tries where no byte has reached the client and the call may be repeated.
    breaker_failures : int
        Failures in a row after which the endpoint is left alone.
    breaker_open_s : float
        For how long.
    """

    base_url: Address = OPENAI_BASE_URL
    api_key: Key | None = None
    connect_timeout_s: Seconds = 5.0
    read_timeout_s: Seconds = 120.0
    total_timeout_s: Seconds = 600.0
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    breaker_failures: Annotated[int, Field(ge=1)] = 5
    breaker_open_s: Seconds = 10.0


class FallbackConfig(_Section):
    """The model that answers chat calls when the large one cannot.

    Parameters
    ----------
    model : str
        Its name, put in the place of the one asked for: without ``base_url`` also of a local model or a route.
    base_url, api_key : str or None
        Its endpoint; the large model's unless given. Another endpoint gets no key but its own.
    """

    model: Annotated[str, Field(min_length=1)]
    base_url: Address | None = None
    api_key: Key | None = None


class LogConfig(_Section):
    """The traffic log.

    Parameters
    ----------
    path : Path
        The file.
    durability : {'durable', 'fast'}
        Whether a reply waits until its record is on the disk, or the record is handed to the system within 5 ms.
    on_failure : {'refuse', 'forward'} or None
        What becomes of new calls while the log cannot be written; ``refuse`` with durable, ``forward`` with fast.
    mask : bool
        Mask personal data before it is written.
    retain_days : float or None
        Delete older calls.
    max_rows : int or None
        Keep at most so many calls, looked at once a minute.
    """

    path: Path = Path("pilotfish.db")
    durability: Literal["durable", "fast"] = "durable"
    on_failure: Literal["refuse", "forward"] | None = None
    mask: bool = False
    retain_days: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_rows: Annotated[int, Field(ge=1)] | None = None

    @property
    def refuses(self) -> bool:
        """Whether new calls are refused while the log cannot be written."""
        return (self.on_failure or ("refuse" if self.durability == "durable" else "forward")) == "refuse"


class StudentConfig(_Section):
    """What students read calls with, and how long they may take.

    Parameters
    ----------
    features : {'encoder', 'large', 'language', 'static', 'ngrams'}
        See :class:`pilotfish.training.closed_set.ClosedSetStudent`.
    timeout_s : float
        Seconds after which a call goes to the large model.
    """

    features: FeatureKind = "encoder"
    timeout_s: Seconds = 0.25


class TakeoverConfig(_Section):
    """What students must keep, and whether the gateway learns by itself.

    Parameters
    ----------
    measure, level, confidence, max_spend
        The target, see :class:`pilotfish.takeover.Target`.
    audit_share : float
        Share of live calls that the large model is asked as well.
    auto : bool
        Learn, certify and let students answer without being told to.
    aliases : list of str
        Model names that are names of tasks.
    """

    measure: Literal["system", "answers", "correctness"] = "system"
    level: Annotated[float, Field(gt=0, lt=1)] | None = 0.97
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    max_spend: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    audit_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    auto: bool = False
    aliases: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _has_level(self) -> Self:
        if self.level is None and self.measure != "correctness":
            raise ValueError(f"takeover.level is missing: measure {self.measure!r} needs a share such as 0.97")
        return self


class ChecksConfig(_Section):
    """Scores of a share of the answered calls, worked out apart from them.

    Parameters
    ----------
    metrics : list of str
        Methods of ``pilotfish methods`` that score answers without references.
    share : float
        Share of the calls that is scored.
    nli, reader, judge : str or None
        The entailment model, the small language model that reads texts and the one that judges, which some of them
        need, as of ``pilotfish evaluate``.
    options : dict of str to dict
        Further arguments of single metrics, by their names.
    confidence : Path or None
        What ``pilotfish evaluate --learn-confidence`` wrote: scores become probabilities of being right.
    """

    metrics: Annotated[list[str], Field(min_length=1)]
    share: Annotated[float, Field(gt=0, le=1)] = 0.01
    nli: str | None = None
    reader: str | None = None
    judge: str | None = None
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    confidence: Path | None = None


class FusionConfig(_Section):
    """How a model is fused with others.

    Parameters
    ----------
    kind : str
        ``contrastive``, ``context_aware`` (the system message is the context), ``source_contrastive`` (the system
        message is the source, the field ``wrong_source`` of a call the wrong one), ``proxy_tuning``, ``product``,
        ``mixture``, ``private`` (a mixture whose other model is not shown the system message), or ``comblm``.
    models : dict of str to str
        The models of the further roles; the served model itself unless given.
    gate : float or None
        Ask the further models only where the first gives its likeliest token less than this probability.
    options : dict of str to bool, float or str
        Weights and switches of the fusion, such as ``alpha`` and ``copied``; of ``comblm`` the ``file`` of its learned
        combination.
    """

    kind: Annotated[str, Field(min_length=1)]
    models: dict[str, str] = Field(default_factory=dict)
    gate: Annotated[float, Field(gt=0, le=1)] | None = None
    options: dict[str, bool | float | str] = Field(default_factory=dict)


class SearchConfig(_Section):
    """How replies are searched for with a small tuned model and the same model untuned (weak-to-strong search).

    Parameters
    ----------
    tuned, untuned : str
        The small pair, as of a model's ``source``.
    n_beams, n_draws, chunk : int
        Beams that go on, chunks drawn from each, and tokens of a chunk.
    """

    tuned: Annotated[str, Field(min_length=1)]
    untuned: Annotated[str, Field(min_length=1)]
    n_beams: Annotated[int, Field(ge=1)] = 2
    n_draws: Annotated[int, Field(ge=1)] = 2
    chunk: Annotated[int, Field(ge=1)] = 8


class ModelConfig(_Section):
    """A local model that answers under the section's name.

    Parameters
    ----------
    source : str
        A name of the catalog (``pilotfish models list``) or a GGUF file; with transformers a folder or repository too.
    n_ctx, n_parallel, n_threads : int
        Window in tokens, calls decoded at once, threads (all cores unless given); of llama.cpp.
    backend : {"llama.cpp", "transformers"} or None
        What runs it: transformers where there is a draft or a fusion, llama.cpp else.
    dtype : {"float32", "bfloat16", "float16"}
        Of the weights; of transformers.
    draft : list of str
        Drafters, asked in order: ``lookup``, ``exit:N`` (the first N layers), ``log:FILE`` (replies of a traffic log),
        ``corpus:FILE`` (a text), a model, ``tokens:NAME`` (a model of another family, by the tokens both have), or
        ``branches:A,B`` (several side by side).
    typical : bool
        Accept typical drafts when sampling: faster, and not the model's own distribution.
    fusion : FusionConfig or None
        Fuse it, in the fusion's first role, with other models.
    search : SearchConfig or None
        Search its chunks for what tuning made likelier in a small model; without draft and fusion.
    """

    source: Annotated[str, Field(min_length=1)]
    n_ctx: Annotated[int, Field(ge=64)] = 4096
    n_parallel: Annotated[int, Field(ge=1, le=64)] = 2
    n_threads: Annotated[int, Field(ge=1)] | None = None
    backend: Literal["llama.cpp", "transformers"] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    draft: list[str] = Field(default_factory=list)
    typical: bool = False
    fusion: FusionConfig | None = None
    search: SearchConfig | None = None

    @property
    def decodes(self) -> bool:
        """Whether our own token loop decodes it."""
        return bool(self.draft or self.fusion or self.search) or self.backend == "transformers"

    @model_validator(mode="after")
    def _has_backend(self) -> Self:
        if self.backend == "llama.cpp" and self.decodes:
            raise ValueError(
                "backend 'llama.cpp' shows no token probabilities: remove draft, fusion and search, or backend"
            )
        if self.typical and not self.draft:
            raise ValueError("typical is true, but there are no drafts to accept: add draft")
        if self.search is not None and (self.draft or self.fusion is not None):
            raise ValueError("search goes without draft and fusion: remove either")
        return self


class LimitsConfig(_Section):
    """What a model of a route cannot take; it is not asked that.

    Parameters
    ----------
    context : int or None
        Longest conversation with its reply, in tokens.
    tools, images : bool
        Whether it takes tool definitions and images.
    """

    context: Annotated[int, Field(ge=1)] | None = None
    tools: bool = True
    images: bool = True


class RouteConfig(_Section):
    """A policy that answers under the section's name, by choosing among models.

    Parameters
    ----------
    policy : str
        A method of ``pilotfish methods``.
    table : Path
        Recorded replies (JSON lines) that it is fitted on when the gateway starts.
    budget : str
        What it may spend, such as ``2usd/1k``; a number is US dollars a query.
    level : float or None
        Serve the cheapest setting that is certified to lose no more score than this against the last model.
    models : list of str
        From first to last; the table's from the cheapest to the dearest unless given. A name of ``[models]`` is a local
        model, any other is asked for at the endpoint.
    options : dict
        Further arguments of the method.
    saved : Path or None
        The file or folder that ``pilotfish route fit`` wrote, in the place of all of the above.
    limits : dict of str to LimitsConfig
        What models cannot take, by name. Unless given a local model takes no images, a GGUF model's context is its
        ``n_ctx``, and one of our own token loop takes no tools.
    """

    policy: str | None = None
    table: Path | None = None
    budget: Annotated[str, BeforeValidator(_budget)] | None = None
    level: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    models: list[str] = Field(default_factory=list)
    options: dict[str, Any] = Field(default_factory=dict)
    saved: Path | None = None
    limits: dict[str, LimitsConfig] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        given = [name for name in ("policy", "table", "budget", "level", "models", "options") if getattr(self, name)]
        if self.saved is not None and given:
            raise ValueError(f"saved goes without {given[0]}: remove either")
        missing = [name for name in ("policy", "table", "budget") if not getattr(self, name)]
        if self.saved is None and missing:
            raise ValueError(f"{missing[0]} is missing: give policy, table and budget, or saved")
        return self


class KeyConfig(_Section):
    """A gateway key.

    Parameters
    ----------
    hash : str
        As printed by ``pilotfish key``: ``sha256$SALT$DIGEST``.
    budget_usd_per_day : float or None
        What may be spent with the key on one UTC day.
    """

    hash: Annotated[str, Field(pattern=r"^sha256\$[0-9a-f]{32}\$[0-9a-f]{64}$")]
    budget_usd_per_day: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class PriceConfig(_Section):
    """Prices of a model, US dollars per million tokens; ``cached_input`` is that of ``input`` unless given."""

    input: Price
    output: Price
    cached_input: Price | None = None


class GatewayConfig(_Section):
    """Everything the gateway is told.

    Examples
    --------
    >>> GatewayConfig().server.port
    8777
    """

    server: ServerConfig = ServerConfig()
    upstream: UpstreamConfig = UpstreamConfig()
    fallback: FallbackConfig | None = None
    log: LogConfig = LogConfig()
    student: StudentConfig = StudentConfig()
    takeover: TakeoverConfig = TakeoverConfig()
    checks: ChecksConfig | None = None
    models: dict[str, ModelConfig] = Field(default_factory=dict)
    routes: dict[str, RouteConfig] = Field(default_factory=dict)
    keys: dict[str, KeyConfig] = Field(default_factory=dict)
    prices: dict[str, PriceConfig] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name in self.routes:
            if name in self.models:
                raise ValueError(f"models.{name} and routes.{name} have one name, and clients ask by it: rename either")
        address = urlsplit(self.upstream.base_url)
        port = address.port or (443 if address.scheme == "https" else 80)
        if port == self.server.port and _same_host(address.hostname or "", self.server.host):
            raise ValueError(
                f"upstream.base_url is {self.upstream.base_url!r}, the gateway's own address: give the large model's"
            )
        free = {*self.models, *self.routes} if self.fallback is not None and self.fallback.base_url is None else set()
        for name in [name for name, key in self.keys.items() if key.budget_usd_per_day is not None]:
            if not self.prices:
                raise ValueError(f"keys.{name}.budget_usd_per_day needs prices: give a [prices.MODEL] section")
            if self.fallback is not None and self.fallback.model not in {*self.prices, *free}:
                raise ValueError(
                    f"fallback.model is {self.fallback.model!r}, whose calls would cost keys.{name} nothing: give "
                    f"[prices.{self.fallback.model}]"
                )
        return self


def _same_host(one: str, other: str) -> bool:
    return one == other or (_is_local(one) and _is_local(other))


def _is_local(host: str) -> bool:
    if host in ("localhost", ""):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
