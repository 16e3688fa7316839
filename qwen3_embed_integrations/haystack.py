"""Qwen3-Embedding for Haystack."""

# Without postponed annotations: older releases of Haystack compare the types of a run's inputs as they stand.
import inspect
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

try:
    from haystack import Document, component, default_from_dict, default_to_dict, logging
    from haystack.utils import ComponentDevice, Secret, deserialize_secrets_inplace
    from haystack.utils.auth import SecretType
except ImportError as error:
    raise ImportError(
        "the Haystack components need haystack-ai: pip install 'qwen3-embed-integrations[haystack]'"
    ) from error

from qwen3_embed_integrations._adapters import (
    CHUNK_TOKENS,
    REMOTE_SETTINGS,
    TOKENIZER_SETTINGS,
    adopted_settings,
    checked_sizes,
    made_encoder,
    splitting_encoder,
)
from qwen3_embed_integrations._renamed import explains_names
from qwen3_embed_integrations.encoder import DEFAULT_MODEL, Encoder, LongText, Quantization, Qwen3Encoder
from qwen3_embed_integrations.long_text import visible
from qwen3_embed_integrations.remote import RemoteEncoder
from qwen3_embed_integrations.usage import UsageCounter, record_usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qwen3_embed_integrations.long_text import Span

with suppress(ImportError):
    # Haystack 3 loads only components of trusted modules from YAML; whoever imports this one trusts it.
    from haystack.core.serialization import allow_deserialization_module

    allow_deserialization_module(__name__)

logger = logging.getLogger(__name__)

_TOKEN = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False)


class _Component:
    """What all of them share: an encoder, a token, and how both are serialised."""

    encoder: Encoder
    token: Secret | None
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Haystack's metaclass hides it from inspect.signature and help.
        signature = inspect.signature(cls.__init__)
        cls.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Component) or type(self) is not type(other):
            return NotImplemented
        # A pipeline finds a component's name by comparing, and may hold several that are set alike.
        owner = getattr(self, "__haystack_added_to_pipeline__", None)
        if owner is not None and owner is getattr(other, "__haystack_added_to_pipeline__", None):
            return self is other
        return self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash(type(self))

    def _compared(self) -> dict[str, Any]:
        hidden = ("__haystack", "_from_settings")
        return {name: value for name, value in vars(self).items() if not name.startswith(hidden)}

    def close(self) -> None:
        """Let go of the model, or of connections; a later run loads or opens them again."""
        if isinstance(self.encoder, (Qwen3Encoder, RemoteEncoder)):
            self.encoder.close()

    def to_dict(self) -> dict[str, Any]:
        """Serialize the component.

        Returns:
            The class and the parameters that make an equal component.

        Raises:
            ValueError: its encoder is not one of this package, or its token or key is no environment variable.
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
        secrets = [name for name in ("token", "api_key") if isinstance(parameters.get(name), dict)]
        deserialize_secrets_inplace(parameters, keys=secrets)
        if isinstance(parameters.get("encoder"), dict):
            parameters["encoder"] = RemoteEncoder(**parameters["encoder"])
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
        return {**self.encoder.settings.to_dict(), "token": None if self.token is None else self.token.to_dict()}

    def __getstate__(self) -> dict[str, Any]:
        # As in YAML, only a secret that an environment variable holds leaves the process.
        secrets = {name: value for name, value in self.__dict__.items() if isinstance(value, Secret)}
        kept = {name: value for name, value in secrets.items() if value.type == SecretType.ENV_VAR}
        return {**self.__dict__, **dict.fromkeys(secrets), **kept}


class _Embedder(_Component):
    """What the two embedders share: their settings, and the encoder made from them."""

    api_key: Secret | None

    @explains_names
    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        encoder: Encoder | None = None,
        dimensions: int | None = None,
        query_instruction: str | None = None,
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
        base_url: str | None = None,
        api_key: Secret | None = None,
        progress_bar: bool = True,
    ) -> None:
        """Store the settings; nothing is loaded before the first use.

        Args:
            model: "tiny", "0.6B", "4B" or "8B"; a hub id; or a folder with a model's files.
            encoder: an encoder to use, instead of the settings that make one.
            dimensions: components of the vectors, 32 to the model's own; None for those that it was saved with.
            query_instruction: a name in `INSTRUCTIONS`, a task sentence in English, a whole prompt, or "" for none;
                None for the prompt that the model was saved with, or "web_search" where it has none.
            document_instruction: the same for documents; None for the saved prompt, or for bare documents.
            max_tokens: tokens of a text to read at most; None for what the model was saved with, or its context.
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
            base_url: where the server is, for a model that runs on one: see `RemoteEncoder`. Settings that have no
                effect there are refused.
            api_key: the server's key; None for the environment variables that `RemoteEncoder` reads.
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
        self.token = _checked_secret("token", token)
        self.api_key = _checked_secret("api_key", api_key)
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
        self._from_settings = encoder is None
        if encoder is None:
            # The default is there for a local model; on a server, only a token that was given is one too many.
            hub = None if token is None or (base_url is not None and token == _TOKEN) else token.resolve_value()
            encoder = made_encoder(settings, hub, base_url, None if api_key is None else api_key.resolve_value())
            self._model = encoder.settings.model
        else:
            self._model = adopted_settings(encoder, {**settings, "base_url": base_url, "api_key": api_key})["model"]
        self.encoder = encoder

    def warm_up(self) -> None:
        """Load the model now, instead of in the first run."""
        if isinstance(self.encoder, Qwen3Encoder):
            self.encoder.warm_up()

    def _meta(self, recorded: UsageCounter) -> dict[str, Any]:
        """Tell of a run what Haystack's own embedders tell; an encoder of another kind is not counted."""
        if not isinstance(self.encoder, (Qwen3Encoder, RemoteEncoder)):
            return {"model": self._model}
        tokens = recorded.usage.tokens
        return {"model": self._model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.encoder, RemoteEncoder) and self.api_key is not None:
            self.encoder = self.encoder.replaced(api_key=self.api_key.resolve_value())
        elif isinstance(self.encoder, Qwen3Encoder) and self._from_settings and self.token is not None:
            self.encoder = self.encoder.replaced(token=self.token.resolve_value())

    def _init_parameters(self) -> dict[str, Any]:
        if isinstance(self.encoder, RemoteEncoder):
            settings = self.encoder.settings.to_dict()
            key = None if self.api_key is None else self.api_key.to_dict()
            shared = {name: settings[name] for name in (*REMOTE_SETTINGS, "base_url")}
            made = {**shared, "api_key": key} if self._from_settings else {"encoder": settings}
            return {**made, "progress_bar": self.progress_bar}
        parameters = _Component._init_parameters(self)
        device = parameters["device"]
        several = isinstance(device, list)
        devices = [ComponentDevice.from_str(name).to_dict() for name in (device if several else [device]) if name]
        return {
            **parameters,
            "device": devices if several else devices[0] if devices else None,
            "progress_bar": self.progress_bar,
        }


