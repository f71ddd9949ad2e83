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
    from pilotfish import scorers as scorers
    from pilotfish.cascade import Cascade as Cascade
    from pilotfish.cascade import Stage as Stage
    from pilotfish.curation import curate as curate
    from pilotfish.decoding.branches import Branches as Branches
    from pilotfish.decoding.copying import Lookup as Lookup
    from pilotfish.decoding.copying import Retrieval as Retrieval
    from pilotfish.decoding.decoder import Decoder as Decoder
    from pilotfish.decoding.decoder import fuse as fuse
    from pilotfish.decoding.decoder import speculate as speculate
    from pilotfish.decoding.drafting import EarlyExit as EarlyExit
    from pilotfish.decoding.drafting import OtherVocabulary as OtherVocabulary
    from pilotfish.decoding.drafting import SmallModel as SmallModel
    from pilotfish.decoding.drafting import TokenIntersection as TokenIntersection
    from pilotfish.decoding.fusion import ContextAware as ContextAware
    from pilotfish.decoding.fusion import Contrastive as Contrastive
    from pilotfish.decoding.fusion import Mixture as Mixture
    from pilotfish.decoding.fusion import Product as Product
    from pilotfish.decoding.fusion import ProxyTuning as ProxyTuning
    from pilotfish.decoding.fusion import SourceContrastive as SourceContrastive
    from pilotfish.methods.build import Route as Route
    from pilotfish.methods.cascades import automix as automix
    from pilotfish.methods.cascades import calibrated_cascade as calibrated_cascade
    from pilotfish.methods.cascades import cascade_aware_training as cascade_aware_training
    from pilotfish.methods.cascades import chain_of_verification as chain_of_verification
    from pilotfish.methods.cascades import consistency_cascade as consistency_cascade
    from pilotfish.methods.cascades import frugal_gpt as frugal_gpt
    from pilotfish.methods.cascades import frugal_ml as frugal_ml
    from pilotfish.methods.cascades import guaranteed_takeover as guaranteed_takeover
    from pilotfish.methods.cascades import idk_cascade as idk_cascade
    from pilotfish.methods.cascades import query_level_uncertainty as query_level_uncertainty
    from pilotfish.methods.cascades import selective_query as selective_query
    from pilotfish.methods.cascades import stated_confidence as stated_confidence
    from pilotfish.methods.cascades import treacle as treacle
    from pilotfish.methods.cascades import verbalised_confidence as verbalised_confidence
    from pilotfish.methods.routing import cp_router as cp_router
    from pilotfish.methods.routing import forc as forc
    from pilotfish.methods.routing import hybrid_llm as hybrid_llm
    from pilotfish.methods.routing import kernel_router as kernel_router
    from pilotfish.methods.routing import llm_blender as llm_blender
    from pilotfish.methods.routing import orchestra_llm as orchestra_llm
    from pilotfish.methods.routing import route_llm as route_llm
    from pilotfish.methods.routing import routing_benchmark as routing_benchmark
    from pilotfish.methods.routing import smoothie as smoothie
    from pilotfish.methods.routing import tag_router as tag_router
    from pilotfish.methods.routing import tryage as tryage
    from pilotfish.methods.routing import zooter as zooter
    from pilotfish.route.compare import compare as compare
    from pilotfish.route.deploy import deploy as deploy
    from pilotfish.route.router import Router as Router
    from pilotfish.takeover.certify import Certificate as Certificate
    from pilotfish.takeover.certify import Target as Target
    from pilotfish.takeover.certify import certify as certify
    from pilotfish.takeover.replay import replay as replay
    from pilotfish.traffic.calls import Call as Call
    from pilotfish.traffic.log import TrafficLog as TrafficLog
    from pilotfish.traffic.table import ReplyTable as ReplyTable
    from pilotfish.types import Exchange as Exchange
    from pilotfish.types import Message as Message
    from pilotfish.types import Reply as Reply
    from pilotfish.types import Request as Request
    from pilotfish.types import Usage as Usage

