"""Does a server give the model's vectors? A dozen texts tell, and which fault it has if it does not.

The faults are those that users of these models report: QwenLM/Qwen3-Embedding issues 62, 112, 156 and 189, vllm 27256,
llama.cpp 14234, ollama 11375, text-embeddings-inference 668.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from qwen3_embed_integrations.encoder import Qwen3Encoder
from qwen3_embed_integrations.endpoint import EndpointError
from qwen3_embed_integrations.instructions import format_query, query_prompt
from qwen3_embed_integrations.remote import RemoteEncoder

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from pydantic import SecretStr

    from qwen3_embed_integrations.endpoint import Endpoint

END, POOLING, PROMPT, NEWLINES = "end token", "pooling", "prompt", "newlines"
VECTORS, UNIT, BATCH, LENGTH, DIMENSIONS = "vectors", "normalised", "batch", "long texts", "dimensions"
CHECKS = (END, POOLING, PROMPT, NEWLINES, VECTORS, UNIT, BATCH, LENGTH, DIMENSIONS)

# One request of the service that takes fewest: 10 texts. The last one repeats the first.
PROBES = (
    "The capital of France is Paris.",
    "how do I copy a folder?",
    "def area(radius):\n    return 3.14159 * radius ** 2\n",
    "name,age\nAda,36\nAlan,41",
    "\n\n  Dear Sir,\n\n\tI write to you  about your letter. \n",
    format_query("how do I copy a folder?"),
    "你好世界。今天天气很好。",
    "Überraschung: naïve café",
    "x",
    "The capital of France is Paris.",
)
_ALONE = (0, 2, 8)
_FEW_TOKENS = (0, 1, 7, 8)
_LENGTHS = (512, 1024, 2048, 4096, 8192)

# Cosine distances: below the first there is nothing to explain, up to the second it may be a type of fewer bits, and
# below the third (and four times the noise) vectors are of the same tokens.
_ROUNDING = 1e-4
_OTHER_PRECISION = 0.02
_SAME = 1e-8
# How far a vector's length may be from 1.
_UNIT = 0.01

Ask: TypeAlias = "Callable[[Sequence[str], int | None], NDArray[np.float32]]"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: which one, of `CHECKS`.
        fault: what is wrong, None where nothing is.
        evidence: what was measured, or why it could not be.
        checked: whether it could be.
        harmless: what is wrong for other clients alone, None where nothing is.
    """

    check: str
    fault: str | None = None
    evidence: str = ""
    checked: bool = True
    harmless: str | None = None


@dataclass(frozen=True)
class Report:
    """What is known of a server.

    Attributes:
        findings: one or more for each of `CHECKS`, in their order.
        size: components of its vectors.
        reference: the local model that it was compared with, None where there was none.
        cosines: cosine of each of `PROBES` to the local model's vector; empty where there was none.
    """

    findings: tuple[Finding, ...]
    size: int
    reference: str | None
    cosines: tuple[float, ...]

    @property
    def faults(self) -> list[str]:
        """The names of the faults found."""
        return [finding.fault for finding in self.findings if finding.fault is not None]


