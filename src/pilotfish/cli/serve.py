"""Commands that run the gateway: serve, key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["key", "serve"]

Config = Annotated[Path | None, typer.Option("--config", "-c", help="configuration file; ./pilotfish.toml by default")]
Host = Annotated[str | None, typer.Option(help="address to listen on; 127.0.0.1 by default")]
Port = Annotated[int | None, typer.Option(help="port to listen on; 8777 by default")]
Upstream = Annotated[str | None, typer.Option(help="the large model's endpoint, up to and with /v1")]
Log = Annotated[Path | None, typer.Option(help="traffic log; ./pilotfish.db by default")]
Durability = Annotated[
    str | None, typer.Option(help="'durable': a reply waits until it is on the disk; 'fast': logged within 5 ms")
]
Workers = Annotated[int | None, typer.Option(help="processes that share the port and the log")]


def serve(
    config: Config = None,
    host: Host = None,
    port: Port = None,
    upstream: Upstream = None,
    log: Log = None,
    durability: Durability = None,
    workers: Workers = None,
) -> None:
    """Run the gateway: point an OpenAI client's base URL at it."""
    from pilotfish.cli.output import console
    from pilotfish.gateway import load_config
    from pilotfish.gateway import serve as run

    given: dict[str, dict[str, Any]] = {
        "server": {"host": host, "port": port, "workers": workers},
        "upstream": {"base_url": upstream},
        "log": {"path": log, "durability": durability},
    }
    chosen = {
        section: {name: value for name, value in fields.items() if value is not None}
        for section, fields in given.items()
    }
    settings = load_config(config, chosen)
    server = settings.server

    def checked() -> None:
        console.print(
            f"Listening on http://{server.host}:{server.port}/v1, forwarding to {settings.upstream.base_url}."
        )
        if settings.upstream.api_key is None:
            console.print("Each call is sent on with its client's own key: there is no upstream.api_key.")
        if not settings.keys and not _is_loopback(server.host):
            console.print(f"Whoever reaches {server.host} may call: with a section [keys.NAME] only those with a key.")
        console.print(f"Calls are logged to {settings.log.path}. End with Ctrl-C.")

    run(settings, checked)


def _is_loopback(host: str) -> bool:
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def key(name: Annotated[str, typer.Argument(help="name of the key, as reports show it")]) -> None:
    """Make a gateway key: it is shown once, its hash goes into the configuration."""
    from pilotfish.cli.output import console
    from pilotfish.gateway.keys import new_key

    secret, hashed = new_key()
    console.print(f"The key, shown this once: {secret}", highlight=False, soft_wrap=True)
    console.print("Put this into the configuration:", highlight=False)
    console.print(f'[keys."{name}"]\nhash = "{hashed}"', highlight=False, soft_wrap=True)
