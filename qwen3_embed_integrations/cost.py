"""What embedding costs: exact token counts, the price of services, the size of the vectors, and this machine's time."""

from __future__ import annotations

import os
import random
import time
from dataclasses import asdict, dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qwen3_embed_integrations.bulk.rows import (
    Location,
    checked_delimiter,
    format_of,
    is_html,
    require_pyarrow,
    visible_text,
)
from qwen3_embed_integrations.bulk.source import read_texts
from qwen3_embed_integrations.encoder import Qwen3Encoder
from qwen3_embed_integrations.matryoshka import as_integer
from qwen3_embed_integrations.models import MIN_DIMENSIONS
from qwen3_embed_integrations.usage import record_usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

DAYS_A_YEAR = 365

WATTS = 200.0
"""What a machine is taken to draw while it embeds, where nothing else is said: an assumption, not a measurement."""

BITS = {"float32": 32, "float16": 16, "int8": 8, "binary": 1}
"""Bits of a component by precision."""

_BATCH = 256

# What the speed is measured on: so many texts at most, and so much of each, for large models on small machines.
_SAMPLE = 1024
_SAMPLE_CHARACTERS = 4000
_SAMPLE_SECONDS = 2.0

# What the system counts in hundredths of a second says nothing of less.
_LEAST_SECONDS = 0.2
# How much of a file tells whether it is text: as much as git reads.
_BEGINNING = 8000


@dataclass(frozen=True)
class Price:
    """What a service takes for embedding.

    Attributes:
        provider: who runs the model.
        model: its name there.
        usd_per_million_tokens: US dollars, without discounts for batches or free tokens.
        as_of: a date on which the price held, ISO 8601, as exact as the source is.
        source: where the price was read, a URL but for the one of this project's brief.
    """

    provider: str
    model: str
    usd_per_million_tokens: Decimal
    as_of: str
    source: str

    def usd(self, tokens: int) -> Decimal:
        """Give the cost of so many tokens, in US dollars."""
        return self.usd_per_million_tokens * tokens / 1_000_000


PRICES = (
    Price(
        "DeepInfra",
        "Qwen3-Embedding-0.6B",
        Decimal("0.01"),
        "2026-08-22",
        "https://github.com/theopenco/llmgateway/pull/3746",
    ),
    # Named in this project's brief; no service was found that asks so little.
    Price("unnamed", "Qwen3-Embedding-4B", Decimal("0.01"), "2026-11", "this project's brief"),
    Price(
        "Venice",
        "Qwen3-Embedding-8B",
        Decimal("0.0125"),
        "2026-04",
        "https://docs.venice.ai/models/qwen3-embedding-8b.md",
    ),
    Price(
        "DeepInfra",
        "Qwen3-Embedding-4B",
        Decimal("0.02"),
        "2026-06",
        "https://vercel.com/ai-gateway/models/qwen3-embedding-4b",
    ),
    Price(
        "OpenAI",
        "text-embedding-3-small",
        Decimal("0.02"),
        "2026-07-03",
        "https://tokenprice.fyi/models/text-embedding-3-small",
    ),
    Price(
        "Voyage AI",
        "voyage-4-lite",
        Decimal("0.02"),
        "2026-05",
        "https://hivebook.wiki/wiki/voyage-ai-embeddings-rerankers-for-rag",
    ),
    Price(
        "Voyage AI",
        "voyage-4",
        Decimal("0.06"),
        "2026-05",
        "https://hivebook.wiki/wiki/voyage-ai-embeddings-rerankers-for-rag",
    ),
    Price(
        "Alibaba Cloud",
        "text-embedding-v4",
        Decimal("0.07"),
        "2025-12-15",
        "https://www.alibabacloud.com/help/en/model-studio/embedding-interfaces-compatible-with-openai",
    ),
    Price("Cohere", "Embed 4", Decimal("0.12"), "2026-06", "https://developer.puter.com/tutorials/cohere-api-pricing/"),
    Price(
        "Voyage AI",
        "voyage-4-large",
        Decimal("0.12"),
        "2026-05",
        "https://hivebook.wiki/wiki/voyage-ai-embeddings-rerankers-for-rag",
    ),
    Price("OpenAI", "text-embedding-3-large", Decimal("0.13"), "2026-05", "https://embeddingcost.com/openai"),
)
"""Prices that were published, cheapest first; look at the source before you rely on one.

Services' own pages seldom bear a date, so that some sources are others' that name the day or month when they read them.
"""


