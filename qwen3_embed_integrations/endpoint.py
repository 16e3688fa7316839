"""One server that speaks OpenAI's `/v1/embeddings`, and what is known of the services that do."""

from __future__ import annotations

import base64
import json
import random
import re
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from errno import ECONNREFUSED, EHOSTUNREACH, ENETUNREACH
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from qwen3_embed_integrations.messages import named
from qwen3_embed_integrations.waiting import pause, stop_if_left

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from urllib.parse import SplitResult

    from numpy.typing import NDArray
    from openai import OpenAI
    from pydantic import SecretStr


@dataclass(frozen=True)
class Provider:
    """What a service takes at once, and where its key is kept.

    Attributes:
        hosts: ends of its host names.
        batch_size: texts of a request at most.
        key_variable: the environment variable with the key.
        source: URL of where batch_size and max_tokens come from.
        max_tokens: tokens of a text at most; None for the model's context.
    """

    hosts: tuple[str, ...]
    batch_size: int
    key_variable: str
    source: str
    max_tokens: int | None = None


PROVIDERS = (
    Provider(
        # Not all of aliyuncs.com, where people run servers of their own.
        (".dashscope.aliyuncs.com", ".dashscope-intl.aliyuncs.com", ".maas.aliyuncs.com"),
        10,
        "DASHSCOPE_API_KEY",
        "https://www.alibabacloud.com/help/en/model-studio/text-embedding-synchronous-api",
        max_tokens=8192,
    ),
    Provider(
        (".siliconflow.com", ".siliconflow.cn"),
        64,
        "SILICONFLOW_API_KEY",
        "https://github.com/n4ze3m/page-assist/issues/371",
    ),
    Provider(
        (".deepinfra.com",),
        1024,
        "DEEPINFRA_TOKEN",
        "https://reference.langchain.com/javascript/interfaces/_langchain_community.embeddings_deepinfra.DeepInfraEmbeddingsParams.html",
    ),
)
"""Services whose caps are known."""

# Text Embeddings Inference takes 32 unless it is told otherwise; vLLM, llama.cpp and Ollama take more.
OTHER = Provider((), 32, "QWEN3_EMBED_API_KEY", "https://github.com/huggingface/text-embeddings-inference/issues/50")
"""Any other server."""


TOO_LARGE = 413
# The statuses with which servers refuse a text: too long, empty, or one that their model fails on.
REFUSALS = (400, TOO_LARGE, 422, 424, 500)
# The status of an answer without usable vectors.
UNUSABLE = 200

_LONGEST_WAIT = 120.0
# So that a server that is down is told in 2 s. TCP asks a second time after 1 s, and the retries come within 1.5 s.
_FIRST_CONNECTION_SECONDS = 1.2
_FIRST_RETRIES = 2
_BUSY = re.compile("overload|rate.?limit|too many requests|busy|unavailable|try again|temporar", re.IGNORECASE)
_IS_IT_THERE = "is the server running, and are this its host and port?"
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")


