"""Each fault that `check-endpoint` names is planted in a server, and found; a server without one passes."""

from __future__ import annotations

import shutil

import pytest
from typer.testing import CliRunner

from qwen3_embed_integrations import EndpointError
from qwen3_embed_integrations.cli import app
from qwen3_embed_integrations.endpoint_check import CHECKS, check_endpoint
from qwen3_embed_integrations.engine import engine
from qwen3_embed_integrations.models import TINY_FOLDER
from tests.misbehaving_server import WRONG_VECTORS, Model, serving

NAMES = {
    "end-missing": "end token missing",
    "end-doubled": "end token doubled",
    "mean-pooling": "wrong pooling",
    "first-pooling": "wrong pooling",
    "not-normalised": "not normalised",
    "prompt-twice": "prompt added twice",
    "truncated": "truncated early",
    "newlines": "newlines changed",
    "stripped": "newlines changed",
    "batch-differs": "batch differs from single",
    "cut-only": "dimensions cut without normalising",
}
HARMLESS = {"dimensions-refused": "dimensions refused", "dimensions-ignored": "dimensions ignored"}
NEEDS_WEIGHTS = {"mean-pooling"}


@pytest.fixture(scope="module")
def models(model_folder):
    return {"random": Model(model_folder), "tiny": Model(TINY_FOLDER)}


@pytest.fixture(params=["tiny", "random"])
def server(request, models):
    with serving(models[request.param]) as running:
        yield running


@pytest.fixture
def known(server, models, model_folder):
    return "tiny" if server.model is models["tiny"] else str(model_folder)


def checked(server, model, **settings):
    return check_endpoint(server.url, model=model, **{"max_tokens": 600, **settings})


def test_the_faults_are_all_planted():
    assert set(NAMES) | set(HARMLESS) == set(WRONG_VECTORS)


@pytest.mark.parametrize("fault", NAMES)
def test_a_planted_fault_is_found_and_nothing_else(server, known, fault):
    server.faults = frozenset({fault})
    report = checked(server, known)
    assert report.faults == [NAMES[fault]]
    assert report.reference == known
    # What it is without the weights, from the server's own words.
    report = checked(server, "embed:latest")
    assert report.faults == ([] if fault in NEEDS_WEIGHTS else [NAMES[fault]])
    assert report.reference is None


@pytest.mark.parametrize("fault", HARMLESS)
def test_dimensions_that_a_server_does_not_take_are_told_and_no_fault(server, known, fault):
    server.faults = frozenset({fault})
    report = checked(server, known)
    assert report.faults == []
    [finding] = [finding for finding in report.findings if finding.check == "dimensions"]
    assert finding.harmless == HARMLESS[fault]
    assert finding.evidence.startswith("harmless here, where vectors are cut by the client; other clients")
    assert "is_matryoshka" in finding.evidence
    command = ["check-endpoint", server.url, "--model", known, "--max-tokens", "600"]
    passed = CliRunner().invoke(app, command)
    assert passed.exit_code == 0, passed.output
    assert f"dimensions  {HARMLESS[fault]}: harmless here" in passed.output


@pytest.mark.parametrize("reference", [None, "tiny"])
def test_a_right_server_passes(models, reference):
    with serving(models["tiny"]) as server:
        report = checked(server, "tiny" if reference is None else "embed:latest", reference=reference)
        assert report.faults == []
        assert min(report.cosines) > 0.999
        assert [finding.check for finding in report.findings] == list(CHECKS)
        report = checked(server, "embed:latest")
        assert report.faults == []
        assert [finding.check for finding in report.findings if not finding.checked] == ["pooling", "vectors"]


def test_two_faults_at_once_are_both_named(server, known):
    server.faults = frozenset({"end-missing", "newlines", "not-normalised"})
    assert checked(server, known).faults == ["end token missing", "newlines changed", "not normalised"]


def test_other_weights_and_another_size(models, model_folder, other_folder):
    with serving(models["random"]) as server:
        report = checked(server, other_folder)
        assert report.faults == ["other vectors"]
        report = checked(server, model_folder, reference="tiny")
        assert report.faults == ["other vectors"]
        assert "vectors of 64 components, 256 in tiny" in [finding.evidence for finding in report.findings]


def test_long_texts_that_are_refused_are_no_fault(models):
    with serving(models["tiny"]) as server:
        server.most_tokens = 800
        report = checked(server, "tiny", max_tokens=1024)
        [long] = [finding for finding in report.findings if finding.check == "long texts"]
        assert report.faults == []
        assert long.evidence.startswith("read to the end at 512 tokens; longer ones: no vectors for")
        server.most_tokens = 100
        report = checked(server, "tiny")
        [long] = [finding for finding in report.findings if finding.check == "long texts"]
        assert not long.checked


def test_where_a_text_is_cut(models):
    with serving(models["tiny"]) as server:
        server.faults = frozenset({"truncated"})
        server.limit = 700
        report = checked(server, "tiny", max_tokens=2048)
        [long] = [finding for finding in report.findings if finding.check == "long texts"]
        assert long.evidence == "read to the end at 512 tokens, not at 2,048"


def test_the_command(models):
    runner = CliRunner()
    with serving(models["tiny"]) as server:
        command = ["check-endpoint", server.url, "--model", "tiny", "--max-tokens", "600"]
        passed = runner.invoke(app, command)
        assert passed.exit_code == 0, passed.output
        assert "compared with tiny" in passed.output
        server.faults = frozenset({"end-missing"})
        failed = runner.invoke(app, [*command, "--model", "embed:latest", "--reference", "tiny"])
        assert failed.exit_code == 1
        assert "end token   end token missing: cosine to the model's vectors" in failed.output
        server.key = "another"
        silent = runner.invoke(app, command)
        assert silent.exit_code == 2
        assert "status 401" in silent.output
        wrong = runner.invoke(app, [*command, "--reference", "no such model"])
        assert wrong.exit_code == 2
        assert "unknown model" in wrong.output


def test_a_server_that_is_down_is_told_before_a_model_is_loaded(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_load", lambda *_: pytest.fail("loaded a model"))
    with serving(None) as gone:
        url = gone.url
    folder = shutil.copytree(model_folder, tmp_path / "unloaded")
    for settings in ({"model": folder}, {"model": "embed:latest", "reference": folder}):
        with pytest.raises(EndpointError, match=f"no answer from {url}/embeddings: .*is the server running"):
            check_endpoint(url, **settings)
    # What is wrong with the call needs no server.
    with pytest.raises(ValueError, match="unknown model 'no such model'"):
        check_endpoint(url, model="tiny", reference="no such model")


def test_a_server_without_answers_is_an_error(models):
    with serving(models["tiny"]) as server:
        server.most_texts = 3
        with pytest.raises(EndpointError, match="status 413"):
            checked(server, "tiny")
