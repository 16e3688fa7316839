"""Where a model's files come from: a folder, the Hugging Face hub, or this package."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from qwen3_embed_integrations.engine.model_files import (
    ADAPTER,
    MERGE,
    SENTENCE_TRANSFORMERS,
    limits_of,
    read_object,
    saved_limits,
    vector_files,
)
from qwen3_embed_integrations.models import MODELS, find_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TOKENIZER_FILES = ["config.json", "tokenizer*.json"]
_MODEL_FILES = ["*.json", "*.safetensors"]


class _NoBar(tqdm):  # type: ignore[misc]  # tqdm has no types
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "disable": True})


class FilesChangedError(RuntimeError):
    """A model's folder was written anew while an encoder used it."""


@dataclass(frozen=True)
class ModelSource:
    """One model's files, and how to get at them; two sources are equal when they lead to the same files.

    Attributes:
        location: a hub id, or the absolute path of a folder.
        revision: branch, tag or commit on the hub; None for its main branch.
        cache_folder: where the hub's files are kept; None for the hub library's own place.
        local_files_only: never ask the network.
        token: access token of the hub, shown in no repr.
        files: name, bytes and time of change in ns of a folder's files when it was pinned; empty for the hub.
    """

    location: str
    revision: str | None = None
    cache_folder: str | None = None
    local_files_only: bool = field(default=False, compare=False)
    token: str | bool | None = field(default=None, repr=False, compare=False)
    files: tuple[tuple[str, int, int], ...] = ()

    @property
    def is_folder(self) -> bool:
        """Whether the files lie in a folder of this machine."""
        return os.path.isabs(self.location)  # noqa: PTH117 - a hub id is no path

    def config(self) -> dict[str, Any]:
        """Read the model's config.json; from the hub, only this file is fetched."""
        return read_object(self._config_path())

    def limits(self) -> tuple[int, int]:
        """Return (largest dimension, context in tokens), from the known facts or else from config.json."""
        spec = find_spec(self.location)
        if spec is not None:
            return spec.max_dimensions, spec.context
        return limits_of(str(self._config_path()), self.config())

    def saved_limits(self) -> tuple[int, int]:
        """Return (dimensions, tokens of a text) that the model was saved to give and to read."""
        if find_spec(self.location) is not None:
            return self.limits()
        saved, bert = self.optional(SENTENCE_TRANSFORMERS), self.optional("sentence_bert_config.json")
        tokenizer = self.optional("tokenizer_config.json")
        return saved_limits(str(self._config_path()), self.config(), saved, bert, tokenizer)

    def optional(self, name: str) -> dict[str, Any]:
        """Read one of the model's JSON files, by itself from the hub; empty where the model has none."""
        path = self._config_path().parent / name
        if path.is_file():
            return read_object(path)
        if self.is_folder or self.local_files_only:
            return {}
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return read_object(self._fetched(name))
        except (EntryNotFoundError, FileNotFoundError):
            return {}  # the hub has none, or cannot be asked, and what was fetched before has none

    def pinned(self) -> ModelSource:
        """Give the same source held to what it is now: the hub's commit, or a folder's files."""
        if self.is_folder:
            return replace(self, files=_list_files(self.location))
        return replace(self, revision=self._config_path().parent.name)

    def version(self) -> str:
        """Name the weights of a pinned source: the hub's commit, or a folder's SHA-256; 12 hexadecimal digits."""
        if not self.is_folder:
            return str(self.revision)[:12]
        self._check_files()
        return _digest(self.location, self.files)[:12]

    def tokenizer_folder(self) -> Path:
        """Give a folder with a pinned source's tokenizer, fetched where it is not here yet."""
        folder = self._folder(_TOKENIZER_FILES)
        if not self.is_folder and not (folder / "tokenizer.json").is_file():
            reason = self._why_not_fetched("the hub cannot be reached, or has none")
            raise self._not_cached(reason, "the tokenizer.json of ")
        return folder

    def model_folder(self, *, show_progress: bool = False) -> Path:
        """Give a folder with all that loading a pinned source needs, fetched where it is not here yet."""
        return self._folder(_MODEL_FILES, show_progress=show_progress)

    def _check_files(self) -> None:
        if self.files != _list_files(self.location):
            raise FilesChangedError(
                f"the files in {self.location} changed since this encoder first used them: close it or make a new one"
            )

    def _folder(self, patterns: list[str], *, show_progress: bool = False) -> Path:
        if self.is_folder:
            self._check_files()
            return Path(self.location)
        if self.local_files_only:
            return self._cached_config().parent
        from huggingface_hub import snapshot_download

        with self._named_errors():
            folder = snapshot_download(
                self.location,
                revision=self.revision,
                cache_dir=self._cache_dir,
                token=self.token,
                allow_patterns=patterns,
                tqdm_class=None if show_progress else _NoBar,
            )
        return Path(folder)

    def _config_path(self) -> Path:
        if self.is_folder:
            return Path(self.location) / "config.json"
        return self._cached_config() if self.local_files_only else self._fetched("config.json")

    def _fetched(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        # Before its release 1, the hub's library draws a bar for a file in any case.
        options: Any = {"tqdm_class": _NoBar} if "tqdm_class" in signature(hf_hub_download).parameters else {}
        with self._named_errors():
            path = hf_hub_download(
                self.location, name, revision=self.revision, cache_dir=self._cache_dir, token=self.token, **options
            )
        return Path(path)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Say which model is missing and where, whatever keeps the hub's library from fetching it."""
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            yield
        except LocalEntryNotFoundError as error:
            raise self._not_cached(self._why_not_fetched()) from error
        except Exception as error:
            # Of an HTTP library that is another one in each release of the hub's.
            if type(error).__name__ != "ProxyError":
                raise
            raise self._not_cached(f"the proxy does not let it be fetched ({error})") from error

    def _why_not_fetched(self, otherwise: str = "the hub cannot be reached") -> str:
        from huggingface_hub.constants import HF_HUB_OFFLINE

        if self.local_files_only:
            return "local_files_only=True keeps it from being fetched"
        return "HF_HUB_OFFLINE keeps it from being fetched" if HF_HUB_OFFLINE else otherwise

    def _cached_config(self) -> Path:
        # The hub's download functions ask the network for a registry of agents even when told local_files_only.
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.location, "config.json", cache_dir=self._cache_dir, revision=self.revision)
        if not isinstance(path, str):
            raise self._not_cached(self._why_not_fetched())
        return Path(path)

    def _not_cached(self, reason: str, what: str = "") -> FileNotFoundError:
        from huggingface_hub.constants import HF_HUB_CACHE

        cache = Path(self._cache_dir or HF_HUB_CACHE)
        revision = self.revision or "main"
        repository = cache / f"models--{self.location.replace('/', '--')}"
        commits = sorted(path.parent.name for path in repository.glob("snapshots/*/config.json"))
        command = f"hf download {self.location}"
        command += f" --revision {revision}" if self.revision else ""
        command += f" --cache-dir {cache}" if self._cache_dir else ""
        hint = f"fetch it with `{command}` where there is a network, or give a model's folder"
        if commits and revision not in commits:
            missing = repository / "refs" / revision
            hint = f"{missing} is missing, which says what commit that is: as revision give one of {', '.join(commits)}"
        return FileNotFoundError(
            f"{what}{self.location} (revision {revision}) is not in the cache at {cache}, and {reason}: {hint}"
        )

    @property
    def _cache_dir(self) -> str | None:
        return self.cache_folder or os.getenv("SENTENCE_TRANSFORMERS_HOME")


