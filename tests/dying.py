"""An encoder that sends a signal to a process at one of its texts, but only the first time."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.bulk import embed_files


class DyingEncoder(Qwen3Encoder):
    """Reads what to do in the environment, where Ray's actors find it too.

    DIES_AT: the text; DIES_IN: a folder, in which the first time leaves a file; DIES_WITH: the signal; DIES_WHO: the
    process, its own if left out.
    """

    def _encode_documents(self, texts, prompt, show_progress):
        if os.environ["DIES_AT"] in texts:
            try:
                (Path(os.environ["DIES_IN"]) / "died").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(int(os.environ.get("DIES_WHO", os.getpid())), int(os.environ["DIES_WITH"]))
        return super()._encode_documents(texts, prompt, show_progress)


if __name__ == "__main__":
    source, destination, runner = sys.argv[1:]
    options = {"encoder": DyingEncoder("tiny"), "part_rows": 8, "show_progress": False}
    if runner == "ray":
        import ray

        from qwen3_embed_integrations.ray import embed_dataset

        os.environ.setdefault("DIES_WHO", str(os.getpid()))
        ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"DIES_WHO": os.environ["DIES_WHO"]}})
        embed_dataset(source, destination, workers=2, **options)
    else:
        embed_files(source, destination, **options)


SIGNALS = {name: str(int(getattr(signal, name))) for name in ("SIGKILL", "SIGINT")}