@component
class Qwen3TextEmbedder(_Embedder):
    """Embeds a query with a Qwen3-Embedding model and its query instruction.

    Example:
        >>> from qwen3_embed_integrations.haystack import Qwen3TextEmbedder
        >>> embedder = Qwen3TextEmbedder("tiny")
        >>> len(embedder.run("how do I copy a folder?")["embedding"])
        256
    """

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """Embed a query.

        Args:
            text: the query.

        Returns:
            `embedding`: a list of `dimensions` floats, unit length.
            `meta`: `model`, and `usage` with `prompt_tokens`, the instruction and the end token included.

        Raises:
            TypeError: text is not a string.
        """
        with record_usage() as recorded:
            vectors = self.encoder.encode_queries([_as_text(text)], show_progress=self.progress_bar)
        return {"embedding": vectors[0].tolist(), "meta": self._meta(recorded)}

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Embed a query without blocking the event loop.

        Args:
            text: the query.

        Returns:
            What `run` returns.

        Raises:
            TypeError: text is not a string.
        """
        with record_usage() as recorded:
            vectors = await self.encoder.aencode_queries([_as_text(text)])
        return {"embedding": vectors[0].tolist(), "meta": self._meta(recorded)}


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

    @explains_names
    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        encoder: Encoder | None = None,
        dimensions: int | None = None,
        query_instruction: str | None = None,
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
        base_url: str | None = None,
        api_key: Secret | None = None,
        progress_bar: bool = True,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        """Store the settings; nothing is loaded before the first use.

        Args:
            model: "tiny", "0.6B", "4B" or "8B"; a hub id; or a folder with a model's files.
            encoder: an encoder to use, instead of the settings that make one.
            dimensions: components of the vectors, 32 to the model's own; None for those that it was saved with.
            query_instruction: a name in `INSTRUCTIONS`, a task sentence in English, a whole prompt, or "" for none;
                None for the prompt that the model was saved with, or "web_search" where it has none.
            document_instruction: the same for documents; None for the saved prompt, or for bare documents.
            max_tokens: tokens of a text to read at most; None for what the model was saved with, or its context.
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
            base_url: where the server is, for a model that runs on one: see `RemoteEncoder`. Settings that have no
                effect there are refused.
            api_key: the server's key; None for the environment variables that `RemoteEncoder` reads.
            progress_bar: whether to draw a progress bar.
            meta_fields_to_embed: names of the meta fields to put before a document's content.
            embedding_separator: what stands between meta fields and content.

        Raises:
            TypeError: a setting has the wrong type, or encoder is no encoder.
            ValueError: a setting is out of range or unknown.
        """
        # @component makes the class anew, which breaks super() without arguments.
        _Embedder.__init__(
            self,
            model,
            encoder=encoder,
            dimensions=dimensions,
            query_instruction=query_instruction,
            document_instruction=document_instruction,
            max_tokens=max_tokens,
            long_text=long_text,
            device=device,
            device_map=device_map,
            dtype=dtype,
            quantization=quantization,
            batch_tokens=batch_tokens,
            revision=revision,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
            token=token,
            base_url=base_url,
            api_key=api_key,
            progress_bar=progress_bar,
        )
        if isinstance(meta_fields_to_embed, str):
            raise TypeError(
                f"meta_fields_to_embed must be a list of names, got {meta_fields_to_embed!r}: put it in a list"
            )
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents.

        Args:
            documents: the documents, which stay as they are.

        Returns:
            `documents`: copies of them with their embedding, in the same order.
            `meta`: `model`, and `usage` with `prompt_tokens`, the end tokens included.

        Raises:
            TypeError: documents is not a list of documents.
        """
        with record_usage() as recorded:
            vectors = self.encoder.encode_documents(self._texts(documents), show_progress=self.progress_bar)
        return {"documents": _with_embeddings(documents, vectors), "meta": self._meta(recorded)}

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents without blocking the event loop.

        Args:
            documents: the documents, which stay as they are.

        Returns:
            What `run` returns.

        Raises:
            TypeError: documents is not a list of documents.
        """
        with record_usage() as recorded:
            vectors = await self.encoder.aencode_documents(self._texts(documents))
        return {"documents": _with_embeddings(documents, vectors), "meta": self._meta(recorded)}

    def _init_parameters(self) -> dict[str, Any]:
        return {
            **_Embedder._init_parameters(self),
            "meta_fields_to_embed": self.meta_fields_to_embed,
            "embedding_separator": self.embedding_separator,
        }

    def _texts(self, documents: list[Document]) -> list[str]:
        _check_documents(documents, "Qwen3DocumentEmbedder", "to embed a string, use Qwen3TextEmbedder")
        return [self._text(document) for document in documents]

    def _text(self, document: Document) -> str:
        values = (document.meta.get(name) for name in self.meta_fields_to_embed)
        parts = [str(value) for value in values if value is not None]
        return self.embedding_separator.join([*parts, document.content or ""])


@component
class Qwen3DocumentSplitter(_Component):
    """Cuts documents into pieces of at most so many tokens of a Qwen3-Embedding model, which overlap by so many.

    A piece is exactly `content[start:end]` of its document, white space included, and together they cover every visible
    character: there is no piece of white space alone. They end at a paragraph, line, sentence or word where one is
    near. Their meta are what Haystack's `DocumentSplitter` writes. Only the tokenizer is loaded, not the weights. What
    an embedder puts before a piece (an instruction, `meta_fields_to_embed`) comes on top of its tokens.

    Example:
        >>> from haystack import Document
        >>> from qwen3_embed_integrations.haystack import Qwen3DocumentSplitter
        >>> splitter = Qwen3DocumentSplitter("tiny", split_length=16, split_overlap=4)
        >>> text = "Copy a directory tree. Compute a square root. Parse the command line. Read a file."
        >>> pieces = splitter.run([Document(content=text)])["documents"]
        >>> all(text.startswith(piece.content, piece.meta["split_idx_start"]) for piece in pieces)
        True
    """

    encoder: Qwen3Encoder

    @explains_names
    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        encoder: Qwen3Encoder | None = None,
        split_length: int = CHUNK_TOKENS,
        split_overlap: int | None = None,
        skip_empty_documents: bool = True,
        revision: str | None = None,
        cache_folder: str | None = None,
        local_files_only: bool = False,
        token: Secret | None = _TOKEN,
    ) -> None:
        """Store the settings; nothing is loaded before the first use.

        Args:
            model: "tiny", "0.6B", "4B" or "8B"; a hub id; or a folder with a model's files.
            encoder: an encoder whose tokenizer to use, instead of the settings that make one.
            split_length: most tokens of a piece, the end token included; 16 or more. By default 1,024, as in
                LlamaIndex, whose comparison of 128 to 2,048 tokens found it best for retrieval.
            split_overlap: tokens that a piece shares with the one before it, at least; at most half of split_length,
                an eighth of it by default.
            skip_empty_documents: whether to leave out, with a warning, documents whose content is empty or blank; if
                not, such a document's first piece stands for it.
            revision: branch, tag or commit on the hub.
            cache_folder: where the hub's files are kept.
            local_files_only: never ask the network.
            token: access token of the hub for private models.

        Raises:
            TypeError: a setting has the wrong type, or encoder is no `Qwen3Encoder`.
            ValueError: a setting is out of range or has no effect beside encoder.
        """
        self.split_length, self.split_overlap = checked_sizes(split_length=split_length, split_overlap=split_overlap)
        self.skip_empty_documents = skip_empty_documents
        self.token = _checked_secret("token", token)
        settings: dict[str, Any] = {
            "model": model,
            "revision": revision,
            "cache_folder": cache_folder,
            "local_files_only": local_files_only,
        }
        self.encoder = splitting_encoder(encoder, settings, None if token is None else token.resolve_value())

    def warm_up(self) -> None:
        """Load the tokenizer now, instead of in the first run."""
        self.encoder.count_tokens([])

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Cut documents into pieces.

        Args:
            documents: the documents, which stay as they are.

        Returns:
            `documents`: the pieces, in the order of the documents, with a copy of their meta and
            `source_id`, the document's id; `split_id`, which piece it is; `split_idx_start`, at which character it
            begins; `page_number`, counted by form feeds; and, unless split_overlap is 0, `_split_overlap`, what it
            shares with the pieces before and after.

        Raises:
            TypeError: documents is not a list of documents, or content or meta of one have the wrong type.
            ValueError: a document has no content.
        """
        _check_documents(documents, "Qwen3DocumentSplitter", "to split a string, put it in a Document")
        for index, document in enumerate(documents):
            where = f"the document at index {index} (ID {document.id})"
            if document.content is None:
                raise ValueError(f"{where} has no content to split")
            for name, value, kind in (("content", document.content, str), ("meta", document.meta, dict)):
                if not isinstance(value, kind):
                    raise TypeError(f"{where} must have {name} of type {kind.__name__}, got {type(value).__name__}")
        return {"documents": [piece for document in documents for piece in self._pieces(document)]}

    def _pieces(self, document: Document) -> list[Document]:
        text = document.content or ""
        windows = self.encoder.split(text, self.split_length, self.split_overlap)
        spans = visible(text, windows)
        if not spans and self.skip_empty_documents:
            logger.warning("Document ID {doc_id} has no visible content. Skipping this document.", doc_id=document.id)
            return []
        spans = spans or windows[:1]
        pieces: list[Document] = []
        page, counted = 1, 0
        for index, span in enumerate(spans):
            page, counted = page + text.count("\f", counted, span.start), span.start
            content = text[span.start : span.end]
            meta = {
                **deepcopy(document.meta),
                "source_id": document.id,
                # A piece is on the page of its first character that is no page break.
                "page_number": page + (len(content) - len(content.lstrip("\f")) if content.strip("\f") else 0),
                "split_id": index,
                "split_idx_start": span.start,
            }
            pieces.append(Document(content=content, meta=meta))
        if self.split_overlap:
            _tell_overlaps(pieces, spans)
        return pieces

    def _init_parameters(self) -> dict[str, Any]:
        parameters = _Component._init_parameters(self)
        return {
            **{name: parameters[name] for name in (*TOKENIZER_SETTINGS, "token")},
            "split_length": self.split_length,
            "split_overlap": self.split_overlap,
            "skip_empty_documents": self.skip_empty_documents,
        }


