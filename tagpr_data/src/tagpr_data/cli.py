"""The command `tagpr-data`: a thin shell. Results go to stdout, progress to stderr; exit code 1 means "checked and
bad", 2 "used wrongly". Heavy imports stand inside the commands, so that `--help` answers at once."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tagpr_data import (
    audit_cli,
    construct_cli,
    corpus_cli,
    download_cli,
    generate_cli,
    select_cli,
    tagging_cli,
    tags_cli,
)
from tagpr_data.engine_cli import AddressOption, EngineOption, WorkersOption
from tagpr_data.errors import InputError, run_cli

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Build, validate and publish tagged reasoning corpora; rank and prompt LaMP exactly.",
)
app.add_typer(construct_cli.app, name="construct")
app.add_typer(tags_cli.app, name="tags")
app.add_typer(download_cli.app, name="download")
app.add_typer(generate_cli.app)
app.add_typer(corpus_cli.app)  # its commands stand beside those below
app.add_typer(tagging_cli.app)
app.add_typer(select_cli.app)
app.add_typer(audit_cli.app)
import_app = typer.Typer(no_args_is_help=True, help="Bring published data into a data set folder.")
app.add_typer(import_app, name="import")


@app.callback()
def _root() -> None:
    """Hold the subcommands together even while there is one."""


@app.command()
def schemas(
    folder: Annotated[Path, typer.Argument(help="Where to write them.")] = Path("schemas"),
) -> None:
    """Write the JSON Schema of every record into FOLDER (default: schemas/)."""
    from tagpr_data.schema import write_schemas

    for path in write_schemas(folder):
        typer.echo(path)


@app.command()
def validate(
    corpus: Annotated[Path, typer.Argument(help="Corpus folder.")],
    report: Annotated[
        Path | None, typer.Option(help="Folder for index.html and report.json (default: CORPUS/data_docs).")
    ] = None,
    tagset: Annotated[Path | None, typer.Option(help="Tag-set file, where it is not the shipped one.")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Its data set folder: claims about items are looked up again.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Check a corpus folder; exit code 1 names the failed checks and rows."""
    from tagpr_data.engine import Engine
    from tagpr_data.validate import raise_for
    from tagpr_data.validate import validate as validate_corpus

    target = report or corpus / "data_docs"
    outcome = validate_corpus(corpus, tagset, target, dataset_folder=dataset, engine=Engine(engine, workers, address))
    if as_json:
        typer.echo(outcome.as_json(), nl=False)
    else:
        for result in outcome.results:
            typer.echo(f"{result.status:<8} {result.name:<24} {result.question}")
    times = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in outcome.seconds.items())
    typer.echo(f"{target / 'index.html'}: {len(outcome.results)} checks; {times}", err=True)
    raise_for(outcome, corpus)


