"""What the adapters share: the encoder's settings as pydantic fields, and taking over a given encoder."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, SecretStr, field_serializer, model_validator

from qwen3_embed_integrations.encoder import DEFAULT_MODEL, Encoder, EncoderSettings, LongText, Qwen3Encoder


class EncoderFields(BaseModel):
    """Takes either an encoder or the settings to make one; `Qwen3Encoder` documents the settings.

    The settings can't be assigned to afterwards, since the encoder is made from them once.
    """

    encoder: Any = Field(default=None, frozen=True, repr=False, description="An encoder to use, instead of settings.")
    model: str = Field(default=DEFAULT_MODEL, frozen=True, description="Short name, hub id or folder.")
    dimensions: int | None = Field(default=None, frozen=True, description="Components of the vectors.")
    query_instruction: str = Field(default="web_search", frozen=True, description="Name or task sentence.")
    document_instruction: str | None = Field(default=None, frozen=True, description="Name or task sentence.")
    max_tokens: int | None = Field(default=None, frozen=True, description="Tokens of a text to read at most.")
    long_text: LongText = Field(default="truncate", frozen=True, description="What to do with a longer text.")
    device: str | None = Field(default=None, frozen=True, description="torch's name of a device.")
    dtype: str = Field(default="auto", frozen=True, description="Type of the weights.")
    batch_tokens: int | None = Field(default=None, frozen=True, description="Tokens to run at once.")
    revision: str | None = Field(default=None, frozen=True, description="Branch, tag or commit on the hub.")
    cache_folder: str | None = Field(default=None, frozen=True, description="Where the hub's files are kept.")
    local_files_only: bool = Field(default=False, frozen=True, description="Never ask the network.")
    token: SecretStr | None = Field(default=None, frozen=True, exclude=True, description="Access token of the hub.")
    show_progress: bool = Field(default=False, description="Whether to draw a progress bar over documents.")

    @model_validator(mode="before")
    @classmethod
    def _adopt_settings(cls, data: Any) -> Any:
        encoder = data.get("encoder") if isinstance(data, dict) else None
        if encoder is None:
            return data
        settings = encoder_settings(encoder)
        for name, value in settings.items():
            if data.get(name, value) not in (value, EncoderFields.model_fields[name].default):
                raise ValueError(f"{name}={data[name]!r} differs from the encoder's {value!r}: give one or the other")
        return {**data, **settings}

    @model_validator(mode="after")
    def _make_encoder(self) -> Any:
        if self.encoder is None:
            settings = {name: getattr(self, name) for name in EncoderSettings.__dataclass_fields__}
            token = None if self.token is None else self.token.get_secret_value()
            # Past pydantic's __setattr__, which keeps users from assigning.
            self.__dict__["encoder"] = Qwen3Encoder(**settings, token=token)
        return self

    @field_serializer("encoder")
    def _serialize_encoder(self, encoder: Encoder) -> str | None:
        # The settings tell all of an encoder of this package; another one can only be named.
        return None if isinstance(encoder, Qwen3Encoder) else encoder.fingerprint

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "token": None}}


def encoder_settings(encoder: Any) -> dict[str, Any]:
    """Give the settings that an adapter shows for an encoder that it was handed.

    Args:
        encoder: any `Encoder`.

    Returns:
        All settings of a `Qwen3Encoder`; of another encoder, whose settings are its own, the name of its model.

    Raises:
        TypeError: it is no encoder.
    """
    if isinstance(encoder, Qwen3Encoder):
        return encoder.settings.to_dict()
    if not callable(getattr(encoder, "encode_queries", None)) or not callable(
        getattr(encoder, "encode_documents", None)
    ):
        raise TypeError(
            f"encoder must have encode_queries and encode_documents, got {encoder!r:.80} ({type(encoder).__name__}); "
            "an encoder that was serialised by its fingerprint has to be passed again"
        )
    return {"model": getattr(encoder, "model", type(encoder).__name__)}