_PUBLIC = {
    "Branches": "pilotfish.decoding.branches",
    "Call": "pilotfish.traffic.calls",
    "Cascade": "pilotfish.cascade",
    "Certificate": "pilotfish.takeover.certify",
    "ContextAware": "pilotfish.decoding.fusion",
    "Contrastive": "pilotfish.decoding.fusion",
    "Decoder": "pilotfish.decoding.decoder",
    "EarlyExit": "pilotfish.decoding.drafting",
    "Exchange": "pilotfish.types",
    "Lookup": "pilotfish.decoding.copying",
    "Message": "pilotfish.types",
    "Mixture": "pilotfish.decoding.fusion",
    "OtherVocabulary": "pilotfish.decoding.drafting",
    "Product": "pilotfish.decoding.fusion",
    "ProxyTuning": "pilotfish.decoding.fusion",
    "Reply": "pilotfish.types",
    "ReplyTable": "pilotfish.traffic.table",
    "Request": "pilotfish.types",
    "Retrieval": "pilotfish.decoding.copying",
    "Route": "pilotfish.methods.build",
    "Router": "pilotfish.route.router",
    "SmallModel": "pilotfish.decoding.drafting",
    "SourceContrastive": "pilotfish.decoding.fusion",
    "Stage": "pilotfish.cascade",
    "Target": "pilotfish.takeover.certify",
    "TokenIntersection": "pilotfish.decoding.drafting",
    "TrafficLog": "pilotfish.traffic.log",
    "Usage": "pilotfish.types",
    "automix": "pilotfish.methods.cascades",
    "calibrated_cascade": "pilotfish.methods.cascades",
    "cascade_aware_training": "pilotfish.methods.cascades",
    "certify": "pilotfish.takeover.certify",
    "chain_of_verification": "pilotfish.methods.cascades",
    "compare": "pilotfish.route.compare",
    "consistency_cascade": "pilotfish.methods.cascades",
    "cp_router": "pilotfish.methods.routing",
    "curate": "pilotfish.curation",
    "deploy": "pilotfish.route.deploy",
    "forc": "pilotfish.methods.routing",
    "frugal_gpt": "pilotfish.methods.cascades",
    "frugal_ml": "pilotfish.methods.cascades",
    "fuse": "pilotfish.decoding.decoder",
    "guaranteed_takeover": "pilotfish.methods.cascades",
    "hybrid_llm": "pilotfish.methods.routing",
    "idk_cascade": "pilotfish.methods.cascades",
    "kernel_router": "pilotfish.methods.routing",
    "llm_blender": "pilotfish.methods.routing",
    "orchestra_llm": "pilotfish.methods.routing",
    "query_level_uncertainty": "pilotfish.methods.cascades",
    "replay": "pilotfish.takeover.replay",
    "route_llm": "pilotfish.methods.routing",
    "routing_benchmark": "pilotfish.methods.routing",
    "selective_query": "pilotfish.methods.cascades",
    "smoothie": "pilotfish.methods.routing",
    "speculate": "pilotfish.decoding.decoder",
    "stated_confidence": "pilotfish.methods.cascades",
    "tag_router": "pilotfish.methods.routing",
    "treacle": "pilotfish.methods.cascades",
    "tryage": "pilotfish.methods.routing",
    "verbalised_confidence": "pilotfish.methods.cascades",
    "zooter": "pilotfish.methods.routing",
}

__all__ = [
    "Branches",
    "Call",
    "Cascade",
    "Certificate",
    "ContextAware",
    "Contrastive",
    "Decoder",
    "EarlyExit",
    "Exchange",
    "Lookup",
    "Message",
    "Mixture",
    "OtherVocabulary",
    "Product",
    "ProxyTuning",
    "Reply",
    "ReplyTable",
    "Request",
    "Retrieval",
    "Route",
    "Router",
    "SmallModel",
    "SourceContrastive",
    "Stage",
    "Target",
    "TokenIntersection",
    "TrafficLog",
    "Usage",
    "__version__",
    "automix",
    "calibrated_cascade",
    "cascade_aware_training",
    "certify",
    "chain_of_verification",
    "compare",
    "consistency_cascade",
    "cp_router",
    "curate",
    "deploy",
    "forc",
    "frugal_gpt",
    "frugal_ml",
    "fuse",
    "guaranteed_takeover",
    "hybrid_llm",
    "idk_cascade",
    "kernel_router",
    "llm_blender",
    "orchestra_llm",
    "query_level_uncertainty",
    "replay",
    "route_llm",
    "routing_benchmark",
    "scorers",
    "selective_query",
    "smoothie",
    "speculate",
    "stated_confidence",
    "tag_router",
    "treacle",
    "tryage",
    "verbalised_confidence",
    "zooter",
]


def __getattr__(name: str) -> Any:
    if name == "scorers":
        return import_module("pilotfish.scorers")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pilotfish' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
