"""Qwen3-Embedding for Haystack."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import ComponentDevice, Secret, deserialize_secrets_inplace
    from haystack.utils.auth import SecretType
except ImportError as error:
    raise ImportError(
        "the Haystack embedders need haystack-ai: pip install 'qwen3-embed-integrations[haystack]'"
    ) from error

from qwen3_embed_integrations._adapters import adopted_settings
from qwen3_embed_integrations.encoder import DEFAULT_MODEL, Encoder, LongText, Quantization, Qwen3Encoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

with suppress(ImportError):
    # Haystack 3 loads only components of trusted modules from YAML; whoever imports this one trusts it.
    from haystack.core.serialization import allow_deserialization_module

    allow_deserialization_module(__name__)

_TOKEN = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False)


class _Embedder:
    """What the two embedders share: their settings, the encoder made from them, and how both are serialised."""

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        encoder: Encoder | None = None,
        dimensions: int | None = None,
        query_instruction: str = "web_search",
        document_instruction: str | None = None,
        max_tokens: int | None = None,
        long_text: LongText = "truncate",
        device: ComponentDevice | list[ComponentDevice] | None = None,
        device_map: str | dict[str, Any] | None = None,
        dtype: str = "auto",
        quantization: Quantization | None = None,
        batch_tokens: int | None = None,
        revision: str | None = None,
        cache_folder: str | None = None,
        local_files_only: bool = False,
        token: Secret | None = _TOKEN,
        progress_bar: bool = True,
    ) -> None:
        """Store the settings; nothing is loaded before the first use.

        Args:
            model: "tiny", "0.6B", "4B" or "8B"; a hub id; or a folder with a model's files.
            encoder: an encoder to use, instead of the settings that make one.
            dimensions: components of the vectors, 32 to the model's own; None for all of them.
            query_instruction: a name in `INSTRUCTIONS`, or a task sentence in English.
            document_instruction: the same for documents; None for bare documents.
            max_tokens: tokens of a text to read at most; None for the model's context.
            long_text: what to do with a longer text: "truncate" or "error".
            device: where to run, several for a replica on each; None for CUDA, then MPS, then the CPU.
            device_map: instead, where the parts of a model go that one device cannot hold: transformers' own.
            dtype: type of the weights: "auto", "float32", "bfloat16" or "float16".
            quantization: "int8" for 8-bit linear layers on a CPU; None for none.
            batch_tokens: tokens to run at once; None for the device's default.
            revision: branch, tag or commit on the hub.
            cache_folder: where the hub's files are kept.
            local_files_only: never ask the network.
            token: access token of the hub for private models.
            progress_bar: whether to draw a progress bar.

        Raises:
            TypeError: a setting has the wrong type, or encoder is no encoder.
            ValueError: a setting is out of range or unknown.
        """
        devices = device if isinstance(device, list) else [] if device is None else [device]
        for one in devices:
            if not isinstance(one, ComponentDevice):
                raise TypeError(f"device must be a ComponentDevice, got {one!r}: ComponentDevice.from_str makes one")
        names = [one.to_torch_str() for one in devices]
        if not isinstance(token, Secret | None):
            raise TypeError(f"token must be a Secret, got a {type(token).__name__}: Secret.from_env_var makes one")
        self.token = token
        self.progress_bar = progress_bar
        settings: dict[str, Any] = {
            "model": model,
            "dimensions": dimensions,
            "query_instruction": query_instruction,
            "document_instruction": document_instruction,
            "max_tokens": max_tokens,
            "long_text": long_text,
            "device": names if isinstance(device, list) else names[0] if names else None,
            "device_map": device_map,
            "dtype": dtype,
            "quantization": quantization,
            "batch_tokens": batch_tokens,
            "revision": revision,
            "cache_folder": cache_folder,
            "local_files_only": local_files_only,
        }
        if encoder is None:
            encoder = Qwen3Encoder(**settings, token=None if token is None else token.resolve_value())
        else:
            adopted_settings(encoder, settings)
        self.encoder = encoder

    def warm_up(self) -> None:
        """Load the model now, instead of in the first run."""
        if isinstance(self.encoder, Qwen3Encoder):
            self.encoder.warm_up()

    def close(self) -> None:
        """Let go of the model; a later run loads it again."""
        if isinstance(self.encoder, Qwen3Encoder):
            self.encoder.close()

    def to_dict(self) -> dict[str, Any]:
        """Serialize the component.

        Returns:
            The class and the parameters that make an equal component.

        Raises:
            ValueError: its encoder is not a `Qwen3Encoder`, or its token is no environment variable.
        """
        return default_to_dict(self, **self._init_parameters())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """Make a component from its serialized form.

        Args:
            data: what `to_dict` gave.

        Returns:
            The component.
        """
        parameters = dict(data["init_parameters"])
        if isinstance(parameters.get("token"), dict):
            deserialize_secrets_inplace(parameters, keys=["token"])
        device = parameters.get("device")
        if isinstance(device, list):
            parameters["device"] = [ComponentDevice.from_dict(one) for one in device]
        elif isinstance(device, dict):
            parameters["device"] = ComponentDevice.from_dict(device)
        return default_from_dict(cls, {**data, "init_parameters": parameters})

    def _init_parameters(self) -> dict[str, Any]:
        if not isinstance(self.encoder, Qwen3Encoder):
            raise ValueError(
                f"only the settings of a Qwen3Encoder can be serialized, not those of a {type(self.encoder).__name__}"
            )
        settings = self.encoder.settings.to_dict()
        device = settings["device"]
        several = isinstance(device, list)
        devices = [ComponentDevice.from_str(name).to_dict() for name in (device if several else [device]) if name]
        return {
            **settings,
            "device": devices if several else devices[0] if devices else None,
            "token": None if self.token is None else self.token.to_dict(),
            "progress_bar": self.progress_bar,
        }

    def __getstate__(self) -> dict[str, Any]:
        # As in YAML, only a token that an environment variable holds leaves the process.
        portable = self.token is None or self.token.type == SecretType.ENV_VAR
        return {**self.__dict__, "token": self.token if portable else None}


@component
class Qwen3TextEmbedder(_Embedder):
    """Embeds a query with a Qwen3-Embedding model and its query instruction.

    Example:
        >>> from qwen3_embed_integrations.haystack import Qwen3TextEmbedder
        >>> embedder = Qwen3TextEmbedder("tiny")
        >>> len(embedder.run("how do I copy a folder?")["embedding"])
        256
    """

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Embed a query.

        Args:
            text: the query.

        Returns:
            `embedding`: a list of `dimensions` floats, unit length.

        Raises:
            TypeError: text is not a string.
        """
        vectors = self.encoder.encode_queries([_as_text(text)], show_progress=self.progress_bar)
        return {"embedding": vectors[0].tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Embed a query without blocking the event loop.

        Args:
            text: the query.

        Returns:
            What `run` returns.

        Raises:
            TypeError: text is not a string.
        """
        vectors = await self.encoder.aencode_queries([_as_text(text)])
        return {"embedding": vectors[0].tolist()}


@component
class Qwen3DocumentEmbedder(_Embedder):
    """Embeds documents with a Qwen3-Embedding model.

    Example:
        >>> from haystack import Document
        >>> from qwen3_embed_integrations.haystack import Qwen3DocumentEmbedder
        >>> embedder = Qwen3DocumentEmbedder("tiny", progress_bar=False)
        >>> documents = embedder.run([Document(content="Copy a directory tree.")])["documents"]
        >>> len(documents[0].embedding)
        256
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        **settings: Any,
    ) -> None:
        """Store the settings; nothing is loaded before the first use.

        Args:
            model: as for `Qwen3TextEmbedder`.
            meta_fields_to_embed: names of the meta fields to put before a document's content.
            embedding_separator: what stands between meta fields and content.
            **settings: as for `Qwen3TextEmbedder`.
        """
        # @component makes the class anew, which breaks super() without arguments.
        _Embedder.__init__(self, model, **settings)
        if isinstance(meta_fields_to_embed, str):
            raise TypeError(
                f"meta_fields_to_embed must be a list of names, got {meta_fields_to_embed!r}: put it in a list"
            )
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents.

        Args:
            documents: the documents, which stay as they are.

        Returns:
            `documents`: copies of them with their embedding, in the same order.

        Raises:
            TypeError: documents is not a list of documents.
        """
        vectors = self.encoder.encode_documents(self._texts(documents), show_progress=self.progress_bar)
        return {"documents": _with_embeddings(documents, vectors)}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents without blocking the event loop.

        Args:
            documents: the documents, which stay as they are.

        Returns:
            What `run` returns.

        Raises:
            TypeError: documents is not a list of documents.
        """
        vectors = await self.encoder.aencode_documents(self._texts(documents))
        return {"documents": _with_embeddings(documents, vectors)}

    def _init_parameters(self) -> dict[str, Any]:
        return {
            **_Embedder._init_parameters(self),
            "meta_fields_to_embed": self.meta_fields_to_embed,
            "embedding_separator": self.embedding_separator,
        }

    def _texts(self, documents: list[Document]) -> list[str]:
        if not isinstance(documents, list):
            raise TypeError(
                f"Qwen3DocumentEmbedder expects a list of Documents, got {type(documents).__name__}; "
                "to embed a string, use Qwen3TextEmbedder"
            )
        for index, document in enumerate(documents):
            if not isinstance(document, Document):
                raise TypeError(
                    f"the item at index {index} must be a Document, got {type(document).__name__}; "
                    "to embed a string, use Qwen3TextEmbedder"
                )
        return [self._text(document) for document in documents]

    def _text(self, document: Document) -> str:
        values = (document.meta.get(name) for name in self.meta_fields_to_embed)
        parts = [str(value) for value in values if value is not None]
        return self.embedding_separator.join([*parts, document.content or ""])


def _as_text(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(
            f"Qwen3TextEmbedder expects a string, got {type(text).__name__}; "
            "to embed documents, use Qwen3DocumentEmbedder"
        )
    return text


def _with_embeddings(documents: list[Document], vectors: NDArray[np.float32]) -> list[Document]:
    return [
        replace(document, meta=dict(document.meta), embedding=vector.tolist())
        for document, vector in zip(documents, vectors, strict=True)
    ]
