"""The OpenAI-compatible gateway in front of the large model."""

from pilotfish.gateway.app import Gateway
from pilotfish.gateway.config import GatewayConfig, load_config
from pilotfish.gateway.serve import serve

__all__ = ["Gateway", "GatewayConfig", "load_config", "serve"]
