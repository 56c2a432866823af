"""Tagged reasoning as text: the tag set, grammar version 1, and what a trace claims about the items it cites.

    <think>
    <examine_examples>[P2] and [P5] were both filed under "glamor" …</examine_examples>
    …
    </think>
    the answer

Markup is `<think>`, `</think>` and, for each tag of the set, `<name>` and `</name>`, written exactly so. Every other
angle bracket (`#include <X11/Xlib.h>`, `<Think>`, `＜think＞`) is plain text inside steps and in the answer; between
steps only white space may stand. A citation is `[P1]`, `[P2]`, … inside a step; a range `[P1]-[P4]` cites 1 and 4.

`parse` accepts any string, never raises, takes linear time, and keeps the text: for a valid text
`render(parsed.steps, parsed.answer, parsed.gaps) == text`. Price: of an invalid text the steps are a best effort, and
at most `MAX_SAME_VIOLATIONS` of a code are reported. The paper's grammar is not public; this one is ours.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from tagpr_data import config
from tagpr_data.dates import interval
from tagpr_data.errors import InputError, shorten
from tagpr_data.records import ProfileItem, Step
from tagpr_data.tables import canonical_json, sha256_text

TAGSETS = Path(__file__).parent / "tagsets"
SHIPPED_TAGSET = TAGSETS / "tagpr-9.toml"

CODES = {
    "no-think": "there is no <think>",
    "text-before-think": "something other than white space stands before the first <think>",
    "several-think": "a <think> or </think> beyond the first pair",
    "unclosed-think": "<think> is never closed by </think>",
    "stray-text": "text between steps, outside any tag",
    "unknown-tag": "<name> or </name> between steps, where the name is not in the tag set",
    "nested-tag": "a tag is opened inside a step",
    "mismatched-close": "a closing tag names another tag than the open one, or no tag is open",
    "unclosed-tag": "a step is still open where the think block or the text ends",
    "empty-step": "a step without a visible character",
    "too-few-steps": "fewer steps than the tag set's min_steps",
    "too-many-steps": "more steps than the tag set's max_steps",
    "missing-required": "none of the tag set's required_any occurs",
    "bad-citation": "[P0], a number above k, or something like a citation that is not of the form [P3]",
    "missing-citation": "a step cites fewer items than its tag demands",
    "unexpected-citation": "a step cites an item although its tag says that it cites none",
    "empty-answer": "no visible character after </think>",
    "tag-in-answer": "a tag of the set stands after </think>",
}
"""Every code a `Violation` may carry, and what it means. `no-think` is reported alone; after `unclosed-think` the
rules about the number of steps, required tags and the answer are not checked."""

MAX_SAME_VIOLATIONS = 100
"""Most violations of one code kept for one text, the first ones; hostile texts would yield hundreds of thousands."""

MAX_CITATION = 999_999
"""Largest item number that is read as a number."""

INVISIBLE = (
    (0x0, 0x20), (0x7F, 0xA0), (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x1680, 0x1680),
    (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2000, 0x200F), (0x2028, 0x202F), (0x205F, 0x206F), (0x2800, 0x2800),
    (0x3000, 0x3000), (0x3164, 0x3164), (0xD800, 0xDFFF), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0),
    (0xFFF9, 0xFFFB), (0xE0000, 0xE0FFF),
)  # fmt: skip
"""Code points that show nothing: white space, controls, format characters, blank letters, lone surrogates. A step or
answer of these alone is empty."""


class Tag(config.Config):
    """One functional tag."""

    name: str = Field(pattern=r"^[^\W\d][\w-]*$", max_length=64)
    """As written between angle brackets: a letter or underscore, then letters, digits, `_` or `-`, in any script."""
    meaning: str = Field(min_length=1)
    """What the step does, as it completes "the step should …"; stands in prompts."""
    cites: Literal["required", "pattern", "optional", "no"]
    """Items the step must cite: at least 1; at least 2 where the prompt has 2 or more; any number; none."""


class TagSet(config.Config):
    """The tags a grammar knows and the rules over a whole trace."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name as printed and stored in manifests."""
    tags: tuple[Tag, ...] = Field(min_length=1)
    """The tags, in the order prompts list them."""
    required_any: tuple[str, ...] = ()
    """At least one of these must occur; empty: none is required."""
    min_steps: int = Field(default=1, ge=1)
    """Fewest steps of a trace."""
    max_steps: int = Field(ge=1)
    """Most steps of a trace."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        seen: dict[str, str] = {"think": "think"}
        for name in self.names:
            if name.casefold() in seen:
                raise ValueError(f"tag {name!r} is taken already (by {seen[name.casefold()]!r}); names must differ")
            seen[name.casefold()] = name
        unknown = [name for name in self.required_any if name not in self.names]
        if unknown:
            raise ValueError(f"required_any names {unknown}, which are not tags; tags: {', '.join(self.names)}")
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps {self.min_steps} is above max_steps {self.max_steps}")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the tags, in order."""
        return tuple(tag.name for tag in self.tags)

    @cached_property
    def by_name(self) -> dict[str, Tag]:
        """The tags by name."""
        return {tag.name: tag for tag in self.tags}

    @cached_property
    def hash(self) -> str:
        """Identity of the content, whatever comments and layout the file has."""
        return sha256_text(canonical_json(self.model_dump(mode="json")))


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule."""

    code: str
    """One of `CODES`."""
    position: int
    """Character of the text where it shows, from 0."""
    message: str
    """What was found and what would be right."""


Findings = dict[str, list[Violation]]
"""Violations by code, while a text is parsed."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A text taken apart."""

    text: str
    """The text itself, unchanged."""
    steps: tuple[Step, ...]
    """Its steps in order."""
    answer: str
    """What follows the last `</think>`, without white space around it; empty where there is none."""
    gaps: tuple[str, ...]
    """White space before the think block, before, between and after the steps, before and after the answer: what
    `render` needs to give the text back. Empty for an invalid text."""
    violations: tuple[Violation, ...]
    """Broken rules by position; none for a valid text."""

    @property
    def is_valid(self) -> bool:
        """Whether the text is in the grammar."""
        return not self.violations


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing a step says about a cited item that can be looked up."""

    step: int
    """Index of the step, from 0."""
    item: int
    """Number n of the cited item `[Pn]`."""
    kind: Literal["exists", "before", "quote", "label"]
    """What is claimed; see `ground`."""
    text: str
    """The words of the step that claim it."""
    holds: bool
    """Whether it is true."""
    reason: str
    """Why not; empty where it holds."""


def load_tagset(path: Path | None = None) -> TagSet:
    """Read a tag set: a TOML file with the fields of `TagSet`, or a shipped set by its name (`tagpr-5`); None gives
    `tagpr-9`. Raises InputError."""
    path = path or SHIPPED_TAGSET
    if not path.is_file():
        shipped = {file.stem: file for file in sorted(TAGSETS.glob("*.toml"), key=lambda file: file.stem)}
        if str(path) not in shipped:
            raise InputError(
                f"tag set {path} does not exist; give a TOML file or the name of a shipped set: {', '.join(shipped)}"
            )
        path = shipped[str(path)]
    return config.load(TagSet, path)


def parse(text: str, tagset: TagSet, k: int | None = None) -> Parsed:
    """Take any text apart; never raises. `k`, the number of items in the prompt, lets citations be checked against
    [P1] … [Pk]; without it only their form is, and a `pattern` step may cite any number."""
    return _parse_valid(text, tagset, k) or _parse_any(text, tagset, k)


def render(steps: Sequence[Step], answer: str, gaps: Sequence[str] = ()) -> str:
    """Give the text of a trace: a line each for `<think>`, every step, `</think>` and the answer, or with the white
    space of `Parsed.gaps` instead. Nothing is checked: `parse` the result if steps or answer may hold markup."""
    gaps = gaps or ("", *["\n"] * (len(steps) + 1), "\n", "")
    assert len(gaps) == len(steps) + 4, "gaps are those of another trace"
    body = "".join(f"<{step.tag}>{step.text}</{step.tag}>{gap}" for step, gap in zip(steps, gaps[2:-2], strict=True))
    return f"{gaps[0]}<think>{gaps[1]}{body}</think>{gaps[-2]}{answer}{gaps[-1]}"


def cited(text: str) -> tuple[int, ...]:
    """Give the numbers of the items that a step's text cites, in order of first mention."""
    return tuple(dict.fromkeys(int(citation[1]) for citation in _CITATION.finditer(text) if citation[1]))


