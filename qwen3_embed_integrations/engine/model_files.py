"""What a model's files say and hold, read before anything is loaded: its limits, its rotary base, its tensors.

Nothing here trusts a file: whatever is missing, cut short or meant for another program is an error that names the file
and what to do.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from qwen3_embed_integrations.models import CONTEXT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
MODULES = "modules.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# safetensors' own limit.
_LONGEST_HEADER = 100_000_000
_SHOWN = 4

# Tensors that a base model does without: the head of a language model, and frequencies that releases before 2023 saved.
_NOT_NEEDED = re.compile(r"^lm_head\.|(^|\.)rotary_emb\.inv_freq$")

MERGE = (
    "merge the adapter into its base model first, with peft: "
    "model.merge_and_unload().save_pretrained(folder, safe_serialization=True)"
)
_CONVERT = "load it where you trust it, and save it with safe_serialization=True"
_REMEDIES = (
    (re.compile(r"\.lora_[AB]\.|\.lora_embedding_|\.lora_magnitude_"), f"they are LoRA's: {MERGE}"),
    (re.compile(r"^base_model\.model\."), f"the names are those of a PEFT model: {MERGE}"),
    (re.compile(r"_orig_mod\."), "the names are those of a compiled model: save model._orig_mod instead"),
    (re.compile(r"^module\."), "the names are those of DataParallel: save model.module instead"),
    (re.compile(r"_fsdp_wrapped_module\."), "the names are those of FSDP: gather the full state dict and save that"),
    (re.compile(r"^(0\.)?auto_model\."), "the names are sentence-transformers' own: use its save_pretrained"),
    (
        re.compile(r"\.(qweight|qzeros|weight_packed|weight_scale|scales)$"),
        "the weights are quantized: take the original ones",
    ),
)


def read_json(path: Path) -> Any:
    """Read a JSON file of a model.

    Args:
        path: the file.

    Returns:
        What it holds.

    Raises:
        OSError: it can't be read.
        ValueError: it is not JSON; the message names the file and what to do.
    """
    refuse_pointer(path)
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not whole: it is no JSON ({error}): fetch it again") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model that must hold an object.

    Args:
        path: the file.

    Returns:
        The object.

    Raises:
        OSError: it can't be read.
        ValueError: it is no JSON object.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, and holds {type(found).__name__}")
    return found


def limits_of(path: str, config: Mapping[str, Any]) -> tuple[int, int]:
    """Work out what a model can do.

    Args:
        path: of config.json, for messages.
        config: what it holds.

    Returns:
        Components of its vectors, and tokens that it reads at most, the end token included.

    Raises:
        ValueError: it is no text model's config, or says two different things.
    """
    if not isinstance(config.get("hidden_size"), int):
        raise ValueError(f"{path} is no text model's config: it has no hidden_size")
    return int(config["hidden_size"]), _context(path, config)


def saved_limits(
    path: str,
    config: Mapping[str, Any],
    saved: Mapping[str, Any],
    bert: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
) -> tuple[int, int]:
    """Work out what a model does unless it is told otherwise, as its author saved it.

    Args:
        path: of config.json, for messages.
        config: what it holds.
        saved: what config_sentence_transformers.json holds, where `truncate_dim` is.
        bert: what sentence_bert_config.json holds, where older sentence-transformers saved `max_seq_length`.
        tokenizer: what tokenizer_config.json holds, where newer ones save it, as `model_max_length`.

    Returns:
        Components of its vectors, and tokens of a text that it reads.

    Raises:
        ValueError: it is no text model's config, or says two different things.
    """
    size, context = limits_of(path, config)
    # What a tokenizer had before the context was scaled says nothing of it.
    native = rotary_settings(path, config).get("original_max_position_embeddings") or context
    lengths = (_below(bert.get("max_seq_length"), context), _below(tokenizer.get("model_max_length"), native))
    return _below(saved.get("truncate_dim"), size) or size, min([context, *filter(None, lengths)])


def _below(given: Any, most: int) -> int | None:
    """Return a saved number where it is less than the model's own."""
    return given if type(given) is int and 1 <= given < most else None


