"""The commands that ask teachers: `generate`, and `build`, which goes on to the finished corpus. A thin shell.

Exit codes: 0 where all that was asked for is there (with --pilot-only the pilot); 1 where a limit left a part of the
answers out, or the corpus does not validate; 2 for wrong use, unreadable input or a teacher that fails; 130 after an
interrupt. In every case but 0 the same command goes on where it stopped.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tagpr_data.engine_cli import AddressOption, EngineOption, WorkersOption
from tagpr_data.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from tagpr_data.budget import Forecast
    from tagpr_data.build import Asking, CorpusConfig, GenerationReport

app = typer.Typer(no_args_is_help=True)

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CORPUS.toml", help="A CorpusConfig, for example tagpr_data/configs/xorg.toml.")
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="a.b=value, wins over the file.")]
MaxSamples = Annotated[int | None, typer.Option(help="Stop at so many answers in the folder.", min=0)]
MaxTokens = Annotated[int | None, typer.Option(help="Stop at so many tokens, read and written.", min=0)]
MaxCost = Annotated[float | None, typer.Option(help="Stop at this cost, by --prices.", min=0)]
Prices = Annotated[Path | None, typer.Option(help="TOML: [MODEL] input = …, output = … a million tokens.")]
PilotShare = Annotated[
    float, typer.Option("--pilot", help="Share of the prompts answered first, for a forecast; 0: none.", min=0, max=1)
]


@app.command("generate")
def generate_command(
    config: ConfigFile,
    overrides: Overrides = None,
    max_samples: MaxSamples = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    prices: Prices = None,
    pilot: PilotShare = 0.01,
    pilot_only: Annotated[bool, typer.Option("--pilot-only", help="Stop after the pilot and its forecast.")] = False,
) -> None:
    """Ask the teachers: examples × attempts × teachers → OUTPUT/.work/candidates.parquet. `build` goes on from there.

    Limits count all answers the folder holds, those of earlier calls too; with higher ones the same command goes on.
    After Ctrl-C or a kill it goes on as well, and nothing that was answered is asked again. Exit code 1 where a limit
    left answers out.
    """
    from tagpr_data.build import generate_candidates
    from tagpr_data.progress import bar

    if pilot_only and not pilot:
        raise InputError("--pilot-only needs a pilot; --pilot is 0")
    settings, asking = _asking(config, overrides, max_samples, max_tokens, max_cost, prices, pilot, pilot_only)
    report = generate_candidates(settings, bar, lambda line: typer.echo(line, err=True), asking)
    for line in summary(report):
        typer.echo(line)
    if report.status == "partial":
        _refuse_partial("the table of candidates", report.answers, report.planned)


@app.command("build")
def build_command(
    config: ConfigFile,
    overrides: Overrides = None,
    max_samples: MaxSamples = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    prices: Prices = None,
    pilot: PilotShare = 0.0,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Build a corpus: prompts, candidates, selection, corpus folder, validation. Unchanged stages are skipped.

    Where a limit stops the teachers, the corpus is made of what is there, says that it is partial, and the exit code
    is 1. --engine is where rows are judged and checked; it makes no difference to the bytes.
    """
    from tagpr_data.build import build
    from tagpr_data.engine import Engine
    from tagpr_data.progress import bar

    settings, asking = _asking(config, overrides, max_samples, max_tokens, max_cost, prices, pilot, False)
    place = Engine(engine, workers, address)
    manifest = build(settings, bar, lambda line: typer.echo(line, err=True), asking, place)
    typer.echo(settings.output)
    if partial := manifest.parameters.get("partial"):
        _refuse_partial(str(settings.output), partial["candidates"], partial["planned"])


def _refuse_partial(what: str, answers: int, planned: int) -> None:
    """End with exit code 1, so that a script does not take a part for the whole."""
    raise CheckFailed(
        f"{what} is partial: {answers:,} of {planned:,} answers, then a limit was reached; the same command with a "
        "higher limit goes on"
    )


def summary(report: "GenerationReport") -> list[str]:
    """Give what a generation came to, for people: one line in all, one for each teacher and task."""
    mark = {"complete": "complete", "partial": "PARTIAL, a limit was reached", "pilot": "PILOT only"}[report.status]
    rejected = ", ".join(f"{count:,} {reason}" for reason, count in report.rejected.items()) or "none"
    lines = [
        f"{mark}: {report.answers:,} of {report.planned:,} answers, {report.accepted:,} accepted; rejected: {rejected}"
    ]
    for row in report.used:
        about = "about " if row.uncounted else ""
        each = "none accepted"
        if row.accepted:
            each = (
                f"{about}{(row.input_tokens + row.output_tokens) / row.accepted:,.0f} tokens "
                f"and a cost of {row.cost / row.accepted:.4g} per accepted one"
            )
        lines.append(
            f"{row.task}, {row.teacher}: {row.answers:,} answers, {row.accepted:,} accepted; {about}"
            f"{row.input_tokens:,} + {row.output_tokens:,} tokens, cost {row.cost:,.4g}; {each}"
        )
    return lines


def forecast_lines(forecast: "Forecast") -> list[str]:
    """Give a forecast for people."""
    from tagpr_data.progress import duration

    def bounds(name: str, value: "float", low: float, high: float) -> str:
        return f"{value:,.4g} {name} ({low:,.4g} to {high:,.4g})"

    parts = [
        bounds(name, interval.expected, interval.low, interval.high)
        for name, interval in (("answers", forecast.answers), ("tokens", forecast.tokens), ("cost", forecast.cost))
    ]
    time = "time not known: an earlier call answered the pilot"
    if forecast.hours is not None:
        expected, low, high = (
            duration(3600 * hours) if hours != float("inf") else "?"
            for hours in (forecast.hours.expected, forecast.hours.low, forecast.hours.high)
        )
        time = f"{expected} to go ({low} to {high})"
    return [
        f"pilot     {forecast.prompts:,} prompts, {100 * forecast.acceptance:.0f} % of their answers accepted",
        f"forecast  {'; '.join(parts)}; {time}; 95 % intervals",
    ]


def _asking(
    config: Path, overrides: list[str] | None, max_samples: int | None, max_tokens: int | None,
    max_cost: float | None, prices: Path | None, pilot: float, pilot_only: bool,
) -> "tuple[CorpusConfig, Asking]":  # fmt: skip
    from tagpr_data.budget import Limits, read_prices
    from tagpr_data.build import Asking, CorpusConfig
    from tagpr_data.config import load
    from tagpr_data.progress import meter

    settings = load(CorpusConfig, config, overrides or [])

    def tell(forecast: "Forecast") -> None:
        for line in forecast_lines(forecast):
            typer.echo(line, err=True)

    return settings, Asking(
        limits=Limits(max_samples, max_tokens, max_cost),
        prices=read_prices(prices or settings.prices, max_cost),
        pilot_share=pilot,
        is_pilot_only=pilot_only,
        on_forecast=tell,
        watch=meter,
    )
