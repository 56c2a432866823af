"""The command `tagpr-data select`: candidates from anywhere → a corpus folder. A thin shell."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tagpr_data.engine_cli import AddressOption, EngineOption, WorkersOption
from tagpr_data.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from tagpr_data.records import Split

app = typer.Typer(no_args_is_help=True)


@app.command("select")
def select_command(
    candidates: Annotated[
        Path, typer.Argument(metavar="CANDIDATES", help="Candidates as JSON lines or Parquet, as of annotate.")
    ],
    dataset: Annotated[Path, typer.Option(help="The data set folder whose examples they answer.")],
    output: Annotated[Path, typer.Option(help="Corpus folder to write; it must not exist.")],
    name: Annotated[str | None, typer.Option(help="Name of the corpus (default: that of the folder).")] = None,
    rules: Annotated[Path | None, typer.Option(help="Selection rules (TOML): `selection` of a config.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="a.b=value, wins over --rules.")] = None,
    tagset: Annotated[Path | None, typer.Option(help="Tag-set file (TOML); without it tagpr-9.")] = None,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Judge candidates and write the kept and the rejected as a corpus folder, as `build` does with those it generated.

    Every candidate comes out once: kept, or rejected with one reason. Check it with `tagpr-data validate`.
    """
    from tagpr_data.build import Description, describe
    from tagpr_data.config import load
    from tagpr_data.dataset import Dataset
    from tagpr_data.records import Candidate
    from tagpr_data.select import Selection, described, journal_batches, select
    from tagpr_data.tables import table_batches, write_json
    from tagpr_data.tags import load_tagset

    if not candidates.is_file():
        raise InputError(f"{candidates} does not exist or is a folder; expected candidates as JSON lines or Parquet")
    if output.exists():
        raise InputError(f"{output} exists already; a corpus is written into a new folder")
    if rules is None and overrides:
        raise InputError("--set changes the rules of a file; give one with --rules")
    chosen = load(Selection, rules, overrides or []) if rules is not None else Selection()
    grammar, examples = load_tagset(tagset), Dataset.load(dataset)

    def batches() -> "Iterator[pa.RecordBatch]":
        is_table = candidates.suffix == ".parquet"
        return table_batches(candidates, Candidate) if is_table else journal_batches(candidates)

    rows, answered, tasks = 0, set[str](), set[str]()
    for batch in batches():
        rows += batch.num_rows
        answered.update(str(key) for key in batch["example_id"].to_pylist())
        tasks.update(str(task) for task in batch["task"].to_pylist())
    splits: list[Split] = [
        split for split in examples.splits if any(example.id in answered for example in examples.examples(split))
    ]
    files, counts = select(
        batches(), examples, chosen, grammar, output, splits, work=output / ".work", expected=rows, engine=engine,
        workers=workers, address=address,
    )  # fmt: skip
    settings = described(chosen)
    manifest = describe(
        counts,
        files,
        Description(
            name=name or output.name,
            tagset=grammar,
            dataset=examples.manifest.name,
            dataset_hash=examples.manifest.content_hash,
            licence=examples.manifest.licence,
            tasks=tuple(task for task in examples.manifest.tasks if task.name in tasks),
            parameters={
                "selection": settings,
                "min_score": settings["min_score"],
                "task_min_score": settings["task_min_score"],
                "best_of": chosen.best_of,
            },
        ),
    )
    write_json(output / "manifest.json", manifest)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.rejected.items()) or "none"
    typer.echo(f"{output}: {manifest.kept:,} traces; rejected: {reasons}")
