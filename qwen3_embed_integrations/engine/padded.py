"""Texts through sentence-transformers' own modules, padded: for models that packed texts cannot run through."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sentence_transformers.sentence_transformer.modules import Normalize

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from qwen3_embed_integrations.engine.scheduler import Item


class PaddedModel:
    """Runs any model that sentence-transformers loads.

    Args:
        model: the model.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        modules = list(model)
        # A last Normalize is left out: normalising waits until the vector is cut, and is done in float32.
        self._modules = modules[:-1] if isinstance(modules[-1], Normalize) else modules
        self._model = model

    def embed(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """Compute the pooled hidden state of each text.

        Args:
            items: the texts; their prompts are computed anew for each.

        Returns:
            float32 array, shape (n, hidden size), in the order of the items.
        """
        token_ids = [item.ids for item in items]
        input_ids = torch.zeros((len(token_ids), max(map(len, token_ids))), dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(token_ids):
            input_ids[row, : len(ids)] = torch.from_numpy(ids)
            attention_mask[row, : len(ids)] = 1
        device = self._model.device
        features = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
        with torch.inference_mode():
            for module in self._modules:
                features = module(features)
        pooled: NDArray[np.float32] = features["sentence_embedding"].float().cpu().numpy()
        return pooled
