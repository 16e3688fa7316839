"""The command `qwen3-embed`."""

from __future__ import annotations

import json
import re
import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

from qwen3_embed_integrations import __version__

if TYPE_CHECKING:
    from qwen3_embed_integrations import cost as costs
    from qwen3_embed_integrations import evaluation, quality
    from qwen3_embed_integrations.bench.measure import Report

_PRECISIONS = "float32,int8,binary"
# The share of the cores from which on other processes' work is worth a word.
_MUCH_OTHER_WORK = 0.1

console = Console()


class _Commands(TyperGroup):
    """Tells in one line what the library raises over a user's files, models and servers, whatever the command."""

    def invoke(self, ctx: Any) -> Any:
        from qwen3_embed_integrations.endpoint import EndpointError
        from qwen3_embed_integrations.engine.source import FilesChangedError

        told = (EndpointError, FilesChangedError, FloatingPointError, ImportError, MemoryError, OSError, ValueError)
        try:
            return super().invoke(ctx)
        except told as error:
            line = " ".join(str(error).split()) or type(error).__name__
            Console(stderr=True).print(f"Error: {line}", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands,
    help="Qwen3-Embedding models for LangChain, LlamaIndex and Haystack.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"qwen3-embed-integrations {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Qwen3-Embedding models for LangChain, LlamaIndex and Haystack."""


def _hide_loading() -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped


@app.command()
def demo(
    question: Annotated[
        str | None, typer.Argument(help="What to search for; five questions of its own if left out.")
    ] = None,
    model: Annotated[str, typer.Option(help="tiny, 0.6B, 4B, 8B, a hub id or a folder.")] = "tiny",
) -> None:
    """Search the documentation of Python's standard library through each installed framework."""
    from qwen3_embed_integrations.demo import QUESTIONS, build
    from qwen3_embed_integrations.encoder import Qwen3Encoder

    _hide_loading()
    encoder = Qwen3Encoder(model, query_instruction="code_search")
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


@app.command()
def bench(
    shape: Annotated[str, typer.Option(help="0.6B or 4B, with random weights, or tiny.")] = "0.6B",
    folder: Annotated[
        Path | None, typer.Option(help="Where the model and its ONNX export are, or go; a folder in the user's cache.")
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help="Some of langchain, llama-index, haystack, sentence-transformers and onnxruntime (CPU only), with "
            "commas between them; an empty string for none, all if left out."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="How often every engine has its turn; medians count.")] = 5,
    short_documents: Annotated[
        int | None, typer.Option(min=0, help="Short documents in a case of their own; 10,000 for tiny, else none.")
    ] = None,
    peer_dtype: Annotated[
        str, typer.Option(help="Type of the peers' weights: bfloat16, as transformers 5 loads them, or float32.")
    ] = "bfloat16",
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write all that was measured.")] = None,
    png_file: Annotated[Path | None, typer.Option("--png", help="Where to write a bar chart.")] = None,
) -> None:
    """Measure this package and its peers side by side on this machine; run nothing else meanwhile."""
    from qwen3_embed_integrations.bench.chart import draw
    from qwen3_embed_integrations.bench.measure import run
    from qwen3_embed_integrations.bench.random_model import SHAPES

    _hide_loading()
    if shape not in SHAPES:
        raise typer.BadParameter(f"must be one of {', '.join(SHAPES)}, got {shape!r}", param_hint="--shape")
    _check_files(json_file, png_file)
    if short_documents is None:
        short_documents = 10_000 if shape == "tiny" else 0
    with console.status("") as status:
        report = run(
            shape,
            folder=folder,
            peers=None if peers is None else [peer.strip() for peer in peers.split(",") if peer.strip()],
            rounds=rounds,
            short_documents=short_documents,
            peer_dtype=peer_dtype,
            device=device,
            on_progress=status.update,
        )
    _print_report(report)
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    if png_file is not None:
        draw(report, png_file)


@app.command("eval")
def evaluate(
    dimensions: Annotated[
        str | None, typer.Option(help="With commas between them; halves of the model's own down to 32 if left out.")
    ] = None,
    precisions: Annotated[str, typer.Option(help="Some of float32, int8 and binary.")] = _PRECISIONS,
    model: Annotated[str, typer.Option(help="tiny, 0.6B, 4B, 8B, a hub id or a folder.")] = "tiny",
    instruction: Annotated[
        list[str] | None,
        typer.Option(
            help="The queries', by name or as a sentence, default for the model's own, or none; default, or "
            "code_search for functions, if left out. Repeat it to compare others with the first."
        ),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="Documents with _id, text and perhaps title, in JSON lines, JSON, CSV, TSV or Parquet, also .gz and "
            ".zst; the standard library if left out."
        ),
    ] = None,
    queries: Annotated[Path | None, typer.Option(help="Queries with _id and text, likewise.")] = None,
    qrels: Annotated[
        Path | None, typer.Option(help="Judgements: query id, document id and grade, with tabs between them.")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Between the fields of CSV; a comma, and a tab in .tsv, if left out.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="The field with the text; a query's may be text too.")] = "text",
    template: Annotated[
        str | None,
        typer.Option(
            help=r"How a document is written, as '{title}\n{text}', which it is if left out. A line whose fields are "
            "empty is left out."
        ),
    ] = None,
    ignore_identical_ids: Annotated[
        bool,
        typer.Option(
            "--ignore-identical-ids",
            help="Leave the document with a query's id out of its results, as BEIR does, though its text is another.",
        ),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write all that was measured.")] = None,
    png_file: Annotated[Path | None, typer.Option("--png", help="Where to draw it.")] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help='Instead, one of MTEB: "MTEB(eng, v2)" and so on, MLDR, MTEB-R, CMTEB-R, MMTEB-R.'),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Some of the benchmark's, with commas between them; without one, any of MTEB's.")
    ] = None,
    task_prompts: Annotated[
        Path | None, typer.Option(help="Instructions by the name of the task, as JSON; they go before MTEB's.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for MTEB's results, where a run goes on; mteb-results if left out.")
    ] = None,
) -> None:
    """Measure what an instruction is worth and what smaller vectors cost, on your texts; or run benchmarks of MTEB."""
    from qwen3_embed_integrations import quality
    from qwen3_embed_integrations.encoder import Qwen3Encoder
    from qwen3_embed_integrations.matryoshka import import_faiss
    from qwen3_embed_integrations.models import MIN_DIMENSIONS

    _hide_loading()
    _check_files(json_file, png_file)
    if corpus is None and (template or delimiter or ignore_identical_ids or text_column != "text"):
        raise typer.BadParameter("--delimiter, --text-column, --template and --ignore-identical-ids go with --corpus")
    if benchmark is not None or tasks is not None:
        if corpus or queries or qrels or png_file or instruction or precisions != _PRECISIONS:
            raise typer.BadParameter(
                "MTEB's tasks bring their texts and instructions: "
                "leave out --corpus, --queries, --qrels, --instruction, --precisions and --png"
            )
        _run_mteb(model, dimensions, benchmark, tasks, task_prompts, output or Path("mteb-results"), json_file)
        return
    if task_prompts or output:
        raise typer.BadParameter("--task-prompts and --output go with --benchmark or --tasks")
    if (corpus is None) != (queries is None) or (corpus is None and qrels is not None):
        raise typer.BadParameter("give --corpus and --queries, and --qrels beside them where there are judgements")
    # Before anything is read.
    import_faiss()
    if corpus is None or queries is None:
        judged = quality.standard_library_questions()
    else:
        judged = quality.read_judged(
            corpus,
            queries,
            qrels,
            text_column=text_column,
            # A shell hands on both characters.
            template=None if template is None else template.replace(r"\n", "\n"),
            ignore_identical_ids=ignore_identical_ids,
            delimiter=delimiter,
        )
    encoder = Qwen3Encoder(model)
    if dimensions is None:
        sizes = [encoder.dimensions]
        while sizes[-1] // 2 >= MIN_DIMENSIONS:
            sizes.append(sizes[-1] // 2)
    else:
        try:
            sizes = [int(size) for size in dimensions.split(",")]
        except ValueError:
            message = f"must be whole numbers with commas between them, got {dimensions!r}"
            raise typer.BadParameter(message, param_hint="--dimensions") from None
    report = quality.measure(
        encoder,
        judged,
        sizes,
        [precision.strip() for precision in precisions.split(",")],
        instructions=instruction or ["code_search" if corpus is None else quality.OWN_INSTRUCTION],
        model=model,
        show_progress=console.is_terminal,
    )
    _print_quality(report)
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    if png_file is not None:
        quality.draw(report, png_file)


def _print_quality(report: quality.Report) -> None:
    title = f"{report.model} on {report.name}: {report.documents:,} documents, {report.queries:,} queries"
    console.print(title, style="bold", markup=False, highlight=False)
    for note in report.reading.notes() if report.reading else ():
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if report.rows[0].ndcg is not None:
        _print_scores(report)
    table = Table(box=SIMPLE)
    for heading in ("dimensions", "precision", "bytes", "of the nearest", "queries/s"):
        table.add_column(heading, justify="left" if heading == "precision" else "right", no_wrap=True)
    for row in report.rows:
        if row.instruction == report.instructions[0]:
            table.add_row(
                str(row.dimensions),
                row.precision,
                f"{row.bytes:,}",
                f"{row.agreement:.1%}",
                f"{row.queries_per_second:,.0f}",
            )
    console.print(table)
    console.print(
        "of the nearest: share of the full vectors' ten nearest that are found; queries/s: exact search, all threads",
        highlight=False,
    )


def _print_scores(report: quality.Report) -> None:
    sentences = [instruction for instruction in report.instructions if " " in instruction]
    names = {sentence: f"sentence {number}" for number, sentence in enumerate(sentences, start=1)}
    first, *others = (names.get(instruction, instruction) for instruction in report.instructions)
    # Narrow enough for 80 columns.
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("instruction" if others else "vectors", overflow="fold")
    table.add_column("nDCG\n@10", justify="right", no_wrap=True)
    table.add_column("difference, 95%", no_wrap=True)
    table.add_column("", no_wrap=True)
    for heading in ("recall\n@10", "recall\n@100", "MRR\n@10"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        vectors = f"{row.dimensions} {row.precision}"
        if others and row.instruction == report.instructions[0]:
            table.add_section()
            table.add_row(f"[bold]{vectors}[/bold]")
        found, interval, verdict = row.difference, "", ""
        if found is not None:
            interval = f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
            color = {"better": "green", "worse": "red"}.get(found.verdict, "none")
            verdict = f"[{color}]{found.verdict}[/{color}]"
        scores = (f"{score:.3f}" for score in (row.recall, row.recall_100, row.mrr) if score is not None)
        name = names.get(row.instruction, row.instruction) if others else vectors
        table.add_row(name, f"{row.ndcg:.3f}", interval, verdict, *scores)
    console.print(table)
    full = f"{report.rows[0].dimensions} {report.rows[0].precision}"
    compared = f"{first} at the same vectors ({first} itself: from {full})" if others else full
    console.print(
        f"difference: of nDCG@10, from {compared}; interval: paired bootstrap over the queries; unclear: 0 is inside",
        highlight=False,
    )
    if others and "default" in report.instructions:
        console.print("default: what the model puts before queries by itself", highlight=False)
    for sentence, name in names.items():
        console.print(f"{name}: {sentence}", markup=False, highlight=False)


def _run_mteb(
    model: str,
    dimensions: str | None,
    benchmark: str | None,
    tasks: str | None,
    task_prompts: Path | None,
    output: Path,
    json_file: Path | None,
) -> None:
    from qwen3_embed_integrations import evaluation
    from qwen3_embed_integrations.encoder import Qwen3Encoder

    if dimensions is not None and not dimensions.isdecimal():
        raise typer.BadParameter(f"must be one number for MTEB, got {dimensions!r}", param_hint="--dimensions")
    name, chosen = (None, None) if benchmark is None else evaluation.benchmark_tasks(benchmark)
    if chosen is None or tasks is not None:
        chosen = evaluation.select_tasks([task.strip() for task in (tasks or "").split(",")], chosen)
    prompts = None if task_prompts is None else evaluation.read_task_prompts(task_prompts)
    encoder = Qwen3Encoder(model, dimensions=None if dimensions is None else int(dimensions))
    adapter = evaluation.MTEBEncoder(encoder, prompts)
    meta = adapter.mteb_model_meta
    output.mkdir(parents=True, exist_ok=True)
    console.print(
        f"{meta.name}, {meta.revision}; tasks: {len(chosen)}, results in {output}", markup=False, soft_wrap=True
    )
    width = max(len(task.metadata.name) for task in chosen)
    try:
        report = evaluation.evaluate(
            adapter,
            chosen,
            output,
            benchmark=name,
            show_progress=console.is_terminal,
            on_score=lambda score: console.print(
                f"{score.task:{width}}  {score.score:6.2f}  {score.metric}", highlight=False
            ),
        )
    except evaluation.DatasetError as error:
        console.print(
            f"{error}. What was measured before is in {output}", markup=False, highlight=False, soft_wrap=True
        )
        raise typer.Exit(2) from error
    _print_measures(report)
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")


def _print_measures(report: evaluation.Report) -> None:
    if not report.measures:
        console.print("No means: they are given for all tasks of a benchmark, or all of a type, only", highlight=False)
        return
    table = Table(title=f"{report.model} on {report.benchmark}, percent", title_justify="left")
    table.add_column("mean")
    for heading in ("measured", "published", "difference", "listed", "difference"):
        table.add_column(heading, justify="right")
    for measure in report.measures:
        beside = [
            text
            for score in (measure.published, measure.listed)
            for text in (("", "") if score is None else (f"{score:.2f}", f"{measure.score - score:+.2f}"))
        ]
        table.add_row(measure.name, f"{measure.score:.2f}", *beside)
    console.print(table)
    if any(measure.listed is not None for measure in report.measures):
        console.print(
            "published: by the models' authors; listed: by qwen3-embed models, whose figures other than MMTEB are "
            "those of other columns of the authors' table for MTEB(Multilingual, v2)",
            highlight=False,
        )


def _check_files(json_file: Path | None, png_file: Path | None) -> None:
    # Before an hour of measuring.
    from qwen3_embed_integrations.bench.chart import require_matplotlib

    if png_file is not None:
        try:
            require_matplotlib()
        except ImportError as error:
            raise typer.BadParameter(str(error), param_hint="--png") from error
    for option, file in (("--json", json_file), ("--png", png_file)):
        if file is not None and not file.resolve().parent.is_dir():
            raise typer.BadParameter(f"there is no folder {file.resolve().parent}", param_hint=option)


def _print_report(report: Report) -> None:
    from qwen3_embed_integrations.bench.chart import format_seconds

    machine = f"{report.machine['processor']}, {report.machine['threads']} threads"
    table = Table(title=f"{report.shape} on {machine}", title_justify="left")
    table.add_column()
    ours = [name.split(", ")[1] for name in report.ratios(next(iter(report.cases)))]
    for heading in ("batch", "time", "texts/s", "of limit", *ours):
        table.add_column(heading, justify="right")
    for case, size in report.cases.items():
        ratios = report.ratios(case)
        table.add_row(f"[bold]{case}[/bold]")
        for item in report.best(case):
            table.add_row(
                item.engine,
                str(item.batch_size or ""),
                format_seconds(item.seconds),
                f"{size['texts'] / item.seconds:,.1f}",
                "" if item.of_limit is None else f"{item.of_limit:.0%}",
                *(f"{peers[item.engine]:.1f}x" if item.engine in peers else "" for peers in ratios.values()),
            )
        table.add_section()
    console.print(table)
    console.print("2.0x: this package, in the type above it, is twice as fast.", highlight=False)
    limits = ", ".join(f"{dtype} {limit / 1e9:,.0f}" for dtype, limit in report.limits.items())
    console.print(f"Matrix products alone, the limit, in GFLOP/s: {limits}", highlight=False)
    for peer, command in report.missing.items():
        console.print(f"{peer} is not installed: {escape(command)}", highlight=False)


class _EmbedCommand(TyperCommand):
    """Takes `--ray` with or without an address, which Typer has no option for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for place, argument in enumerate(args):
            if argument == "--ray" and not re.fullmatch(
                r"auto|local|ray://.+|[\w.-]+:\d+", "".join(args[place + 1 :][:1])
            ):
                args = [*args[: place + 1], "any", *args[place + 1 :]]
        return super().parse_args(ctx, args)


@app.command(cls=_EmbedCommand)
def embed(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Parquet, JSON lines, JSON, CSV or TSV, perhaps .gz or .zst, or .txt, .md and .html as a text each: a "
            "file, a folder or a URL.",
        ),
    ],
    destination: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Folder for Parquet files with the columns and the vectors.")
    ],
    text_column: Annotated[str, typer.Option(help="The column to embed.")] = "text",
    embedding_column: Annotated[str, typer.Option(help="The name of the new column.")] = "embedding",
    columns: Annotated[
        str | None, typer.Option(help="Those to keep beside the text, with commas between them; all if left out.")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Between the fields of CSV; a comma, or a tab in .tsv, if left out.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="tiny, 0.6B, 4B, 8B, a hub id or a folder; tiny if left out.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    base_url: Annotated[str | None, typer.Option(help="A server that runs the model, instead of this machine.")] = None,
    dimensions: Annotated[int | None, typer.Option(help="Of the vectors; the model's own if left out.")] = None,
    document_instruction: Annotated[
        str | None, typer.Option(help="By name or as a sentence; the model's own, or none, if left out.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of a text that are read.")] = None,
    part_rows: Annotated[int, typer.Option(min=1, help="Rows of an output file at most.")] = 4096,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Write rows that can't be embedded to _rejected.jsonl, and embed the others."),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Run on Ray: the cluster at this address (auto, local, HOST:PORT, ray://HOST:PORT); without one, a "
            "cluster that runs here, or else a new one.",
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Ray's actors; one a GPU or CPU if left out.")] = None,
) -> None:
    """Embed a column of many rows; run it again to go on where it was stopped."""
    from qwen3_embed_integrations.bulk import embed_files
    from qwen3_embed_integrations.encoder import Qwen3Encoder
    from qwen3_embed_integrations.remote import RemoteEncoder

    _hide_loading()
    if workers is not None and ray is None:
        raise typer.BadParameter("is for --ray", param_hint="--workers")
    try:
        chosen: dict[str, Any] = {
            "model": model or "tiny",
            "revision": revision,
            "dimensions": dimensions,
            "document_instruction": document_instruction,
            "max_tokens": max_tokens,
        }
        options: dict[str, Any] = {
            "encoder": Qwen3Encoder(**chosen) if base_url is None else RemoteEncoder(base_url, **chosen),
            "embedding_column": embedding_column,
            "part_rows": part_rows,
            "skip_bad": skip_bad,
            "columns": None if columns is None else [name.strip() for name in columns.split(",")],
            "delimiter": delimiter,
            "show_progress": sys.stderr.isatty(),
        }
        if ray is None:
            report = embed_files(source, destination, text_column, **options)
        else:
            from qwen3_embed_integrations.ray import connect, embed_dataset

            connect(None if ray == "any" else ray)
            report = embed_dataset(source, destination, text_column, workers=workers, **options)
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on where this one stopped.")
        raise typer.Exit(130) from None
    lines = [
        f"{report.rows:,} rows in {report.parts:,} files in {report.destination}; "
        f"{report.embedded_rows:,} embedded now, {report.tokens:,} tokens in {report.seconds:,.1f} s"
    ]
    if model is None:
        lines.append("by tiny, which ships with this package for trying: --model 0.6B, 4B or 8B for real use")
    if report.reused_rows:
        lines.append(f"{report.reused_rows:,} rows have the vectors that were computed for their texts before")
    if report.truncated_texts:
        lines.append(f"{report.truncated_texts:,} texts were cut to {options['encoder'].max_tokens:,} tokens")
    if report.rejected_rows:
        lines.append(f"{report.rejected_rows:,} rows were not embedded: {report.destination}/_rejected.jsonl says why")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


@app.command()
def verify(
    model: Annotated[str, typer.Option(help="tiny, 0.6B, 4B, 8B, a hub id or a folder.")] = "0.6B",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="torch's name of a device; the fastest if left out.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the report.")] = None,
) -> None:
    """Compare a model on this machine with its published values, with itself and with plain transformers."""
    from qwen3_embed_integrations.verify import verify as run

    _hide_loading()
    _check_files(json_file, None)
    report = run(model, dtype=dtype, device=device, revision=revision)
    console.print(f"{report.model} in {report.dtype} on {report.device}", markup=False, highlight=False)
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("check", "", "found", "allowed"):
        table.add_column(heading, overflow="fold")
    table.add_column("seconds", justify="right", no_wrap=True)
    for check in report.checks:
        color = {"ok": "green", "failed": "red"}.get(check.status, "none")
        status = f"[{color}]{check.status}[/{color}]"
        table.add_row(check.name, status, check.found, check.allowed, f"{check.seconds:.1f}")
    console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    if not report.is_ok:
        raise typer.Exit(1)


@app.command()
def check_endpoint(
    url: Annotated[str, typer.Argument(help="Where the server is, up to what comes before /embeddings.")],
    model: Annotated[str, typer.Option(help="What it should run: 0.6B, 4B, 8B, a hub id, a folder or any name.")],
    served_model_name: Annotated[
        str | None, typer.Option(help="The model's name on the server, where it is another one.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Local model to compare with; the model itself where its weights are here.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="About as many tokens as the longest text sent has.")] = 8192,
) -> None:
    """Tell whether a server gives the model's vectors, and what is wrong if it does not.

    The key is read from QWEN3_EMBED_API_KEY, or the variable of a known service. Exits with 1 where there is a fault,
    and with 2 where there is no answer.
    """
    from qwen3_embed_integrations.endpoint_check import PROBES, check_endpoint

    _hide_loading()
    report = check_endpoint(
        url, model=model, served_model_name=served_model_name, reference=reference, max_tokens=max_tokens
    )
    compared = "with themselves: no weights here" if report.reference is None else f"with {report.reference}"
    console.print(f"{len(PROBES)} texts, vectors of {report.size} components, compared {compared}", highlight=False)
    for finding in report.findings:
        outcome = finding.fault or finding.harmless or ("ok" if finding.checked else "not checked")
        line = f"{finding.check:11} {outcome}{': ' if finding.evidence else ''}{finding.evidence}"
        console.print(line, markup=False, highlight=False, style="bold red" if finding.fault else None, soft_wrap=True)
    if report.faults:
        raise typer.Exit(1)


@app.command()
def cost(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Parquet, JSON lines, JSON, CSV and TSV with a text a row, perhaps .gz or .zst; any other file is one "
            "text; a folder is all of its files."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Whose tokenizer counts: tiny, 0.6B, 4B, 8B, a hub id or a folder.")
    ] = "tiny",
    daily_tokens: Annotated[int | None, typer.Option(min=0, help="Tokens of a day, for a day and a year.")] = None,
    text_column: Annotated[str, typer.Option(help="The column or field with the text.")] = "text",
    delimiter: Annotated[
        str | None, typer.Option(help="Between the fields of CSV; a comma, or a tab in .tsv, if left out.")
    ] = None,
    watts: Annotated[
        float | None, typer.Option(help="What this machine draws while it embeds; taken to be 200 if left out.")
    ] = None,
    prices: Annotated[
        list[str] | None,
        typer.Option("--price", help="One of your own: NAME=DOLLARS a million tokens; as often as you like."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write everything, with sources.")] = None,
) -> None:
    """Count the tokens of files, and tell what embedding them costs: at services, in storage, and on this machine."""
    from qwen3_embed_integrations.cost import PRICES, WATTS, estimate

    _hide_loading()
    _check_files(json_file, None)
    own = [_own_price(price) for price in prices or []]
    found = estimate(
        files or [],
        model,
        daily_tokens=daily_tokens,
        text_column=text_column,
        delimiter=delimiter,
        watts=WATTS if watts is None else watts,
        prices=[*own, *PRICES],
    )
    _print_cost(found, assumed=watts is None)
    if json_file is not None:
        json_file.write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")


def _own_price(given: str) -> costs.Price:
    from qwen3_embed_integrations.cost import Price

    name, _, dollars = given.rpartition("=")
    try:
        price = Decimal(dollars)
    except InvalidOperation:
        price = Decimal("NaN")
    if not name or not price.is_finite() or price < 0:
        raise typer.BadParameter(f"must be NAME=DOLLARS, such as mine=0.01, got {given!r}", param_hint="--price")
    return Price("yours", name, price, "", "--price")


def _print_cost(found: costs.Estimate, *, assumed: bool) -> None:
    if found.files:
        console.print(
            f"{found.tokens:,} tokens by the tokenizer of {found.model}, end tokens included (texts: {found.texts:,}, "
            f"files: {found.files:,})",
            markup=False,
            highlight=False,
        )
    for reason in found.passed_by:
        console.print(f"Passed by: {reason}", markup=False, highlight=False, soft_wrap=True)
    if found.longer_than_context:
        console.print(
            f"{found.longer_than_context:,} texts have more tokens than the model reads, and count whole",
            highlight=False,
        )
    if found.files and found.model == "tiny":
        console.print(
            "tiny has the real models' tokenizer cut to English and Python, and counts more tokens than they do: "
            "--model 4B counts theirs",
            highlight=False,
        )
    hosted = Table(title="Services, US dollars", title_justify="left")
    for heading in ("provider", "model", "price of", "a million tokens", "the files", "a day", "a year"):
        hosted.add_column(heading, justify="left" if heading in ("provider", "model", "price of") else "right")
    for charge in found.charges:
        price = charge.price
        sums = (charge.run, charge.day, charge.year)
        hosted.add_row(
            price.provider,
            escape(price.model),
            price.as_of,
            f"${price.usd_per_million_tokens}",
            *("" if usd is None else f"${_amount(usd)}" for usd in sums),
        )
    console.print(hosted)
    console.print(
        "At this count of tokens; models that are not Qwen3-Embedding have other tokenizers and count otherwise. The "
        "source of each price is in --json.",
        highlight=False,
    )
    precisions = list(dict.fromkeys(row.precision for row in found.storage))
    stored = Table("dimensions", title="A million vectors, MB", title_justify="left")
    for precision in precisions:
        stored.add_column(precision, justify="right")
    for start in range(0, len(found.storage), len(precisions)):
        rows = found.storage[start : start + len(precisions)]
        stored.add_row(str(rows[0].dimensions), *(f"{row.bytes:,}" for row in rows))
    console.print(stored)
    _print_local(found, assumed=assumed)


def _print_local(found: costs.Estimate, *, assumed: bool) -> None:
    local = found.local
    if local is None:
        console.print(
            found.unmeasured,
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return
    device = ", ".join(local.device) if isinstance(local.device, list) else local.device
    lines = [f"This machine ({device}, {local.dtype}): {local.tokens_per_second:,.0f} tokens/s, measured just now"]
    if local.other_work is not None and local.other_work >= _MUCH_OTHER_WORK * local.cores:
        lines[0] += (
            f", beside other work on {local.other_work:.1f} of {local.cores} cores: alone it is faster, and the times "
            "below are too long"
        )
    for what, hours, kwh in (("the files", local.hours, local.kwh), ("a day", local.hours_a_day, local.kwh_a_day)):
        if hours is not None and kwh is not None:
            lines.append(f"{what}: {_amount(Decimal(hours))} hours, {_amount(Decimal(kwh))} kWh")
    lines.append(f"at {local.watts:g} W, {'an assumption: --watts says better' if assumed else 'as you say'}")
    console.print("; ".join(lines), highlight=False)


def _amount(value: Decimal) -> str:
    """Write a number with two decimals, or a small one with two digits."""
    return f"{value:,.{2 if not value or value >= 1 else max(2, 1 - value.adjusted())}f}"
