"""The command `tagpr-data`: a thin shell. Results go to stdout, progress to stderr; exit code 1 means "checked and
bad", 2 "used wrongly". Heavy imports stand inside the commands, so that `--help` answers at once."""

from pathlib import Path
from typing import Annotated

import typer

from tagpr_data import construct_cli
from tagpr_data.errors import run_cli

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Build, validate and publish tagged reasoning corpora; rank and prompt LaMP exactly.",
)
app.add_typer(construct_cli.app, name="construct")


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


def main() -> None:
    """Entry point of the console script."""
    run_cli(app)
