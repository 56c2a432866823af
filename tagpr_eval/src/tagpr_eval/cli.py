"""The command `tagpr-eval`: a thin shell. Results go to stdout, progress to stderr; exit code 1 means "checked and
bad", 2 "used wrongly". Heavy imports stand inside the commands, so that `--help` answers at once."""

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


def main() -> None:
    """Entry point of the console script."""
    run_cli(app)