def locate(model: str | os.PathLike[str]) -> str:
    """Find what a model's name stands for, without touching the network.

    Args:
        model: a short name ("tiny", "0.6B", "4B", "8B"), a folder, or a hub id.

    Returns:
        The folder's absolute path, or the hub id.

    Raises:
        TypeError: model is neither a string nor a path.
        ValueError: it is none of the three, or a folder without a config.json.
    """
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"model must be a name, a hub id or a folder, got {model!r} ({type(model).__name__})")
    if isinstance(model, str) and model in MODELS:
        return MODELS[model].source
    folder = Path(model).expanduser()
    # An empty name would be the current folder.
    if model != "" and folder.is_dir():
        if not (folder / "config.json").is_file():
            if (folder / ADAPTER).is_file():
                raise ValueError(f"{folder / ADAPTER} is a PEFT adapter without its model: {MERGE}")
            raise ValueError(f"the folder {str(model)!r} holds no model: it has no config.json")
        return str(folder.resolve())
    if isinstance(model, str) and _HUB_ID.fullmatch(model):
        return model
    names = {name.lower(): spec.name for spec in MODELS.values() for name in (spec.name, Path(spec.source).name)}
    nearest = difflib.get_close_matches(str(model).lower(), names, n=1, cutoff=0.4)
    hint = f"did you mean {names[nearest[0]]!r}? " if nearest else ""
    raise ValueError(
        f"unknown model {str(model)!r}: {hint}It must be one of {', '.join(map(repr, MODELS))}, "
        "a hub id such as 'Qwen/Qwen3-Embedding-4B', or an existing folder"
    )


def _list_files(location: str) -> tuple[tuple[str, int, int], ...]:
    folder = Path(location)
    found = ((path.relative_to(folder).as_posix(), path.stat()) for path in vector_files(folder))
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in found)


@lru_cache(maxsize=64)
def _digest(location: str, files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, size, _ in files:
        digest.update(f"{name}\0{size}\0".encode())
        with (Path(location) / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
