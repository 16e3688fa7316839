"""What settings of other embedding classes are called here: for the messages that refuse them, and the README."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_Init = ParamSpec("_Init")

_INSTRUCTIONS = "`query_instruction` for queries, `document_instruction` for documents"

# Old names, and what to do here: of LangChain's HuggingFaceEmbeddings and OpenAIEmbeddings, LlamaIndex's
# HuggingFaceEmbedding and OpenAIEmbedding, Haystack's embedders, and SentenceTransformer with its encode.
RENAMED: tuple[tuple[tuple[str, ...], str], ...] = (
    (("model_name", "model_name_or_path", "model_id", "repo_id"), "`model`"),
    (("truncate_dim",), "`dimensions`"),
    (("max_length", "max_seq_length", "model_max_length", "embedding_ctx_length"), "`max_tokens`"),
    (("query_prompt", "query_prefix", "instruction"), "`query_instruction`"),
    (
        ("text_instruction", "embed_instruction", "document_prompt", "document_prefix", "passage_instruction"),
        "`document_instruction`",
    ),
    (("prefix", "prompt", "prompts", "prompt_name", "default_prompt_name"), _INSTRUCTIONS),
    (("suffix",), "nothing to set: the vector is read at the end token, which must stand last"),
    (("normalize", "normalize_embeddings"), "nothing to set: vectors always have unit length"),
    (("pooling", "pooling_mode"), "nothing to set: the end token is pooled, as the models were trained"),
    (("similarity_fn_name",), "nothing to set: the inner product of two vectors is their cosine"),
    (
        ("batch_size", "embed_batch_size"),
        "`batch_tokens`, which are tokens; the texts of a request are `batch_size` of a `RemoteEncoder`",
    ),
    (
        ("model_kwargs",),
        "its entries by name: `dtype` (for `torch_dtype`), `device`, `device_map`, `revision`, `token`; "
        "the attention is chosen by itself",
    ),
    (("torch_dtype",), "`dtype`"),
    (
        ("encode_kwargs", "query_encode_kwargs"),
        f"its entries by name: `batch_tokens`, and {_INSTRUCTIONS}; vectors always have unit length",
    ),
    (
        ("tokenizer_kwargs", "processor_kwargs", "config_kwargs", "tokenizer_name", "tokenizer"),
        "nothing to set: the model's own files are used; `max_tokens` for a shorter context",
    ),
    (("precision",), "nothing to set: vectors are float32, and `Quantizer` makes int8 or binary ones of them"),
    (
        ("output_value", "convert_to_numpy", "convert_to_tensor"),
        "nothing to set: the encoders return float32 arrays, the adapters lists",
    ),
    (("backend",), "nothing to set: the fastest way to run a model is chosen by itself"),
    (("trust_remote_code",), "nothing to set: code that comes with a model is never run"),
    (
        ("multi_process", "parallel_process", "target_devices", "pool"),
        '`device` with several names: `["cuda:0", "cuda:1"]`',
    ),
    (("cache_dir",), "`cache_folder`"),
    (("use_auth_token", "hf_token", "huggingfacehub_api_token"), "`token`"),
    (("openai_api_key",), "`api_key`, with `base_url`; of a local model there is none"),
    (("openai_api_base", "api_base", "api_base_url"), "`base_url`"),
    (("request_timeout",), "`timeout` of a `RemoteEncoder`, which adapters take as `encoder`"),
    (
        ("show_progress_bar",),
        "`show_progress`, in Haystack `progress_bar`; of the encoders an argument of each call",
    ),
)

# Names that are settings of this package, but not of every class.
_OURS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("show_progress", "progress_bar"), dict(RENAMED)[("show_progress_bar",)]),
    (("base_url", "api_key"), "of a `RemoteEncoder`, for a model on a server"),
    (
        ("served_model_name", "send_dimensions", "concurrency", "max_retries", "timeout"),
        "of a `RemoteEncoder`, which adapters take as `encoder`",
    ),
    (
        ("long_text", "device", "device_map", "dtype", "quantization", "local_files_only", "token"),
        "of a `Qwen3Encoder`, for a model that is loaded here",
    ),
)

_ADVICE = {name: advice.replace("`", "") for names, advice in (*_OURS, *RENAMED) for name in names}


def advice_on(name: str, known: Iterable[str]) -> str:
    """Say what a setting that is not known is called here.

    Args:
        name: of the setting.
        known: names of the settings that there are.

    Returns:
        What to do, in brackets after a space; nothing where nothing is known of the name.
    """
    if name in _ADVICE:
        return f" (here: {_ADVICE[name]})"
    nearest = get_close_matches(name, known, n=1, cutoff=0.75)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def explains_names(init: Callable[_Init, None]) -> Callable[_Init, None]:
    """Refuse all unknown arguments of a constructor at once, each with what it is called here.

    Args:
        init: `__init__` of a class.

    Returns:
        The same with these messages, which name the class that is made and not one that it derives from.
    """
    signature = inspect.signature(init)
    takes_any = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())

    @wraps(init)
    def checked(*args: _Init.args, **given: _Init.kwargs) -> None:
        made = type(args[0]).__name__
        known = [*signature.parameters][1:]
        unknown = [] if takes_any else [name for name in given if name not in known]
        if unknown:
            many = len(unknown) > 1
            names = ", ".join(f"{name!r}{advice_on(name, known)}" for name in unknown)
            raise TypeError(
                f"{made} got {'' if many else 'an '}unexpected keyword argument{'s' if many else ''} {names}"
            )
        try:
            signature.bind(*args, **given)
        except TypeError as error:
            raise TypeError(f"{made}: {error}; settings are given by name") from None
        init(*args, **given)

    return checked
