"""The tag grammar for constrained decoding: GBNF (llama.cpp, vLLM's xgrammar) and Lark (vLLM's guidance).

Guarantee: every text of the exported language is valid for `tags.parse` with the same tag set and k. The language is
a part of what `parse` accepts, and regular, so that a decoder cannot be led into a text it cannot finish:

- white space between steps is the canonical one of `tags.render`;
- in a step `<` and `[` stand only where the next character cannot begin markup or a citation: `a < b` and
  `<X11/Xlib.h>` are in the language, `a<b` is not where a tag begins with b, and no text may end with `<` or `[`;
- control characters other than tab and newline are left out, and a step that need not cite, as well as the answer,
  begins with a visible character;
- without k any number up to 999 may be cited, and a `pattern` step may cite any number of items.

Price: to demand two different items the rules of a `pattern` step grow with the square of k. Nothing bounds the length
of a step; that is the sampler's token limit.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tagpr_data.errors import InputError
from tagpr_data.tags import INVISIBLE, Tag, TagSet

Format = Literal["gbnf", "lark"]


def export(tagset: TagSet, k: int | None, notation: Format, answers: Sequence[str] = ()) -> str:
    """Give the grammar of traces for prompts of k items (None: not known) as text; with `answers` one of these stands
    after the think block. Raises InputError where no trace of this tag set could be valid with that k."""
    write = _NOTATIONS[notation]
    tags = [tag for tag in tagset.tags if k != 0 or tag.cites != "required"]
    required = [number for number, tag in enumerate(tags) if tag.name in tagset.required_any]
    others = [number for number in range(len(tags)) if number not in required]
    if not tags or (tagset.required_any and not required):
        raise InputError(
            f"tag set {tagset.name}: with k = {k} no item can be cited, so no required step can be written"
        )
    step, answer = write.terminal("step"), write.terminal("answer")
    rules = [
        (write.start, f"{_quoted('<think>' + _NEWLINE)} steps {_quoted('</think>' + _NEWLINE)} {answer}"),
        ("steps", _alternatives(_steps(tagset, bool(required), bool(others), write))),
        ("any", _alternatives(f"{step}{number}" for number in range(len(tags)))),
    ]
    if required:
        rules.append(("required", _alternatives(f"{step}{number}" for number in required)))
    if required and others:
        rules.append(("other", _alternatives(f"{step}{number}" for number in others)))
    for number, tag in enumerate(tags):
        opening, closing = _quoted(f"<{tag.name}>"), _quoted(f"</{tag.name}>{_NEWLINE}")
        rules.append((f"{step}{number}", f"{opening} {_body(tag, k, write)} {closing}"))
    rules += _characters(tagset.names, k, write, answers)
    title = f"Traces in the tag grammar, version 1: tag set {tagset.name}, {'any number of' if k is None else k} items"
    return "\n".join([f"{write.comment} {title}", *(f"{name}{write.defines} {rule}" for name, rule in rules)]) + "\n"


def export_answers(answers: Sequence[str], notation: Format) -> str:
    """Give the grammar of these answers alone, for prompts that ask for no reasoning; at least one answer."""
    write = _NOTATIONS[notation]
    return f"{write.comment} One of {len(answers)} answers\n{write.start}{write.defines} {_one_of(answers)}\n"


@dataclass(frozen=True)
class _Notation:
    """What differs between the two; literals, groups, `|`, `*`, `+`, `?` are the same."""

    start: str
    comment: str
    defines: str
    repeat: str
    set: str
    is_terminal_upper: bool
    """Lark reads by a lexer which cannot go back, so a whole step is one terminal there, written in capitals."""

    def times(self, rule: str, low: int, high: int) -> str:
        if low == high:
            return " ".join([rule] * low)
        return self.repeat.format(rule=rule, low=low, high=high)

    def characters(self, excluded: str) -> str:
        """Any character but those of a class, written as in a regular expression."""
        return self.set.format(f"[^{excluded}]")

    def one_of(self, characters: str) -> str:
        return self.set.format(f"[{characters}]")

    def terminal(self, name: str) -> str:
        return name.upper() if self.is_terminal_upper else name


_NOTATIONS: dict[Format, _Notation] = {
    "gbnf": _Notation("root", "#", " ::=", "{rule}{{{low},{high}}}", "{}", False),
    "lark": _Notation("start", "//", ":", "{rule}~{low}..{high}", "/{}/", True),
}


def _steps(tagset: TagSet, has_required: bool, has_others: bool, write: _Notation) -> list[str]:
    """Give the alternatives of the sequence of steps: by the place of the first required one, so that one is there and
    the number of steps is kept."""
    low, high = tagset.min_steps, tagset.max_steps
    if not has_required:
        return [write.times("any", low, high)]
    sequences: list[str] = []
    for before in range(high if has_others else 1):
        after = write.times("any", max(0, low - before - 1), high - before - 1)
        sequences.append(" ".join(filter(None, (write.times("other", before, before), "required", after))))
    return sequences


def _body(tag: Tag, k: int | None, write: _Notation) -> str:
    text, seen, cite = write.terminal("text"), write.terminal("seen"), write.terminal("cite")
    if tag.cites == "no" or k == 0:
        return f"{seen} {text}*"
    if tag.cites == "required":
        return f"{text}* {cite} ({text} | {cite})*"
    if tag.cites == "optional" or k is None or k < 2:
        return f"({seen} | {cite}) ({text} | {cite})*"
    two_items = [
        f"{one} ({text} | {one})* ({_alternatives(other for other in _each_citation(k) if other != one)})"
        for one in _each_citation(k)
    ]
    return f"{text}* ({_alternatives(two_items)}) ({text} | {cite})*"


def _characters(names: Sequence[str], k: int | None, write: _Notation, answers: Sequence[str]) -> list[tuple[str, str]]:
    """Give the rules below steps: runs of text, citations, the answer."""
    text, seen, cite = write.terminal("text"), write.terminal("seen"), write.terminal("cite")
    first = "".join(sorted({name[0] for name in names} | {"t"})) + r"\x2F<"
    bracket = f"{_quoted('<')} {write.characters(first + _OPENING + _CONTROLS)}"
    square = f"{_quoted('[')} {write.characters('P<' + _OPENING + _CONTROLS)}"
    bracket_in_answer = f"{_quoted('<')} {write.characters(first + _CONTROLS)}"
    rules = [
        (text, f"({write.characters('<' + _OPENING + _CONTROLS)} | {bracket} | {square})"),
        (seen, f"({write.characters('<' + _OPENING + _INVISIBLE)} | {bracket} | {square})"),
    ]
    if answers:
        rules.append((write.terminal("answer"), _one_of(answers)))
    else:
        rules += [
            (write.terminal("reply"), f"({write.characters('<' + _CONTROLS)} | {bracket_in_answer})"),
            (write.terminal("answer"), f"{write.terminal('shown')} {write.terminal('reply')}*"),
            (write.terminal("shown"), f"{write.characters('<' + _INVISIBLE)} | {bracket_in_answer}"),
        ]
    digit = write.one_of("0-9")
    if k is None:
        rules.append((cite, f"{_quoted('[P')} {write.one_of('1-9')} {digit}? {digit}? {_quoted(']')}"))
    elif k:
        rules.append((cite, _alternatives(_each_citation(k))))
    return rules


def _one_of(answers: Sequence[str]) -> str:
    return _alternatives(map(_quoted, answers))


def _each_citation(k: int) -> list[str]:
    return [_quoted(f"[P{number}]") for number in range(1, k + 1)]


def _alternatives(rules: Iterable[str]) -> str:
    return " | ".join(rules)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _class(ranges: Iterable[tuple[int, int]]) -> str:
    return "".join(_escaped(low) + (f"-{_escaped(high)}" if high > low else "") for low, high in ranges)


def _escaped(point: int) -> str:
    return f"\\x{point:02X}" if point < 0x100 else f"\\u{point:04X}" if point < 0x10000 else f"\\U{point:08X}"


_NEWLINE = "\n"
_OPENING = r"\["
_CONTROLS = _class([(0x0, 0x8), (0xB, 0x1F), (0x7F, 0x7F)])
_INVISIBLE = _class((low, high) for low, high in INVISIBLE if low != 0xD800)  # surrogates are no characters of a token
