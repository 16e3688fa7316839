"""What the adapters share: settings as pydantic fields, taking over a given encoder, and a splitter's sizes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from typing_extensions import Self

from qwen3_embed_integrations._renamed import advice_on, explains_names
from qwen3_embed_integrations.encoder import (
    DEFAULT_MODEL,
    Encoder,
    EncoderSettings,
    LongText,
    Quantization,
    Qwen3Encoder,
)
from qwen3_embed_integrations.endpoint import checked_url
from qwen3_embed_integrations.long_text import LEAST_TOKENS
from qwen3_embed_integrations.matryoshka import as_integer
from qwen3_embed_integrations.remote import RemoteEncoder, RemoteSettings

SETTINGS = tuple(EncoderSettings.__dataclass_fields__)
REMOTE_SETTINGS = tuple(name for name in SETTINGS if name in RemoteSettings.__dataclass_fields__)
TOKENIZER_SETTINGS = ("model", "revision", "cache_folder", "local_files_only")

CHUNK_TOKENS = 1024
"""A splitter's size unless it is given: LlamaIndex's default, and the best of 128 to 2,048 in its comparison on one
long report ("Evaluating the Ideal Chunk Size for a RAG System using LlamaIndex", its blog, October 2023)."""

_OVERLAP_SHARE = 8


def _as_path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _as_number(value: Any, info: ValidationInfo) -> Any:
    return value if value is None else as_integer(str(info.field_name), value)


def _as_dtype(value: Any) -> str:
    return str(value).removeprefix("torch.")


Location = Annotated[str, BeforeValidator(_as_path)]
Number = Annotated[int | None, BeforeValidator(_as_number)]
Size = Annotated[int, BeforeValidator(_as_number)]
Dtype = Annotated[str, BeforeValidator(_as_dtype)]


def _without_inputs(error: ValidationError, known: Iterable[str]) -> ValidationError:
    """Make pydantic's error anew: without what was given, which may be a secret, and with help for unknown names."""
    details = []
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        advice = advice_on(str(one["loc"][-1]), known) if one["type"] == "extra_forbidden" else ""
        kind = PydanticCustomError(one["type"], one["msg"] + advice)
        details.append(InitErrorDetails(type=kind, loc=one["loc"], input=None))
    return ValidationError.from_exception_data(error.title, details, hide_input=True)


