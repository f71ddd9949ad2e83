"""The OpenAI-compatible gateway in front of the large model."""

from pilotfish.gateway.app import Gateway
from pilotfish.gateway.config import GatewayConfig
from pilotfish.gateway.serve import serve
from pilotfish.gateway.sources import load_config

__all__ = ["Gateway", "GatewayConfig", "load_config", "serve"]