def ground(steps: Sequence[Step], items: Sequence[ProfileItem], query_date: str | None) -> list[Claim]:
    """Look up what steps claim about the items they cite; `items` are those of the prompt, [P1] first.

    - `exists`: a cited item is in the prompt. One claim per step and item; of a missing item nothing else is claimed.
    - `before`: a cited item is dated before the query. One per step and item where both dates are known; it fails
      only where the item is certainly not earlier (`2015-03` against `2015-03-07` holds).
    - `quote`: words in "…" or “…” occur in the item's title, text or label, as whole words. Case, white space and the
      kind of inner quotation marks do not matter; words longer than 24 characters are compared by their first 24, as
      prompts show them; an ellipsis or other punctuation at the end is ignored.
    - `label`: such words in a statement like `[P1] is "…"` or `[P1] and [P2] were both filed under "…"` are the
      item's label. The verb is is, are, was or were, then perhaps both or all, then perhaps filed under, labelled,
      labeled, tagged or rated. Of an item without label the statement is a `quote`.

    A quote speaks of the citations nearest before it in its sentence: of several together when only `,`, `;`, `&`,
    dashes, `and`, `or` or `to` stand between them, and then it must hold for each (one claim per item). A quote with no
    citation before it in its sentence claims nothing. A sentence ends with the line, or with `.`, `!` or `?` and white
    space, outside of quotes. Raises InputError for a date of an item or query that cannot be read.
    """
    claims: list[Claim] = []
    for index, step in enumerate(steps):
        for number in step.cites:
            claims += _claims_of_citation(index, number, items, query_date)
        if step.cites and ('"' in step.text or "“" in step.text):
            claims += _claims_of_quotes(index, step.text, items)
    return claims


