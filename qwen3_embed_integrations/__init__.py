"""Qwen3-Embedding models for LangChain, LlamaIndex and Haystack.

Names are loaded when they are first used, so that importing the package imports neither torch nor any framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen3_embed_integrations.encoder import Encoder, Qwen3Encoder, TruncationWarning
    from qwen3_embed_integrations.endpoint import EndpointError
    from qwen3_embed_integrations.instructions import INSTRUCTION_SOURCES, INSTRUCTIONS, format_query
    from qwen3_embed_integrations.matryoshka import truncate, two_stage_index
    from qwen3_embed_integrations.models import MODELS, ModelSpec
    from qwen3_embed_integrations.remote import RemoteEncoder
    from qwen3_embed_integrations.usage import Usage, record_usage

__version__ = "0.1.0"

__all__ = [
    "INSTRUCTIONS",
    "INSTRUCTION_SOURCES",
    "MODELS",
    "Encoder",
    "EndpointError",
    "ModelSpec",
    "Qwen3Encoder",
    "RemoteEncoder",
    "TruncationWarning",
    "Usage",
    "format_query",
    "record_usage",
    "truncate",
    "two_stage_index",
]

_MODULES = {
    "INSTRUCTIONS": "instructions",
    "INSTRUCTION_SOURCES": "instructions",
    "MODELS": "models",
    "Encoder": "encoder",
    "EndpointError": "endpoint",
    "ModelSpec": "models",
    "Qwen3Encoder": "encoder",
    "RemoteEncoder": "remote",
    "TruncationWarning": "encoder",
    "Usage": "usage",
    "format_query": "instructions",
    "record_usage": "usage",
    "truncate": "matryoshka",
    "two_stage_index": "matryoshka",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
