"""The encoder against plain transformers, and its promises about input, sharing and processes."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import warnings
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from transformers import AutoModel

from qwen3_embed_integrations import INSTRUCTIONS, Qwen3Encoder, TruncationWarning, truncate
from qwen3_embed_integrations import encoder as encoder_module
from qwen3_embed_integrations.encoder import BaseEncoder
from qwen3_embed_integrations.engine import engine as engine_module
from qwen3_embed_integrations.engine.packed import PackedModel
from qwen3_embed_integrations.engine.padded import PaddedModel
from tests.conftest import as_query, cosines, make_model

TEXTS = [
    "What is the capital of China?",
    "def f(x):\n\treturn x + 1\n\n\n# two blank lines above",
    "    indented    with   runs of  spaces   ",
    "trailing newline\n",
    "中国的首都是哪里?",
    "Какова столица Китая?",
    "ما هي عاصمة الصين؟",
    "चीन की राजधानी क्या है?",
    "中国の首都はどこですか。",
    "e\u0301 and \u00e9, \U0001f469\u200d\U0001f469\u200d\U0001f467 family, \u202eright to left\u202c",
    "",
    " ",
    "\n\n\n",
    "\t",
    "a",
    "nul \x00 byte",
    "before <|endoftext|> after",
    "<|endoftext|>",
    ":-) punctuation first",
    "x" * 3000,
    "word " * 400,
]


@pytest.fixture(scope="module")
def encoder(model_folder):
    return Qwen3Encoder(model_folder, dtype="float32", device="cpu")


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:20]))
def test_documents_equal_plain_transformers(encoder, reference, text):
    vector = encoder.encode_documents([text])
    assert vector.dtype == np.float32
    assert vector.shape == (1, 64)
    assert cosines(vector, reference([text])) >= 0.99999


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:20]))
def test_queries_equal_plain_transformers(encoder, reference, text):
    assert cosines(encoder.encode_queries([text]), reference([as_query(text)])) >= 0.99999


def test_code_after_the_prompt_is_tokenised_with_it(encoder, reference):
    # The pre-tokeniser makes ":def" of the prompt's last character and the query's first word.
    tokens = encoder._tokenization()
    together = list(next(iter(tokens.encode([as_query("def f(x)")]))))
    apart = list(next(iter(tokens.encode([as_query("")]))))[:-1] + list(next(iter(tokens.encode(["def f(x)"]))))
    assert together != apart
    assert cosines(encoder.encode_queries(["def f(x)"]), reference([as_query("def f(x)")])) >= 0.99999


def test_a_batch_equals_its_texts_alone_in_the_callers_order(encoder, reference):
    vectors = encoder.encode_documents(TEXTS)
    assert (cosines(vectors, reference(TEXTS)) >= 0.99999).all()
    backwards = encoder.encode_documents(TEXTS[::-1])
    assert (cosines(backwards[::-1], vectors) >= 0.99999).all()
    small = Qwen3Encoder(encoder.settings.model, dtype="float32", device="cpu", batch_tokens=16)
    assert (cosines(small.encode_documents(TEXTS), vectors) >= 0.99999).all()


def test_a_very_long_word(encoder, reference):
    word = "pneumono" * 1250
    assert encoder.count_tokens([word])[0] <= encoder.max_tokens
    assert cosines(encoder.encode_documents([word]), reference([word])) >= 0.99999


def test_newlines_and_spaces_change_the_vector(encoder):
    lines, spaces, run = encoder.encode_documents(["a = 1\nb = 2", "a = 1 b = 2", "a = 1  b = 2"])
    assert cosines(lines, spaces) < 0.999
    assert cosines(spaces, run) < 0.999


def test_lone_surrogates_become_the_replacement_character(encoder):
    lone, replaced = encoder.encode_documents(["a\ud800b", "a\ufffdb"])
    assert np.array_equal(lone, replaced)
    pair, joined = encoder.encode_documents(["\ud83d\ude00", "\U0001f600"])
    assert np.array_equal(pair, joined)
    assert np.isfinite(encoder.encode_queries(["\udfff"])).all()


@pytest.mark.parametrize("dimensions", [32, 48, 64])
def test_cut_vectors_are_heads_of_full_ones_with_unit_length(model_folder, encoder, dimensions):
    cut = Qwen3Encoder(model_folder, dtype="float32", device="cpu", dimensions=dimensions)
    vectors = cut.encode_documents(TEXTS)
    assert vectors.shape == (len(TEXTS), dimensions)
    assert cut.dimensions == dimensions
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    head = encoder.encode_documents(TEXTS)[:, :dimensions]
    assert (cosines(vectors, head / np.linalg.norm(head, axis=1, keepdims=True)) >= 0.999999).all()


def test_no_texts(encoder):
    assert encoder.encode_documents([]).shape == (0, 64)
    assert encoder.encode_queries([]).dtype == np.float32


@pytest.mark.parametrize("container", [tuple, iter, np.array])
def test_any_collection_of_strings(encoder, container):
    texts = ["one", "two"]
    assert np.array_equal(encoder.encode_documents(container(texts)), encoder.encode_documents(texts))


def test_instruction_by_name_sentence_and_call(model_folder, encoder, reference):
    text, task = "read a file", INSTRUCTIONS["code_search"]
    expected = reference([as_query(text, task)])
    by_name = Qwen3Encoder(model_folder, dtype="float32", device="cpu", query_instruction="code_search")
    assert by_name.query_instruction == task
    for vector in (
        by_name.encode_queries([text]),
        encoder.encode_queries([text], instruction="code_search"),
        encoder.encode_queries([text], instruction=task),
    ):
        assert cosines(vector, expected) >= 0.99999


def test_documents_get_an_instruction_only_when_asked(model_folder, encoder, reference):
    task = "Find the section on warranty"
    instructed = Qwen3Encoder(model_folder, dtype="float32", device="cpu", document_instruction=task)
    assert encoder.document_instruction is None
    assert instructed.document_instruction == task
    expected = reference([as_query("two years", task)])
    assert cosines(instructed.encode_documents(["two years"]), expected) >= 0.99999
    assert cosines(encoder.encode_documents(["two years"], instruction=task), expected) >= 0.99999


def test_a_query_in_another_language_gets_the_english_instruction(encoder, reference):
    text = "wie kopiere ich einen Ordner?"
    assert cosines(encoder.encode_queries([text]), reference([as_query(text)])) >= 0.99999


def test_tokens_are_counted_with_the_end_token(encoder):
    assert encoder.count_tokens(["", "a"]) == [1, 2]
    assert encoder.count_tokens([]) == []


def test_a_cut_text_keeps_the_end_token_and_warns_once(model_folder, reference):
    short = Qwen3Encoder(model_folder, dtype="float32", device="cpu", max_tokens=64)
    tokenization = short._tokenization()
    long = "one two three four five six seven " * 40
    with pytest.warns(TruncationWarning, match=r"index 1 has \d+ tokens and was cut to max_tokens=64"):
        vectors = short.encode_documents(["short", long, long])
    assert short.truncated_texts == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        query = short.encode_queries([long])
    assert short.truncated_texts == 3
    assert len(vectors) == 3
    for text, vector in ((long, vectors[1:2]), (as_query(long), query)):
        ids = next(iter(tokenization.encode([text])))
        kept = np.concatenate([ids[:63], ids[-1:]])
        assert cosines(vector, hidden_of(short, kept)) >= 0.99999
        assert len(tokenization.cut(ids, 64)) == 64


def hidden_of(encoder, ids):
    """The last hidden state that plain transformers has for these very token ids."""
    model = AutoModel.from_pretrained(encoder.settings.model, dtype=torch.float32)
    with torch.inference_mode():
        hidden = model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(hidden, dim=-1).numpy()[None]


def test_the_only_text_is_named_without_a_position(model_folder):
    settings = {"dtype": "float32", "device": "cpu", "max_tokens": 64}
    with pytest.warns(TruncationWarning, match=r"^the text has \d+ tokens and was cut to max_tokens=64"):
        Qwen3Encoder(model_folder, **settings).encode_queries(["long " * 100])
    strict = Qwen3Encoder(model_folder, **settings, long_text="error")
    for texts, words in ((["long " * 100], "the text has"), (["long " * 100, "a"], "the text at index 0 has")):
        with pytest.raises(ValueError, match=f"^{words} .* more than max_tokens=64$"):
            strict.encode_documents(texts)


def test_a_text_that_just_fits_is_not_cut(model_folder, encoder):
    text = "one two three"
    exact = Qwen3Encoder(model_folder, dtype="float32", device="cpu", max_tokens=encoder.count_tokens([text])[0])
    assert np.array_equal(exact.encode_documents([text]), encoder.encode_documents([text]))
    assert exact.truncated_texts == 0


def test_long_texts_can_be_refused_before_any_work(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "unloaded")
    strict = Qwen3Encoder(folder, dtype="float32", device="cpu", max_tokens=64, long_text="error")
    with pytest.raises(ValueError, match=r"index 1 has \d+ tokens, more than max_tokens=64 \(2 texts are too long\)"):
        strict.encode_documents(["short", "long " * 100, "long " * 200])
    assert not strict._engine().is_loaded
    assert strict.truncated_texts == 0


def test_the_instruction_is_never_cut(model_folder):
    small = Qwen3Encoder(model_folder, device="cpu", max_tokens=8)
    with pytest.raises(ValueError, match="max_tokens=8 leaves no room for a text"):
        small.encode_queries(["hello"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one string", "got one str: put it in a list"),
        (b"bytes", "got one bytes"),
        (None, "got NoneType"),
        (3, "got int"),
        (["fine", None], r"index 1 must be a string, got None \(NoneType\)"),
        (["fine", "fine", 3], r"index 2 must be a string, got 3 \(int\)"),
        ([["nested"]], r"^the text must be a string"),
        ([["nested"], "fine"], r"index 0 must be a string"),
        ({"a": "mapping"}, "got dict"),
        ({"a", "b"}, "got set"),
        ([b"bytes"], r"^the text must be a string, got b'bytes'"),
    ],
)
def test_input_that_is_no_list_of_strings(model_folder, texts, message):
    encoder = Qwen3Encoder(model_folder, device="cpu")
    for method in (encoder.encode_queries, encoder.encode_documents, encoder.count_tokens):
        with pytest.raises(TypeError, match=message):
            method(texts)
    assert encoder._held_engine is None


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": "5B"}, ValueError, "unknown model '5B': did you mean"),
        ({"model": "/no/such/folder"}, ValueError, "unknown model"),
        ({"model": 3}, TypeError, "model must be a name, a hub id or a folder"),
        ({"dimensions": 31}, ValueError, "dimensions must be between 32 and 256 for tiny, got 31"),
        ({"dimensions": 257}, ValueError, "dimensions must be between 32 and 256 for tiny, got 257"),
        ({"dimensions": 0}, ValueError, "dimensions must be at least 1"),
        ({"dimensions": 64.0}, TypeError, "dimensions must be an integer"),
        ({"dimensions": True}, TypeError, "dimensions must be an integer"),
        ({"model": "4B", "dimensions": 2561}, ValueError, "between 32 and 2560 for 4B"),
        ({"max_tokens": 32_769}, ValueError, "max_tokens must be at most 32768"),
        ({"max_tokens": -1}, ValueError, "max_tokens must be at least 1"),
        ({"batch_tokens": 0}, ValueError, "batch_tokens must be at least 1"),
        ({"query_instruction": "web_serch"}, ValueError, "did you mean 'web_search'"),
        ({"document_instruction": "legl"}, ValueError, "did you mean 'legal'"),
        ({"revision": "main"}, ValueError, "revision='main' needs a model on the hub, but 'tiny' is a folder"),
        ({"quantization": "int4"}, ValueError, "quantization must be None or 'int8', got 'int4'"),
        ({"local_files_only": "no"}, TypeError, "local_files_only must be True or False"),
        ({"model": "TINY"}, ValueError, "unknown model 'TINY': did you mean 'tiny'"),
        ({"model": "Qwen3-Embedding-4B"}, ValueError, "did you mean '4B'"),
        ({"long_text": "chop"}, ValueError, "long_text must be one of 'truncate', 'error'"),
        ({"dtype": "int4"}, ValueError, "dtype must be one of"),
    ],
)
def test_settings_are_checked_when_they_are_given(settings, error, message):
    with pytest.raises(error, match=message):
        Qwen3Encoder(**{"model": "tiny", **settings})


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"holds no model: it has no config\.json"):
        Qwen3Encoder(tmp_path)


def test_devices_are_checked_by_name():
    with pytest.raises(ValueError, match="device 'gpu' cannot be used here"):
        Qwen3Encoder("tiny", device="gpu").encode_queries(["x"])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda:0' cannot be used here"):
            Qwen3Encoder("tiny", device="cuda:0").encode_queries(["x"])


def test_numpy_integers_are_integers():
    assert Qwen3Encoder("tiny", dimensions=np.int64(64)).encode_queries(["x"]).shape == (1, 64)


async def test_async_methods_leave_the_event_loop_free(encoder):
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticker = asyncio.create_task(tick())
    queries, documents = await asyncio.gather(encoder.aencode_queries(TEXTS), encoder.aencode_documents(TEXTS))
    ticker.cancel()
    assert ticks > 10
    np.testing.assert_allclose(queries, encoder.encode_queries(TEXTS), atol=1e-5)
    np.testing.assert_allclose(documents, encoder.encode_documents(TEXTS), atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"quantization": "int8"}, {"device": ["cpu", "cpu"]}, {"max_tokens": 8}])
def test_loading_draws_a_bar_only_where_progress_is_asked_for(model_folder, tmp_path, capfd, settings):
    first, second, third = (
        Qwen3Encoder(shutil.copytree(model_folder, tmp_path / name), dtype="float32", **settings) for name in "abc"
    )
    first.encode_documents(["a"])
    second.warm_up()
    third.encode_documents(["a"], show_progress=True)
    assert capfd.readouterr().err.count("Loading weights: 100%") == (2 if "device" in settings else 1)


def test_bars_of_others_are_drawn_while_a_model_is_loaded_and_after(model_folder, tmp_path, capfd, monkeypatch):
    def drawn():
        return capfd.readouterr().err.count("Loading weights: 100%")

    load, others = engine_module._load, []

    def watched(settings, folder):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(AutoModel.from_pretrained, model_folder).result(60)
        others.append(drawn())
        return load(settings, folder)

    monkeypatch.setattr(engine_module, "_load", watched)
    Qwen3Encoder(shutil.copytree(model_folder, tmp_path / "own"), device="cpu").encode_documents(["a"])
    assert (others, drawn()) == ([1], 0)
    hooked = []

    def hook(factory, arguments, options):
        hooked.append(options["desc"])
        return factory(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(transformers.utils.logging, "_tqdm_hook", hook)
        Qwen3Encoder(shutil.copytree(model_folder, tmp_path / "other"), device="cpu").encode_documents(["a"])
        assert (others, hooked) == ([1, 1], ["Loading weights"])
        assert transformers.utils.logging._tqdm_hook is hook
    AutoModel.from_pretrained(model_folder)
    assert drawn() == 1


def test_an_encoder_of_ones_own_stops_where_it_asks_another(encoder):
    asked, seen, go = [], threading.Event(), threading.Event()

    class Paragraphs(BaseEncoder):
        def _encode(self, texts, prompt, show_progress):
            means = []
            for text in texts:
                asked.append(text)
                means.append(encoder.encode_documents(text.split("\n")).mean(axis=0))
                if len(asked) == 2:
                    seen.set()
                    assert go.wait(60)
            return np.stack(means)

    async def main():
        task = asyncio.create_task(Paragraphs(None, None).aencode_documents(["a\nb"] * 9))
        while not seen.is_set():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "_THREADS", pool)
        asyncio.run(main())
        go.set()
    # It had begun the third.
    assert len(asked) == 3


FAILING_MAIN = """
import asyncio, atexit, sys
from qwen3_embed_integrations import Qwen3Encoder
encoder = Qwen3Encoder(sys.argv[1], dtype="float32", device="cpu", batch_tokens=1)
model, groups = encoder._engine().load(), []
embed = model.embed
model.embed = lambda items: groups.append(len(items)) or embed(items)
# Called once the threads are over.
atexit.register(lambda: print(len(groups) < 5000))
async def main():
    task = asyncio.create_task(encoder.aencode_documents([str(number) for number in range(5000)]))
    while not groups:
        await asyncio.sleep(0)
    raise ZeroDivisionError
