"""A random-weight model of the real architecture, and what plain transformers computes with it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoTokenizer, Qwen3Config, Qwen3Model

from qwen3_embed_integrations import INSTRUCTIONS
from qwen3_embed_integrations.engine import engine

# A test run in parallel sets the first, and the command's console would take it once for all that it prints; of the
# others, which CI systems set, any makes it write colours.
for name in ("COLUMNS", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
    os.environ.pop(name, None)

END = "<|endoftext|>"
TASK = INSTRUCTIONS["web_search"]

# The Qwen pre-tokeniser: it glues one leading punctuation character to the word behind it.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--auto-dtype", choices=("float32", "bfloat16"), help='what dtype="auto" means on the CPU')


@pytest.fixture(scope="session", autouse=True)
def _auto_dtype(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the processor say what --auto-dtype asks for; without it, the tests run as on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        if (dtype := request.config.getoption("--auto-dtype")) is not None:
            for capability in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
                patch.setattr(torch.cpu, capability, lambda: dtype == "bfloat16")
        yield


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt: a process that a script began in the background ignores it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # Operations this small are slower on several threads, by far where another process uses a core.
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _cpu_by_default(request: pytest.FixtureRequest) -> Iterator[None]:
    """Choose the CPU on a machine with a GPU too, whose bfloat16 is no reference."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name != "test_cuda.py":
            patch.setattr(engine, "_default_device", lambda: "cpu")
        yield


def make_tokenizer(folder: Path) -> int:
    """Train a byte-level BPE like Qwen's on the sources of this test suite, and return its size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    # The word that trap of the glued punctuation needs as one token, ":def".
    tokenizer.train_from_iterator([*texts, "query:def " * 50, *INSTRUCTIONS.values()], trainer)
    end_id = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end_id)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END, "padding_side": "left"}
        )
    )
    return tokenizer.get_vocab_size()


def make_model(folder: Path, *, seed: int = 0, hidden_size: int = 64, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random-weight Qwen3 embedding model with the files that the official repositories have."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = make_tokenizer(folder)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=8192,
        initializer_range=0.3,
        tie_word_embeddings=True,
        use_cache=False,
    )
    Qwen3Model(config).to(dtype).save_pretrained(folder)
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (path, name) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": hidden_size, "pooling_mode_lasttoken": True})
    )
    prompts = {"query": f"Instruct: {TASK}\nQuery:", "document": ""}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random-weight model in float32."""
    return make_model(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape with other weights."""
    return make_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="session")
def reference(model_folder: Path) -> Callable[[list[str]], np.ndarray]:
    """Plain transformers, one text at a time, no padding: unit vectors, shape (n, hidden size)."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModel.from_pretrained(model_folder, dtype=torch.float32).eval()

    def embed(texts: list[str]) -> np.ndarray:
        vectors = []
        for text in texts:
            with torch.inference_mode():
                hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
            vectors.append(torch.nn.functional.normalize(hidden[0, -1], dim=-1).numpy())
        return np.stack(vectors)

    return embed


def as_query(text: str, task: str = TASK) -> str:
    """The official template, spelled out a second time on purpose."""
    return "Instruct: " + task + "\nQuery:" + text


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Row by row, of unit vectors in float64."""
    return (np.asarray(left, dtype=np.float64) * np.asarray(right, dtype=np.float64)).sum(axis=-1)
