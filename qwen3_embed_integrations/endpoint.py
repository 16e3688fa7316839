"""One server that speaks OpenAI's `/v1/embeddings`, and what is known of the services that do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

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


class EndpointError(RuntimeError):
    """A server gave no vectors for some texts, or none that can be used; the message names their positions.

    Args:
        message: what happened; it never holds the key.
        status: the HTTP status, where it was an answer with an error.
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


class Endpoint:
    """One model behind an OpenAI-compatible `/v1/embeddings`, as it is: nothing is added, cut or normalised.

    The `openai` client repeats what failed by a timeout, a broken connection or the status 408, 409, 429 or 5xx, with
    growing delays and jitter, or after the time that a `Retry-After` asks for: up to two minutes, one in old releases.

    Args:
        base_url: where the server is, up to what comes before `/embeddings`.
        model: the model's name on the server.
        key: the key to send; None for none.
        max_retries: how often to repeat a request that failed.
        timeout: seconds to wait for a connection, and for the next bytes of an answer.
    """

    def __init__(self, base_url: str, model: str, key: SecretStr | None, *, max_retries: int, timeout: float) -> None:
        import openai

        self._errors = openai.OpenAIError
        self._model = model
        self._key = key
        self._client: OpenAI = openai.OpenAI(
            base_url=base_url,
            # The client wants one, and servers without a key ignore it.
            api_key="none" if key is None else key.get_secret_value(),
            max_retries=max_retries,
            timeout=timeout,
        )
        # It takes these from the environment, but they are another account's.
        self._client.organization = self._client.project = None

    def embed(
        self, texts: Sequence[str], *, dimensions: int | None = None, first: int = 0, narrowing: bool = False
    ) -> Answer:
        """Send one request.

        Args:
            texts: what the server is to embed, at least one.
            dimensions: components to ask the server for; None to ask for nothing.
            first: position of the first text, for messages.
            narrowing: whether a refusal was seen before, and is not to be repeated as often.

        Returns:
            The vectors in the order of the texts, as the server sent them.

        Raises:
            EndpointError: there was no answer, an error, or not one vector of finite numbers and equal size a text.
        """
        asked = named(first, len(texts))
        body = self._post(texts, {} if dimensions is None else {"dimensions": dimensions}, asked)
        try:
            content = json.loads(body)
            items = {item["index"]: np.array(item["embedding"], dtype=np.float32) for item in content["data"]}
            count, tokens = len(content["data"]), _tokens(content.get("usage") or {})
        except (ValueError, TypeError, KeyError, AttributeError):
            raise EndpointError(f"no embeddings in the answer for {asked}, but {self._shown(body)}") from None
        if count != len(texts) or set(items) != set(range(len(texts))):
            missing = [first + index for index in range(len(texts)) if index not in items]
            gap = f": none for index {', '.join(map(str, missing[:10]))}" if missing else ""
            raise EndpointError(f"{count} vectors in the answer for {asked}, {len(texts)} texts{gap}")
        vectors = [items[index] for index in range(len(texts))]
        for index, vector in enumerate(vectors, first):
            if vector.ndim != 1 or vector.shape != vectors[0].shape:
                raise EndpointError(
                    f"the text at index {index} got a vector of shape {vector.shape}, the one before {vectors[0].shape}"
                )
            if not np.isfinite(vector).all():
                raise EndpointError(
                    f"the text at index {index} got a vector with numbers that are not finite", index=index
                )
        return Answer(np.stack(vectors), tokens)

    def _post(self, texts: Sequence[str], options: dict[str, int], asked: str) -> str:
        """Send one request and give the answer's text; errors leave the client's exceptions, which hold the key."""
        try:
            # "float" is what every server takes; DashScope and older Ollama take nothing else.
            response = self._client.embeddings.with_raw_response.create(
                model=self._model,
                input=list(texts),
                encoding_format="float",
                **options,  # type: ignore[arg-type]  # openai 1 to 3 name the type of what is left out differently
            )
            return response.text
        except self._errors as error:
            cause = f" ({type(error.__cause__).__name__}: {error.__cause__})" if error.__cause__ else ""
            answer, status, detail = getattr(error, "response", None), None, f"{error}{cause}"
            if answer is not None:
                # The client's own message leaves out what is no JSON, such as a proxy's page.
                status, detail = answer.status_code, f"status {answer.status_code}: {answer.text}"
        raise EndpointError(f"no vectors for {asked}: {self._shown(detail)}", status)

    def _shown(self, text: str) -> str:
        if self._key is not None:
            text = text.replace(self._key.get_secret_value(), "***")
        return f"{' '.join(text.split()):.300}"

    def close(self) -> None:
        """Close its connections."""
        self._client.close()


def _tokens(usage: dict[str, Any]) -> int | None:
    tokens = usage.get("prompt_tokens") or usage.get("total_tokens")
    return tokens if type(tokens) is int and tokens > 0 else None


def named(first: int, count: int) -> str:
    """Name the texts of a request in a message."""
    return f"the text at index {first}" if count == 1 else f"the texts at indexes {first} to {first + count - 1}"


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
