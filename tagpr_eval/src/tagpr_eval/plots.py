"""Plots of a report: score by k with intervals, lift, and the cold-start curve.

Each is one matplotlib figure, given as SVG for the page (its ink is the page's ink, so it suits light and dark) or as
PNG and SVG files. Deterministic bytes for the same numbers. No text of the data is read as markup or mathematics.
"""

import io
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


def curves(panels: Mapping[str, Sequence[Line]], ticks: Sequence[str], x_label: str, y_label: str) -> "Figure":
    """Give small multiples side by side, one a panel, with the interval of each point as a bar."""
    from matplotlib.figure import Figure

    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    every = [line for lines in panels.values() for line in lines]
    names = list(dict.fromkeys(line.name for line in every if line.kind != "level"))
    colours = {name: PALETTE[place % (len(PALETTE) - 1)] for place, name in enumerate(names)}
    levels = list(dict.fromkeys(line.name for line in every if line.kind == "level"))
    figure = Figure(figsize=(3.4 * columns + 0.6, 3.0 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    shown: dict[str, Any] = {}
    for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
        axes.set_title(_cut(title))
        axes.set_xlabel(x_label)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlim(-0.4, len(ticks) - 0.6)
        for line in lines:
            if line.kind == "level":
                dashes = _LEVEL_DASHES[levels.index(line.name) % len(_LEVEL_DASHES)]
                value = line.points[0][1].value
                handle = axes.axhline(value, color=PALETTE[-1], linewidth=1.1, linestyle=(0, dashes), zorder=1)
                shown.setdefault(line.name, handle)
        series = [line for line in lines if line.kind != "level"]
        for place, line in enumerate(series):
            handle = _line(axes, line, ticks, colours[line.name], place - (len(series) - 1) / 2)
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


def svg(plot: Plot) -> str:
    """Give the plot as an `<svg>` element whose ink is `currentColor` and whose rules are `var(--rule)`."""
    text = _svg(plot).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace(_INK, "currentColor").replace(_RULE, "var(--rule)")


def svg_file(plot: Plot) -> bytes:
    """Give the plot as a file of its own, in dark ink."""
    return _svg(plot).replace(_INK.encode(), b"#1f1e1c").replace(_RULE.encode(), b"#d9d6cf")


def png_file(plot: Plot) -> bytes:
    """Give the plot as PNG on white, 200 dots an inch."""
    return _render(plot, "png")


def _line(axes: "Axes", line: Line, ticks: Sequence[str], colour: str, offset: float) -> Any:
    """Draw a series; give what stands for it in the legend."""
    places = [ticks.index(tick) + 0.05 * offset for tick, _ in line.points]
    values = [found.value for _, found in line.points]
    style: dict[str, Any] = {"color": colour, "linewidth": 1.6, "linestyle": "-"}
    if line.kind == "control":
        style["linestyle"] = (0, (1.2, 1.6))
    (handle,) = axes.plot(places, values, **style, marker="o", markersize=3.5)
    lows, highs = [found.low for _, found in line.points], [found.high for _, found in line.points]
    axes.vlines(places, lows, highs, color=colour, linewidth=1.0, alpha=0.55)
    return handle


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
