"""Command line: `python -m training.tiny build-corpus | train | evaluate | plot`."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


def _evaluate(arguments: argparse.Namespace) -> None:
    from sentence_transformers import SentenceTransformer

    from training.tiny.data import Corpus
    from training.tiny.evaluate import measure

    model = SentenceTransformer(str(arguments.model), device="cpu", model_kwargs={"dtype": torch.float32})
    model.max_seq_length = 256

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        return model.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)

    corpus = Corpus.load(arguments.work)
    result = measure(encode, corpus, prompts=not arguments.no_prompts, cranfield=arguments.cranfield)
    for name, value in result.items():
        print(f"{name:60s} {value:.3f}")  # noqa: T201  # what the command prints
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def main() -> None:
    """Parse the command line and run the stage."""
    parser = argparse.ArgumentParser(prog="training.tiny", description="Make the bundled model.")
    parser.add_argument("stage", choices=("build-corpus", "train", "evaluate", "plot"))
    parser.add_argument(
        "--work", type=Path, default=Path("work"), help="folder of sources, corpus, labels, checkpoints"
    )
    parser.add_argument("--model", type=Path, default=Path("model"), help="model folder to write or to evaluate")
    parser.add_argument("--cranfield", type=Path, help="cranfield.json.gz, to evaluate on it as well")
    parser.add_argument("--no-prompts", action="store_true", help="evaluate without instructions, as for the teacher")
    parser.add_argument("--json", type=Path, help="file for the evaluation's numbers")
    parser.add_argument("--png", type=Path, default=Path("training/curve.png"), help="picture to write")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)

    if arguments.stage == "build-corpus":
        from training.tiny.corpus import build

        build(arguments.work)
    elif arguments.stage == "train":
        from training.tiny.train import Settings, train

        train(arguments.work, arguments.model, Settings(threads=arguments.threads))
    elif arguments.stage == "evaluate":
        _evaluate(arguments)
    else:
        from training.tiny.plot import plot

        plot(arguments.work / "curve.jsonl", arguments.png)


if __name__ == "__main__":
    main()