@dataclass(frozen=True)
class Charge:
    """What a service would take, in US dollars.

    Attributes:
        price: its price.
        run: for the files, once; None without files.
        day: for the tokens of a day; None where they are not given.
        year: for 365 such days.
    """

    price: Price
    run: Decimal | None
    day: Decimal | None
    year: Decimal | None


@dataclass(frozen=True)
class Storage:
    """What vectors take without an index or their texts.

    Attributes:
        dimensions: of a vector.
        precision: of a component: "float32", "float16", "int8" or "binary".
        bytes: of a vector; a million take as many megabytes.
    """

    dimensions: int
    precision: str
    bytes: int


@dataclass(frozen=True)
class Local:
    """What the model takes on this machine.

    Attributes:
        device: that it ran on, by torch's name.
        dtype: of its weights.
        tokens_per_second: measured on a sample of the texts.
        other_work: cores' worth of other processes' work meanwhile, on the cores that this one may use; None where that
            is not known.
        cores: that this process may use.
        watts: what the machine is said or taken to draw.
        hours: for the files; None without files.
        kwh: kilowatt hours for the files.
        hours_a_day: for the tokens of a day; None where they are not given.
        kwh_a_day: kilowatt hours for them.
    """

    device: str | list[str]
    dtype: str
    tokens_per_second: float
    other_work: float | None
    cores: int
    watts: float
    hours: float | None
    kwh: float | None
    hours_a_day: float | None
    kwh_a_day: float | None


@dataclass(frozen=True)
class Estimate:
    """All that was counted and computed.

    Attributes:
        model: whose tokenizer counted.
        files: how many were read.
        texts: in the files.
        tokens: of the texts, each with its end token.
        longer_than_context: texts with more tokens than the model reads, which count whole.
        daily_tokens: tokens of a day, or None.
        charges: by price, in the order of the prices.
        storage: by dimensions, the model's own first, and precision.
        local: None where the weights are not on this machine, or can't be loaded.
        unmeasured: why that is so, or None.
        passed_by: files of folders that were not counted, each with the reason.
    """

    model: str
    files: int
    texts: int
    tokens: int
    longer_than_context: int
    daily_tokens: int | None
    charges: Sequence[Charge]
    storage: Sequence[Storage]
    local: Local | None
    unmeasured: str | None = None
    passed_by: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON takes it, money in US dollars."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: plain(item) for name, item in value.items()}
            if isinstance(value, (list, tuple)):
                return [plain(item) for item in value]
            return float(value) if isinstance(value, Decimal) else value

        found: dict[str, Any] = plain(asdict(self))
        return found


