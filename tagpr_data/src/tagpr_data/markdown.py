"""Pieces of the cards generated for the Hub: their YAML header, tables, code blocks, and data made harmless."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def header(values: Mapping[str, Any]) -> str:
    """Give the YAML block the Hub reads. Every text is a JSON string, which YAML reads as it is."""
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def table(names: Sequence[str], rows: Iterable[Sequence[str]], text: int) -> str:
    """Give a Markdown table; the first `text` columns are aligned left, the others right."""
    align = ["---"] * text + ["---:"] * (len(names) - text)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (names, align, *rows))


def one_line(text: str) -> str:
    """Make data harmless in Markdown: one line, no table bars, no tags, no code marks."""
    for mark, harmless in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("`", "'")):
        text = text.replace(mark, harmless)
    return " ".join(text.split())


def fenced(text: str, language: str = "text") -> str:
    """Put data into a code block that it cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"


def first_difference(found: str, wanted: str) -> str:
    """Give the number of the first line in which two texts differ, and both its versions; of long ones what follows
    shortly before they part."""
    lines = zip((found + "\n…").splitlines(), (wanted + "\n…").splitlines(), strict=False)
    number, (one, other) = next(((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1]), (0, ("", "")))
    parting = next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, (parting or min(len(one), len(other))) - 20)
    dots = "…" if start else ""
    return f"{number} says {dots + one[start : start + 80]!r}, not {dots + other[start : start + 80]!r}"