@app.command("pairs")
def pairs_command(
    dataset: Annotated[Path, typer.Option(help="Data set folder.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    corpus: Annotated[Path | None, typer.Option(help="Corpus folder, for attempts that are better or worse.")] = None,
    form: Annotated[str, typer.Option(help="answer, or trace for whole traces of the scripted teacher.")] = "answer",
    kinds: Annotated[str, typer.Option(help="Which of metric, user, gold; separated by commas.")] = "metric,user,gold",
    task: Annotated[list[str] | None, typer.Option(help="Pairs of this task only; may be repeated.")] = None,
    per_kind: Annotated[int, typer.Option(help="Most pairs an example gives in a kind.")] = 1,
    seed: Annotated[int, typer.Option(help="Decides every draw.")] = 0,
) -> None:
    """Write preference pairs for a reward model: better or worse, right or wrong user, gold or another answer."""
    from pydantic import ValidationError

    from tagpr_data.dataset import Dataset
    from tagpr_data.pairs import PairOptions, write_pairs
    from tagpr_data.tables import explain

    settings = {"kinds": kinds.split(","), "tasks": task, "form": form, "per_kind": per_kind, "seed": seed}
    try:
        options = PairOptions.model_validate(settings)
    except ValidationError as error:
        raise InputError(f"pairs: {explain(error)}") from None
    manifest = write_pairs(output, Dataset.load(dataset), options, corpus)
    for split, counts in manifest.pairs.items():
        typer.echo(f"{split:<7} {sum(counts.values()):>7} pairs of {manifest.users[split]} users: {counts}")
    for reason, count in manifest.skipped.items():
        typer.echo(f"{count} left out: {reason}", err=True)


LampTask = Annotated[str, typer.Option(help="LaMP task, as LaMP-3 or LaMP_3; LaMP-2-old are the news.")]
LampQuestions = Annotated[Path, typer.Option(help="LaMP question file.")]
Seed = Annotated[int, typer.Option(help="Seed of the random retrievers.")]


@app.command("rank")
def rank_command(
    task: LampTask,
    questions: LampQuestions,
    output: Annotated[Path, typer.Option(help="JSON to write: question id → item ids, best first.")],
    retriever: Annotated[str, typer.Option(help="bm25, recency, random, random-official, ranked or full.")] = "bm25",
    seed: Seed = 0,
) -> None:
    """Rank every profile of a LaMP question file, as the official code does."""
    from tagpr_data.lamp.export import Ranker, write_rankings

    with _progress_over(questions, "ranking") as on_bytes:
        export = write_rankings(output, Ranker(task, questions, retriever, seed, on_bytes))
    _tell_export(output, export.rows, export.notes)


@app.command("prompts")
def prompts_command(
    task: LampTask,
    questions: LampQuestions,
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json, or the folder that holds it.")],
    output: Annotated[Path, typer.Option(help="JSON lines to write: id, prompt.")],
    k: Annotated[int, typer.Option("--k", help="Profile items; 0 gives the raw input.")] = 4,
    max_length: Annotated[int, typer.Option(help="Token budget of the prompt.")] = 256,
    retriever: Annotated[str, typer.Option(help="bm25, recency, random, random-official, ranked or full.")] = "bm25",
    style: Annotated[str, typer.Option(help="Only official: LaMP's own prompt.")] = "official",
    seed: Seed = 0,
) -> None:
    """Write the official prompt of every question, byte for byte."""
    from tagpr_data.lamp.export import Ranker, write_prompts
    from tagpr_data.lamp.prompts import LampTokenizer

    if style != "official":
        raise InputError(f"style {style!r} is unknown; LaMP files have the style official")
    loaded = LampTokenizer.load(tokenizer)
    with _progress_over(questions, "prompting") as on_bytes:
        export = write_prompts(output, Ranker(task, questions, retriever, seed, on_bytes), loaded, k, max_length)
    _tell_export(output, export.rows, export.notes)


@import_app.command("lamp")
def import_lamp_command(
    task: LampTask,
    output: Annotated[Path, typer.Option(help="Data set folder to write.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A task's folder as downloaded: all its splits are taken.")
    ] = None,
    questions: Annotated[Path | None, typer.Option(help="LaMP question file, instead of DIR.")] = None,
    outputs: Annotated[Path | None, typer.Option(help="LaMP output file with the golds; none for test.")] = None,
    split: Annotated[
        str, typer.Option(help="train, validation (LaMP's dev) or test; with --questions.")
    ] = "validation",
) -> None:
    """Write LaMP question files and their golds as a data set folder.

    Example: tagpr-data import lamp lamp/time/LaMP_3 --task LaMP-3 --output runs/lamp3
    """
    from tagpr_data.lamp.convert import import_lamp, import_lamp_files, published_files

    if (folder is None) == (questions is None):
        raise InputError("give either the folder DIR of a task, or --questions FILE")
    if folder is not None:
        if outputs is not None:
            raise InputError("--outputs goes with --questions; a folder DIR has its outputs beside its questions")
        manifest = import_lamp_files(task, published_files(folder), output)
    else:
        assert questions is not None
        with _progress_over(questions, "importing") as on_bytes:
            manifest = import_lamp(task, questions, outputs, output, split, on_bytes)
    rows = sum(entry.rows for name, entry in manifest.files.items() if name.startswith("examples/"))
    typer.echo(f"{output}: {rows} examples of {manifest.users} users, content {manifest.content_hash[:12]}")


@import_app.command("lamp6")
def import_lamp6_command(
    questions: Annotated[list[Path], typer.Argument(help="LaMP-6 question files as published, which name mails.")],
    avocado: Annotated[Path, typer.Option(help="Your copy of the collection: its folder data/text, zip files or not.")],
    output: Annotated[Path, typer.Option(help="Folder to write the question and output files to.")],
) -> None:
    """Put the mails of your own Avocado copy (LDC2015T03) into LaMP-6's files; then: import lamp --task LaMP-6.

    Example: tagpr-data import lamp6 dev_questions.json --avocado avocado-1.0.2/data/text --output lamp6
    """
    from tagpr_data.lamp.avocado import fill

    for written in fill(questions, avocado, output):
        typer.echo(f"{written.questions}, {written.outputs.name}: {written.rows:,} questions")


@contextmanager
def _progress_over(path: Path, what: str) -> Generator[Callable[[int], None], None, None]:
    """Show on stderr how far a file is read; gives the function to tell the bytes to."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=path.stat().st_size if path.is_file() else None)
        yield lambda count: progress.advance(bar, count)


def _tell_export(output: Path, rows: int, notes: Mapping[str, int]) -> None:
    from tagpr_data.lamp.export import NOTES

    for note, count in notes.items():
        if count:
            typer.echo(f"{count} {NOTES[note]}", err=True)
    typer.echo(f"{output}: {rows} questions")


def main() -> None:
    """Entry point of the console script."""
    run_cli(app)
