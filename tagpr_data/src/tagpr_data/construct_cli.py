"""The commands `tagpr-data construct …`: a data set folder from one source each."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tagpr_data.records import DatasetManifest

app = typer.Typer(no_args_is_help=True, help="Build a data set folder: examples and the profiles they look at.")

Output = Annotated[Path, typer.Option("--output", help="Folder to write; an earlier version of it is replaced.")]
Seed = Annotated[int, typer.Option("--seed", help="Decides every draw; the same seed gives the same bytes.")]
MinHistory = Annotated[int, typer.Option("--min-history", min=1, help="Leave out users with fewer events.")]
MinEarlier = Annotated[int, typer.Option("--min-earlier", min=0, help="Ask only where so many earlier events exist.")]
HeldOut = Annotated[int, typer.Option("--held-out", min=1, help="Test examples a user, and as many for validation.")]
TrainCap = Annotated[int, typer.Option("--train-cap", min=0, help="Most training examples a user; 0: no limit.")]


@app.command()
def xorg(
    *,
    output: Output,
    file: Annotated[
        Path | None, typer.Option("--file", help="A log at hand: git-log text, .gz of it, or the .deb.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Where the fetched log is kept [default: ~/.cache/tagpr/xorg].")
    ] = None,
    min_history: MinHistory = 10,
    min_earlier: MinEarlier = 5,
    held_out: HeldOut = 2,
    train_cap: TrainCap = 40,
    seed: Seed = 0,
) -> None:
    """Build tasks from the X server's git log: component of a commit, subject line of a commit.

    The log comes out of Debian's package xserver-xorg-core (4 MB, fetched once with apt-get; no root needed).
    """
    from tagpr_data.construct import SplitOptions
    from tagpr_data.sources.xorg import construct

    options = SplitOptions(
        min_history=min_history, min_earlier=min_earlier, held_out=held_out, train_cap=train_cap or None, seed=seed
    )
    _tell(output, construct(output, file=file, cache=cache, options=options, report=_progress))


def _progress(line: str) -> None:
    typer.echo(line, err=True)


def _tell(folder: Path, manifest: "DatasetManifest") -> None:
    """Say what came out and where: one line on stdout, what was left out on stderr."""
    splits = ", ".join(
        f"{name.removeprefix('examples/').removesuffix('.parquet')} {entry.rows}"
        for name, entry in sorted(manifest.files.items())
        if name.startswith("examples/")
    )
    tasks = ", ".join(task.name for task in manifest.tasks)
    for reason, count in manifest.skipped.items():
        _progress(f"left out: {count} ({reason})")
    typer.echo(f"{folder}: {manifest.name} with {tasks}; {manifest.users} users; examples: {splits}")
