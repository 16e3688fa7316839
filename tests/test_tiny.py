"""The bundled model on texts that its training never saw: Python's own standard library."""

from __future__ import annotations

import ast
import math
import re
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from qwen3_embed_integrations import Qwen3Encoder, truncate
from qwen3_embed_integrations.demo import standard_library
from qwen3_embed_integrations.models import TINY_FOLDER

MODULES = (
    "argparse",
    "ast",
    "configparser",
    "csv",
    "difflib",
    "email",
    "http",
    "inspect",
    "json",
    "logging",
    "tarfile",
)
UNSEEN_CODE_INSTRUCTION = "Look up the Python routine that can do the following"


@pytest.fixture(scope="module")
def encoder():
    return Qwen3Encoder("tiny", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def library():
    """Docstrings' first lines, their functions' code without them, and paragraphs of prose from module docstrings."""
    root = Path(sysconfig.get_path("stdlib"))
    functions, prose = {}, []
    for path in sorted(path for name in MODULES for path in [*root.glob(f"{name}.py"), *root.glob(f"{name}/*.py")]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prose += [part for part in re.split(r"\n\s*\n", ast.get_docstring(tree) or "") if len(part) > 60]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (documentation := ast.get_docstring(node)):
                node.body = node.body[1:] or [ast.Pass()]
                functions[documentation.split("\n")[0]] = ast.unparse(node)
    return list(functions), list(functions.values()), prose


def gain(scores: np.ndarray) -> float:
    """Mean nDCG@10 where the one right document of question i is document i."""
    ranks = (scores > np.diagonal(scores)[:, None]).sum(axis=1)
    return float(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean())


def bm25(questions: list[str], documents: list[str]) -> np.ndarray:
    """Okapi BM25 with k1=1.2 and b=0.75 (Robertson and Zaragoza, 2009), shape (questions, documents)."""
    bags = [Counter(re.findall(r"[a-z]+", document.lower())) for document in documents]
    lengths = np.array([sum(bag.values()) for bag in bags])
    frequency = Counter(word for bag in bags for word in bag)
    scores = np.zeros((len(questions), len(documents)))
    for row, question in enumerate(questions):
        for word in set(re.findall(r"[a-z]+", question.lower())) & set(frequency):
            count = np.array([bag[word] for bag in bags])
            idf = math.log(1 + (len(documents) - frequency[word] + 0.5) / (frequency[word] + 0.5))
            scores[row] += idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * lengths / lengths.mean()))
    return scores


def test_it_finds_functions_by_their_docstrings_and_with_cut_vectors_too(encoder, library):
    questions, functions, _ = library
    baseline = gain(bm25(questions, functions))
    queries = encoder.encode_queries(questions, instruction="code_search")
    documents = encoder.encode_documents(functions)
    full = gain(queries @ documents.T)
    cut = {size: gain(truncate(queries, size) @ truncate(documents, size).T) for size in (128, 64, 32)}
    assert len(questions) > 500
    assert full > baseline
    assert cut[128] > 0.95 * full
    assert cut[64] > 0.8 * full
    assert cut[32] > 0.6 * full


def test_the_instruction_decides_between_code_and_prose(encoder, library):
    questions, functions, prose = library
    documents = encoder.encode_documents(functions + prose)
    assert len(prose) > 100

    def share_of_code(instruction: str) -> float:
        scores = encoder.encode_queries(questions, instruction=instruction) @ documents.T
        return (np.argsort(-scores, axis=1)[:, :10] < len(functions)).mean()

    assert share_of_code("code_search") > 0.8
    assert share_of_code(UNSEEN_CODE_INSTRUCTION) > 0.8
    assert share_of_code("web_search") < 0.2


def test_a_question_finds_its_function(encoder):
    entries = standard_library()
    documents = encoder.encode_documents([entry.text for entry in entries])
    query = encoder.encode_queries(["copy a whole directory tree"], instruction="code_search")[0]
    assert "shutil.copytree" in [entries[position].name for position in np.argsort(-(documents @ query))[:5]]


def test_it_fits_into_the_wheel():
    assert sum(path.stat().st_size for path in TINY_FOLDER.rglob("*") if path.is_file()) < 24 * 2**20
