"""FAISS indexes of two stages, and on disk with the fingerprint of the encoder whose vectors they hold."""

from qwen3_embed_integrations.index_file import check_index, load_index, save_index
from qwen3_embed_integrations.matryoshka import two_stage_index

__all__ = ["check_index", "load_index", "save_index", "two_stage_index"]
