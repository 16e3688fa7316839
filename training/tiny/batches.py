"""What one training step reads, as a function of the step's number alone, so that training can be resumed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from training.tiny.data import CODE, KINDS, Corpus, clusters, length_batches, targets
from training.tiny.instructions import code_instruction, format_query, prose_instruction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

# Half of the bank is about the batch's topics, half about anything.
BANK = 2048
CLUSTERS = 512
SAME_TEXT = 0.9


@dataclass(frozen=True)
class Mixture:
    """How near the texts of a batch are to each other, and what they are.

    Attributes:
        clusters: topics out of `CLUSTERS` that a batch of texts is made of.
        pool: pairs of which a batch's are the neighbours of a few.
        neighbours: pairs about one topic in a batch.
        shares: of the kinds of pairs in the pool; without them, as in the corpus.
    """

    clusters: int = 16
    pool: int = 3000
    neighbours: int = 16
    shares: tuple[float, ...] | None = None


@dataclass(frozen=True)
class TextBatch:
    """Texts to distil: their tokens, their targets, and targets of other texts to be ranked."""

    ids: list[NDArray[np.int32]]
    target: Tensor
    bank: Tensor


@dataclass(frozen=True)
class PairBatch:
    """Queries and documents to contrast, with everything needed to distil them as well."""

    queries: TextBatch
    documents: TextBatch
    positives: Tensor
    same: Tensor


class Batches:
    """Draws batches from the training part of the corpus.

    Args:
        corpus: texts and pairs.
        ids: the tokens of each text.
        labels: the teacher's vectors.
        labelled: which texts have one.
        rotation: from data.fit_rotation.
        tokenizer: for queries with instructions.
        tokens: tokens of a batch of texts.
        pairs: pairs of a batch.
        mixture: what a batch is made of.
        seed: of everything drawn.
    """

    def __init__(
        self,
        corpus: Corpus,
        ids: Sequence[NDArray[np.int32]],
        labels: NDArray[np.float16],
        labelled: NDArray[np.bool_],
        rotation: NDArray[np.float32],
        tokenizer: Tokenizer,
        *,
        tokens: int,
        pairs: int,
        mixture: Mixture,
        seed: int,
    ) -> None:
        self.corpus, self.ids, self.labels, self.tokenizer = corpus, ids, labels, tokenizer
        self.rotation = torch.from_numpy(rotation)
        self.tokens, self.pair_count, self.mixture, self.seed = tokens, pairs, mixture, seed
        self.rows = np.flatnonzero(labelled & ~corpus.held_out)
        self.lengths = np.array([len(ids[i]) for i in self.rows])
        # A twin of -1 means that there is none, and must not look up the last text.
        complete = labelled[corpus.pairs[:, :2]].all(1) & ((corpus.pairs[:, 2] < 0) | labelled[corpus.pairs[:, 2]])
        self.train_pairs = corpus.pairs[~corpus.pair_held_out & complete]
        self._chance = None
        if mixture.shares:
            kinds = self.train_pairs[:, 3]
            chance = (np.array(mixture.shares) / np.maximum(np.bincount(kinds, minlength=len(KINDS)), 1))[kinds]
            self._chance = chance / chance.sum()
        self._cluster = clusters(labels[self.rows], CLUSTERS)
        self._epoch: tuple[int, list[NDArray[np.int64]]] = (-1, [])
        self.per_epoch = len(self._batches_of(0))

    def _batches_of(self, epoch: int) -> list[NDArray[np.int64]]:
        if self._epoch[0] != epoch:
            # Clusters are put together anew for each epoch.
            mixed = np.random.default_rng((self.seed, epoch)).permutation(CLUSTERS) // self.mixture.clusters
            self._groups = mixed[self._cluster]
            rng = random.Random(self.seed + epoch)
            self._epoch = (epoch, list(length_batches(self.lengths, self._groups, self.tokens, rng)))
        return self._epoch[1]

    def target(self, rows: Sequence[int] | NDArray[np.int64], sign: NDArray[np.float32] | None = None) -> Tensor:
        """Give the targets of texts; without signs, those of bare texts."""
        rows = np.asarray(rows)
        sign = np.where(self.corpus.is_code[rows], 1, -1) if sign is None else sign
        return targets(torch.from_numpy(self.labels[rows]), self.rotation, torch.from_numpy(np.asarray(sign)).float())

    def bank(self, step: int, group: int | None = None) -> Tensor:
        """Give the targets of random texts, half of them from a group of clusters if one is given."""
        rng = np.random.default_rng((self.seed, step))
        rows = rng.choice(self.rows, BANK, replace=False)
        if group is not None:
            near = self.rows[self._groups == group]
            rows[: BANK // 2] = rng.choice(near, BANK // 2)
        return self.target(rows)

    def _asked(self, row: int, code: bool, rng: random.Random) -> NDArray[np.int32]:
        """Give the tokens of a text as a query; the tokenizer must see instruction and text as one string."""
        instruction = code_instruction(rng) if code else prose_instruction(rng)
        return np.array(self.tokenizer.encode(format_query(self.corpus.texts[row], instruction)).ids, np.int32)

    def texts(self, step: int) -> TextBatch:
        """Draw texts of like lengths; some of the short ones are asked as queries, for prose or for code."""
        rng = random.Random(self.seed * 1_000_003 + step)
        epoch, position = divmod(step, self.per_epoch)
        places = self._batches_of(epoch)[position]
        rows, group = self.rows[places], int(self._groups[places[0]])
        sign = np.where(self.corpus.is_code[rows], 1.0, -1.0)
        ids = [self.ids[i] for i in rows]
        for place, row in enumerate(rows):
            if len(ids[place]) <= 40 and not self.corpus.is_code[row] and rng.random() < 0.3:
                code = rng.random() < 0.4
                ids[place] = self._asked(row, code, rng)
                sign[place] = 1.0 if code else -1.0
        return TextBatch(ids, self.target(rows, sign), self.bank(step, group))

    def pairs(self, step: int) -> PairBatch:
        """Draw groups of neighbouring pairs, so that the batch itself holds hard negatives.

        Functions come with their docstring's prose: under a code instruction the function is right and the
        prose is wrong, under a prose one the reverse.
        """
        rng = random.Random(self.seed * 1_000_003 + step)
        numbers = np.random.default_rng((self.seed, step, 1))
        size, near_count = self.mixture.pool, self.mixture.neighbours
        pool = self.train_pairs[numbers.choice(len(self.train_pairs), size, replace=False, p=self._chance)]
        vectors = self.labels[pool[:, 0]].astype(np.float32)
        seeds = numbers.choice(size, self.pair_count // near_count, replace=False)
        near = np.argsort(-(vectors[seeds] @ vectors.T), axis=1)[:, :near_count]
        chosen = pool[np.unique(near)]

        queries, signs, wanted = [], [], []
        for query, positive, twin, kind in chosen.tolist():
            is_code = kind == CODE
            code = is_code and (twin < 0 or rng.random() < 0.7)
            bare = not code and rng.random() < 0.15
            queries.append(self.ids[query] if bare else self._asked(query, code, rng))
            signs.append(1.0 if code else -1.0)
            wanted.append(twin if is_code and not code else positive)
        twins = chosen[:, 2]
        rows = np.unique(np.concatenate([chosen[:, 1], twins[twins >= 0]]))
        document_target = self.target(rows)
        positives = np.searchsorted(rows, wanted)

        # Another text of the same modality that the teacher likes better than the answer is no fair negative.
        labels = self.labels[rows].astype(np.float32)
        likes = self.labels[chosen[:, 0]].astype(np.float32) @ labels.T
        better = likes > likes[np.arange(len(chosen)), positives][:, None]
        better |= labels[positives] @ labels.T > SAME_TEXT
        same = better & (self.corpus.is_code[rows][None] == self.corpus.is_code[rows][positives][:, None])
        same[np.arange(len(same)), positives] = False
        bank = self.bank(step)
        with_documents = torch.cat([bank, document_target])
        return PairBatch(
            TextBatch(queries, self.target(chosen[:, 0], np.array(signs)), with_documents),
            TextBatch([self.ids[i] for i in rows], document_target, bank),
            torch.from_numpy(positives),
            torch.from_numpy(same),
        )
