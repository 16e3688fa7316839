"""The encoder over a server: any endpoint that speaks OpenAI's `/v1/embeddings`."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.util import find_spec as find_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from tqdm.auto import tqdm

from qwen3_embed_integrations._renamed import explains_names
from qwen3_embed_integrations.encoder import (
    DEFAULT_MODEL,
    ConfiguredEncoder,
    as_texts,
    check_limits,
    prompts_of,
    short_hash,
    too_many,
    vector_space,
    with_prompt,
)
from qwen3_embed_integrations.endpoint import (
    OTHER,
    PROVIDERS,
    REFUSALS,
    TOO_LARGE,
    UNUSABLE,
    Endpoint,
    EndpointError,
    as_secret,
    checked_url,
)
from qwen3_embed_integrations.engine.source import ModelSource, locate
from qwen3_embed_integrations.engine.tokenization import encodable_text, shared_tokenization
from qwen3_embed_integrations.instructions import OWN_PROMPTS, Prompts
from qwen3_embed_integrations.matryoshka import as_integer, truncate
from qwen3_embed_integrations.messages import named
from qwen3_embed_integrations.models import CONTEXT, find_spec
from qwen3_embed_integrations.usage import Usage, count
from qwen3_embed_integrations.waiting import Caller

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from pydantic import SecretStr

    from qwen3_embed_integrations.endpoint import Answer
    from qwen3_embed_integrations.engine.tokenization import Tokenization

logger = logging.getLogger(__name__)

_COMMIT = re.compile("[0-9a-f]{12,40}")


@dataclass(frozen=True)
class RemoteSettings:
    """The settings of a `RemoteEncoder`, which documents them; all but the key."""

    base_url: str
    model: str = DEFAULT_MODEL
    served_model_name: str | None = None
    dimensions: int | None = None
    send_dimensions: bool = False
    query_instruction: str | None = None
    document_instruction: str | None = None
    max_tokens: int | None = None
    batch_size: int | None = None
    batch_tokens: int | None = None
    concurrency: int = 8
    max_retries: int = 6
    timeout: float = 60.0
    revision: str | None = None
    cache_folder: str | None = None

    def __post_init__(self) -> None:
        if self.send_dimensions and self.dimensions is None:
            raise ValueError("send_dimensions=True needs dimensions")
        if self.timeout <= 0:
            raise ValueError(f"timeout must be more than 0 seconds, got {self.timeout}")
        for name in ("dimensions", "max_tokens", "batch_size", "batch_tokens", "concurrency", "max_retries"):
            value, least = getattr(self, name), 0 if name == "max_retries" else 1
            if value is not None and as_integer(name, value) < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")

    def to_dict(self) -> dict[str, Any]:
        """Give the settings as `RemoteEncoder` takes them: plain values that any format can hold."""
        return asdict(self)


class _Piece(NamedTuple):
    """Unit vectors of texts one after the other from `first` on, and the tokens that the server counts."""

    first: int
    vectors: NDArray[np.float32]
    tokens: int | None


class RemoteEncoder(ConfiguredEncoder):
    r"""Embeds texts with a Qwen3-Embedding model on a server: vLLM, Text Embeddings Inference, infinity, a service, ...

    It gives the vectors that `Qwen3Encoder` gives: instructions are written here, and vectors are cut and brought back
    to unit length here, whatever the server does. Texts are sent, never token ids. `qwen3-embed check-endpoint` tells
    whether a server runs the model as it should.

    Making one sends nothing. Safe to use from many threads, also after a fork. Pickles as its settings, without the
    key, which is read from the environment again. It asks nobody but the endpoint: a model's tokenizer and version are
    those of the folder, or of the hub's cache on this machine.

    Args:
        base_url: where the server is, up to what comes before `/embeddings`: "http://localhost:8000/v1".
        model: what the server runs: "0.6B", "4B" or "8B", a hub id, or a folder with the model's files; or else any
            name, of a model of which nothing is known here ("text-embedding-v4").
        api_key: the server's key; None for the environment: DASHSCOPE_API_KEY, SILICONFLOW_API_KEY or DEEPINFRA_TOKEN
            for these services, QWEN3_EMBED_API_KEY for any other server, or no key. OPENAI_API_KEY is not sent.
        served_model_name: the model's name on the server; None for its hub id, a folder's absolute path, or the name
            given as model.
        dimensions: components of the vectors; None for all of them.
        send_dimensions: whether to ask the server for so many, which saves traffic; if it refuses, they are cut here.
        query_instruction: a name in `INSTRUCTIONS`, or a task sentence in English.
        document_instruction: the same for documents; None for bare documents, as the models were trained.
        max_tokens: tokens of a text at most, prompt and end token included; None for the model's context, or what the
            service takes. A longer text is refused before anything is sent.
        batch_size: texts of a request at most; None for what the service takes (DashScope 10, SiliconFlow 64, DeepInfra
            1024), 32 for any other server.
        batch_tokens: tokens of a request at most, unless one text has more; None for 32,768.
        concurrency: requests under way at most.
        max_retries: how often to repeat a request after a timeout, a broken connection, or status 429 or 5xx.
        timeout: seconds to wait for the next bytes of an answer, and for a connection: before the server has answered
            for the first time, 1.2 at most, so that one that is down is told at once.
        revision: the commit that the server runs, for `fingerprint`; the branch or tag whose files to take from the
            hub's cache.
        cache_folder: where the hub's files are kept.

    Raises:
        ImportError: the extra `remote` is not installed.
        TypeError: a setting has the wrong type.
        ValueError: a setting is out of range or unknown.

    Example:
        >>> from qwen3_embed_integrations import RemoteEncoder
        >>> encoder = RemoteEncoder("http://localhost:8000/v1", model="0.6B", dimensions=256)
        >>> encoder.dimensions
        256
    """

    settings: RemoteSettings

    @explains_names
    def __init__(
        self,
        base_url: str,
        *,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        api_key: SecretStr | str | None = None,
        served_model_name: str | None = None,
        dimensions: int | None = None,
        send_dimensions: bool = False,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
        max_tokens: int | None = None,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        concurrency: int = 8,
        max_retries: int = 6,
        timeout: float = 60.0,
        revision: str | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        if find_module("openai") is None:
            raise ImportError("RemoteEncoder needs openai: pip install 'qwen3-embed-integrations[remote]'")
        super().__init__(query_instruction, document_instruction)
        cache_folder = None if cache_folder is None else str(Path(cache_folder).expanduser())
        self._source = source = _known_source(model, revision, cache_folder)
        self.settings = RemoteSettings(
            base_url=checked_url(base_url),
            # A relative folder would be another one in another process.
            model=source.location if source and source.is_folder and model != "tiny" else os.fspath(model),
            served_model_name=served_model_name,
            dimensions=dimensions,
            send_dimensions=send_dimensions,
            query_instruction=query_instruction,
            document_instruction=document_instruction,
            max_tokens=max_tokens,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            concurrency=concurrency,
            max_retries=max_retries,
            timeout=timeout,
            revision=revision,
            cache_folder=cache_folder,
        )
        host = f".{urlsplit(self.settings.base_url).hostname}"
        self._provider = next((known for known in PROVIDERS if host.endswith(known.hosts)), OTHER)
        self._key = as_secret(api_key) or as_secret(os.environ.get(self._provider.key_variable))
        self._size: int | None = None
        self._wanted = dimensions
        self._prompts: Prompts | None = None
        context = CONTEXT
        if self._source is not None:
            with suppress(FileNotFoundError):
                self._size, context = self._source.limits()
                check_limits(self.model, dimensions, None, self._size, context)
                saved_size = self._source.saved_limits()[0]
                self._wanted = dimensions or (saved_size if saved_size < self._size else None)
        self._max_tokens = min(context, self._provider.max_tokens or context)
        if max_tokens is not None and max_tokens > self._max_tokens:
            raise ValueError(f"max_tokens must be at most {self._max_tokens}, what the server reads, got {max_tokens}")
        self._sends_dimensions = send_dimensions and dimensions is not None
        self._has_warned = False
        self._lock = threading.Lock()
        self._held: tuple[int, ThreadPoolExecutor, Endpoint] | None = None

    @property
    def model(self) -> str:
        """What the server runs, as it was given."""
        return self.settings.model

    @property
    def endpoint(self) -> Endpoint:
        """The server as it is, for a look at what it sends."""
        return self._live()[1]

    @property
    def dimensions(self) -> int:
        """Components of the vectors that it returns; a model that is not known here is asked for one vector."""
        if self._wanted is not None:
            return self._wanted
        if self._size is None:
            self._encode(["a"], "", show_progress=False)
        return self._size or 0

    @property
    def max_tokens(self) -> int:
        """Tokens of a text at most, prompt and end token included."""
        return self.settings.max_tokens or self._max_tokens

    @property
    def fingerprint(self) -> str:
        """Names all that changes a document's vector: a namespace for caches, a label for indexes.

        It is the one of a `Qwen3Encoder` of the same model, revision, dimensions and document instruction, so that an
        index made on this machine can be searched through a server. A server doesn't tell its revision: it is taken to
        run the files that this machine has (the folder, or the revision in the hub's cache), or else the commit given
        as `revision`. Where there is neither, the fingerprint ends in "unpinned" and equals no local one. A model known
        by name only is named together with its host. `max_tokens` is left out: no text is ever cut.
        """
        return vector_space(self._version, self.dimensions, self._document_prompt)

    @cached_property
    def _version(self) -> str:
        """Name the model and its revision as `Qwen3Encoder` does."""
        settings, revision = self.settings, self.settings.revision
        if self._source is None:
            return _plain(f"{urlsplit(settings.base_url).netloc}.{settings.model}-unpinned")
        name = "local" if self._source.is_folder else self._source.location.replace("/", ".")
        with suppress(FileNotFoundError):
            return f"{name}-{self._source.pinned().version()}"
        if revision is None:
            return f"{name}-unpinned"
        return f"{name}-{revision[:12]}" if _COMMIT.fullmatch(revision) else f"{name}-{_plain(revision)}-unpinned"

    @property
    def query_fingerprint(self) -> str:
        """Names all that changes a query's vector: the fingerprint and the query instruction."""
        return f"{self.fingerprint}.query-{short_hash(self._query_prompt)}"

    def _needed_tokenization(self) -> Tokenization:
        if self._tokenization is None:
            raise FileNotFoundError(f"the tokenizer of {self.model} is not on this machine{self._remedy()}")
        return self._tokenization

    @property
    def _secret(self) -> object:
        return self._key

    def replaced(self, **changes: Any) -> RemoteEncoder:
        """Make an encoder with the same settings and key but for some.

        Args:
            **changes: settings by name.

        Returns:
            A new encoder.
        """
        return type(self)(**{**self.settings.to_dict(), "api_key": self._key, **changes})

    def close(self) -> None:
        """Close the connections; a later use opens new ones, and reads a folder's version and tokenizer again."""
        with self._lock:
            held, self._held = self._held, None
            for name in ("_version", "_tokenization"):
                self.__dict__.pop(name, None)
        if held is not None:
            held[1].shutdown()
            held[2].close()

    def _default_prompts(self) -> Prompts:
        if self._prompts is None:
            self._prompts = OWN_PROMPTS
            if self._source is not None:
                with suppress(FileNotFoundError):
                    self._prompts = prompts_of(self._source)
        return self._prompts

    def encode_documents_each(
        self, texts: Iterable[str], *, show_progress: bool = False
    ) -> tuple[NDArray[np.float32], dict[int, EndpointError]]:
        """Embed documents as `encode_documents` does, but go on where some of them are refused.

        Args:
            texts: the documents.
            show_progress: whether to draw a progress bar.

        Returns:
            float32 array, shape (n, dimensions): unit vectors in the order of the texts, and zeros for a text that is
            too long or that the server refuses or gives no usable vector; and the reason for each of these, by its
            position.

        Raises:
            TypeError: texts is a single string, or an item is not a string.
            EndpointError: what is wrong is not about one text: no connection, the key, the model, too many requests,
                or a server that answers no text at all.
        """
        inputs = _inputs(as_texts(texts), self._document_prompt)
        sizes, refusals = self._measured(inputs)
        refused = {
            index: EndpointError(f"{named(index, len(inputs))} {reason}", index=index)
            for index, reason in refusals.items()
        }
        return self._embedded(inputs, sizes, refused, show_progress), dict(sorted(refused.items()))

    def _encode(self, texts: list[str], prompt: str, show_progress: bool) -> NDArray[np.float32]:
        inputs = _inputs(texts, prompt)
        sizes, refusals = self._measured(inputs)
        for index, reason in refusals.items():
            raise ValueError(f"{named(index, len(inputs))} {reason}")
        return self._embedded(inputs, sizes, None, show_progress)

    def _embedded(
        self, inputs: list[str], sizes: list[int], refused: dict[int, EndpointError] | None, show_progress: bool
    ) -> NDArray[np.float32]:
        """Send what is not in `refused`, and add there what the server refuses; with None, that is an error."""
        started = time.perf_counter()
        batch_size = self.settings.batch_size or self._provider.batch_size
        groups = list(_groups(sizes, batch_size, self.settings.batch_tokens or CONTEXT, refused or {}))
        threads = self._live()[0]
        caller = Caller()
        futures = [
            threads.submit(caller.bind(self._embed_group), inputs[start:stop], start, len(inputs), refused)
            for start, stop in groups
        ]
        pieces: list[_Piece] = []
        hide = not show_progress or len(groups) <= 1
        try:
            with tqdm(total=len(inputs), desc="Embedding", unit="text", disable=hide) as progress:
                for (start, stop), future in zip(groups, futures, strict=True):
                    pieces += future.result()
                    progress.update(stop - start)
        finally:
            # After an error or an interrupt, the other requests are not repeated either.
            caller.leave()
            for future in futures:
                future.cancel()
        rows = np.zeros((len(inputs), self.dimensions), dtype=np.float32)
        texts = tokens = 0
        for first, vectors, counted in pieces:
            rows[first : first + len(vectors)] = vectors
            texts += len(vectors)
            tokens += self._counted(inputs[first : first + len(vectors)]) if counted is None else counted
        if texts:
            count(Usage(texts, tokens, seconds=time.perf_counter() - started), self._counter)
        return rows

    def _embed_group(
        self, inputs: list[str], first: int, of: int, refused: dict[int, EndpointError] | None
    ) -> list[_Piece]:
        """Send one request, and find the texts that it is refused for: an error, or noted in `refused`."""
        try:
            return [self._embed(inputs, first, of)]
        except EndpointError as error:
            failure = error
        # One text that any server takes tells a refusal of these from one of all that is asked.
        if not _concerns_texts(failure, refused) or (failure.status != TOO_LARGE and not self._answers()):
            raise failure
        return self._narrowed(inputs, first, of, failure, refused)

    def _narrowed(
        self, inputs: list[str], first: int, of: int, failure: EndpointError, refused: dict[int, EndpointError] | None
    ) -> list[_Piece]:
        """Send again, half by half, what was refused, until single texts are left that are."""
        if len(inputs) == 1:
            failure.index = first
            if refused is None:
                raise failure
            refused[first] = failure
            return []
        middle = len(inputs) // 2
        pieces: list[_Piece] = []
        for start, half in ((first, inputs[:middle]), (first + middle, inputs[middle:])):
            try:
                pieces.append(self._embed(half, start, of, narrowing=True))
                continue
            except EndpointError as error:
                failure = error
            if not _concerns_texts(failure, refused):
                raise failure
            pieces += self._narrowed(half, start, of, failure, refused)
        return pieces

    def _answers(self) -> bool:
        try:
            self._ask(["a"], 0, 1, narrowing=True)
        except EndpointError:
            return False
        return True

    def _counted(self, inputs: list[str]) -> int:
        """Count the tokens of a request whose answer did not."""
        if self._tokenization is not None:
            return sum(self._tokenization.count(inputs))
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "the server does not say how many tokens it reads, so usage leaves them out%s", self._remedy()
            )
        return 0

    def _embed(self, inputs: list[str], first: int, of: int, *, narrowing: bool = False) -> _Piece:
        """Send one request, and bring the vectors to the dimensions asked for and unit length."""
        wanted = self._wanted
        answer, asked = self._ask(inputs, first, of, narrowing)
        vectors, size = answer.vectors, answer.vectors.shape[1]
        with self._lock:
            if self._size is None and not asked:
                self._size = size
            known = self._size
        if size != known and not (asked and size == wanted):
            raise EndpointError(
                f"{named(first, of, len(inputs))} got vectors of {size} components, but {self.model} has {known}"
            )
        if wanted is not None and size < wanted:
            raise EndpointError(
                f"{named(first, of, len(inputs))} got vectors of {size} components, fewer than dimensions={wanted}; "
                "send_dimensions=True asks the server for more"
            )
        unit = truncate(vectors, wanted or size)
        zeros = np.flatnonzero(~unit.any(axis=1))
        if len(zeros):
            index = first + int(zeros[0])
            raise EndpointError(f"{named(index, of)} got a vector of zeros", UNUSABLE, index)
        return _Piece(first, unit, answer.tokens)

    def _ask(self, inputs: list[str], first: int, of: int, narrowing: bool) -> tuple[Answer, bool]:
        """Send one request: the server's answer, and whether it took `dimensions`."""
        endpoint, refusal = self.endpoint, ""
        if self._sends_dimensions:
            try:
                asked = endpoint.embed(inputs, dimensions=self._wanted, first=first, of=of, narrowing=narrowing)
                return asked, True
            except EndpointError as error:
                if error.status not in (400, 422):
                    raise
                refusal = str(error)
        # What was wrong with the texts is wrong without the field too, and raised here.
        answer = endpoint.embed(inputs, first=first, of=of, narrowing=narrowing)
        if refusal:
            self._sends_dimensions = False
            logger.warning("the server refuses dimensions, so vectors are cut here: %s", refusal)
        return answer, False

    def _refusals(self, texts: list[str], prompt: str) -> dict[int, str]:
        return self._measured(_inputs(texts, prompt))[1]

    def _measured(self, inputs: list[str]) -> tuple[list[int], dict[int, str]]:
        """Give each text's tokens, or a number that is not smaller, and why those with too many are refused."""
        limit, refusals = self.max_tokens, {}
        # A byte-level tokenizer makes no more tokens than there are bytes, so short texts need not be counted.
        sizes = [len(unicodedata.normalize("NFC", text).encode()) + 1 for text in inputs]
        in_doubt = bool(sizes) and (max(sizes) > limit or sum(sizes) > (self.settings.batch_tokens or CONTEXT))
        tokenization = self._tokenization if in_doubt else None
        if tokenization is not None:
            sizes = tokenization.count(inputs)
        for index, size in enumerate(sizes):
            if size > limit and tokenization is not None:
                refusals[index] = too_many(size, limit)
            elif size > limit:
                refusals[index] = (
                    f"has {size - 1} bytes and may have more than max_tokens={limit} tokens, "
                    f"which can't be counted{self._remedy()}"
                )
        return sizes, refusals

    def _remedy(self) -> str:
        if self._source is None:
            return f": nothing is known of a model named {self.model!r}"
        return (
            f": run `hf download {self._source.location} --include 'tokenizer*' config.json`, or give a folder as model"
        )

    @cached_property
    def _tokenization(self) -> Tokenization | None:
        # No file at all, or a folder without a tokenizer.
        with suppress(FileNotFoundError, ValueError):
            return None if self._source is None else shared_tokenization(self._source.pinned())
        return None

    def _live(self) -> tuple[ThreadPoolExecutor, Endpoint]:
        """Give threads and connections of this process: a fork must share neither with the process it came from."""
        with self._lock:
            if self._held is None or self._held[0] != os.getpid():
                settings, spec = self.settings, find_spec(self.settings.model)
                name = settings.served_model_name or (spec and spec.hub_id) or settings.model
                endpoint = Endpoint(
                    settings.base_url,
                    name,
                    self._key,
                    key_variable=self._provider.key_variable,
                    max_retries=settings.max_retries,
                    timeout=settings.timeout,
                )
                threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="qwen3-remote")
                self._held = os.getpid(), threads, endpoint
            return self._held[1:]

    def __repr__(self) -> str:
        default = RemoteSettings("http://host").to_dict()
        shown = {name: value for name, value in self.settings.to_dict().items() if value != default[name]}
        return f"RemoteEncoder({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _known_source(model: str | os.PathLike[str], revision: str | None, cache_folder: str | None) -> ModelSource | None:
    """Give where files lie on this machine that tell a model's size, tokenizer and version; None for any other name."""
    try:
        location = locate(model)
    except ValueError:
        return None
    return ModelSource(location, revision, cache_folder, local_files_only=True)


def _concerns_texts(failure: EndpointError, refused: dict[int, EndpointError] | None) -> bool:
    """Whether single texts may be what a server refuses, or gives no usable vector where that ends no call."""
    return failure.status in REFUSALS or (refused is not None and failure.status == UNUSABLE)


def _inputs(texts: list[str], prompt: str) -> list[str]:
    """Write what is sent for texts."""
    return [encodable_text(text) for text in with_prompt(texts, prompt)]


def _plain(name: str) -> str:
    """Replace what a namespace can't hold."""
    return re.sub(r"[^\w.-]", "_", name)


def _groups(
    sizes: Sequence[int], batch_size: int, batch_tokens: int, left_out: Container[int]
) -> Iterator[tuple[int, int]]:
    """Give the bounds of requests, in order, of at most so many texts and tokens; a text alone may have more."""
    start = tokens = 0
    for index, size in enumerate(sizes):
        if index in left_out:
            if index > start:
                yield start, index
            start, tokens = index + 1, 0
            continue
        if index > start and (index - start == batch_size or tokens + size > batch_tokens):
            yield start, index
            start, tokens = index, 0
        tokens += size
    if start < len(sizes):
        yield start, len(sizes)