def _parse_valid(text: str, tagset: TagSet, k: int | None) -> Parsed | None:
    """Take a valid text apart, or give None: the same as `_parse_any`, without the work of saying what is wrong."""
    pieces = _markers(tagset.names).split(text)  # text, "/" or "", name, text, …
    closing, names, between = pieces[1::3], pieces[2::3], pieces[::3]
    count, odd = divmod(len(names) - 2, 2)
    if (
        odd
        or not tagset.min_steps <= count <= tagset.max_steps
        or closing != ["", *["", "/"] * count, "/"]
        or names[0] != "think"
        or names[-1] != "think"
        or (opened := names[1:-1:2]) != names[2:-1:2]
        or "think" in opened
        or (tagset.required_any and not any(name in opened for name in tagset.required_any))
    ):
        return None
    before, rest = between[0], between[-1]
    gaps, answer = between[1:-1:2], rest.strip()
    if not _is_blank(before + "".join(gaps)) or not _VISIBLE.search(answer):
        return None
    fewest = {"no": 0, "optional": 0, "required": 1, "pattern": 2 if k is not None and k >= 2 else 0}
    largest = MAX_CITATION if k is None else k
    by_name, visible, citations = tagset.by_name, _VISIBLE.search, _CITATION.findall
    steps: list[dict[str, object]] = []
    for name, words in zip(opened, between[2:-1:2], strict=True):
        kind = by_name[name].cites
        cites: tuple[int, ...] = ()
        if "[P" in words and (numbers := citations(words)):
            if kind == "no" or "" in numbers:
                return None
            cites = _distinct(tuple(numbers))
            if max(cites) > largest:
                return None
        if len(cites) < fewest[kind] or not visible(words):
            return None
        steps.append({"tag": name, "text": words, "cites": cites})
    lead = rest[: len(rest) - len(rest.lstrip())]
    tail = rest[len(lead) + len(answer) :]
    return Parsed(text, _STEPS.validate_python(steps), answer, (before, *gaps, lead, tail), ())


