"""Training: labels, token vectors, then distillation and contrastive steps with the whole model."""

from __future__ import annotations

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen3Model

from training.tiny import sources, static, student
from training.tiny.batches import Batches, Mixture, PairBatch, TextBatch
from training.tiny.data import CODE, CONTENT_DIMS, MAX_TOKENS, Corpus, fit_rotation, pad, tokenize
from training.tiny.losses import DIMENSIONS, distillation, modality, neighbours, pairs
from training.tiny.rotation import learn
from training.tiny.teacher import Teacher, label, label_order
from training.tiny.tokenizer import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

log = logging.getLogger(__name__)

PRINCIPAL, LEARNED = "rotation.npy", "rotation.learned.npy"
FIRST = "checkpoint.pt"


@dataclass(frozen=True)
class Settings:
    """What the recipe can be varied by; the defaults made the bundled model."""

    vocabulary: int = 35_072
    labels: int = 502_000
    layers: int = 3
    intermediate: int = 512
    static_epochs: float = 2.5
    batch_tokens: int = 8192
    batch_pairs: int = 64
    distil_steps: int = 900
    pair_steps: int = 400
    refine_steps: int = 1580
    rotation_steps: int = 500
    token_rate: float = 2e-3
    layer_rate: float = 1e-3
    pairs_weight: float = 0.5
    refine_token_rate: float = 1.5e-3
    refine_layer_rate: float = 8e-4
    modality_weight: float = 30.0
    warmup: int = 100
    # Refining draws nearer neighbours, and more of code and of general knowledge than the corpus has.
    refine_mixture: Mixture = field(
        default_factory=lambda: Mixture(clusters=4, pool=8000, neighbours=32, shares=(0.4, 0.3, 0.3))
    )
    seed: int = 20261124
    save_every: int = 100
    threads: int = 2


class GroupedEmbedder:
    """Embeds a batch in groups of like lengths, each on a thread of its own, forward and backward.

    On shared cores, single-threaded groups were twice as fast as one batch that all threads work on together.

    Args:
        model: the student.
        threads: groups at a time.
        tokens: most tokens of a group, padding included.
    """

    def __init__(self, model: Qwen3Model, threads: int, tokens: int = 4096) -> None:
        self._model, self._tokens = model, tokens
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self._groups: list[tuple[list[int], Tensor]] = []

    def _split(self, ids: Sequence[NDArray[np.int32]]) -> list[list[int]]:
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        groups, start = [], 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * len(ids[order[stop]]) <= self._tokens:
                stop += 1
            groups.append(order[start:stop])
            start = stop
        return groups

    def forward(self, ids: Sequence[NDArray[np.int32]]) -> Tensor:
        """Embed texts; the result is a leaf whose gradient `backward` hands on to the model."""
        groups = self._split(ids)
        outputs = self._pool.map(lambda rows: student.embed(self._model, *pad([ids[i] for i in rows])), groups)
        self._groups = list(zip(groups, outputs, strict=True))
        vectors = torch.empty(len(ids), student.HIDDEN)
        for rows, output in self._groups:
            vectors[rows] = output.detach()
        return vectors.requires_grad_()

    def backward(self, vectors: Tensor) -> None:
        """Add the gradient of the last `forward` to the model's parameters."""
        list(self._pool.map(lambda group: group[1].backward(vectors.grad[group[0]]), self._groups))
        self._groups = []


def batch_loss(embedder: GroupedEmbedder, batch: TextBatch | PairBatch, settings: Settings, refining: bool) -> float:
    """Compute a step's loss and add its gradient to the parameters.

    Args:
        embedder: the student.
        batch: what to embed, and the targets.
        settings: the losses' weights.
        refining: rank the batch's texts and keep the modality in place, too.
    """
    if isinstance(batch, TextBatch):
        vectors, target = embedder.forward(batch.ids), batch.target
        loss = distillation(vectors, target, batch.bank)
        if refining:
            loss = loss + neighbours(vectors, target)
    else:
        vectors = embedder.forward(batch.queries.ids + batch.documents.ids)
        queries, documents = vectors.split([len(batch.queries.ids), len(batch.documents.ids)])
        # Before the rotation is learned, a bank at cut dimensions would tie them to the principal directions.
        sizes = DIMENSIONS if refining else (student.HIDDEN,)
        loss = distillation(queries, batch.queries.target, batch.queries.bank, sizes)
        loss = loss + distillation(documents, batch.documents.target, batch.documents.bank, sizes)
        targets = (batch.queries.target, batch.documents.target)
        loss = 0.5 * loss + settings.pairs_weight * pairs(queries, documents, targets, batch.positives, batch.same)
        target = torch.cat(targets)
    if refining:
        loss = loss + settings.modality_weight * modality(vectors, target)
    loss.backward()
    embedder.backward(vectors)
    return loss.item()


