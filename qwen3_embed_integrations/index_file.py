"""FAISS indexes on disk, each with the fingerprint of the encoder whose vectors it holds."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from qwen3_embed_integrations.matryoshka import import_faiss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import faiss
    from numpy.typing import NDArray

    from qwen3_embed_integrations.encoder import Encoder

SUFFIX = ".fingerprint.json"
_PIECE = 2**20
_ROWS = 65_536
# Of inner products in float32.
_ROUNDING = 1e-5


class FingerprintError(ValueError):
    """An index holds vectors of another encoder than the one that it was opened with."""


class DamagedIndexError(ValueError):
    """An index on disk is not the one that was saved, or was never saved with a fingerprint."""


@dataclass(frozen=True)
class Saved:
    """What is known of an index file.

    Attributes:
        sha256: of the file.
        fingerprint: of the encoder whose vectors it holds.
        documents: name of the file beside it with the texts, where this package keeps them.
    """

    sha256: str
    fingerprint: str
    documents: str | None = None


@dataclass(frozen=True)
class Checked(Saved):
    """What `check_index` found.

    Attributes:
        recall: recall@10 of the queries that it was given, by score: the share of their results that score no less than
            the true tenth. None without queries.
    """

    recall: float | None = None


def save_index(index: faiss.Index, path: str | os.PathLike[str], encoder: Encoder) -> None:
    """Write an index, and beside it (`PATH.fingerprint.json`) the fingerprint of the encoder whose vectors it holds.

    An index that was there is replaced at once: whoever reads, or a crash, finds the old one or the new one whole.

    Args:
        index: any FAISS index.
        path: where to write; the folder is made where there is none.
        encoder: what the vectors were made with.

    Raises:
        ImportError: FAISS is not installed.
        ValueError: the index and the encoder have different dimensions.
    """
    write_index(index, path, encoder)


def load_index(path: str | os.PathLike[str], encoder: Encoder) -> faiss.Index:
    """Read an index that `save_index` wrote, if it holds vectors that this encoder's can be compared with.

    Args:
        path: the index file.
        encoder: what queries will be made with.

    Returns:
        The index.

    Raises:
        ImportError: FAISS is not installed.
        FileNotFoundError: there is no such file.
        FingerprintError: it holds vectors of another model, revision, dimension or document instruction.
        DamagedIndexError: the file is not the one that was saved.
    """
    check_index(path, encoder)
    return read_index(path)


def read_index(path: str | os.PathLike[str]) -> faiss.Index:
    """Read an index file that was checked.

    Args:
        path: the index file.

    Returns:
        The index, which is a two-stage index again if it was one.
    """
    library = import_faiss()
    from qwen3_embed_integrations.two_stage import restored

    index: faiss.Index = restored(library.read_index(os.fspath(path)))
    return index


def check_index(path: str | os.PathLike[str], encoder: Encoder, *, queries: Iterable[str] | None = None) -> Checked:
    """Check an index that `save_index` wrote before a framework's own store reads it.

    Args:
        path: the index file.
        encoder: what queries will be made with.
        queries: some, to measure how much of what an exact search finds the index finds too; this reads all of it.

    Returns:
        What is known of the file.

    Raises:
        ImportError: there are queries, and FAISS is not installed.
        FileNotFoundError: there is no such file.
        FingerprintError: it holds vectors of another model, revision, dimension or document instruction.
        DamagedIndexError: the file is not the one that was saved.
    """
    path = Path(path)
    texts = None if queries is None else list(queries)
    if texts == []:
        raise ValueError("there are no queries to measure the recall of")
    digest = _sha256(path)
    saved = next((saved for saved in _read_notes(path) if saved.sha256 == digest), None)
    if saved is None:
        raise DamagedIndexError(f"{str(path)!r} is damaged or was written by something else: its checksum is not noted")
    if saved.fingerprint != encoder.fingerprint:
        raise FingerprintError(
            f"{str(path)!r} holds vectors of {saved.fingerprint}, which cannot be compared with those of "
            f"{encoder.fingerprint}: open it with the encoder that it was made with, or embed the documents again"
        )
    recall = None if texts is None else recall_of(read_index(path), encoder.encode_queries(texts))
    return Checked(**asdict(saved), recall=recall)


def recall_of(index: faiss.Index, queries: NDArray[np.float32], k: int = 10) -> float:
    """Measure an index against an exact search of the same vectors, by score: among equal rows none is more right.

    Args:
        index: an index of inner products that gives its vectors back.
        queries: float32 array, shape (n, dimensions), one query or more.
        k: results per query.

    Returns:
        The share of the results that score no less than the k-th of the exact search, 0 to 1; 1 of an empty index.

    Raises:
        ValueError: the index is none of inner products.
    """
    library = import_faiss()
    if index.metric_type != library.METRIC_INNER_PRODUCT:
        raise ValueError("only the recall of an index of inner products can be measured")
    if isinstance(index, library.IndexIDMap):
        index = library.downcast_index(index.index)
    k = min(k, index.ntotal)
    if not k:
        return 1.0
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for start in range(0, index.ntotal, _ROWS):
        rows = np.arange(start, min(start + _ROWS, index.ntotal), dtype=np.int64)
        scores = np.concatenate([best, queries @ index.reconstruct_batch(rows).T], axis=1)
        best = -np.partition(-scores, k - 1, axis=1)[:, :k]
    found, _ = index.search(queries, k)
    return float((found >= best.min(axis=1, keepdims=True) - _ROUNDING).mean())


def write_index(
    index: faiss.Index, path: str | os.PathLike[str], encoder: Encoder, documents: str | None = None
) -> None:
    """Write an index as `save_index` does, with the name of a file that belongs to it.

    Args:
        index: any FAISS index.
        path: where to write.
        encoder: what the vectors were made with.
        documents: name of the file with the texts, written already.

    Raises:
        ValueError: the index and the encoder have different dimensions.
    """
    faiss, path = import_faiss(), Path(path)
    if index.d != encoder.dimensions:
        raise ValueError(f"the index has {index.d} dimensions, and the encoder's vectors {encoder.dimensions}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        earlier = _read_notes(path)
    except DamagedIndexError:
        earlier = []  # Nothing is there that could be opened.

    def commit(temporary: Path) -> None:
        saved = Saved(_sha256(temporary), encoder.fingerprint, documents)
        # The notes of both, until the new file has taken the old one's place: a crash leaves a pair that fits.
        _write_notes(path, [saved, *(note for note in earlier if note.sha256 != saved.sha256)])
        temporary.replace(path)
        _write_notes(path, [saved])

    _write_aside(path, lambda temporary: faiss.write_index(index, os.fspath(temporary)), commit)


def _write_aside(path: Path, fill: Callable[[Path], Any], commit: Callable[[Path], Any]) -> None:
    # Not tempfile, whose files only their owner may read.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        fill(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        commit(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file, of which a reader or a crash finds the old content or the new, whole.

    Args:
        path: where to write.
        content: all of it.
    """
    _write_aside(path, lambda temporary: temporary.write_bytes(content), lambda temporary: temporary.replace(path))


def _notes(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def _read_notes(path: Path) -> list[Saved]:
    try:
        notes = json.loads(_notes(path).read_bytes())
        return [Saved(**note) for note in notes["files"]]
    except FileNotFoundError as error:
        raise DamagedIndexError(
            f"there is no {_notes(path).name} beside {str(path)!r}: it was not saved with a fingerprint"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedIndexError(f"{str(_notes(path))!r} is damaged: {error}") from error


def _write_notes(path: Path, files: list[Saved]) -> None:
    content = json.dumps({"files": [asdict(file) for file in files]}, indent=2) + "\n"
    write_atomically(_notes(path), content.encode())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