asyncio.run(main())
"""


def test_a_process_whose_main_failed_does_not_stay_for_what_it_began(model_folder):
    command = [sys.executable, "-c", FAILING_MAIN, str(model_folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "True\n", done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_many_threads_get_the_same_vectors_from_one_load(model_folder, tmp_path, monkeypatch):
    loads = []
    load = engine_module._load
    monkeypatch.setattr(
        engine_module, "_load", lambda settings, folder: loads.append(settings) or load(settings, folder)
    )
    folder = shutil.copytree(model_folder, tmp_path / "own")
    fresh, expected = (Qwen3Encoder(folder, dtype="float32", device="cpu") for _ in range(2))
    texts = [[text] for text in TEXTS] * 4
    with ThreadPoolExecutor(16) as pool:
        vectors = list(pool.map(fresh.encode_documents, texts))
    assert len(loads) == 1
    for text, vector in zip(texts, vectors, strict=True):
        assert cosines(vector, expected.encode_documents(text)) >= 0.99999
    assert len(loads) == 1


def test_nothing_is_loaded_before_the_first_use(model_folder):
    lazy = Qwen3Encoder(model_folder, dtype="float32", device="cpu", dimensions=33)
    assert lazy.dimensions == 33
    assert lazy.max_tokens == 8192
    assert lazy._held_engine is None
    lazy.count_tokens(["tokens need no weights"])
    assert lazy._held_engine is None
    lazy.warm_up()
    assert lazy._held_engine.is_loaded


def test_equal_settings_share_weights_and_others_do_not(model_folder, other_folder):
    def engine(folder, **settings):
        encoder = Qwen3Encoder(folder, **settings)
        return encoder._engine()

    shared = engine(model_folder, dtype="float32")
    assert engine(model_folder, dtype="float32", dimensions=32, max_tokens=99, device="cpu") is shared
    assert engine(f"{model_folder}/../{model_folder.name}", dtype="float32", query_instruction="legal") is shared
    assert engine(model_folder, dtype="bfloat16") is not shared
    assert engine(other_folder, dtype="float32") is not shared


def test_a_folder_written_anew_in_another_width(tmp_path):
    folder = make_model(tmp_path / "model")
    before = Qwen3Encoder(folder, dtype="float32")
    before.warm_up()
    make_model(folder, hidden_size=96)
    after = Qwen3Encoder(folder, dtype="float32")
    assert after.encode_documents(["text"]).shape == (1, 96)
    assert before.encode_documents(["text"]).shape == (1, 64)
    before.close()
    assert before.encode_documents(["text"]).shape == (1, 96)


def test_a_folder_written_anew_is_another_model(tmp_path):
    folder = make_model(tmp_path / "model")
    before = Qwen3Encoder(folder, dtype="float32")
    old = before.encode_documents(["text"])
    fingerprint = before.fingerprint
    unnamed = Qwen3Encoder(folder, dtype="float32")
    unnamed.warm_up()
    make_model(folder, seed=5)
    after = Qwen3Encoder(folder, dtype="float32")
    assert cosines(after.encode_documents(["text"]), old) < 0.999
    assert np.array_equal(before.encode_documents(["text"]), old)
    assert after.fingerprint != fingerprint == before.fingerprint
    with pytest.raises(RuntimeError, match="changed since this encoder first used them"):
        _ = unnamed.fingerprint
    unnamed.close()
    assert unnamed.fingerprint == after.fingerprint


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_close_frees_the_weights_when_the_last_one_lets_go(model_folder, tmp_path, quantization):
    folder = shutil.copytree(model_folder, tmp_path / "own")
    first, second = (Qwen3Encoder(folder, dimensions=size, quantization=quantization) for size in (32, 64))
    expected = first.encode_documents(["text"])
    second.encode_documents(["text"])
    weights = weakref.ref(first._engine().load()._model)
    # At once, not when the garbage collector comes by: on a GPU the next model may not fit until then.
    gc.disable()
    try:
        first.close()
        assert weights() is not None
        second.close()
        assert weights() is None
    finally:
        gc.enable()
    assert np.array_equal(first.encode_documents(["text"]), expected)


def test_it_is_a_context_manager(model_folder):
    with Qwen3Encoder(model_folder) as encoder:
        encoder.warm_up()
    assert encoder._held_engine is None


def test_a_checkpoint_in_bfloat16_is_run_in_the_type_that_was_asked_for(tmp_path):
    folder = make_model(tmp_path / "bf16", dtype=torch.bfloat16)
    full, half = (Qwen3Encoder(folder, dtype=dtype, device="cpu") for dtype in ("float32", "bfloat16"))
    for encoder, dtype in ((full, torch.float32), (half, torch.bfloat16)):
        assert encoder._engine().load()._model.dtype == dtype
    vectors = half.encode_documents(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (cosines(vectors, full.encode_documents(TEXTS)) > 0.99).all()


def test_auto_never_chooses_float16(request):
    forced = request.config.getoption("--auto-dtype")
    assert Qwen3Encoder("tiny").dtype in ([forced] if forced else ["float32", "bfloat16"])
    assert Qwen3Encoder("tiny", dtype=torch.float32).dtype == "float32"


def test_a_bare_checkpoint_is_pooled_on_its_last_token(model_folder, tmp_path, reference):
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_folder / name, folder)
    bare = Qwen3Encoder(folder, dtype="float32", device="cpu")
    assert (cosines(bare.encode_documents(TEXTS[:5]), reference(TEXTS[:5])) >= 0.99999).all()


class Doubled(Qwen3Encoder):
    def _encode(self, texts, prompt, show_progress):
        return 2 * super()._encode(texts, prompt, show_progress)


def test_pickled_copies_and_worker_processes_give_the_same_vectors(model_folder):
    encoder = Qwen3Encoder(model_folder, dtype="float32", device="cpu", dimensions=40, token="hf_secret_token")
    expected = encoder.encode_queries(["over there"])
    frozen = pickle.dumps(encoder)
    assert b"hf_secret_token" not in frozen
    assert len(frozen) < 2000
    assert "hf_secret_token" not in repr(encoder)
    assert pickle.loads(frozen).settings == encoder.settings
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        np.testing.assert_allclose(pool.submit(encoder.encode_queries, ["over there"]).result(), expected, atol=1e-6)
    assert copy.deepcopy(encoder) is copy.copy(encoder) is encoder
    doubled = pickle.loads(pickle.dumps(Doubled(model_folder, dtype="float32", device="cpu", dimensions=40)))
    assert np.array_equal(doubled.encode_queries(["over there"]), 2 * expected)


FORK = """
import os, sys, torch
from qwen3_embed_integrations import Qwen3Encoder
torch.set_num_threads(int(sys.argv[2]))
encoder = Qwen3Encoder(sys.argv[1], device="cpu")
if sys.argv[3] == "loaded":
    encoder.encode_documents(["before"])