def tokens_of(folder: Path, tokenizer: Tokenizer, texts: Sequence[str]) -> list[NDArray[np.int32]]:
    """Tokenise the corpus, once."""
    path = folder / "ids.npz"
    if not path.exists():
        ids = tokenize(tokenizer, texts)
        np.savez(path, ids=np.concatenate(ids), lengths=np.array([len(row) for row in ids]))
    stored = np.load(path)
    return np.split(stored["ids"], np.cumsum(stored["lengths"])[:-1])


def prepare(folder: Path, settings: Settings) -> tuple[Callable[[NDArray[np.float32], Mixture], Batches], Path]:
    """Label the corpus, cut the tokenizer and find both rotations of the labels, unless that is done.

    Args:
        folder: the work folder.
        settings: the recipe's numbers.

    Returns:
        What makes batches for a rotation, and the path of the student's tokenizer.
    """
    corpus = Corpus.load(folder)
    order = label_order(len(corpus.texts), corpus.pairs, corpus.held_out)
    teacher = sources.fetch_teacher(folder / "teacher")
    labels, labelled = label(folder, teacher, corpus.texts, order, settings.labels)
    tokenizer_path = folder / "tokenizer.json"
    if not tokenizer_path.exists():
        full = sources.fetch_full_tokenizer(folder / "qwen")
        rows = np.random.default_rng(0).choice(np.flatnonzero(~corpus.held_out), 100_000, replace=False)
        cut(full, [corpus.texts[i] for i in rows], settings.vocabulary, tokenizer_path)
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    ids = tokens_of(folder, tokenizer, corpus.texts)
    tokenizer.enable_truncation(MAX_TOKENS)
    principal, learned = folder / PRINCIPAL, folder / LEARNED
    if not principal.exists():
        np.save(principal, fit_rotation(labels[np.flatnonzero(labelled & ~corpus.held_out)]))
    if not learned.exists():
        known = labelled[corpus.pairs[:, :2]].all(1) & ~corpus.pair_held_out & (corpus.pairs[:, 3] != CODE)
        rotation = learn(labels, corpus.pairs[known], np.load(principal), settings.rotation_steps, settings.seed)
        np.save(learned, rotation)

    def batches(rotation: NDArray[np.float32], mixture: Mixture) -> Batches:
        return Batches(
            corpus,
            ids,
            labels,
            labelled,
            rotation,
            tokenizer,
            tokens=settings.batch_tokens,
            pairs=settings.batch_pairs,
            mixture=mixture,
            seed=settings.seed,
        )

    return batches, tokenizer_path


def start_model(folder: Path, settings: Settings, batches: Batches) -> Qwen3Model:
    """Make the model that is the mean of fitted token vectors; the vectors are kept in the work folder."""
    path = folder / "tokens.pt"
    if not path.exists():
        ids = [batches.ids[i] for i in batches.rows]
        start = folder / "tokens.start.pt"
        if not start.exists():
            teacher = Teacher(folder / "teacher")
            torch.save(static.start_vectors(batches.tokenizer, teacher, batches.rotation.numpy(), ids), start)
        vectors, target = torch.load(start), batches.target(batches.rows)
        torch.save(static.fit(vectors, ids, target, settings.static_epochs, settings.seed), path)
    torch.manual_seed(settings.seed)
    model = new_model(settings)
    student.initialise(model, torch.load(path))
    return model


def new_model(settings: Settings) -> Qwen3Model:
    """Make a student with random weights."""
    return Qwen3Model(student.config(settings.vocabulary, settings.layers, settings.intermediate))


