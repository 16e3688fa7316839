"""The command `qwen3-embed`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(
    help="Qwen3-Embedding models for LangChain, LlamaIndex and Haystack.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
console = Console()


@app.command()
def demo(
    question: Annotated[
        str | None, typer.Argument(help="What to search for; five questions of its own if left out.")
    ] = None,
    model: Annotated[str, typer.Option(help="tiny, 0.6B, 4B, 8B, a hub id or a folder.")] = "tiny",
) -> None:
    """Search the documentation of Python's standard library through each installed framework."""
    from transformers.utils.logging import disable_progress_bar

    from qwen3_embed_integrations.demo import QUESTIONS, build
    from qwen3_embed_integrations.encoder import Qwen3Encoder

    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    try:
        encoder = Qwen3Encoder(model, query_instruction="code_search")
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--model") from error
    index = build(encoder)
    console.print(
        f"{len(index.entries):,} functions and classes, {index.tokens:,} tokens, embedded in {index.seconds:.1f} s "
        f"by {model} in {encoder.dtype} on {encoder.device}; questions ask under {encoder.query_instruction!r}"
    )
    for name, extra in index.missing.items():
        command = f"pip install 'qwen3-embed-integrations[{extra}]'"
        console.print(f"{name} is not installed: {escape(command)}")
    for asked in [question] if question is not None else QUESTIONS:
        for framework, search in index.searches.items():
            hits = search(asked)
            names = max(len(hit.name) for hit in hits)
            console.print(f"\n[bold]{escape(asked)}[/bold] · {framework}")
            for hit in hits:
                line = f"{hit.score:.4f}  {hit.name:{names}}  {index.entries[hit.name].first_line}"
                console.print(line, markup=False, highlight=False, no_wrap=True, overflow="ellipsis")


@app.command()
def models() -> None:
    """Print what is known of the models, and their published scores."""
    from qwen3_embed_integrations.models import BENCHMARKS, MODELS

    headings = ("name", "layers", "dimensions", "heads / KV", "FFN", "context", "licence")
    facts = Table(*headings, title="Models", title_justify="left")
    for spec in MODELS.values():
        facts.add_row(
            spec.name,
            str(spec.layers),
            f"{spec.min_dimensions}-{spec.max_dimensions}",
            f"{spec.query_heads} / {spec.kv_heads}",
            str(spec.ffn_size),
            f"{spec.context:,}",
            spec.license,
        )
    console.print(facts)
    for spec in MODELS.values():
        console.print(
            f"{spec.name:5}{spec.hub_id or 'ships with this package, for trying and testing'}", highlight=False
        )
    scores = Table("benchmark", *MODELS, title="Published scores, percent", title_justify="left")
    for benchmark, meaning in BENCHMARKS.items():
        shown = (spec.scores.get(benchmark) for spec in MODELS.values())
        scores.add_row(f"{benchmark} ({meaning})", *("" if score is None else f"{score:.2f}" for score in shown))
    console.print(scores)