def _tell_overlaps(pieces: list[Document], spans: "list[Span]") -> None:
    """Write in each piece's meta what it shares with its neighbours, after their ids were made, as Haystack does."""
    for piece in pieces:
        piece.meta["_split_overlap"] = []
    for (before, piece), (span_before, span) in zip(pairwise(pieces), pairwise(spans), strict=True):
        start, end = span.start - span_before.start, span_before.end - span_before.start
        if start < end:
            piece.meta["_split_overlap"].append({"doc_id": before.id, "range": (start, end)})
            before.meta["_split_overlap"].append({"doc_id": piece.id, "range": (0, end - start)})


def _checked_secret(name: str, secret: Any) -> Secret | None:
    if not isinstance(secret, Secret | None):
        raise TypeError(f"{name} must be a Secret, got a {type(secret).__name__}: Secret.from_env_var makes one")
    return secret


def _check_documents(documents: Any, name: str, advice: str) -> None:
    if not isinstance(documents, list):
        raise TypeError(f"{name} expects a list of Documents, got {type(documents).__name__}; {advice}")
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise TypeError(f"the item at index {index} must be a Document, got {type(document).__name__}; {advice}")


def _as_text(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(
            f"Qwen3TextEmbedder expects a string, got {type(text).__name__}; "
            "to embed documents, use Qwen3DocumentEmbedder"
        )
    return text


def _with_embeddings(documents: list[Document], vectors: "NDArray[np.float32]") -> list[Document]:
    return [
        replace(document, meta=dict(document.meta), embedding=vector.tolist())
        for document, vector in zip(documents, vectors, strict=True)
    ]