def estimate(
    files: Iterable[str | os.PathLike[str]] = (),
    model: str = "tiny",
    *,
    daily_tokens: int | None = None,
    text_column: str = "text",
    delimiter: str | None = None,
    watts: float = WATTS,
    prices: Sequence[Price] = PRICES,
) -> Estimate:
    """Count the tokens of texts, and tell what embedding them costs.

    Only the tokenizer is loaded to count, and the weights are never fetched: where they are on this machine, its speed
    is measured for some seconds, on some of the texts (their first 4,000 characters) or, without files, on the
    documentation of Python's standard library. Other models have other tokenizers, which count more or fewer tokens:
    the cost of their services is that of this model's count.

    Args:
        files: Parquet (.parquet), JSON lines (.jsonl, .ndjson), JSON (.json), CSV (.csv) and TSV (.tsv), perhaps with
            .gz or .zst behind, with a text a row; a file with any other name is one text, in UTF-8, and of HTML what a
            reader sees. Of a folder all files, but for those whose names begin with a dot or an underscore; what is no
            text there is passed by and named.
        model: "tiny", "0.6B", "4B" or "8B"; a hub id; or a folder with a model's files. The three real ones share a
            tokenizer; that of "tiny" is theirs cut to fewer tokens, and counts more.
        daily_tokens: tokens of a day, for the cost of a day and of a year.
        text_column: name of the column, or of the field, with the text.
        delimiter: between the fields of CSV; None for a comma, and a tab in .tsv files.
        watts: what this machine draws while it embeds.
        prices: of services.

    Returns:
        What was found.

    Raises:
        ImportError: there are files with rows, and pyarrow is not installed.
        OSError: a file can't be read, or the tokenizer not be fetched.
        TypeError: daily_tokens is not an integer.
        ValueError: a number is out of range, there is neither a file nor daily_tokens, the model is unknown, or a file
            holds something else than texts; the message names file and row.

    Example:
        >>> from qwen3_embed_integrations.cost import estimate
        >>> found = estimate(daily_tokens=100_000_000)
        >>> [charge.year for charge in found.charges if charge.price.model == "text-embedding-3-large"]
        [Decimal('4745.00')]
    """
    paths = [Path(file) for file in files]
    if daily_tokens is not None and as_integer("daily_tokens", daily_tokens) < 0:
        raise ValueError(f"daily_tokens must be at least 0, got {daily_tokens}")
    if not watts > 0:
        raise ValueError(f"watts must be more than 0, got {watts}")
    if not paths and daily_tokens is None:
        raise ValueError("give files, or the tokens of a day, or both")
    delimiter = checked_delimiter(delimiter)
    encoder = Qwen3Encoder(model)
    # What is wrong shows before anything is counted.
    found, passed_by = _checked(paths, text_column, delimiter)
    context = encoder.max_tokens
    texts = tokens = longer = 0
    sample = _Sample()
    rows = (text for path in found for text in _texts(path, text_column, delimiter))
    while batch := list(islice(rows, _BATCH)):
        counts = encoder.count_tokens(batch)
        texts += len(batch)
        tokens += sum(counts)
        longer += sum(count > context for count in counts)
        sample.add(batch)
    files_tokens = tokens if paths else None
    local, unmeasured = _measure(model, sample.texts, watts, files_tokens, daily_tokens)
    return Estimate(
        model,
        len(found),
        texts,
        tokens,
        longer,
        daily_tokens,
        tuple(_charge(price, files_tokens, daily_tokens) for price in prices),
        tuple(storage(encoder.dimensions)),
        local,
        unmeasured,
        tuple(passed_by),
    )


