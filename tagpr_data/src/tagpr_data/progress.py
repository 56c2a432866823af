"""Progress on stderr, for the command line only: the library takes a callback and shows nothing by itself."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tagpr_data.generate import Tally

_SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def bar(title: str, total: int) -> Generator[Callable[[], object], None, None]:
    """Show a bar while the block runs; what it gives is called after each step. Off a terminal nothing is shown."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def meter(clock: Callable[[], float] = monotonic) -> "Generator[Callable[[Tally], object], None, None]":
    """Show how a generation stands while the block runs; what it gives is called after each answer. On a terminal one
    text that is renewed four times a second, elsewhere a line every 30 s."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    started = said = clock()
    latest: Tally | None = None

    def shown() -> Text:
        return Text(standing(latest, clock() - started) if latest is not None else "")

    def watch(tally: "Tally") -> None:
        nonlocal latest, said
        latest = tally
        if not console.is_terminal and clock() - said >= _SECONDS_BETWEEN_LINES:
            said = clock()
            print(standing(tally, said - started), file=sys.stderr, flush=True)  # noqa: T201 - the shell of a command

    if not console.is_terminal:
        yield watch
        return
    with Live(get_renderable=shown, console=console, refresh_per_second=4, transient=True):
        yield watch


def standing(tally: "Tally", seconds: float) -> str:
    """Give how a generation stands in one line: done, accepted, rejected by reason, tokens/s, cost, time left."""
    parts = [f"{tally.answers:,} of {tally.planned - tally.spared:,} answers, {tally.accepted:,} accepted"]
    if tally.rejected:
        parts.append("rejected: " + ", ".join(f"{count:,} {reason}" for reason, count in tally.rejected.most_common()))
    new = tally.new
    if seconds > 0 and new.answers:
        about = "about " if new.uncounted else ""
        parts.append(f"{about}{new.output_tokens / seconds:,.0f} tokens written/s")
    if cost := sum(usage.cost for usage in tally.used.values()):
        parts.append(f"cost {cost:,.4g}")
    if new.answers and tally.missing > 0:
        parts.append(f"{duration(tally.missing * seconds / new.answers)} left")
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """Give a time for people: `40 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"
