"""Codes beside sentence-transformers' own, and what is lost."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.demo import standard_library
from qwen3_embed_integrations.quantization import PRECISIONS, Quantizer


@pytest.fixture(scope="module")
def vectors():
    texts = [entry.text for entry in standard_library() if entry.name.startswith(("os.", "json.", "math", "email."))]
    return Qwen3Encoder("tiny").encode_documents(texts)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_codes_are_those_of_sentence_transformers(vectors, precision):
    quantizer = Quantizer.calibrated(vectors[:120], precision)
    unsigned = {"int8": "uint8", "binary": "ubinary"}.get(precision, precision)
    sample = vectors[:120]
    within = np.clip(vectors, sample.min(axis=0), sample.max(axis=0)) if unsigned == "uint8" else vectors
    expected = quantize_embeddings(within, unsigned, calibration_embeddings=sample).astype(int)
    expected -= 0 if unsigned == precision else 128
    codes = quantizer.quantize(vectors)
    assert codes.dtype == (np.uint8 if unsigned == precision else np.int8)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(quantizer)).quantize(vectors), expected)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_a_vector_gets_the_same_code_in_any_company(vectors, precision):
    quantizer = Quantizer.calibrated(vectors, precision)
    alone = np.concatenate([quantizer.quantize(vectors[row : row + 1]) for row in range(20)])
    np.testing.assert_array_equal(alone, quantizer.quantize(vectors)[:20])


@pytest.mark.parametrize(("precision", "error", "recall"), [("int8", 0.005, 0.97), ("uint8", 0.005, 0.97)])
def test_scores_of_bytes_are_nearly_the_cosines(vectors, precision, error, recall):
    quantizer = Quantizer.calibrated(vectors, precision)
    scores = quantizer.scores(vectors[:40], quantizer.quantize(vectors))
    assert np.abs(scores - vectors[:40] @ vectors.T).max() < error
    assert found(scores, vectors) > recall


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_scores_of_bits_are_the_cosines_with_the_signs_and_find_more_than_hamming(vectors, precision):
    quantizer = Quantizer.calibrated(vectors, precision)
    codes = quantizer.quantize(vectors)
    scores = quantizer.scores(vectors[:40], codes)
    signs = np.where(vectors > 0, 1, -1) / 16
    np.testing.assert_allclose(scores, vectors[:40] @ signs.T, atol=1e-5)
    hamming = (np.sign(vectors[:40]) @ np.sign(vectors).T).astype(np.float32)
    assert found(scores, vectors) > found(hamming, vectors) > 0.3


def found(scores: np.ndarray, vectors: np.ndarray) -> float:
    best = np.argsort(-(vectors[:40] @ vectors.T), axis=1)[:, :10]
    rows = np.argsort(-scores, axis=1)[:, :10]
    return float(np.mean([len(set(left) & set(right)) / 10 for left, right in zip(rows, best, strict=True)]))


def test_bits_of_a_width_that_is_no_multiple_of_eight(vectors):
    quantizer = Quantizer("ubinary")
    codes = quantizer.quantize(vectors[:, :33])
    assert codes.shape == (len(vectors), 5)
    signs = np.where(vectors[:, :33] > 0, 1, -1) / 33**0.5
    np.testing.assert_allclose(quantizer.scores(vectors[:3, :33], codes), vectors[:3, :33] @ signs.T, atol=1e-5)


def test_a_component_that_never_changes_and_one_out_of_range():
    quantizer = Quantizer.calibrated([[1.0, 0.0], [1.0, 1.0]], "int8")
    codes = quantizer.quantize([[1.0, 5.0], [1.0, -5.0]])
    assert codes[0, 1] >= 126
    assert codes[1, 1] == -128
    np.testing.assert_allclose(quantizer.scores([[1.0, 0.0]], codes), [[1, 1]])


def test_wrong_input(vectors):
    with pytest.raises(ValueError, match="precision must be one of int8, uint8, binary, ubinary, got 'int4'"):
        Quantizer("int4")
    with pytest.raises(ValueError, match="int8 needs ranges"):
        Quantizer("int8")
    with pytest.raises(ValueError, match="binary has no ranges"):
        Quantizer("binary", np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="at least 2 vectors, got 1"):
        Quantizer.calibrated(vectors[:1])
    quantizer = Quantizer.calibrated(vectors)
    with pytest.raises(ValueError, match="the vectors have 64 dimensions, and the ranges 256"):
        quantizer.quantize(vectors[:, :64])
    with pytest.raises(ValueError, match=r"vectors must have shape \(n, d\), got \(256,\)"):
        quantizer.quantize(vectors[0])
    with pytest.raises(ValueError, match=r"codes must have shape \(m, 256\), got \(1, 32\)"):
        quantizer.scores(vectors, np.zeros((1, 32), dtype=np.int8))