def _context(path: str, config: Mapping[str, Any]) -> int:
    positions = int(config.get("max_position_embeddings") or CONTEXT)
    scaled = rotary_settings(path, config)
    if scaled.get("rope_type", "default") == "default":
        return min(positions, CONTEXT)
    original, factor = scaled.get("original_max_position_embeddings"), scaled.get("factor")
    return max(positions, int(original * factor)) if original and factor else positions


def rotary_settings(path: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Read how a model rotates positions, whichever release of transformers wrote its config.

    transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 `rope_parameters`, and each ignores some of
    what the other wrote.

    Args:
        path: of config.json, for messages.
        config: what it holds.

    Returns:
        The settings as `rope_parameters` has them; empty where there are none, or one set for each kind of layer.

    Raises:
        ValueError: the file says two different things, or frequencies depend on the other texts of a batch.
    """
    new, old = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    if not isinstance(new, dict) or not isinstance(old, dict):
        raise ValueError(f"{path} must hold objects as rope_parameters and rope_scaling")
    if any(isinstance(value, dict) for value in new.values()):
        return {}
    found: dict[str, Any] = {}
    for given in ({"rope_theta": config.get("rope_theta")}, _named(old), _named(new)):
        for name, value in given.items():
            if value is None:
                continue
            if found.setdefault(name, value) != value:
                raise ValueError(
                    f"{path} gives {name} as {found[name]!r} and as {value!r}, and transformers 4 and 5 read different "
                    "ones: leave the right one in rope_theta, rope_scaling and rope_parameters"
                )
    if found.get("rope_type") in ("dynamic", "longrope"):
        raise ValueError(
            f"{path} asks for rope_type={found['rope_type']!r}, with which a text's vector depends on the longest text "
            "of its batch; 'yarn' and 'linear' do not"
        )
    return found


def _named(settings: Mapping[str, Any]) -> dict[str, Any]:
    # What is rope_type now was type once, and some files have both.
    return {"rope_type" if name == "type" else name: value for name, value in settings.items()}


def vector_files(folder: Path) -> list[Path]:
    """Find the files that a model's vectors are made from: not a trainer's logs, nor its checkpoints.

    Args:
        folder: of the model.

    Returns:
        Those that are there, by name.
    """
    names = ["config.json", MODULES, "tokenizer.json", WEIGHTS_INDEX]
    if not (folder / WEIGHTS).is_file() and (folder / WEIGHTS_INDEX).is_file():
        files = [folder / name for name in _shards(folder)]
    else:
        files = [folder / WEIGHTS]
    files += [folder / name for name in names]
    for _, path in _modules(folder):
        files += [*path.glob("*.json"), *path.glob("*.safetensors")]
    return sorted({file for file in files if file.is_file()})


def _shards(folder: Path) -> list[str]:
    index = read_object(folder / WEIGHTS_INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise ValueError(f"{folder / WEIGHTS_INDEX} does not say which tensors are where: fetch it again")
    return sorted(set(index.values()))


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Read which modules follow the transformer: the names of their classes, and their folders."""
    path = folder / MODULES
    if not path.is_file():
        return []
    found = read_json(path)
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and isinstance(one.get("path"), str) and isinstance(one.get("type"), str) for one in found
    ):
        raise ValueError(f"{path} must hold a list of modules with path and type: fetch it again")
    return [(one["type"].rpartition(".")[2], folder / one["path"]) for one in found if one["path"]]


def check_folder(folder: Path) -> None:
    """Check that a model can be loaded from a folder, without loading it.

    Args:
        folder: of the model.

    Raises:
        OSError: a file can't be read.
        ValueError: a file is missing, not whole, or of a kind that is not loaded; the message says what to do.
    """
    config = read_object(folder / "config.json")
    if (folder / ADAPTER).is_file():
        alone = not any(folder.glob("*.safetensors.index.json")) and not (folder / WEIGHTS).is_file()
        beside = (
            "without the model that it adapts" if alone else "beside a model, so that it is not clear which is meant"
        )
        raise ValueError(f"{folder / ADAPTER} is a PEFT adapter {beside}: {MERGE}")
    quantized = config.get("quantization_config") or config.get("quantization")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise ValueError(
            f"{folder / 'config.json'} says that the weights are quantized ({method or 'by another program'}), which "
            "is not run here: take the original weights, with quantization='int8' or not, or a server and RemoteEncoder"
        )
    for kind, path in _modules(folder):
        if kind != "Normalize" and not (path / "config.json").is_file():
            raise ValueError(
                f"{path / 'config.json'} is missing, which {MODULES} names ({kind}): fetch the model again, whole"
            )
        if any(path.glob("*.bin")) and not any(path.glob("*.safetensors")):
            raise ValueError(f"{path} holds weights that are not in safetensors, and no others are loaded: {_CONVERT}")


