"""The command `tagpr-eval`: a thin shell. Results go to stdout, progress to stderr; exit code 1 means "checked and
bad", 2 "used wrongly". Heavy imports stand inside the commands, so that `--help` answers at once."""

from pathlib import Path
from typing import Annotated

import typer

from tagpr_data.errors import run_cli

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Score, evaluate and compare personalized language models on LaMP and on your own data.",
)


@app.callback()
def _root() -> None:
    """Hold the subcommands together even while there is one."""


@app.command()
def score(
    golds: Annotated[Path, typer.Option(help="LaMP output file with the golds.")],
    preds: Annotated[Path, typer.Option(help="Predictions, in the same shape.")],
    mode: Annotated[str, typer.Option(help="exact: plain means. official: LaMP's evaluator, bit for bit.")] = "exact",
    seed: Annotated[int, typer.Option(help="numpy seed of official ROUGE, which is a bootstrap.")] = 0,
    task: Annotated[
        str | None, typer.Option(help="Task of files that name none; LaMP-2-old for news files, which say LaMP_2.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score a prediction file against a gold file by LaMP's metrics."""
    from tagpr_eval.score import score_files

    result = score_files(golds, preds, mode, seed, task)
    for warning in result.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(result.as_json() if as_json else result.as_text())


def main() -> None:
    """Entry point of the console script."""
    run_cli(app)