class EndpointError(RuntimeError):
    """A server gave no vectors for some texts, or none that can be used; the message names their positions.

    Args:
        message: what happened; it never holds the key.
        status: the HTTP status of the answer, or the one that an error within an answer of status 200 names; 200 where
            the vectors can't be used, None where there was no answer.
        index: position of the one text that was refused or got no vector, where it is known to be about one.
    """

    def __init__(self, message: str, status: int | None = None, index: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.index = index


class Answer(NamedTuple):
    """What a server answered.

    Attributes:
        vectors: float32 array, shape (n, size), in the order of the texts.
        tokens: how many tokens the server says that it read; None where it does not say.
    """

    vectors: NDArray[np.float32]
    tokens: int | None


class _Failure(NamedTuple):
    """Why one request brought no vectors: what to say, and whether another try may help, after how many seconds.

    What breaks is a connection that ended before there was an answer.
    """

    words: str
    status: int | None
    passes: bool
    wait: float | None = None
    breaks: bool = False


class _Reply(NamedTuple):
    """What came with status 200: its JSON, None where it is none, and its text."""

    content: Any
    text: str


class Endpoint:
    """One model behind an OpenAI-compatible `/v1/embeddings`, as it is: nothing is added, cut or normalised.

    Repeats what failed by a timeout, a broken connection or the status 408, 409, 429 or 5xx, also where an answer of
    status 200 holds such an error, with growing delays and jitter, or after the time that a `Retry-After` asks for, up
    to two minutes. What no second try mends is told at once: a certificate, a wrong scheme, the key, the path, and,
    where nothing has answered yet, an unknown host and a connection that is refused or not there within 1.2 seconds.
    One that breaks is tried twice more then.

    Args:
        base_url: where the server is, up to what comes before `/embeddings`.
        model: the model's name on the server.
        key: the key to send; None for none.
        key_variable: the environment variable that the key is read from, for messages.
        max_retries: how often to repeat a request that failed.
        timeout: seconds to wait for the next bytes of an answer, and for a connection, once there was an answer.
    """

    def __init__(
        self, base_url: str, model: str, key: SecretStr | None, *, key_variable: str, max_retries: int, timeout: float
    ) -> None:
        import openai

        self._errors = openai.OpenAIError
        # How the client leaves a field out that it would set by itself.
        self._left_out = openai.Omit()
        self._base_url = base_url
        self._model = model
        self._key = key
        self._key_variable = key_variable
        self._max_retries = max_retries
        self._timeout = timeout
        self._first_timeout = openai.Timeout(timeout, connect=min(timeout, _FIRST_CONNECTION_SECONDS))
        self._client: OpenAI = openai.OpenAI(
            base_url=base_url,
            # The client wants one, and servers without a key ignore it.
            api_key="none" if key is None else key.get_secret_value(),
            # It would repeat what no second try mends, too.
            max_retries=0,
            timeout=timeout,
        )
        # It takes these from the environment, but they are another account's.
        self._client.organization = self._client.project = None
        self._has_answered = False
        # Whether the server takes `encoding_format`; None until it has answered.
        self._takes_format: bool | None = None

    def embed(
        self,
        texts: Sequence[str],
        *,
        dimensions: int | None = None,
        first: int = 0,
        of: int | None = None,
        narrowing: bool = False,
    ) -> Answer:
        """Send one request.

        Args:
            texts: what the server is to embed, at least one.
            dimensions: components to ask the server for; None to ask for nothing.
            first: position of the first text among those of a call, for messages.
            of: how many texts the call has; None for these alone.
            narrowing: whether a refusal was seen before, and is not to be repeated as often.

        Returns:
            The vectors in the order of the texts, as the server sent them.

        Raises:
            CancelledError: nobody waits for the vectors any more.
            EndpointError: there was no answer, an error, or not one vector of finite numbers and equal size a text.
        """
        of = len(texts) if of is None else of
        asked = named(first, of, len(texts)) + (", which is empty" if list(texts) == [""] else "")
        few = 2 if len(texts) == 1 else 0
        stop_if_left()
        tries = 0
        while isinstance(outcome := self._attempt(texts, dimensions), _Failure):
            most = min(few, self._max_retries) if narrowing and outcome.status in REFUSALS else self._max_retries
            if outcome.breaks and not self._has_answered:
                most = min(most, _FIRST_RETRIES)
            if not outcome.passes or tries >= most:
                raise EndpointError(f"no vectors for {asked}: {outcome.words}", outcome.status)
            pause(outcome.wait or min(8.0, 0.5 * 2**tries) * random.uniform(0.75, 1))
            tries += 1
        return self._read(outcome, asked, first, of, len(texts))

    def _attempt(self, texts: Sequence[str], dimensions: int | None) -> _Reply | _Failure:
        """Send one request, and find out whether the server takes `encoding_format`."""
        outcome = self._post(texts, dimensions)
        if self._takes_format is not None:
            return outcome
        if isinstance(outcome, _Reply):
            self._takes_format = True
        elif outcome.status in (400, 422) and dimensions is None:
            bare = self._post(texts, None, with_format=False)
            if isinstance(bare, _Reply) or "encoding_format" in outcome.words:
                self._takes_format = False
                return bare
        return outcome

    def _post(
        self,
        texts: Sequence[str],
        dimensions: int | None,
        *,
        with_format: bool | None = None,
        base_url: str | None = None,
    ) -> _Reply | _Failure:
        """Send one request once; errors leave the client's exceptions, which hold the key."""
        with_format = self._takes_format is not False if with_format is None else with_format
        options: dict[str, Any] = {} if dimensions is None else {"dimensions": dimensions}
        if not with_format:
            options["extra_body"] = {"encoding_format": self._left_out}
        timeout = self._timeout if self._has_answered else self._first_timeout
        client = self._client
        if base_url is not None:
            client = client.with_options(base_url=base_url)
            client.organization = client.project = None
        try:
            # "float" is what every server takes; DashScope and older Ollama take nothing else.
            answer = client.embeddings.with_raw_response.create(
                model=self._model, input=list(texts), encoding_format="float", timeout=timeout, **options
            ).http_response
        except self._errors as error:
            refusal = getattr(error, "response", None)
            if refusal is None:
                return self._unanswered(error)
            answer = refusal
        self._has_answered = True
        text, content = answer.text, None
        with suppress(ValueError):
            content = json.loads(text)
        status = _status_within(content) if answer.is_success else answer.status_code
        if status is None:
            return _Reply(content, text)
        within = " with an error inside" if answer.is_success else ""
        # The client's own message leaves out what is no JSON, such as a proxy's page.
        words = f"status {answer.status_code}{within}: {self._shown(text)}"
        if answer.history:
            hint = (
                f"; {self._url} was redirected to {self._shown(str(answer.url))}: give what is right there as base_url"
            )
        else:
            hint = "" if base_url else self._hint(status, text)
        wait = _wait_asked(answer.headers)
        passes = status in (408, 409, 429) or status >= 500
        # A redirect may make a GET of a request, which then fails for ever.
        passes = passes and answer.request.method == "POST" and (wait or 0) <= _LONGEST_WAIT
        return _Failure(f"{words}{hint}", status, passes, wait)

    @property
    def _url(self) -> str:
        return f"{self._base_url}/embeddings"

    def _hint(self, status: int, text: str) -> str:
        """Say what to do about an error that is the caller's to mend."""
        if status in (401, 403):
            check = "check the key that was given" if self._key else "no key was sent: give api_key"
            return f"; {check}, or set {self._key_variable} ({self._url})"
        if status == 404 and "model" in text.lower():
            return (
                f"; give the name that the model has on the server as served_model_name, not {self._model!r} "
                f"({self._url})"
            )
        return self._hint_of_path() if status in (404, 405) else ""

    def _hint_of_path(self) -> str:
        """Look where the embeddings are instead."""
        parts = urlsplit(self._base_url)
        for base in dict.fromkeys((f"{self._base_url}/v1", f"{parts.scheme}://{parts.netloc}/v1")):
            if self._base_url.endswith("/v1"):
                break
            found = self._post(["a"], None, base_url=base)
            if isinstance(found, _Reply) and not _has_vectors(found.content):
                continue
            if isinstance(found, _Reply) or found.status in (400, 401, 403, 422, 429):
                return f"; {self._url} is not there, but {base}/embeddings answers: give base_url={base!r}"
        return f"; nothing is at {self._url}: base_url is what comes before /embeddings, which mostly ends in /v1"

    def _unanswered(self, error: Exception) -> _Failure:
        cause = error.__cause__
        detail = f" ({type(cause).__name__}: {cause})" if cause else ""
        words = f"no answer from {self._url}: {self._shown(f'{error}{detail}')}"
        hint = self._connection_hint(error)
        breaks = not any(isinstance(cause, TimeoutError) for cause in _causes(error))
        return _Failure(words + (hint or ""), None, passes=hint is None, breaks=breaks)

    def _connection_hint(self, error: Exception) -> str | None:
        """Say what is wrong with a connection; None for what may pass."""
        parts, causes = urlsplit(self._base_url), list(_causes(error))
        for cause in causes:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return "; its certificate is not trusted here: name a file with its authority's in SSL_CERT_FILE"
            if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
                other = urlunsplit(parts._replace(scheme="http"))
                return f"; the server speaks no https there: try base_url={other!r}"
            if type(cause).__name__ == "TooManyRedirects":
                return "; it redirects without end"
            # A server that was there before may be starting again.
            if self._has_answered:
                continue
            if isinstance(cause, socket.gaierror):
                return f"; no host of the name {parts.hostname!r} is known here: check base_url"
            if type(cause).__name__ == "ConnectTimeout":
                seconds = min(self._timeout, _FIRST_CONNECTION_SECONDS)
                return f"; no connection in {seconds} s: {_IS_IT_THERE}"
            if isinstance(cause, OSError) and cause.errno in (ECONNREFUSED, EHOSTUNREACH, ENETUNREACH):
                return f"; {_IS_IT_THERE}"
        is_timeout = any(isinstance(cause, TimeoutError) for cause in causes)
        if not self._has_answered and not is_timeout and parts.scheme == "http" and _speaks_tls(parts):
            return f"; the server speaks https there: give base_url={urlunsplit(parts._replace(scheme='https'))!r}"
        return None

    def _read(self, reply: _Reply, asked: str, first: int, of: int, count: int) -> Answer:
        """Bring the vectors of an answer into the order of the texts."""
        if not _has_vectors(reply.content):
            hint = "" if self._base_url.endswith("/v1") else self._hint_of_path()
            words = f"no embeddings in the answer for {asked}, but {self._shown(reply.text)}{hint}"
            raise EndpointError(words, UNUSABLE)
        data = reply.content["data"]
        items = _by_place(data, count)
        if len(data) != count or set(items) != set(range(count)):
            missing = [first + index for index in range(count) if index not in items]
            gap = f": none for index {', '.join(map(str, missing[:10]))}" if missing and of > 1 else ""
            wanted = f", {count} texts" if count > 1 else ""
            raise EndpointError(f"{len(data)} vectors in the answer for {asked}{wanted}{gap}", UNUSABLE)
        vectors: list[NDArray[np.float32]] = []
        for place in range(count):
            vector, fault = _vector(items[place].get("embedding"))
            if vector is not None and vectors and vector.shape != vectors[0].shape:
                fault = f"a vector of shape {vector.shape}, the one before {vectors[0].shape}"
            if vector is None or fault:
                raise EndpointError(f"{named(first + place, of)} got {fault}", UNUSABLE, first + place)
            vectors.append(vector)
        return Answer(np.stack(vectors), _tokens(reply.content.get("usage")))

    def _shown(self, text: str) -> str:
        if self._key is not None:
            text = text.replace(self._key.get_secret_value(), "***")
        return f"{' '.join(text.split()):.300}"

    def close(self) -> None:
        """Close its connections."""
        self._client.close()


def _has_vectors(content: Any) -> bool:
    data = content.get("data") if isinstance(content, dict) else None
    return isinstance(data, list) and all(isinstance(item, dict) for item in data)


def _by_place(data: list[dict[str, Any]], count: int) -> dict[Any, dict[str, Any]]:
    """Give each text's item; servers that number none, or all with 0, send them in order."""
    numbers = [item.get("index") for item in data]
    if len(data) == count and (all(number is None for number in numbers) or all(number == 0 for number in numbers)):
        return dict(enumerate(data))
    return {number: item for number, item in zip(numbers, data, strict=True) if type(number) is int}


def _vector(embedding: Any) -> tuple[NDArray[np.float32] | None, str]:
    """Read one vector, numbers or base64 of little-endian float32, or say what it is instead."""
    if embedding is None:
        return None, "no vector"
    try:
        if isinstance(embedding, str):
            vector = np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4").astype(np.float32)
        else:
            vector = np.array(embedding, dtype=np.float32)
    except (ValueError, TypeError):
        return None, f"no vector of numbers, but {embedding!r:.60}"
    if vector.ndim != 1 or not vector.size:
        return None, f"a vector of shape {vector.shape}"
    if not np.isfinite(vector).all():
        return None, "a vector with numbers that are not finite"
    return vector, ""


def _status_within(content: Any) -> int | None:
    """Find the status of an error within an answer of status 200; None where there is none."""
    if not isinstance(content, dict):
        return None
    error = content.get("error")
    if not error and not _has_vectors(content):
        error = content.get("detail") or content.get("message")
    if not error:
        return None
    for part in (error, content):
        for name in ("code", "status", "status_code"):
            code = str(part.get(name)) if isinstance(part, dict) else ""
            if code.isdecimal() and 400 <= int(code) < 600:
                return int(code)
    return 503 if _BUSY.search(json.dumps(content)) else 400


def _wait_asked(headers: Mapping[str, str]) -> float | None:
    """Read the seconds to wait of a `Retry-After`, which is a number or a date; None where there are none to wait."""
    value = headers.get("retry-after", "")
    seconds = 0.0
    with suppress(ValueError, TypeError):
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    with suppress(ValueError):
        seconds = float(value)
    return seconds if seconds > 0 else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _speaks_tls(url: SplitResult) -> bool:
    context = ssl.create_default_context()
    # Only whether there is TLS is asked; nothing is sent.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((url.hostname or "", url.port or 80), _FIRST_CONNECTION_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=url.hostname),
        ):
            return True
    except OSError:
        return False


