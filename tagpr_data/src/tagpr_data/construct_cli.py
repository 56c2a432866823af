"""The commands `tagpr-data construct …`: a data set folder from one source each."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from tagpr_data.records import DatasetManifest

app = typer.Typer(no_args_is_help=True, help="Build a data set folder: examples and the profiles they look at.")

Split = Literal["time", "user"]
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


@app.command()
def personas(
    *,
    output: Output,
    users: Annotated[int, typer.Option("--users", help="How many people.")] = 400,
    events: Annotated[int, typer.Option("--events", help="Events of each in each task.")] = 24,
    split: Annotated[Split, typer.Option("--split", help="user: disjoint users. time: each user's last events.")] = (
        "user"
    ),
    test_users: Annotated[
        float, typer.Option("--test-users", min=0, max=0.9, help="Share of users seen in test only.")
    ] = 0.2,
    min_earlier: MinEarlier = 6,
    held_out: HeldOut = 4,
    train_cap: TrainCap = 0,
    seed: Seed = 0,
) -> None:
    """Make a synthetic data set of people whose preferences are known: shelf of a thing, wording of a note."""
    from tagpr_data.construct import SplitOptions
    from tagpr_data.sources.personas import construct

    options = SplitOptions(
        split=split, min_history=1, min_earlier=min_earlier, held_out=held_out, train_cap=train_cap or None,
        test_users=test_users, seed=seed,
    )  # fmt: skip
    _tell(output, construct(output, users=users, events=events, options=options))


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
