"""Progress of a long evaluation on stderr: samples, cells, tokens a second, cost so far, time left. A bar on a
terminal, else a line now and then. The library reports to a `Meter`; only the command line shows one."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

_LINE_EVERY_SECONDS = 20.0


class Meter(Protocol):
    """Is told how far a model has come."""

    def start(self, title: str, total: int, done: int) -> None:
        """Begin to count a model's samples; `done` of `total` are there already."""
        ...

    def advance(self, tokens: int, note: str = "") -> None:
        """Count a sample of so many tokens; `note` says what else has come so far: cells done, cost."""
        ...


class NoMeter:
    """Shows nothing."""

    def start(self, title: str, total: int, done: int) -> None:
        """Do nothing."""

    def advance(self, tokens: int, note: str = "") -> None:
        """Do nothing."""


class _LineMeter:
    """Prints a line every 20 seconds and at the end of each model."""

    def start(self, title: str, total: int, done: int) -> None:
        self.title, self.total, self.done = title, total, done
        self.tokens, self.new = 0, 0
        self.began = self.shown = monotonic()

    def advance(self, tokens: int, note: str = "") -> None:
        self.tokens += tokens
        self.new += 1
        self.note = note
        now = monotonic()
        if now - self.shown >= _LINE_EVERY_SECONDS or self.done + self.new == self.total:
            self.shown = now
            print(f"{self.title}: {self._state(now - self.began)}", file=sys.stderr, flush=True)  # noqa: T201

    def _state(self, seconds: float) -> str:
        at = self.done + self.new
        left = (self.total - at) * seconds / self.new
        rate = f"{self.tokens / max(seconds, 1e-9):.0f} tokens/s"
        return ", ".join(filter(None, (f"{at}/{self.total} samples", self.note, rate, f"{left:.0f} s left")))


@contextmanager
def meter() -> Generator[Meter, None, None]:
    """Give the meter that suits stderr."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _LineMeter()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:

        class BarMeter:
            def start(self, title: str, total: int, done: int) -> None:
                self.task = progress.add_task(title, total=total, completed=done, rate="")
                self.began, self.tokens = monotonic(), 0

            def advance(self, tokens: int, note: str = "") -> None:
                self.tokens += tokens
                rate = f"{self.tokens / max(monotonic() - self.began, 1e-9):.0f} tokens/s"
                rate = f"{note}, {rate}" if note else rate
                progress.update(self.task, advance=1, rate=rate)

        yield BarMeter()
