"""Concurrent callers over one real model: nobody's texts are lost, swapped or broken by another's."""

from __future__ import annotations

import asyncio
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations import encoder as encoder_module
from qwen3_embed_integrations.engine import tokenization as tokenization_module
from qwen3_embed_integrations.engine.engine import Replicas

TEXTS = [f"text number {number} {'word ' * (number % 7)}" for number in range(32)]


@pytest.fixture
def encoder(model_folder):
    return Qwen3Encoder(model_folder, dtype="float32", device="cpu")


@pytest.fixture
def expected(encoder):
    return {text: encoder.encode_queries([text])[0] for text in TEXTS}


@pytest.fixture
def groups(encoder, monkeypatch):
    """How many texts each group had; the first waits until `groups.waiting` others wait for it, and for `groups.go`."""

    class Groups(list):
        waiting = 0
        go = threading.Event()

    made = Groups()
    engine = encoder._engine()
    model = engine.load()
    embed = model.embed

    def watched(items):
        made.append(len(items))
        if len(made) == 1:
            deadline = time.monotonic() + 60
            while len(engine._scheduler._jobs) < made.waiting:
                assert time.monotonic() < deadline
                time.sleep(0)
            assert made.go.wait(60)
        return embed(items)

    monkeypatch.setattr(model, "embed", watched)
    made.go.set()
    yield made
    # Whatever failed, no thread stays.
    made.waiting = 0
    made.go.set()


def test_threads_that_wait_go_together(encoder, expected, groups):
    groups.waiting = len(TEXTS) - 1
    with ThreadPoolExecutor(len(TEXTS)) as pool:
        vectors = list(pool.map(lambda text: encoder.encode_queries([text])[0], TEXTS))
    assert groups == [1, len(TEXTS) - 1]
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(vector, expected[text], atol=1e-5)


async def test_tasks_that_wait_go_together(encoder, expected, groups):
    groups.waiting = len(TEXTS) - 1
    vectors = await asyncio.gather(*(encoder.aencode_queries([text]) for text in TEXTS))
    assert groups == [1, len(TEXTS) - 1]
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(vector[0], expected[text], atol=1e-5)


async def test_cancelled_tasks_leave_the_others_unharmed(encoder, expected, groups):
    groups.go.clear()
    tasks = [asyncio.create_task(encoder.aencode_queries([text])) for text in TEXTS]
    # A task that is cancelled earlier never gets to the model.
    while len(encoder._engine()._scheduler._jobs) < len(TEXTS) - 1:
        await asyncio.sleep(0)
    for task in tasks[1::2]:
        task.cancel()
    groups.go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results[1::2])
    for text, vector in zip(TEXTS[::2], results[::2], strict=True):
        np.testing.assert_allclose(vector[0], expected[text], atol=1e-5)


@pytest.fixture
def threads(monkeypatch):
    """The threads of async calls; `threads.shutdown()` waits until they are done."""
    pool = ThreadPoolExecutor(4)
    monkeypatch.setattr(encoder_module, "_THREADS", pool)
    yield pool
    pool.shutdown()


async def seen(what):
    while not what:
        await asyncio.sleep(0)


def cancelled(call, groups):
    async def main():
        task = asyncio.create_task(call())
        await seen(groups)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())


def timed_out(call, groups):
    async def main():
        task = asyncio.create_task(call())
        await seen(groups)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(task, 0.001)

    asyncio.run(main())


def beside_a_failure(call, groups):
    async def failing():
        await seen(groups)
        raise ZeroDivisionError

    async def main():
        await asyncio.gather(call(), failing())

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


def in_a_loop_that_is_closed(call, groups):
    loop = asyncio.new_event_loop()
    # Kept until it is over, as by whoever made it.
    task = loop.create_task(call())
    loop.run_until_complete(seen(groups))
    loop.close()
    task._log_destroy_pending = False
    return task