def storage(dimensions: int) -> Iterator[Storage]:
    """Tell what vectors take, whole and cut to each power of two, at each precision.

    Args:
        dimensions: of the model's own vectors.

    Yields:
        From these dimensions down to 32, the fewest that the models were trained for.
    """
    powers = [2**power for power in range(dimensions.bit_length(), 0, -1)]
    for size in [dimensions, *(power for power in powers if MIN_DIMENSIONS <= power < dimensions)]:
        for precision, bits in BITS.items():
            yield Storage(size, precision, -(-size * bits // 8))


def _charge(price: Price, tokens: int | None, daily_tokens: int | None) -> Charge:
    day = None if daily_tokens is None else price.usd(daily_tokens)
    run = None if tokens is None else price.usd(tokens)
    return Charge(price, run, day, None if day is None else DAYS_A_YEAR * day)


class _Sample:
    """Keeps some of the texts that pass, each with the same chance (reservoir sampling, algorithm R)."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._seen = 0
        self._random = random.Random(0)

    def add(self, texts: Iterable[str]) -> None:
        for text in texts:
            self._seen += 1
            if len(self.texts) < _SAMPLE:
                self.texts.append(text[:_SAMPLE_CHARACTERS])
            elif (place := self._random.randrange(self._seen)) < _SAMPLE:
                self.texts[place] = text[:_SAMPLE_CHARACTERS]


def _measure(
    model: str, texts: list[str], watts: float, tokens: int | None, daily_tokens: int | None
) -> tuple[Local | None, str | None]:
    """Embed more and more texts, those of the standard library where there are no others, until that takes a while."""
    encoder = Qwen3Encoder(model, local_files_only=True)
    try:
        encoder.warm_up()
    except (OSError, ValueError) as error:
        why = "are not on this machine" if isinstance(error, OSError) else "cannot be loaded"
        reason = " ".join(str(error).split()) or type(error).__name__
        return None, f"The weights of {model} {why}, so its speed is not known: {reason}"
    if not texts:
        from qwen3_embed_integrations.demo import standard_library

        texts = [entry.text[:_SAMPLE_CHARACTERS] for entry in islice(standard_library(), _SAMPLE)]
    random.Random(0).shuffle(texts)
    encoder.encode_documents(texts[:1])
    size = 1
    before = _Work.now()
    while True:
        with record_usage() as recorded:
            encoder.encode_documents(texts[:size])
        if recorded.usage.seconds > _SAMPLE_SECONDS or size >= len(texts):
            break
        size *= 2
    other = before.others_until(_Work.now())
    speed = recorded.usage.tokens / recorded.usage.seconds
    hours, hours_a_day = (None if count is None else count / speed / 3600 for count in (tokens, daily_tokens))
    kwh, kwh_a_day = (None if time is None else time * watts / 1000 for time in (hours, hours_a_day))
    cores = len(_cores())
    return Local(encoder.device, encoder.dtype, speed, other, cores, watts, hours, kwh, hours_a_day, kwh_a_day), None


class _Work(NamedTuple):
    """Seconds on the clock, and those that our cores worked: for all processes, and for this one."""

    clock: float
    everyone: float | None
    own: float

    @classmethod
    def now(cls) -> _Work:
        return cls(time.monotonic(), _worked(), sum(os.times()[:4]))

    def others_until(self, later: _Work) -> float | None:
        """Give the cores that others kept busy; from the system's average where it tells no more."""
        seconds = later.clock - self.clock
        if self.everyone is None or later.everyone is None:
            return max(0.0, os.getloadavg()[0] - 1) if hasattr(os, "getloadavg") else None
        if seconds < _LEAST_SECONDS:
            return None
        return max(0.0, (later.everyone - self.everyone - (later.own - self.own)) / seconds)


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _worked() -> float | None:
    # Linux alone counts each core's time: user, nice, system, idle, iowait, irq, softirq, steal.
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        ours = {f"cpu{core}" for core in _cores()}
        ticks = [sum(map(int, line[1:4] + line[6:9])) for line in lines if line and line[0] in ours]
        return sum(ticks) / os.sysconf("SC_CLK_TCK") or None
    except (OSError, ValueError):
        return None


def _checked(paths: Iterable[Path], text_column: str, delimiter: str | None) -> tuple[list[Path], list[str]]:
    """Read all files once: those with texts, and what is passed by in folders, with the reason."""
    found: list[Path] = []
    passed_by: list[str] = []
    for path in paths:
        if not path.is_dir():
            for _ in _texts(path, text_column, delimiter):
                pass
            found.append(path)
            continue
        before = len(found)
        for file in _files_below(path):
            reason = _no_text(file, text_column, delimiter)
            if reason is None:
                found.append(file)
            else:
                passed_by.append(reason)
        if len(found) == before:
            raise ValueError(f"there is no text in the folder {path}" + "".join(f"; {it}" for it in passed_by[:5]))
    return found, passed_by


def _files_below(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if name[0] not in "._")
        yield from (Path(parent, name) for name in sorted(names) if name[0] not in "._")


def _no_text(file: Path, text_column: str, delimiter: str | None) -> str | None:
    # Why a file of a folder is passed by; what is wrong behind its first text is an error.
    if format_of(file) is None and file.is_file():
        with file.open("rb") as stream:
            if b"\0" in stream.read(_BEGINNING):
                return f"{file} is not text"
    rows = _texts(file, text_column, delimiter)
    try:
        next(rows, None)
    except (OSError, ValueError) as error:
        return str(error)
    for _ in rows:
        pass
    return None


def _texts(path: Path, text_column: str, delimiter: str | None) -> Iterator[str]:
    """Read the texts of a file."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if format_of(path) is not None:
        require_pyarrow()
        yield from read_texts(Location.of(path), text_column, delimiter=delimiter)
        return
    if not path.is_file():
        raise ValueError(f"{path} is no regular file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8: {error}") from error
    yield visible_text(text) if is_html(path) else text
