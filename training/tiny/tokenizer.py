"""The student's tokenizer: the Qwen3 byte-level BPE, cut to the merges that English and Python use."""

from __future__ import annotations

import copy
import json
from collections import Counter
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from wordfreq import top_n_list, word_frequency

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

END = "<|endoftext|>"
BYTES = 256


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> Counter[int]:
    """Count the full tokenizer's tokens over a sample of the corpus and over English by word frequency.

    Args:
        tokenizer: the full Qwen3 tokenizer.
        texts: a sample of the corpus.

    Returns:
        Weight of each token id: half from the corpus, half from general English.
    """
    counts: Counter[int] = Counter()
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        counts.update(encoding.ids)
    total = sum(counts.values())
    weights = Counter({token: count / total for token, count in counts.items()})
    words = [word for word in top_n_list("en", 100_000) if word.isascii()]
    for template, share in ((" {}", 0.7), ("{}", 0.3)):
        for case, part in ((str.lower, 0.7), (str.title, 0.3)):
            encodings = tokenizer.encode_batch([template.format(case(w)) for w in words], add_special_tokens=False)
            for word, encoding in zip(words, encodings, strict=True):
                for token in encoding.ids:
                    weights[token] += share * part * word_frequency(word, "en")
    return weights


def cut(full_path: Path, texts: Sequence[str], size: int, target: Path) -> Tokenizer:
    """Cut the tokenizer to its most useful tokens and every merge that leads to them, in the merges' order.

    Args:
        full_path: tokenizer.json of the full Qwen3 tokenizer.
        texts: a sample of the corpus, for the tokens' frequencies.
        size: tokens to keep, the end token included.
        target: the tokenizer.json to write.

    Returns:
        The new tokenizer, which appends the end token.
    """
    full = json.loads(full_path.read_text())
    merges = [tuple(merge) for merge in full["model"]["merges"]]
    ids = full["model"]["vocab"]
    parents = {BYTES + i: (ids[left], ids[right]) for i, (left, right) in enumerate(merges)}
    keep: set[int] = set()
    for token, _ in count_tokens(Tokenizer.from_file(str(full_path)), texts).most_common():
        path, stack = set(), [token]
        while stack:
            part = stack.pop()
            if part in parents and part not in keep and part not in path:
                path.add(part)
                stack.extend(parents[part])
        if len(keep) + len(path) <= size - BYTES - 1:
            keep |= path
    tokens = {index: token for token, index in ids.items()}
    chosen = sorted(keep)
    vocabulary = [tokens[i] for i in range(BYTES)] + [tokens[i] for i in chosen]

    small = copy.deepcopy(full)
    small["model"]["vocab"] = {token: index for index, token in enumerate(vocabulary)}
    small["model"]["merges"] = [list(merges[i - BYTES]) for i in chosen]
    end = len(vocabulary)
    small["added_tokens"] = [
        {
            "id": end,
            "content": END,
            "special": True,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
    ]
    small["post_processor"] = {
        "type": "Sequence",
        "processors": [
            full["post_processor"],
            {
                "type": "TemplateProcessing",
                "single": [
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": END, "type_id": 0}},
                ],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {END: {"id": END, "ids": [end], "tokens": [END]}},
            },
        ],
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(small, ensure_ascii=False, separators=(",", ":")))
    return Tokenizer.from_file(str(target))
