"""The commands `tagpr-data download …`: bring published data here. A thin shell."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, get_args

import typer

from tagpr_data.errors import InputError
from tagpr_data.lamp.download import BASE_URL, SPLITS, By, download, lamp_files

app = typer.Typer(no_args_is_help=True, help="Fetch published data.")


@app.callback()
def _root() -> None:
    """Hold the subcommands together even while there is one."""


@app.command()
def lamp(
    output: Annotated[Path, typer.Option(help="Folder to save in; paths below it are those of the benchmark.")],
    tasks: Annotated[str, typer.Option(help="LaMP-1 … LaMP-7, LaMP-2-old for the news; separated by commas.")],
    splits: Annotated[str, typer.Option(help="train, dev, test; separated by commas.")] = "train,dev",
    by: Annotated[str, typer.Option(help="user: disjoint users. time: same users, later items; has dates.")] = "time",
    base_url: Annotated[str, typer.Option(help="Another place that has the same files.")] = BASE_URL,
    any_size: Annotated[bool, typer.Option("--any-size", help="Take a file whose size is not the known one.")] = False,
) -> None:
    """Fetch LaMP's question and output files; the same command goes on after a cut and skips what is there.

    Example: tagpr-data download lamp --tasks LaMP-3,LaMP-7 --by time --output lamp
    """
    wanted = splits.split(",")
    unknown = [split for split in wanted if split not in SPLITS]
    if unknown:
        raise InputError(f"split {unknown[0]!r} is unknown; LaMP has {', '.join(SPLITS)}")
    if by not in get_args(By):
        raise InputError(f"--by {by!r} is unknown; LaMP is split by user or by time")
    files = lamp_files(
        tasks.split(","), [split for split in SPLITS if split in wanted], "time" if by == "time" else "user"
    )
    for file in files:
        with _bar(file.path) as on_bytes:
            is_new = download(file, output, base_url, on_bytes, any_size)
        size = (output / file.path).stat().st_size
        typer.echo(f"{output / file.path}  {size:,} bytes{'' if is_new else ' (was there)'}")
    if any(file.task == "LaMP-6" for file in files):
        typer.echo(
            "LaMP-6 names files of the Avocado collection, which is licensed apart; texts are not in it", err=True
        )


@contextmanager
def _bar(title: str) -> Generator[Callable[[int, int | None], None], None, None]:
    """Show on stderr how far a file is; gives the function to tell bytes so far and in all."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=None)
        yield lambda have, total: progress.update(bar, completed=have, total=total)