@pytest.mark.parametrize("leave", [cancelled, timed_out, beside_a_failure, in_a_loop_that_is_closed])
def test_who_has_left_gets_no_further_groups(model_folder, encoder, expected, groups, threads, leave):
    groups.go.clear()
    many = Qwen3Encoder(model_folder, dtype="float32", device="cpu", batch_tokens=20)
    left = leave(lambda: many.aencode_documents(TEXTS), groups)
    groups.go.set()
    np.testing.assert_allclose(encoder.encode_queries(TEXTS[:1])[0], expected[TEXTS[0]], atol=1e-5)
    threads.shutdown()
    # The one that ran, and the query's.
    assert len(groups) == 2
    assert groups[1] == 1
    assert not encoder._engine()._scheduler.waiting
    assert many.usage.texts == 0
    for text, vector in zip(TEXTS, many.encode_queries(TEXTS), strict=True):
        np.testing.assert_allclose(vector, expected[text], atol=1e-5)
    del left


def test_what_waits_for_a_thread_is_not_begun(encoder, expected, groups, monkeypatch):
    groups.go.clear()
    begun, pool = [], ThreadPoolExecutor(1)
    monkeypatch.setattr(encoder_module, "_THREADS", pool)

    def tell(texts):
        begun.append(True)
        yield from texts

    async def main():
        first = asyncio.create_task(encoder.aencode_queries(TEXTS[:1]))
        await seen(groups)
        second = asyncio.create_task(encoder.aencode_queries(tell(TEXTS)))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        groups.go.set()
        return await first

    vectors = asyncio.run(main())
    pool.shutdown()
    assert (groups, begun) == ([1], [])
    np.testing.assert_allclose(vectors[0], expected[TEXTS[0]], atol=1e-5)


def test_who_shares_a_group_with_one_that_has_left_gets_its_rows(encoder, expected, groups, threads, monkeypatch):
    groups.waiting, shared, go = 4, threading.Event(), threading.Event()
    model = encoder._engine().load()
    watched = model.embed

    def held(items):
        if groups:
            shared.set()
            assert go.wait(60)
        return watched(items)

    monkeypatch.setattr(model, "embed", held)

    async def main():
        first = asyncio.create_task(encoder.aencode_queries(TEXTS[:1]))
        await seen(groups)
        tasks = [asyncio.create_task(encoder.aencode_queries([text])) for text in TEXTS[1:3]]
        others = [pool.submit(encoder.encode_queries, [text]) for text in TEXTS[3:5]]
        while not shared.is_set():
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        go.set()
        return [*(await first), *(future.result(60)[0] for future in others)]

    with ThreadPoolExecutor(2) as pool:
        vectors = asyncio.run(main())
    assert groups == [1, 4]
    for text, vector in zip([TEXTS[0], *TEXTS[3:5]], vectors, strict=True):
        np.testing.assert_allclose(vector, expected[text], atol=1e-5)


def test_replicas_go_no_further_for_who_has_left(model_folder, encoder, expected, threads, monkeypatch):
    both = Qwen3Encoder(model_folder, dtype="float32", device=["cpu", "cpu"], batch_tokens=20)
    replicas, groups, go = both._engine(), [], threading.Event()
    assert isinstance(replicas, Replicas)
    replicas.load()

    def watch(model):
        embed = model.embed

        def held(items):
            groups.append(len(items))
            assert go.wait(60)
            return embed(items)

        monkeypatch.setattr(model, "embed", held)

    for engine in replicas._engines:
        watch(engine.load())
    cancelled(lambda: both.aencode_documents(TEXTS), groups)
    go.set()
    threads.shutdown()
    # Each may have begun one.
    assert len(groups) <= 2
    for text, vector in zip(TEXTS, both.encode_queries(TEXTS), strict=True):
        np.testing.assert_allclose(vector, expected[text], atol=1e-5)