class TokenizerFields(BaseModel):
    """Takes either an encoder or the settings to make one; `Qwen3Encoder` documents the settings.

    These are the settings that its tokenizer depends on. They can't be assigned to afterwards, since the encoder is
    made from them once.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    encoder: Any = Field(default=None, frozen=True, repr=False, description="An encoder to use, instead of settings.")
    model: Location = Field(default=DEFAULT_MODEL, frozen=True, description="Short name, hub id or folder.")
    revision: str | None = Field(default=None, frozen=True, description="Branch, tag or commit on the hub.")
    cache_folder: Location | None = Field(default=None, frozen=True, description="Where the hub's files are kept.")
    local_files_only: bool = Field(default=False, frozen=True, strict=True, description="Never ask the network.")
    token: SecretStr | None = Field(default=None, frozen=True, exclude=True, description="Access token of the hub.")

    @explains_names
    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
            return
        except ValidationError as raised:
            error = _without_inputs(raised, type(self).model_fields)
        # Out here, so that the error does not carry the one with the inputs as its context.
        raise error

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
            return
        except ValidationError as raised:
            error = _without_inputs(raised, type(self).model_fields)
        raise error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenizerFields):
            return NotImplemented
        return type(self) is type(other) and self._compared() == other._compared()

    def _compared(self) -> tuple[Any, ...]:
        # LlamaIndex gives each a manager of its own, which equals no other.
        handlers = getattr(self.__dict__.get("callback_manager"), "handlers", None)
        return {**self.__dict__, "callback_manager": handlers}, self.__pydantic_private__

    @model_validator(mode="before")
    @classmethod
    def _adopt_settings(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("encoder") is None:
            return data
        if isinstance(data["encoder"], dict):
            data = {**data, "encoder": RemoteEncoder(**data["encoder"], api_key=data.get("api_key")), "api_key": None}
        return {**data, **cls._fields_of(adopted_settings(data["encoder"], data))}

    @model_validator(mode="after")
    def _make_encoder(self) -> Self:
        if self.encoder is None:
            token = None if self.token is None else self.token.get_secret_value()
            settings = self._fields_of({name: getattr(self, name, None) for name in SETTINGS})
            encoder = self._new_encoder(settings, token)
            # Past pydantic's __setattr__, which keeps users from assigning.
            self.__dict__.update(self._fields_of(encoder.settings.to_dict()), encoder=encoder)
        return self

    def _new_encoder(self, settings: dict[str, Any], token: str | None) -> Qwen3Encoder | RemoteEncoder:
        return Qwen3Encoder(**settings, token=token)

    @classmethod
    def _fields_of(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in settings.items() if name in cls.model_fields}

    def model_copy(self, *, update: Any = None, deep: bool = False) -> Self:
        """Copy it; where settings are updated, the copy has an encoder made from them.

        Args:
            update: new values by field name.
            deep: whether to copy the other values too.

        Returns:
            The copy.

        Raises:
            ValueError: settings are updated that the encoder does not have, or it is not one of this package; or a
                name is unknown.
        """
        known = type(self).model_fields
        unknown = [f"{name}{advice_on(name, known)}" for name in update or {} if name not in known]
        if unknown:
            raise ValueError(f"{type(self).__name__} has no setting {', '.join(unknown)}")
        copied = super().model_copy(update=update, deep=deep)
        changes = {name: value for name, value in (update or {}).items() if name in (*SETTINGS, "base_url")}
        if changes:
            ours = isinstance(self.encoder, (Qwen3Encoder, RemoteEncoder))
            foreign = [name for name in changes if not ours or name not in self.encoder.settings.to_dict()]
            if foreign:
                raise ValueError(f"{', '.join(foreign)} cannot be updated: the encoder that was given has its own")
            encoder = self.encoder.replaced(**changes)
            copied.__dict__.update(self._fields_of(encoder.settings.to_dict()), encoder=encoder)
        return copied

    @field_serializer("encoder")
    def _serialize_encoder(self, encoder: Encoder) -> Any:
        # The fields tell all of a local encoder, its settings all of a remote one; another one can only be named.
        if isinstance(encoder, RemoteEncoder):
            return encoder.settings.to_dict()
        return None if isinstance(encoder, Qwen3Encoder) else encoder.fingerprint

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], **self._fields_of({"token": None, "api_key": None})}}


class EncoderFields(TokenizerFields):
    """The same with all settings of a `Qwen3Encoder`, or, with `base_url`, with those that a `RemoteEncoder` shares."""

    base_url: str | None = Field(default=None, frozen=True, description="Where the server is, for a remote model.")
    api_key: SecretStr | None = Field(default=None, frozen=True, exclude=True, description="The server's key.")
    dimensions: Number = Field(default=None, frozen=True, description="Components of the vectors.")
    query_instruction: str | None = Field(default=None, frozen=True, description="Name, task sentence or prompt.")
    document_instruction: str | None = Field(default=None, frozen=True, description="The same for documents.")
    max_tokens: Number = Field(default=None, frozen=True, description="Tokens of a text to read at most.")
    long_text: LongText = Field(default="truncate", frozen=True, description="What to do with a longer text.")
    device: str | list[str] | None = Field(default=None, frozen=True, description="One device, or one a replica.")
    device_map: str | dict[str, Any] | None = Field(default=None, frozen=True, description="For a model that is split.")
    dtype: Dtype = Field(default="auto", frozen=True, description="Type of the weights.")
    quantization: Quantization | None = Field(default=None, frozen=True, description="int8 linear layers, on a CPU.")
    batch_tokens: Number = Field(default=None, frozen=True, description="Tokens to run at once.")
    show_progress: bool = Field(default=False, description="Whether to draw a progress bar over documents.")

    def _new_encoder(self, settings: dict[str, Any], token: str | None) -> Qwen3Encoder | RemoteEncoder:
        return made_encoder(settings, token, self.base_url, self.api_key)


def made_encoder(
    settings: dict[str, Any], token: str | None, base_url: str | None, api_key: SecretStr | str | None
) -> Qwen3Encoder | RemoteEncoder:
    """Make the encoder that an adapter's settings ask for: a remote one with base_url, else a local one.

    Args:
        settings: all settings of a `Qwen3Encoder`.
        token: access token of the hub, for a local model.
        base_url: where the server is, for a remote one.
        api_key: the server's key; None for the environment.

    Returns:
        The encoder.

    Raises:
        ValueError: a setting was given that would have no effect.
    """
    if base_url is None:
        if api_key is not None:
            raise ValueError("api_key is the key of a server: give base_url too, or the hub's token as token")
        return Qwen3Encoder(**settings, token=token)
    if token is not None:
        raise ValueError("token has no effect with base_url=: it is the hub's, and the server's key is api_key")
    for name, default in EncoderSettings().to_dict().items():
        # long_text="error" is what a remote encoder does in any case.
        allowed = (default, "error") if name == "long_text" else (default,)
        if name not in REMOTE_SETTINGS and settings[name] not in allowed:
            raise ValueError(f"{name}={settings[name]!r} has no effect with base_url=: it is for a model loaded here")
    return RemoteEncoder(base_url, api_key=api_key, **{name: settings[name] for name in REMOTE_SETTINGS})


def adopted_settings(encoder: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Give the settings that an adapter shows for an encoder that it was handed.

    Args:
        encoder: any `Encoder`.
        given: what the adapter was given beside it; settings may only repeat the encoder's, or their defaults.

    Returns:
        All settings of a `Qwen3Encoder`, or those of a `RemoteEncoder`; of another encoder, whose settings are its
        own, the name of its model.

    Raises:
        TypeError: it is no encoder.
        ValueError: a setting was given that would have no effect.
    """
    if not callable(getattr(encoder, "encode_queries", None)) or not callable(
        getattr(encoder, "encode_documents", None)
    ):
        raise TypeError(
            f"encoder must have encode_queries and encode_documents, got {encoder!r:.80} ({type(encoder).__name__}); "
            "an encoder that was serialised by its fingerprint has to be passed again"
        )
    if isinstance(encoder, (Qwen3Encoder, RemoteEncoder)):
        settings = encoder.settings.to_dict()
    else:
        settings = {"model": getattr(encoder, "model", type(encoder).__name__)}
    if given.get("base_url") is not None:
        # First, since the next message shows it.
        checked_url(given["base_url"])
    defaults = {**EncoderSettings().to_dict(), "base_url": None}
    for name in defaults:
        allowed = (settings[name], defaults[name]) if name in settings else (defaults[name],)
        if name in given and given[name] not in allowed:
            raise ValueError(f"{name}={given[name]!r} has no effect beside encoder=: give one or the other")
    if given.get("api_key") is not None:
        raise ValueError("api_key has no effect beside encoder=: give one or the other")
    return settings


