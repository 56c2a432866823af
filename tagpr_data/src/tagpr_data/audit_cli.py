"""The command audit: a thin shell."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.command("audit")
def audit_command(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Data set folder.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the audit (record Audit) here too.")] = None,
    near: Annotated[float, typer.Option(help="Similarity that makes two questions near-duplicates, 0.8 to 1.")] = 0.9,
    near_gold: Annotated[float, typer.Option(help="Share of common words that is near the gold, up to 1.")] = 0.8,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="CHECK or CHECK=SHARE: exit code 1 where more is found. May be given several times."),
    ] = None,
) -> None:
    """Look for leaks in a data set, per split and task: golds in profiles, questions or users in several splits, items
    from the future, duplicates, empty profiles, label skew. Exit code 1 only with --fail-on."""
    from tagpr_data.audit import QUESTIONS, audit, limits_from, raise_for
    from tagpr_data.dataset import Dataset
    from tagpr_data.tables import write_json

    limits = limits_from(fail_on or [])
    found = audit(Dataset.load(dataset), near, near_gold)
    counts = ", ".join(f"{count:,} {split}" for split, count in found.examples.items())
    typer.echo(f"{found.dataset} {found.dataset_hash[:12]}: {counts}")
    width = max((len(row.task) for row in found.rows), default=0)
    for check, question in QUESTIONS.items():
        rows = [row for row in found.rows if row.check == check]
        if not rows:
            continue
        typer.echo(f"\n{check}: {question}")
        for row in rows:
            counts = f"{row.found:,} of {row.rows:,}"
            typer.echo(f"  {row.split:<10} {row.task:<{width}} {counts:>17} {row.share:>7.1%}  {row.detail}".rstrip())
    if json_file is not None:
        write_json(json_file, found)
        typer.echo(f"{json_file}: written", err=True)
    raise_for(found, limits)
