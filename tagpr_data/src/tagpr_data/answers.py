"""The answer in a completion: `strict` changes nothing, `parsed` applies the rules below. Pure and deterministic.

The rules of `parsed`, in order; they are ours, and scores made with them stand in a column of their own:

1. What follows the last `</think>` counts, also where no `<think>` was seen (some chat templates put it into the
   prompt). A `<think>` that is not closed after that: `unclosed-think`. Nothing visible left: `empty`.
2. Lines that only open or close a code block go, and so does what wraps a whole line: markdown (`**`, `*`, `_`,
   backtick, heading, quotation or bullet marks), paired quotation marks, and a name before a colon (`Answer:`,
   `The answer is`, and by kind of task those of `_NAMES`).
3. Where a line begins with such a name, that line alone counts, else all of them.
4. generation: the first line that counts; one that ends in a colon is skipped where another follows (`Here it is:`).
5. classification: the one label that the lines name. Labels are found without regard to case and white space, as
   whole words, longest first (`dark comedy` is not `comedy`); where none is found, without the brackets around them
   (`1` for `[1]`). No label, or different ones: `unparseable`.
6. rating: the first number. No number: `unparseable`; one outside the task's labels: `out-of-range`. `4.0` reads 4.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from tagpr_data.records import Task
from tagpr_data.tags import INVISIBLE

Problem = Literal["empty", "unclosed-think", "unparseable", "out-of-range"]


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """What the extractor made of one completion."""

    answer: str | None
    """The answer; for classification the label as the task spells it. None where there is a problem."""
    problem: Problem | None
    """Why there is no answer."""


def strict(text: str) -> str:
    """Give the completion as it is, for scores without post-processing."""
    return text


def parsed(text: str, task: Task) -> ParsedAnswer:
    """Extract the answer of a completion by the rules in the module docstring; never raises on any text."""
    rest = text.rpartition("</think>")[2]
    if "<think>" in rest:
        return ParsedAnswer(None, "unclosed-think")
    lines = _lines(rest, _NAMES[task.kind])
    if not lines:
        return ParsedAnswer(None, "empty")
    words = next(([line] for line, is_named in lines if is_named), [line for line, _ in lines])
    if task.kind == "generation":
        return ParsedAnswer(next((line for line in words if not line.endswith((":", "："))), words[-1]), None)
    assert task.labels, "classification and rating tasks have labels"
    return (_rating if task.kind == "rating" else _label)("\n".join(words), task.labels)


def count_problems(answers: Iterable[ParsedAnswer]) -> dict[str, int]:
    """Give how many answers have each problem, all problems named."""
    counts = Counter(answer.problem for answer in answers)
    return {problem: counts[problem] for problem in get_args(Problem)}


def _lines(text: str, names: re.Pattern[str]) -> list[tuple[str, bool]]:
    """Give the cleaned lines that show anything, each with whether a name like `Answer:` stood before it."""
    lines: list[tuple[str, bool]] = []
    is_named = False
    for raw in text.splitlines():
        line = _unwrapped(raw)
        if raw.lstrip().startswith("```") or not _VISIBLE.search(line):
            continue
        name = names.match(line)
        if name:
            is_named = True
            line = _unwrapped(line[name.end() :])
            if not _VISIBLE.search(line):
                continue  # the answer follows on the next line
        lines.append((line, is_named))
        is_named = False
    return lines


def _unwrapped(line: str) -> str:
    """Take off marks at the start of a line, and pairs of marks around all of it."""
    line = _MARK.sub("", line.strip(), count=1)
    while True:
        for opening, closing in _PAIRS:
            inner = line[len(opening) : -len(closing)]
            is_pair = len(line) > len(opening) + len(closing) and line.startswith(opening) and line.endswith(closing)
            if is_pair and opening not in inner and closing not in inner:
                line = inner.strip()
                break
        else:
            return line


def _label(words: str, labels: tuple[str, ...]) -> ParsedAnswer:
    if words in labels:
        return ParsedAnswer(words, None)
    folded = _folded(words)
    for form in (_folded, _without_brackets):
        by_form = {form(label): label for label in labels}
        found = set(re.findall("|".join(map(_whole_words, sorted(by_form, key=len, reverse=True))), folded))
        if found:
            return ParsedAnswer(by_form[found.pop()], None) if len(found) == 1 else ParsedAnswer(None, "unparseable")
    return ParsedAnswer(None, "unparseable")


def _whole_words(label: str) -> str:
    """Give the pattern of a label; at an end in a script without case nothing can be said about words."""
    before = r"(?<!\w)(?<!\w-)" if label[0].islower() or label[0].isdigit() else ""
    after = r"(?!\w)(?!-\w)" if label[-1].islower() or label[-1].isdigit() else ""
    return before + re.escape(label) + after


def _rating(words: str, labels: tuple[str, ...]) -> ParsedAnswer:
    number = _NUMBER.search(words)
    if not number:
        return ParsedAnswer(None, "unparseable")
    value = float(number[0])
    if not float(labels[0]) <= value <= float(labels[-1]):
        return ParsedAnswer(None, "out-of-range")
    return ParsedAnswer(str(int(value)) if value.is_integer() else str(value), None)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _without_brackets(label: str) -> str:
    return _folded(label).strip("[](){}") or _folded(label)


def _names(words: str) -> re.Pattern[str]:
    """Give the pattern of `NAME:` and `the answer is` at the start of a line, also where the name is in bold."""
    name = rf"([*_]{{0,3}})(?:the )?(?:(?:final )?answer|{words})"
    return re.compile(rf"(?i){name}(?:\1 ?[:：]| ?[:：]\1| is\b\1:?)")


_NAMES = {
    "classification": _names("label|category|tag|component|reference|choice"),
    "rating": _names("rating|score"),
    "generation": _names("title|headline|subject(?: line)?|(?:paraphrased )?tweet|paraphrase"),
}
_VISIBLE = re.compile("[^" + "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in INVISIBLE) + "]")
_MARK = re.compile(r"^(?:#{1,6}|>|[-*+•])\s+")
_PAIRS = (
    ("**", "**"), ("__", "__"), ("*", "*"), ("_", "_"), ("`", "`"),
    ('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("„", "“"), ("«", "»"), ("「", "」"),
)  # fmt: skip
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)")
