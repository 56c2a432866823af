"""Plots of a report: score by k with intervals, lift, the cold-start curve, training over steps, pair accuracies.

Each is one matplotlib figure, given as SVG for the page (its ink is the page's ink, so it suits light and dark) or as
PNG and SVG files. Deterministic bytes for the same numbers. No text of the data is read as markup or mathematics.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from tagpr_eval.stats import Difference, Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#2f7f86", "#c2703d", "#7a68b3", "#5f8f3e", "#b9507c", "#3f78c0", "#9a8435", "#7b7f86")
"""Colours of the series: readable on white and on near-black."""
TrackKind = Literal["curve", "dotted", "level"]
MANY = 30
"""Steps from which a track is smoothed."""
_LEVEL_DASHES = ((6, 2), (1, 1.5), (6, 2, 1, 2), (2.5, 2), (6, 2, 1, 2, 1, 2))
_INK, _RULE = "#010203", "#040506"
"""Stand-ins that the page replaces by its own colours."""
_SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.titlecolor": _INK,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "text.color": _INK,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "tagpr",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Line:
    """One series of a curve."""

    name: str
    """Legend entry."""
    points: tuple[tuple[str, Estimate], ...]
    """(place on the x axis, score) in order."""
    kind: Literal["curve", "control", "level"] = "curve"
    """control: dotted. level: one score for every x, a grey line; each has its own dashes."""


@dataclass(frozen=True)
class Track:
    """One series over the steps of a training run."""

    name: str
    """Legend entry; tracks of one name share a colour, as the stages of one run after the other do."""
    steps: tuple[float, ...]
    """Where its values stand."""
    values: tuple[float, ...]
    """One a step; nan leaves a gap."""
    intervals: tuple[tuple[float, float], ...] = ()
    """Ends of the interval of each value; empty where there are none."""
    kind: TrackKind = "curve"
    """curve: joined points, smoothed where there are many. dotted: the same, dotted. level: a grey line."""


@dataclass(frozen=True)
class Plot:
    """A figure, drawn when asked for."""

    name: str
    """File name without ending."""
    title: str
    """Heading."""
    caption: str
    """What it shows and how to read it."""
    draw: Callable[[], "Figure"]
    """Makes the figure."""


def curves(
    panels: Mapping[str, Sequence[Line]], ticks: Sequence[str], x_label: str, y_label: str, has_bands: bool = False
) -> "Figure":
    """Give small multiples side by side, one a panel, with the interval of each point as a bar, or, `has_bands`, those
    of a line as one band."""
    from matplotlib.figure import Figure

    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    every = [line for lines in panels.values() for line in lines]
    names = list(dict.fromkeys(line.name for line in every if line.kind != "level"))
    colours = {name: PALETTE[place % (len(PALETTE) - 1)] for place, name in enumerate(names)}
    levels = list(dict.fromkeys(line.name for line in every if line.kind == "level"))
    width = max(5.4, 3.4 * columns + 0.6)  # one panel alone would have giant letters on the page
    figure = Figure(figsize=(width, 3.0 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    shown: dict[str, Any] = {}
    for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
        axes.set_title(_cut(title))
        axes.set_xlabel(x_label)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_xticks(range(len(ticks)), [_cut(tick, 20) for tick in ticks])
        if any(len(tick) > 8 for tick in ticks):
            axes.tick_params("x", rotation=20)
        axes.set_xlim(-0.4, len(ticks) - 0.6)
        for line in lines:
            if line.kind == "level":
                dashes = _LEVEL_DASHES[levels.index(line.name) % len(_LEVEL_DASHES)]
                value = line.points[0][1].value
                handle = axes.axhline(value, color=PALETTE[-1], linewidth=1.1, linestyle=(0, dashes), zorder=1)
                shown.setdefault(line.name, handle)
        series = [line for line in lines if line.kind != "level"]
        for place, line in enumerate(series):
            offset = 0.0 if has_bands else place - (len(series) - 1) / 2
            handle = _line(axes, line, ticks, colours[line.name], offset, has_bands)
            shown.setdefault(line.name, handle)
    for axes in grid[:, 0]:
        axes.set_ylabel(y_label)
    figure.legend(shown.values(), map(_cut, shown), loc="outside lower center", ncols=min(len(shown), 2 + 2 * columns))
    return figure


def forest(rows: Sequence[tuple[str, Difference]], x_label: str) -> "Figure":
    """Give differences as dots with their intervals, one a row, zero marked."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 0.26 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=mpl.rcParams["text.color"], linewidth=0.8)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    for place, (_, found) in enumerate(rows):
        colour = PALETTE[0] if found.low > 0 else PALETTE[1] if found.high < 0 else PALETTE[7]
        axes.plot([found.low, found.high], [place, place], color=colour, linewidth=1.6, solid_capstyle="round")
        axes.plot([found.value], [place], "o", color=colour, markersize=4)
    axes.set_yticks(range(len(rows)), [_cut(name, 60) for name, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(x_label)
    return figure


def tracks(panels: Mapping[str, Sequence[Track]], x_label: str, ends: Sequence[tuple[float, str]] = ()) -> "Figure":
    """Give small multiples over steps, one a panel, each with its own scale. `ends`: the last step of each stage and
    its name; all panels reach to the last, and more than one are told apart by upright lines.

    More than `MANY` points are shown faintly, and their mean over a moving window strongly."""
    from matplotlib.figure import Figure

    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    every = [line for lines in panels.values() for line in lines]
    names = list(dict.fromkeys(line.name for line in every if line.kind != "level"))
    figure = Figure(figsize=(4.1 * columns + 0.4, 2.5 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    shown: dict[str, Any] = {}
    for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
        axes.set_title(_cut(title, 60))
        axes.set_xlabel(x_label)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.margins(y=0.12)
        for line in lines:
            colour = PALETTE[-1] if line.kind == "level" else PALETTE[names.index(line.name) % (len(PALETTE) - 1)]
            shown.setdefault(line.name, _track(axes, line, colour))
        if ends:
            axes.set_xlim(-0.03 * ends[-1][0], 1.03 * ends[-1][0])
        _stages(axes, ends)
    figure.legend(shown.values(), map(_cut, shown), loc="outside lower center", ncols=min(len(shown), 2 * columns))
    return figure


def dots(rows: Sequence[tuple[str, Mapping[str, Estimate]]], x_label: str, level: float) -> "Figure":
    """Give several estimates a row as dots with their intervals, a colour for each name; `level` is marked."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for _, found in rows for name in found))
    figure = Figure(figsize=(7.6, (0.14 * len(names) + 0.14) * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    axes.axvline(level, color=mpl.rcParams["text.color"], linewidth=0.8, linestyle=(0, (4, 3)))
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    shown: dict[str, Any] = {}
    for place, (_, found) in enumerate(rows):
        for name, value in found.items():
            series = names.index(name)
            colour, height = PALETTE[series % len(PALETTE)], place + (series - (len(names) - 1) / 2) * 0.15
            axes.plot([value.low, value.high], [height, height], color=colour, linewidth=1.4, solid_capstyle="round")
            (handle,) = axes.plot([value.value], [height], "o", color=colour, markersize=4)
            shown.setdefault(name, handle)
    axes.set_yticks(range(len(rows)), [_cut(name, 60) for name, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(x_label)
    figure.legend(shown.values(), map(_cut, shown), loc="outside lower center", ncols=min(len(shown), 3))
    return figure


def svg(plot: Plot) -> str:
    """Give the plot as an `<svg>` element whose ink is `currentColor` and whose rules are `var(--rule)`."""
    text = _svg(plot).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace(_INK, "currentColor").replace(_RULE, "var(--rule)")


def svg_file(plot: Plot) -> bytes:
    """Give the plot as a file of its own, in dark ink on white, as it may stand on a dark page."""
    text = _svg(plot).replace(_INK.encode(), b"#1f1e1c").replace(_RULE.encode(), b"#d9d6cf")
    return re.sub(rb"(<svg [^>]*>)", rb'\1\n <rect width="100%" height="100%" fill="#ffffff"/>', text, count=1)


def png_file(plot: Plot) -> bytes:
    """Give the plot as PNG on white, 200 dots an inch."""
    return _render(plot, "png")


def _line(axes: "Axes", line: Line, ticks: Sequence[str], colour: str, offset: float, has_band: bool) -> Any:
    """Draw a series; give what stands for it in the legend."""
    places = [ticks.index(tick) + 0.05 * offset for tick, _ in line.points]
    values = [found.value for _, found in line.points]
    style: dict[str, Any] = {"color": colour, "linewidth": 1.6, "linestyle": "-"}
    if line.kind == "control":
        style["linestyle"] = (0, (1.2, 1.6))
    (handle,) = axes.plot(places, values, **style, marker="o", markersize=3.5)
    lows, highs = [found.low for _, found in line.points], [found.high for _, found in line.points]
    if has_band and len(places) > 1:
        axes.fill_between(places, lows, highs, color=colour, alpha=0.13, linewidth=0)
    else:
        axes.vlines(places, lows, highs, color=colour, linewidth=1.0, alpha=0.55)
    return handle


def _track(axes: "Axes", line: Track, colour: str) -> Any:
    """Draw a series over steps; give what stands for it in the legend."""
    style: dict[str, Any] = {"color": colour, "linewidth": 1.6, "linestyle": "-"}
    if line.kind == "level":
        style |= {"linewidth": 1.1, "linestyle": (0, _LEVEL_DASHES[0]), "zorder": 1}
    elif line.kind == "dotted":
        style["linestyle"] = (0, (1.2, 1.6))
    values: Sequence[float] = line.values
    if len(values) > MANY and line.kind != "level":
        axes.plot(line.steps, values, color=colour, linewidth=0.8, alpha=0.28)
        values = moving_mean(values, len(values) // 10)
    elif line.kind != "level":
        style |= {"marker": "o", "markersize": 3.5}
    (handle,) = axes.plot(line.steps, values, **style)
    if line.intervals:
        axes.vlines(line.steps, *zip(*line.intervals, strict=True), color=colour, linewidth=1.0, alpha=0.55)
    return handle


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Give the mean of each value and its neighbours, at most `window` // 2 on either side; nan is left out."""
    half = window // 2
    parts = [values[max(0, at - half) : at + half + 1] for at in range(len(values))]
    known = [[value for value in part if not math.isnan(value)] for part in parts]
    return [math.fsum(part) / len(part) if part else math.nan for part in known]


def _stages(axes: "Axes", ends: Sequence[tuple[float, str]]) -> None:
    """Mark where stages end and say which they are."""
    import matplotlib as mpl

    if len(ends) < 2:
        return
    start = 0.0
    for end, name in ends:
        if start:
            axes.axvline(start, color=mpl.rcParams["text.color"], linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            _cut(name, 24), ((start + end) / 2, 0), xycoords=("data", "axes fraction"), xytext=(0, 3),
            textcoords="offset points", ha="center", va="bottom", fontsize=7.5, alpha=0.75,
        )  # fmt: skip
        start = end


@lru_cache(maxsize=64)
def _svg(plot: Plot) -> bytes:
    """Drawn once for the page and the file."""
    return _render(plot, "svg")


def _render(plot: Plot, form: Literal["svg", "png"]) -> bytes:
    import matplotlib as mpl

    ink = (
        {}
        if form == "svg"
        else {key: {_INK: "#1f1e1c", _RULE: "#d9d6cf"}.get(str(value), value) for key, value in _SETTINGS.items()}
    )
    out = io.BytesIO()
    with mpl.rc_context(_SETTINGS | ink), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's fonts draw the SVG
        options: dict[str, Any] = {"transparent": True, "metadata": {"Date": None}} if form == "svg" else {"dpi": 200}
        plot.draw().savefig(out, format=form, **options)
    return out.getvalue()


def _cut(text: str, limit: int = 40) -> str:
    """Keep a label short and on one line; matplotlib drops names that start with an underscore."""
    line = " ".join(text.split()) or "(empty)"
    line = line if len(line) <= limit else f"{line[: limit - 1]}…"
    return f" {line}" if line.startswith("_") else line
