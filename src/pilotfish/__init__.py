"""Small models at work around a large one.

The public names of the library; everything here is imported on first use, so that ``import pilotfish`` stays light.

Examples
--------
>>> import pilotfish as pf
>>> pf.Request.of("Where is my card?").prompt
'Where is my card?'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pilotfish.types import Exchange as Exchange
    from pilotfish.types import Message as Message
    from pilotfish.types import Reply as Reply
    from pilotfish.types import Request as Request
    from pilotfish.types import Usage as Usage

_PUBLIC = {
    "Exchange": "pilotfish.types",
    "Message": "pilotfish.types",
    "Reply": "pilotfish.types",
    "Request": "pilotfish.types",
    "Usage": "pilotfish.types",
}

__all__ = ["Exchange", "Message", "Reply", "Request", "Usage", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pilotfish' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