def check_endpoint(
    base_url: str,
    *,
    model: str | os.PathLike[str],
    served_model_name: str | None = None,
    api_key: SecretStr | str | None = None,
    reference: str | os.PathLike[str] | None = None,
    max_tokens: int = 8192,
    timeout: float = 600.0,
) -> Report:
    """Send probing texts to a server, and say what is wrong with its vectors.

    They are compared with those of the local model. Without it, they are compared with each other and with the
    server's own count of tokens, which finds a mean in place of the last token and other vectors not at all.

    Args:
        base_url: where the server is, up to what comes before `/embeddings`.
        model: what the server should run: as for `RemoteEncoder`.
        served_model_name: the model's name on the server; None for its hub id, or the name given as model.
        api_key: the server's key; None for the environment.
        reference: local model to compare with, as for `Qwen3Encoder`; None for `model` where its weights are in a
            folder or in the hub's cache.
        max_tokens: about as many tokens as the longest text sent has.
        timeout: as for `RemoteEncoder`, in seconds.

    Returns:
        What was found.

    Raises:
        EndpointError: the server does not answer ordinary texts.
        ImportError: the extra `remote` is not installed.
        TypeError: a setting has the wrong type.
        ValueError: a setting is out of range or unknown.
    """
    given = None if reference is None else Qwen3Encoder(reference)
    cosines: tuple[float, ...] = ()
    with RemoteEncoder(
        base_url, model=model, served_model_name=served_model_name, api_key=api_key, timeout=timeout
    ) as remote:
        # Before a model is loaded, so that a server that is down is told at once.
        sent = remote.endpoint.embed(PROBES).vectors
        local = _local(model, given)
        findings = [_norms(sent), _batch(remote.endpoint, sent)]
        # Where a text's neighbours change its vector, it is asked for alone.
        ask = _ask_alone(remote.endpoint) if findings[1].fault else _ask_together(remote.endpoint)
        sent = ask(PROBES, None) if findings[1].fault else sent
        if local is None:
            findings += _by_itself(remote.endpoint, ask)
        elif local.dimensions != sent.shape[1]:
            evidence = f"vectors of {sent.shape[1]} components, {local.dimensions} in {local.settings.model}"
            findings.append(Finding(VECTORS, "other vectors", evidence))
        else:
            found, cosines = _compared(sent, local)
            findings += found
        pooled = all(finding.check != POOLING or finding.fault is None for finding in findings)
        findings += [_long(ask, max_tokens, pooled), _dimensions(ask, sent.shape[1])]
    known = {finding.check for finding in findings}
    findings += [Finding(check) for check in CHECKS if check not in known]
    findings.sort(key=lambda finding: CHECKS.index(finding.check))
    return Report(tuple(findings), sent.shape[1], None if local is None else local.settings.model, cosines)


def _ask_together(endpoint: Endpoint) -> Ask:
    return lambda texts, dimensions: endpoint.embed(texts, dimensions=dimensions).vectors


def _ask_alone(endpoint: Endpoint) -> Ask:
    return lambda texts, dimensions: np.concatenate(
        [endpoint.embed([text], dimensions=dimensions).vectors for text in texts]
    )


def _local(model: str | os.PathLike[str], reference: Qwen3Encoder | None) -> Qwen3Encoder | None:
    """Load the local model; without a wish for one, only where its files are on this machine."""
    if reference is not None:
        reference.warm_up()
        return reference
    try:
        encoder = Qwen3Encoder(model, local_files_only=True)
        encoder.warm_up()
    except (OSError, ValueError):
        # A name that only the server knows, or weights that are not here.
        return None
    return encoder


def _norms(sent: NDArray[np.float32]) -> Finding:
    norms = np.linalg.norm(sent, axis=1)
    worst = norms[np.abs(norms - 1).argmax()]
    fault = "not normalised" if abs(worst - 1) > _UNIT else None
    return Finding(UNIT, fault, f"the length farthest from 1 is {worst:.4f}")


def _batch(endpoint: Endpoint, sent: NDArray[np.float32]) -> Finding:
    alone = np.concatenate([endpoint.embed([PROBES[index]]).vectors for index in _ALONE])
    distance = max(*_distances(alone, sent[list(_ALONE)]), *_distances(sent[:1], sent[-1:]))
    fault = "batch differs from single" if distance > _OTHER_PRECISION else None
    return Finding(BATCH, fault, f"cosine of a text alone to the same text among others {1 - distance:.4f}")