def _parse_any(text: str, tagset: TagSet, k: int | None) -> Parsed:
    """Take any text apart and report every broken rule."""
    start = text.find("<think>")
    if start < 0:
        violation = Violation("no-think", 0, "there is no <think>; write <think>, steps, </think>, the answer")
        return Parsed(text, (), text.rpartition("</think>")[2].strip(), (), (violation,))
    found: Findings = {}
    if not _is_blank(text[:start]):
        _report(found, "text-before-think", _first_visible(text, 0), "nothing may stand before <think>")
    steps, gaps, end = _read_steps(text, start + len("<think>"), tagset, k, found)
    if end < 0:
        _report(found, "unclosed-think", start, "write </think> before the answer")
        answer = ""
    else:
        _check_steps(steps, end, tagset, found)
        answer, lead, tail = _read_answer(text, end + len("</think>"), tagset, found)
        gaps = [text[:start], *gaps, lead, tail]
    violations = sorted(chain.from_iterable(found.values()), key=lambda violation: violation.position)
    return Parsed(text, tuple(steps), answer, () if found else tuple(gaps), tuple(violations))


def shows(text: str) -> bool:
    """Whether a text has a visible character."""
    return _VISIBLE.search(text) is not None


def _report(found: Findings, code: str, position: int, message: str) -> None:
    same = found.setdefault(code, [])
    if len(same) < MAX_SAME_VIOLATIONS:
        same.append(Violation(code, position, message))


def _read_steps(
    text: str, begin: int, tagset: TagSet, k: int | None, found: Findings
) -> tuple[list[Step], list[str], int]:
    """Read from after `<think>` to `</think>`; give steps, the gaps around them, and where `</think>` is, or -1."""
    steps: list[Step] = []
    gaps: list[str] = []
    name = ""  # of the open step; empty between steps
    depth = 0  # of tags opened inside it
    for marker in _markers(tagset.names).finditer(text, begin):
        closes, marked, here = marker[1], marker[2], marker.start()
        if name:
            if marked == "think":
                if not closes:
                    _report(found, "several-think", here, "there is one think block")
                    continue
                _report(found, "unclosed-tag", begin, f"write </{name}> before </think>")
            elif not closes:
                depth += 1
                _report(found, "nested-tag", here, f"<{marked}> inside <{name}>; write </{name}> first")
                continue
            elif depth:
                depth -= 1
                continue
            elif marked != name:
                _report(found, "mismatched-close", here, f"</{marked}> where <{name}> is open")
            steps.append(_step(tagset.by_name[name], text[begin:here], begin, k, found))
            name = ""
            if marked == "think":
                return steps, gaps, here
        else:
            gap = text[begin:here]
            gaps.append(gap)
            if not _is_blank(gap):
                _check_gap(gap, begin, tagset, found)
            if marked == "think":
                if closes:
                    return steps, gaps, here
                _report(found, "several-think", here, "there is one think block")
            elif closes:
                _report(found, "mismatched-close", here, f"</{marked}> where no tag is open")
            else:
                name, depth = marked, 0
        begin = marker.end()
    if name:
        _report(found, "unclosed-tag", begin, f"write </{name}>")
        steps.append(_step(tagset.by_name[name], text[begin:], begin, k, found))
    elif not _is_blank(text[begin:]):
        _check_gap(text[begin:], begin, tagset, found)
    return steps, gaps, -1


def _step(tag: Tag, words: str, begin: int, k: int | None, found: Findings) -> Step:
    """Give the step with these words, which begin at `begin`, and report what is wrong with them."""
    if not _VISIBLE.search(words):
        _report(found, "empty-step", begin, f"<{tag.name}> says nothing")
    cites: tuple[int, ...] = ()
    is_bad = False
    if "[P" in words and (numbers := _CITATION.findall(words)):
        cites = tuple(dict.fromkeys(map(int, filter(None, numbers))))
        if "" in numbers or max(cites) > (MAX_CITATION if k is None else k):
            is_bad = True
            _report_citations(words, begin, k, found)
    if tag.cites == "no":
        if cites:
            _report(found, "unexpected-citation", begin, f"<{tag.name}> may not cite items")
    elif tag.cites != "optional" and not is_bad:
        needed = 1 if tag.cites == "required" else 2 if k is not None and k >= 2 else 0
        if len(cites) < needed:
            message = f"<{tag.name}> cites {len(cites)} items and must cite at least {needed}, as [P1]"
            _report(found, "missing-citation", begin, message)
    return Step(tag=tag.name, text=words, cites=cites)