def splitting_encoder(encoder: Any, settings: dict[str, Any], token: str | None) -> Qwen3Encoder:
    """Give the encoder whose tokenizer a splitter uses: the one that it was handed, or one made from settings.

    Args:
        encoder: a `Qwen3Encoder`, or None.
        settings: those named in `TOKENIZER_SETTINGS`.
        token: access token of the hub, for the encoder that is made.

    Returns:
        The encoder.

    Raises:
        TypeError: it is no `Qwen3Encoder`.
        ValueError: a setting was given that would have no effect.
    """
    if encoder is None:
        return Qwen3Encoder(**settings, token=token)
    if not isinstance(encoder, Qwen3Encoder):
        raise TypeError(
            f"encoder must be a Qwen3Encoder, whose tokenizer counts, got {encoder!r:.80} ({type(encoder).__name__})"
        )
    adopted_settings(encoder, settings)
    return encoder


def checked_sizes(**sizes: Any) -> tuple[int, int]:
    """Check a splitter's sizes when it is made, under the names that its framework gives them.

    Args:
        **sizes: first the most tokens of a piece, then the tokens that it shares with the one before it; None for an
            eighth of the size.

    Returns:
        The two sizes.

    Raises:
        TypeError: a size is not an integer.
        ValueError: a size is out of range.
    """
    (name, size), (overlap_name, overlap) = sizes.items()
    size = as_integer(name, size)
    overlap = size // _OVERLAP_SHARE if overlap is None else as_integer(overlap_name, overlap)
    if size < LEAST_TOKENS:
        raise ValueError(f"{name} must be at least {LEAST_TOKENS}, got {size}")
    if not 0 <= overlap <= size // 2:
        raise ValueError(f"{overlap_name} must be between 0 and {size // 2}, half of {name}, got {overlap}")
    return size, overlap


def as_metadatas(metadatas: Any) -> list[dict[Any, Any]]:
    """Check the metadata of texts.

    Args:
        metadatas: one dictionary per text.

    Returns:
        The dictionaries as a list.

    Raises:
        TypeError: it is no collection of dictionaries.
    """
    if isinstance(metadatas, (str, Mapping)) or not isinstance(metadatas, Iterable):
        raise TypeError(f"metadatas must be a list of dictionaries, one per text, got {type(metadatas).__name__}")
    result = list(metadatas)
    for index, metadata in enumerate(result):
        if not isinstance(metadata, dict):
            raise TypeError(
                f"the metadata at index {index} must be a dictionary, {{}} for none, got {metadata!r:.80} "
                f"({type(metadata).__name__})"
            )
    return result