def _long(ask: Ask, max_tokens: int, pooled: bool) -> Finding:
    """Two texts that differ only at their end: equal vectors mean that the end was not read."""
    if not pooled:
        return Finding(LENGTH, evidence="needs the right pooling", checked=False)
    lengths = [length for length in _LENGTHS if length <= max_tokens] or [_LENGTHS[0]]
    refusal = ""
    for length in reversed(lengths):
        try:
            if not _loses_the_end(ask, length):
                return Finding(LENGTH, None, f"read to the end at {length:,} tokens{refusal}")
        except EndpointError as error:
            refusal = f"; longer ones: {error}"
            continue
        read = next((each for each in reversed(lengths) if each < length and not _loses_the_end(ask, each)), 0)
        evidence = f"read to the end at {read:,} tokens, not at {length:,}" if read else f"cut before {lengths[0]:,}"
        return Finding(LENGTH, "truncated early", evidence + refusal)
    return Finding(LENGTH, evidence=f"not one long text was answered{refusal}", checked=False)


def _loses_the_end(ask: Ask, length: int) -> bool:
    # These tokenizers make one token of each digit.
    digits = ("3141592653589793238462643383279" * (length // 31 + 1))[: length + 16]
    ends = (" is a number about circles", " is a number about circles", " and here follows a recipe for apple cake")
    return _like_the_first(ask([digits + end for end in ends], None))[0]


_CUT_HERE = (
    "harmless here, where vectors are cut by the client; other clients that send the field get an error or whole "
    "vectors (vLLM takes it with --hf-overrides '{\"is_matryoshka\": true}')"
)


def _dimensions(ask: Ask, size: int) -> Finding:
    wanted = 64 if size >= 128 else size // 2
    try:
        cut = ask(PROBES[:2], wanted)
    except EndpointError as error:
        return Finding(DIMENSIONS, evidence=f"{_CUT_HERE}: {error}", harmless="dimensions refused")
    if cut.shape[1] != wanted:
        evidence = f"{_CUT_HERE}: asked for {wanted}, got {cut.shape[1]} components"
        return Finding(DIMENSIONS, evidence=evidence, harmless="dimensions ignored")
    norms = np.linalg.norm(cut, axis=1)
    if np.abs(norms - 1).max() > _UNIT:
        evidence = f"a vector cut to {wanted} components has length {norms[0]:.3f}"
        return Finding(DIMENSIONS, "dimensions cut without normalising", evidence)
    return Finding(DIMENSIONS, None, f"cut to {wanted} components, and of unit length")


_TEXTS: dict[tuple[tuple[str, str], ...], Callable[[str], str]] = {
    (): lambda text: text,
    ((NEWLINES, "with a space for each newline"),): lambda text: text.replace("\n", " "),
    ((NEWLINES, "without white space at the ends"),): str.strip,
    ((NEWLINES, "with spaces for newlines, and none at the ends"),): lambda text: text.replace("\n", " ").strip(),
    ((PROMPT, "with the query prompt before what was sent"),): lambda text: query_prompt("web_search") + text,
}
_STATES: dict[tuple[tuple[str, str], ...], str] = {
    (): "last",
    ((END, "without the end token"),): "missing",
    ((END, "with a second end token"),): "doubled",
    ((POOLING, "from the mean of all tokens"),): "mean",
    ((POOLING, "from the first token"),): "first",
}
_FAULTS = {
    "without the end token": "end token missing",
    "with a second end token": "end token doubled",
    "from the mean of all tokens": "wrong pooling",
    "from the first token": "wrong pooling",
    "with the query prompt before what was sent": "prompt added twice",
}


def _compared(sent: NDArray[np.float32], local: Qwen3Encoder) -> tuple[list[Finding], tuple[float, ...]]:
    """Find the explanation that is nearest to the server's vectors: right ones, or those of known faults."""
    right = _distances(sent, _explained(local, PROBES, "last"))
    best: tuple[tuple[str, str], ...] = ()
    nearest, from_right = float("inf"), float(right.mean())
    for (text_fault, change), (state_fault, state) in product(_TEXTS.items(), _STATES.items()):
        probes = list(_FEW_TOKENS) if state in ("mean", "first") else list(range(len(PROBES)))
        vectors = _explained(local, [change(PROBES[index]) for index in probes], state)
        distance, apart = float(_distances(sent[probes], vectors).mean()), float(right[probes].mean())
        if apart > _ROUNDING and distance < apart / 2 and distance < nearest - _SAME:
            best, nearest, from_right = (*text_fault, *state_fault), distance, apart
    measured = f"cosine to the model's vectors {1 - from_right:.4f}"
    found = [
        Finding(check, _FAULTS.get(how, "newlines changed"), f"{measured}, {1 - nearest:.4f} to those {how}")
        for check, how in best
    ]
    if not best and right.max() > _OTHER_PRECISION:
        text = PROBES[int(right.argmax())]
        found.append(
            Finding(VECTORS, "other vectors", f"cosine {1 - right.max():.4f} for {text!r:.40}, no known fault")
        )
    elif not best:
        found.append(Finding(VECTORS, None, f"cosine to the model's vectors {1 - right.max():.4f} or more"))
    return found, tuple((1 - right).tolist())


def _explained(local: Qwen3Encoder, texts: Sequence[str], state: str) -> NDArray[np.float32]:
    """Compute what a server with a fault would give, not normalised: float32 array, shape (n, size)."""
    ids = list(local._tokenization().encode(texts))
    if state == "missing":
        ids = [one[:-1] for one in ids]
    elif state == "doubled":
        ids = [np.append(one, one[-1]) for one in ids]
    elif state == "first":
        ids = [one[:1] for one in ids]
    # Attention is causal, so a token's state is the last one of the text that ends with it.
    prefixes = [[one[:end] for end in range(1, len(one) + 1)] if state == "mean" else [one] for one in ids]
    flat = [prefix for own in prefixes for prefix in own]
    found = local._engine().embed(flat, np.zeros(0, dtype=np.int64), batch_tokens=None, show_progress=False)
    parts = np.split(found.states, np.cumsum([len(own) for own in prefixes])[:-1])
    return np.stack([part.mean(axis=0) for part in parts])


def _by_itself(endpoint: Endpoint, ask: Ask) -> Iterator[Finding]:
    """What a server's vectors tell without the model's."""
    code = PROBES[2]
    spaced, stripped = _like_the_first(ask([code, code, code.replace("\n", " "), code.strip()], None))
    if _like_the_first(ask(["The sun", "The sun", "The law of 1833"], None))[0]:
        yield Finding(POOLING, "wrong pooling", "the same vector for two texts that begin alike")
        yield Finding(NEWLINES, evidence="needs the right pooling", checked=False)
    else:
        yield Finding(POOLING, evidence="needs the model's weights", checked=False)
        how = "with spaces for newlines" if spaced else "without white space at its end"
        changed = "newlines changed" if spaced or stripped else None
        yield Finding(NEWLINES, changed, f"the same vector for a text {how}" if changed else "")
    words = "communication between organisations"
    one, eight, few = (endpoint.embed([text]).tokens for text in ("1", "12345678", words))
    if one is None or eight is None or few is None or eight - one != 7 or few - one > len(words) // 2:
        for check in (END, PROMPT):
            yield Finding(check, evidence="needs the model's weights: the server counts no tokens", checked=False)
    elif one != 2:
        counted = f"by its own count, the server reads {one} tokens in '1', where 2 are due"
        if one < 5:
            yield Finding(END, "end token missing" if one < 2 else "end token doubled", counted)
        else:
            yield Finding(PROMPT, "prompt added twice", counted)
    yield Finding(VECTORS, evidence="needs the model's weights", checked=False)


def _like_the_first(vectors: NDArray[np.float32]) -> list[bool]:
    """Whether each vector is the first one's equal; the second is that of the same text, and shows the noise."""
    noise, *others = _distances(vectors[:1], vectors[1:])
    return [bool(other <= 4 * noise + _SAME) for other in others]


def _distances(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine distance, row by row; a single row on one side is compared with all on the other."""
    first, second = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    distances: NDArray[np.float64] = 1 - (first * second).sum(axis=1) / norms
    return distances