@pytest.mark.parametrize(("limit", "most"), [("_TEXTS_AT_ONCE", 2), ("_CHARACTERS_OF_TEXTS_AT_ONCE", 20)])
def test_tokenizing_ends_for_who_has_left(encoder, threads, monkeypatch, limit, most):
    monkeypatch.setattr(tokenization_module, limit, most)
    tokenization, parts, go = encoder._tokenization(), [], threading.Event()
    tokenization.prompt(encoder._document_prompt)
    tokenizer = tokenization._tokenizer

    class Held:
        def encode_batch_fast(self, texts):
            parts.append(texts)
            assert go.wait(60)
            return tokenizer.encode_batch_fast(texts)

    with monkeypatch.context() as patch:
        patch.setattr(tokenization, "_tokenizer", Held())
        cancelled(lambda: encoder.aencode_documents(TEXTS), parts)
        go.set()
        threads.shutdown()
    assert [len(part) for part in parts] == [2]
    assert encoder.count_tokens(TEXTS) == [len(tokenizer.encode(text).ids) for text in TEXTS]


def test_a_model_is_not_loaded_for_who_has_left(model_folder, tmp_path, threads):
    folder = shutil.copytree(model_folder, tmp_path / "unloaded")
    encoder = Qwen3Encoder(folder, dtype="float32", device="cpu")
    engine, asked = encoder._engine(), []

    async def main():
        # Whoever holds this loads the model.
        with engine._lock:
            task = asyncio.create_task(encoder.aencode_documents(tell(TEXTS)))
            await seen(asked)
            task.cancel()
            await asyncio.wait([task])

    def tell(texts):
        asked.append(True)
        yield from texts

    asyncio.run(main())
    threads.shutdown()
    assert not engine.is_loaded


def test_a_caller_with_one_text_is_not_kept_waiting_by_one_with_many(encoder, model_folder):
    finished = []
    many = Qwen3Encoder(model_folder, dtype="float32", device="cpu", batch_tokens=20)
    engine, started, go = encoder._engine(), threading.Event(), threading.Event()
    embed = engine.load().embed

    def held(items):
        started.set()
        assert go.wait(60)
        return embed(items)

    with ThreadPoolExecutor(2) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.load(), "embed", held)
        slow = pool.submit(lambda: many.encode_documents(TEXTS) is not None and finished.append("many"))
        assert started.wait(60)
        quick = pool.submit(lambda: encoder.encode_documents(["one"]) is not None and finished.append("one"))
        while len(engine._scheduler._jobs) < 2:
            time.sleep(0)
        go.set()
        slow.result(60)
        quick.result(60)
    assert finished == ["one", "many"]


def test_an_error_reaches_only_the_caller_whose_text_it_is(encoder, expected, groups, monkeypatch):
    model = encoder._engine().load()
    embed = model.embed
    poisoned = next(iter(encoder._tokenization().encode(["poison"]))).tobytes()

    def failing(items):
        if any(item.ids.tobytes() == poisoned for item in items):
            raise ArithmeticError("poisoned")
        return embed(items)

    monkeypatch.setattr(model, "embed", failing)
    groups.waiting = 4
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(encoder.encode_queries, TEXTS[:1])
        while not groups:
            time.sleep(0)
        bad = pool.submit(encoder.encode_documents, ["poison"])
        good = [pool.submit(encoder.encode_queries, [text]) for text in TEXTS[1:4]]
        with pytest.raises(ArithmeticError, match="poisoned"):
            bad.result(60)
        for text, future in zip(TEXTS[:4], [first, *good], strict=True):
            np.testing.assert_allclose(future.result(60)[0], expected[text], atol=1e-5)
    np.testing.assert_allclose(encoder.encode_queries(TEXTS[:1])[0], expected[TEXTS[0]], atol=1e-5)