def _report_citations(words: str, begin: int, k: int | None, found: Findings) -> None:
    right = "[P1], [P2], …" if k is None else f"[P1] to [P{k}]" if k else "none, as there are no items"
    for citation in _CITATION.finditer(words):
        if not citation[1] or (k is not None and int(citation[1]) > k):
            message = f"{shorten(citation[0])} names no item; right would be {right}"
            _report(found, "bad-citation", begin + citation.start(), message)


def _check_gap(gap: str, begin: int, tagset: TagSet, found: Findings) -> None:
    """Report what stands between steps besides white space: each unknown tag, and once per gap other text."""
    done = 0
    stray = -1
    for element in _ELEMENT.finditer(gap):
        if stray < 0 and not _is_blank(gap[done : element.start()]):
            stray = _first_visible(gap, done)
        done = element.end()
        message = f"{shorten(element[0], 40)}: the tag set {tagset.name} knows {', '.join(tagset.names)}"
        _report(found, "unknown-tag", begin + element.start(), message)
    if stray < 0 and not _is_blank(gap[done:]):
        stray = _first_visible(gap, done)
    if stray >= 0:
        message = f"{shorten(gap[stray : stray + 40], 40)} stands outside any tag"
        _report(found, "stray-text", begin + stray, message)


def _check_steps(steps: list[Step], end: int, tagset: TagSet, found: Findings) -> None:
    """Report what is wrong with the steps as a whole."""
    if len(steps) < tagset.min_steps:
        message = f"{len(steps)} steps; at least {tagset.min_steps} are needed"
        _report(found, "too-few-steps", end, message)
    if len(steps) > tagset.max_steps:
        message = f"{len(steps)} steps; at most {tagset.max_steps} are allowed"
        _report(found, "too-many-steps", end, message)
    if tagset.required_any and not any(step.tag in tagset.required_any for step in steps):
        _report(found, "missing-required", end, f"one of {', '.join(tagset.required_any)} must occur")


def _read_answer(text: str, begin: int, tagset: TagSet, found: Findings) -> tuple[str, str, str]:
    """Give the answer and the white space before and after it; report markup after the think block."""
    for marker in _markers(tagset.names).finditer(text, begin):
        if marker[2] == "think":
            _report(found, "several-think", marker.start(), "there is one think block")
            begin = marker.end() if marker[1] else begin
        else:
            _report(found, "tag-in-answer", marker.start(), f"{marker[0]} after </think>")
    rest = text[begin:]
    answer = rest.strip()
    if not _VISIBLE.search(answer):
        _report(found, "empty-answer", begin, "write the answer after </think>")
    lead = rest[: len(rest) - len(rest.lstrip())]
    return answer, lead, rest[len(lead) + len(answer) :]


def _claims_of_citation(index: int, number: int, items: Sequence[ProfileItem], query_date: str | None) -> list[Claim]:
    words = f"[P{number}]"
    if not 1 <= number <= len(items):
        return [Claim(index, number, "exists", words, False, f"the prompt has {len(items)} items")]
    claims = [Claim(index, number, "exists", words, True, "")]
    date = items[number - 1].date
    if date is not None and query_date is not None:
        holds = _interval(date)[0] < _interval(query_date)[1]
        reason = "" if holds else f"{words} is dated {date}, the query {query_date}"
        claims.append(Claim(index, number, "before", words, holds, reason))
    return claims