def turned_model(folder: Path, settings: Settings) -> Qwen3Model:
    """Load the model of the first stages and turn it into the learned rotation's space."""
    model = new_model(settings)
    model.load_state_dict(torch.load(folder / FIRST)["model"])
    principal, learned = (torch.from_numpy(np.load(folder / name)) for name in (PRINCIPAL, LEARNED))
    change = torch.eye(student.HIDDEN)
    content = torch.tensor(CONTENT_DIMS)
    # The teacher's vectors must stay as long as they were, next to the modality, which isn't turned.
    turned = principal.T @ learned
    change[content[:, None], content] = turned / turned.square().sum(1).mean().sqrt()
    student.turn(model, change)
    return model


def run_stages(
    folder: Path,
    name: str,
    model: Qwen3Model,
    batches: Batches,
    stages: Sequence[str],
    rates: tuple[float, float],
    settings: Settings,
) -> None:
    """Train, or go on from the last checkpoint.

    Args:
        folder: the work folder.
        name: the checkpoint's file.
        model: the student, trained in place.
        batches: what each step reads.
        stages: the name of each step's stage: "distil", "pairs" or "refine", of which the last alternates.
        rates: highest learning rates of the token vectors and of the rest.
        settings: the recipe's numbers.
    """
    embedder = GroupedEmbedder(model, settings.threads)
    table = model.embed_tokens.weight
    layers = [p for p in model.parameters() if p is not table]
    optimizer = torch.optim.AdamW(
        [{"params": [table], "lr": rates[0]}, {"params": layers, "lr": rates[1]}],
        betas=(0.9, 0.98), weight_decay=0.0, fused=True,
    )  # fmt: skip
    total = len(stages)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / settings.warmup, max(0.02, 1 - step / total))
    )
    checkpoint, curve, first = folder / name, folder / "curve.jsonl", 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]

    def read(step: int) -> TextBatch | PairBatch:
        in_pairs = stages[step] == "pairs" or (stages[step] == "refine" and step % 2 == 1)
        return batches.pairs(step) if in_pairs else batches.texts(step)

    tokens_seen, losses, began = 0, [], time.monotonic()
    reader = ThreadPoolExecutor(1)
    upcoming = reader.submit(read, min(first, total - 1))
    for step in range(first, total):
        stage, batch = stages[step], upcoming.result()
        upcoming = reader.submit(read, min(step + 1, total - 1))
        optimizer.zero_grad(set_to_none=True)
        losses.append(batch_loss(embedder, batch, settings, stage == "refine"))
        # The last column is a constant by design, not a parameter.
        table.grad[:, student.CONSTANT_DIM] = 0
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        parts = (batch.queries, batch.documents) if isinstance(batch, PairBatch) else (batch,)
        tokens_seen += sum(len(row) for part in parts for row in part.ids)
        if (step + 1) % 20 == 0:
            row = {
                "step": step + 1,
                "stage": stage,
                "loss": float(np.mean(losses)),
                "tokens_per_second": tokens_seen / (time.monotonic() - began),
            }
            log.info("%s", row)
            with curve.open("a") as file:
                file.write(json.dumps(row) + "\n")
            losses = []
        if (step + 1) % settings.save_every == 0 or step + 1 == total:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "schedule": schedule.state_dict(), "step": step + 1}, checkpoint)  # fmt: skip


def train(folder: Path, target: Path, settings: Settings) -> None:
    """Run every stage that isn't done yet, and save the model.

    Args:
        folder: the work folder, with a corpus.
        target: the model folder to write.
        settings: the recipe's numbers.
    """
    torch.manual_seed(settings.seed)
    make_batches, tokenizer_path = prepare(folder, settings)
    stages = ["distil"] * settings.distil_steps + ["pairs"] * settings.pair_steps
    if not (folder / FIRST).exists() or torch.load(folder / FIRST)["step"] < len(stages):
        batches = make_batches(np.load(folder / PRINCIPAL), Mixture())
        model = start_model(folder, settings, batches)
        run_stages(folder, FIRST, model, batches, stages, (settings.token_rate, settings.layer_rate), settings)
    model = turned_model(folder, settings)
    batches = make_batches(np.load(folder / LEARNED), settings.refine_mixture)
    rates = settings.refine_token_rate, settings.refine_layer_rate
    run_stages(folder, "refined.pt", model, batches, ["refine"] * settings.refine_steps, rates, settings)
    student.save(model, tokenizer_path, target)