child = os.fork()
if child == 0:
    try:
        print(encoder.encode_documents(["after"]).shape, flush=True)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    ("threads", "when", "printed"),
    [("1", "loaded", "(1, 64)"), ("2", "loaded", "forked after the model was loaded"), ("2", "fresh", "(1, 64)")],
)
def test_a_forked_process_works_or_says_why_not(model_folder, threads, when, printed):
    command = [sys.executable, "-c", FORK, str(model_folder), threads, when]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert printed in done.stdout


AT_EXIT = """
import concurrent.futures.thread as pool, sys, threading, time, torch
from qwen3_embed_integrations import Qwen3Encoder
torch.set_num_threads(2)
encoder = Qwen3Encoder(sys.argv[1], device="cpu")
encoder.encode_documents(["before"])
def work():
    while not pool._shutdown:
        time.sleep(0)
    print(encoder.encode_documents(["after"]).shape, flush=True)
threading.Thread(target=work).start()
"""


def test_a_thread_that_outlives_the_main_one_still_embeds(model_folder):
    command = [sys.executable, "-c", AT_EXIT, str(model_folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "(1, 64)" in done.stdout, done.stderr


def test_a_relative_folder_stays_the_same_in_another_process(model_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(model_folder.parent)
    relative = Qwen3Encoder(model_folder.name)
    frozen = pickle.dumps(relative)
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(frozen).settings.model == str(model_folder)


def test_replaced_settings_keep_the_others_and_the_token(model_folder):
    encoder = Qwen3Encoder(model_folder, dtype="float32", dimensions=40, token="hf_token\n")
    other = encoder.replaced(dimensions=32)
    assert (other.dimensions, other.settings.dtype) == (32, "float32")
    assert other._source.token == encoder._source.token == "hf_token"
    assert other._engine() is encoder._engine()


@pytest.mark.parametrize("token", ["hf_\nshown", "hf_\x00shown", "hf_\u00e9shown"])
def test_a_token_that_is_none_is_refused_without_being_shown(token):
    with pytest.raises(ValueError, match="token holds characters that no access token has") as caught:
        Qwen3Encoder("tiny", token=token)
    assert "shown" not in str(caught.value)
    with pytest.raises(TypeError, match="token must be a string, a bool or None, got int"):
        Qwen3Encoder("tiny", token=3)


def test_repr_shows_what_differs_from_the_defaults():
    assert repr(Qwen3Encoder("tiny", dimensions=64)) == "Qwen3Encoder(model='tiny', dimensions=64)"


def test_fingerprints_name_all_that_changes_a_vector(model_folder, other_folder, tmp_path):
    def prints(model=model_folder, **settings):
        encoder = Qwen3Encoder(model, **settings)
        return encoder.fingerprint, encoder.query_fingerprint

    plain = prints()
    copied = shutil.copytree(model_folder, tmp_path / "copy")
    assert prints(copied) == plain
    assert prints(dtype="float32", device="cpu", batch_tokens=5) == plain
    assert prints(dimensions=64) == plain
    document_changes = [
        prints(other_folder),
        prints(dimensions=32),
        prints(document_instruction="legal"),
        prints(max_tokens=100),
        prints("tiny"),
    ]
    assert len({plain[0], *(document for document, _ in document_changes)}) == 6
    other_query = prints(query_instruction="legal")
    assert other_query[0] == plain[0]
    assert other_query[1] != plain[1]
    assert plain[1] != plain[0]
    for name in plain:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")


def test_local_files_only_makes_no_network_call(model_folder, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--acme--qwen3-random"
    shutil.copytree(model_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)

    calls = []

    def refuse(*arguments):
        # Noted too, since a library may swallow the error.
        calls.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for source in ({"model": model_folder}, {"model": "acme/qwen3-random", "cache_folder": tmp_path}):
        encoder = Qwen3Encoder(**source, dtype="float32", device="cpu", local_files_only=True)
        assert encoder.encode_queries(["offline"]).shape == (1, 64)
        assert encoder.count_tokens(["offline"])
    assert encoder.fingerprint.startswith(f"acme.qwen3-random-{commit[:12]}.d64")
    with pytest.raises(ValueError, match="dimensions must be between 32 and 64"):
        Qwen3Encoder(**source, dimensions=65, local_files_only=True).encode_queries(["offline"])
    with pytest.raises(FileNotFoundError, match=r"acme/absent \(revision main\) is not in the cache at"):
        Qwen3Encoder("acme/absent", cache_folder=tmp_path, local_files_only=True).encode_queries(["offline"])
    assert calls == []


def test_what_overflows_in_float16_is_computed_again(tmp_path, reference):
    folder = make_model(tmp_path / "large")
    weights = load_file(folder / "model.safetensors")
    # Products beyond float16's 65504, and far from float32's limit.
    for name in weights:
        if name.endswith(("up_proj.weight", "gate_proj.weight")):
            weights[name] *= 1000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    half, full = (Qwen3Encoder(folder, dtype=dtype, device="cpu") for dtype in ("float16", "float32"))
    texts = ["one text", "another"]
    raw = half._engine().embed(
        list(half._tokenization().encode(texts)), np.array([], dtype=np.int64), batch_tokens=None, show_progress=False
    )
    assert not np.isfinite(raw.states).all()
    assert (cosines(half.encode_documents(texts), full.encode_documents(texts)) >= 0.99999).all()
    weights["norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    broken = Qwen3Encoder(folder, dtype="float32", device="cpu")
    with pytest.raises(FloatingPointError, match="the text at index 0 has no finite vector"):
        broken.encode_documents(texts)
    with pytest.raises(FloatingPointError, match=r"^the text has no finite vector"):
        broken.encode_queries(texts[:1])


def test_a_model_whose_vectors_are_not_its_hidden_states_is_refused(model_folder, tmp_path):
    model = SentenceTransformer(str(model_folder), device="cpu")
    wide = SentenceTransformer(modules=[model[0], model[1], Dense(64, 128)], device="cpu")
    wide.save(str(tmp_path / "wide"))
    with pytest.raises(ValueError, match="gives vectors of 128, not of its hidden size 64"):
        Qwen3Encoder(tmp_path / "wide").encode_documents(["text"])


def test_a_model_that_cannot_be_packed_runs_padded_with_the_same_vectors(model_folder, tmp_path, encoder):
    model = SentenceTransformer(str(model_folder), device="cpu")
    same = Dense(64, 64, bias=False, activation_function=torch.nn.Identity(), init_weight=torch.eye(64))
    SentenceTransformer(modules=[model[0], model[1], same, Normalize()], device="cpu").save(str(tmp_path / "other"))
    padded = Qwen3Encoder(tmp_path / "other", dtype="float32", device="cpu", batch_tokens=200)
    assert isinstance(padded._engine().load(), PaddedModel)
    assert isinstance(encoder._engine().load(), PackedModel)
    assert (cosines(padded.encode_documents(TEXTS), encoder.encode_documents(TEXTS)) >= 0.99999).all()
    assert (cosines(padded.encode_queries(TEXTS), encoder.encode_queries(TEXTS)) >= 0.99999).all()


def test_a_tokenizer_without_an_end_token_is_refused(model_folder, tmp_path):

    folder = shutil.copytree(model_folder, tmp_path / "no-end")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="does not append an end token"):
        Qwen3Encoder(folder).encode_documents(["text"])


def test_vectors_are_those_of_sentence_transformers(model_folder, encoder):
    peer = SentenceTransformer(str(model_folder), device="cpu", model_kwargs={"dtype": torch.float32})
    texts = ["What is the capital of China?", "def f(x):\n\treturn x"]
    assert (cosines(encoder.encode_queries(texts), peer.encode_query(texts)) >= 0.99999).all()
    assert (cosines(encoder.encode_documents(texts), peer.encode_document(texts)) >= 0.99999).all()


def test_cutting_afterwards_is_the_same_as_asking_for_fewer_dimensions(encoder, model_folder):
    cut = Qwen3Encoder(model_folder, dtype="float32", device="cpu", dimensions=32)
    assert np.allclose(truncate(encoder.encode_documents(TEXTS), 32), cut.encode_documents(TEXTS), atol=1e-6)