def read_tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes of a model's tensors from the heads of its files.

    Args:
        folder: of the model.

    Returns:
        Shape by name.

    Raises:
        OSError: there are no weights, or a file can't be read.
        ValueError: a file is missing or not whole; the message says what to do.
    """
    if (folder / WEIGHTS).is_file():
        files = [folder / WEIGHTS]
    elif (folder / WEIGHTS_INDEX).is_file():
        files = [folder / name for name in _shards(folder)]
    else:
        raise _no_weights(folder)
    tensors: dict[str, tuple[int, ...]] = {}
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} is missing, which {WEIGHTS_INDEX} names: {_fetch(folder)}")
        tensors |= _read_header(file)
    return tensors


def _no_weights(folder: Path) -> OSError | ValueError:
    others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern))
    others = [name for name in others if name != "training_args.bin"]
    if others:
        return ValueError(f"{folder} has no {WEIGHTS}, only {', '.join(others)}, which is not loaded: {_CONVERT}")
    return FileNotFoundError(f"{folder} has no {WEIGHTS}: {_fetch(folder)}")


def _fetch(folder: Path) -> str:
    # A hub's cache is models--owner--name/snapshots/commit.
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        name = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
        return f"fetch it whole with `hf download {name} --revision {folder.name}`"
    return "copy or fetch the model again, whole"


def refuse_pointer(path: Path) -> None:
    """Check that Git LFS fetched a file.

    Args:
        path: the file.

    Raises:
        OSError: it can't be read.
        ValueError: there is only a pointer to it.
    """
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(f"{path} is a Git LFS pointer and not the file itself: run `git lfs pull` in its folder")


def _read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the head of a safetensors file (https://github.com/huggingface/safetensors#format), and compare its size."""
    broken = f"{path} is not whole: {_fetch(path.parent)}"
    refuse_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size, _LONGEST_HEADER):
            raise ValueError(broken)
        head = file.read(length)
    try:
        entries = json.loads(head)
        entries.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(broken) from error
    if size != 8 + length + end:
        raise ValueError(f"{path} is not whole, {size:,} of {8 + length + end:,} bytes: {_fetch(path.parent)}")
    return shapes


def check_tensors(
    folder: Path, held: Mapping[str, Sequence[int]], needed: Mapping[str, Sequence[int]], prefix: str
) -> None:
    """Check that a checkpoint holds what a model needs, and nothing else: transformers fills gaps at random.

    Args:
        folder: of the model, for messages.
        held: shapes of the checkpoint's tensors by name.
        needed: shapes of the model's.
        prefix: what stands before each name where the checkpoint is of a model with a head.

    Raises:
        ValueError: tensors are missing, of another shape or of no use; the message names them and, where it is known,
            what to do.
    """
    taken = {name if name in needed else name.removeprefix(prefix): name for name in held}
    missing = [name for name in needed if name not in taken]
    unused = [held_as for name, held_as in taken.items() if name not in needed and not _NOT_NEEDED.search(held_as)]
    other = [
        f"{name} {list(held[taken[name]])} instead of {list(needed[name])}"
        for name in needed
        if name in taken and list(held[taken[name]]) != list(needed[name])
    ]
    problems = [
        f"{what}: {_listed(names)}"
        for what, names in (
            ("the model needs and the files lack", missing),
            ("the files hold and the model does not take", unused),
            ("of another shape than config.json says", other),
        )
        if names
    ]
    if problems:
        remedy = next((f"; {remedy}" for pattern, remedy in _REMEDIES if any(map(pattern.search, unused))), "")
        raise ValueError(f"the weights in {folder} do not fit: {'; '.join(problems)}{remedy}")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