def test_an_interrupt_leaves_the_scheduler_usable(encoder, expected, monkeypatch):
    model = encoder._engine().load()
    embed = model.embed

    calls = []

    def interrupted(items):
        calls.append(len(items))
        if len(calls) > 1:
            raise KeyboardInterrupt
        return embed(items)

    monkeypatch.setattr(model, "embed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encoder.replaced(batch_tokens=300).encode_queries(TEXTS)
    assert len(calls) == 2
    monkeypatch.setattr(model, "embed", embed)
    assert not encoder._engine()._scheduler._jobs
    np.testing.assert_allclose(encoder.encode_queries(TEXTS[:1])[0], expected[TEXTS[0]], atol=1e-5)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_what_does_not_fit_together_runs_in_halves(encoder, expected, monkeypatch, error):
    model = encoder._engine().load()
    embed, sizes = model.embed, []

    def small(items):
        sizes.append(len(items))
        if len(items) > 5:
            raise error
        return embed(items)

    monkeypatch.setattr(model, "embed", small)
    for text, vector in zip(TEXTS, encoder.encode_queries(TEXTS), strict=True):
        np.testing.assert_allclose(vector, expected[text], atol=1e-5)
    assert sizes[:3] == [32, 16, 8]

    def none(items):
        raise error

    monkeypatch.setattr(model, "embed", none)
    with pytest.raises(MemoryError, match=r"a text of \d+ tokens does not fit into the memory of cpu"):
        encoder.encode_queries(TEXTS[:2])


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads_of_this_process():
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts the threads as Linux lists them")
def test_callers_on_many_threads_do_not_make_each_a_pool_of_torch(encoder, expected, two_threads):
    encoder.encode_queries(TEXTS[:1])
    before, all_there = threads_of_this_process(), threading.Barrier(len(TEXTS))

    def ask(text):
        all_there.wait(60)
        vector = encoder.encode_queries([text])[0]
        all_there.wait(60)
        return vector, threads_of_this_process()

    with ThreadPoolExecutor(len(TEXTS)) as pool:
        found = list(pool.map(ask, TEXTS))
    for text, (vector, running) in zip(TEXTS, found, strict=True):
        np.testing.assert_allclose(vector, expected[text], atol=1e-5)
        assert running <= before + len(TEXTS)


def test_the_number_of_torch_threads_can_change_after_the_first_use(encoder, monkeypatch, two_threads):
    model = encoder._engine().load()
    embed, seen = model.embed, []

    def watched(items):
        seen.append((torch.get_num_threads(), threading.get_ident() == threading.main_thread().ident))
        return embed(items)

    monkeypatch.setattr(model, "embed", watched)
    for threads in (2, 1, 3):
        torch.set_num_threads(threads)
        encoder.encode_queries(TEXTS[:1])
    assert seen == [(2, False), (1, True), (3, False)]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="sends a signal to a thread")
def test_an_interrupt_does_not_wait_for_the_layers_to_come(monkeypatch, two_threads, interruptible):
    encoder = Qwen3Encoder("tiny", dtype="float32", device="cpu")
    expected = encoder.encode_queries(TEXTS)
    model = encoder._engine().load()
    first, second = (layer.self_attn for layer in model._model.layers[:2])
    stopped, entered, stop = threading.Event(), [], model.stop

    def interrupt(*_):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        assert stopped.wait(60)

    def note():
        stop()
        stopped.set()

    monkeypatch.setattr(model, "stop", note)
    hook = first.register_forward_pre_hook(interrupt)
    counter = second.register_forward_pre_hook(lambda *_: entered.append(len(entered)))
    # Other tests share the model.
    try:
        with pytest.raises(KeyboardInterrupt):
            encoder.encode_queries(TEXTS)
        hook.remove()
        # The thread takes this once it is done with what was stopped.
        np.testing.assert_allclose(encoder.encode_queries(TEXTS), expected, atol=1e-5)
    finally:
        hook.remove()
        counter.remove()
    assert len(entered) == 1