def _claims_of_quotes(index: int, text: str, items: Sequence[ProfileItem]) -> list[Claim]:
    claims: list[Claim] = []
    group: dict[int, None] = {}  # the items that a quote here speaks of, in order
    after = 0  # where the last citation ends
    is_joinable = False  # whether the next citation may belong to the group: no quote since the last one
    for piece in _PIECE.finditer(text):
        if piece["number"]:
            if not (is_joinable and _GLUE.fullmatch(text, after, piece.start())):
                group = {}
            if int(piece["number"]) <= len(items):
                group[int(piece["number"])] = None
            after, is_joinable = piece.end(), True
        elif piece["end"]:
            group, is_joinable = {}, False
        else:
            quote = piece["straight"] or piece["curly"] or ""
            is_label = is_joinable and _LABEL_VERB.fullmatch(text, after, piece.start()) is not None
            is_joinable = False
            if _without_end(_folded(quote)):
                claims += [_claim_of_quote(index, number, quote, is_label, items[number - 1]) for number in group]
    return claims


def _claim_of_quote(index: int, number: int, quote: str, is_label: bool, item: ProfileItem) -> Claim:
    words = _without_end(_folded(quote))
    if is_label and item.label is not None:
        holds = words == _without_end(_folded(item.label))
        reason = "" if holds else f"the label of [P{number}] is {shorten(item.label)}"
        return Claim(index, number, "label", quote, holds, reason)
    holds = any(_occurs(words, _folded(field)) for field in (item.title, item.text, item.label) if field)
    return Claim(index, number, "quote", quote, holds, "" if holds else f"these words are not in [P{number}]")


def _occurs(words: str, text: str) -> bool:
    """Whether `words` stand in `text` as whole words; scripts without case are taken to have no word boundaries."""
    at = text.find(words)
    while at >= 0:
        end = at + len(words)
        is_cut_before = at > 0 and _is_word(text[at - 1]) and _is_word(words[0])
        is_cut_after = end < len(text) and _is_word(text[end]) and _is_word(words[-1])
        if not (is_cut_before or is_cut_after):
            return True
        at = text.find(words, at + 1)
    return False


def _is_word(character: str) -> bool:
    return character.islower() or character.isdigit()


def _without_end(quote: str) -> str:
    return quote.rstrip(" .,;:!?…")


@lru_cache(maxsize=4096)
def _distinct(numbers: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(int, numbers)))


@lru_cache(maxsize=4096)
def _folded(text: str) -> str:
    """Give text as quotes are compared: without case, single blanks, one kind of quotation mark, and with the changes
    that prompts make (`prompts.py` cuts words at 24 characters and breaks up `<|`)."""
    words = text.translate(_QUOTATION_MARKS).casefold().replace("<|", "< |").split()
    return " ".join(word[:24] for word in words)


@lru_cache(maxsize=4096)
def _interval(date: str) -> tuple[float, float]:
    return interval(date)


@lru_cache(maxsize=64)
def _markers(names: tuple[str, ...]) -> re.Pattern[str]:
    """Give the pattern of all markup of a tag set: group 1 is the slash of a closing tag, group 2 the name."""
    return re.compile(f"<(/?)(think|{'|'.join(re.escape(name) for name in names)})>")


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def _first_visible(text: str, begin: int) -> int:
    """Give the place of the first character from `begin` on that is not white space; there is one."""
    return len(text) - len(text[begin:].lstrip())


_STEPS = TypeAdapter(tuple[Step, ...])  # all steps at once cost two thirds of one by one
_VISIBLE = re.compile("[^" + "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in INVISIBLE) + "]")
_CITATION = re.compile(r"\[P(?:([1-9][0-9]{0,5})\]|\]|[ +-]{0,3}\d[^\[\]\n]{0,20}\]?)")
_ELEMENT = re.compile(r"<([^\W\d][\w-]*)>[^<]*</\1>|</?[^\W\d][\w-]*>")
_PIECE = re.compile(
    r'\[P(?P<number>[1-9][0-9]{0,5})\]|"(?P<straight>[^"\n]*)"|“(?P<curly>[^“”\n]*)”|(?P<end>[.!?](?=\s)|\n)'
)
_GLUE = re.compile(r"[\s,;&–—-]*(?:(?:and|or|to)\s+)?")
_LABEL_VERB = re.compile(
    r"\s+(?:is|are|was|were)(?:\s+(?:both|all))?(?:\s+(?:filed\s+under|labelled|labeled|tagged|rated))?\s+"
)
_QUOTATION_MARKS = dict.fromkeys(map(ord, '"“”„«»‘’`'), "'")