def _tokens(usage: Any) -> int | None:
    if not isinstance(usage, dict):
        return None
    tokens = usage.get("prompt_tokens") or usage.get("total_tokens")
    return tokens if type(tokens) is int and tokens > 0 else None


def checked_url(base_url: Any) -> str:
    """Check where a server is, before anything is sent there.

    Args:
        base_url: what a caller gave.

    Returns:
        The URL without `/embeddings` or a slash at its end.

    Raises:
        TypeError: it is not a string.
        ValueError: it is no URL of a server, or holds a secret, which would be shown and serialised.
    """
    if not isinstance(base_url, str):
        raise TypeError(f"base_url must be a string, got {type(base_url).__name__}")
    parts = urlsplit(base_url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("base_url must hold no user, password or query: give a key as api_key")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url must look like 'https://host/v1', got {base_url!r}")
    return base_url.rstrip("/").removesuffix("/embeddings")


def as_secret(key: Any) -> SecretStr | None:
    """Wrap a key, which may come from a file with a newline at its end; no message shows it.

    Args:
        key: what a caller gave, or the environment.

    Returns:
        The key, or None where there is none.

    Raises:
        TypeError: it is neither a string nor a SecretStr.
        ValueError: it holds characters that no HTTP header can carry.
    """
    from pydantic import SecretStr

    text = key.get_secret_value() if isinstance(key, SecretStr) else key
    if text is None or text == "":
        return None
    if not isinstance(text, str):
        raise TypeError(f"api_key must be a SecretStr, a string or None, got {type(key).__name__}")
    text = text.strip()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("api_key holds characters that no key has")
    return SecretStr(text)
