"""The commands `tagpr-data tags …`: check texts against the tag grammar, export it for constrained decoding."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tagpr_data.errors import CheckFailed, InputError, shorten

app = typer.Typer(no_args_is_help=True, help="Check texts against the tag grammar, or export it.")

Notation = Literal["gbnf", "lark"]
TagsetFile = Annotated[Path | None, typer.Option("--tagset", help="Tag-set file (TOML); without it tagpr-9.")]


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help='JSON lines: {"id": …, "text": …} and, to check citations, "k".')],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with counts and violations.")] = False,
    tagset: TagsetFile = None,
) -> None:
    """List where the texts of FILE break the grammar; exit code 1 if any does.

    Without --json a violation is a line: line number, id, position, code, message, separated by tabs.
    """
    from tagpr_data.tags import load_tagset, parse

    grammar = load_tagset(tagset)
    counts: Counter[str] = Counter()
    violations: list[dict[str, Any]] = []
    texts = invalid = 0
    for row in read_texts(file):
        found = parse(row.text, grammar, row.k).violations
        texts += 1
        invalid += bool(found)
        for violation in found:
            counts[violation.code] += 1
            place = {"line": row.line, "id": row.id, "position": violation.position}
            place |= {"code": violation.code, "message": violation.message}
            if as_json:
                violations.append(place)
            else:
                typer.echo("\t".join(_printable(value) for value in place.values()))
    if as_json:
        summary = {"texts": texts, "valid": texts - invalid, "invalid": invalid, "tagset": grammar.name}
        summary |= {"tagset_hash": grammar.hash, "counts": dict(sorted(counts.items())), "violations": violations}
        typer.echo(json.dumps(summary))
    if invalid:
        most = ", ".join(f"{code} {count}" for code, count in counts.most_common())
        raise CheckFailed(f"{file}: {invalid} of {texts} texts break the grammar of {grammar.name} ({most})")
    if not as_json:
        typer.echo(f"{file}: all {texts} texts are valid in the grammar of {grammar.name}", err=True)


@app.command()
def grammar(
    notation: Annotated[Notation, typer.Option("--format", help="gbnf: llama.cpp, xgrammar. lark: llguidance.")],
    k: Annotated[int | None, typer.Option("--k", min=0, help="Items in the prompt; only these can be cited.")] = None,
    tagset: TagsetFile = None,
) -> None:
    """Print the tag grammar for constrained decoding: what it allows is valid for `tags check` with the same k."""
    from tagpr_data.grammar import export
    from tagpr_data.tags import load_tagset

    typer.echo(export(load_tagset(tagset), k, notation), nl=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One text to check."""

    line: int
    """Line of the file, from 1."""
    id: str | int
    """As the file gives it; need not be unique."""
    text: str
    """What to check."""
    k: int | None
    """Items in the prompt; None where the file does not say."""


def read_texts(path: Path) -> Iterator[Row]:
    """Read JSON lines with `id`, `text` and perhaps `k` one by one; other keys and blank lines are passed over.
    Raises InputError with the number of a line that is none of this."""
    if not path.is_file():
        raise InputError(f"{path} does not exist or is a folder; expected a file of JSON lines")
    number = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _row(f"{path}, line {number}", number, line)
    if not number:
        raise InputError(f'{path} is empty; expected a JSON object with "id" and "text" on every line')


def _row(where: str, number: int, line: bytes) -> Row:
    try:
        value: Any = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON in UTF-8 ({error}): {shorten(line[:200])}") from None
    if not isinstance(value, dict):
        raise InputError(f'{where}: a JSON object with "id" and "text" is expected, not {shorten(value)}')
    fields: dict[str, Any] = value
    for name, kinds in (("id", (str, int)), ("text", (str,))):
        if name not in fields:
            raise InputError(f'{where}: "{name}" is missing; found {shorten(sorted(fields))}')
        if not isinstance(fields[name], kinds) or isinstance(fields[name], bool):
            raise InputError(f'{where}: "{name}" is {shorten(fields[name])}; expected a string')
    k = fields.get("k")
    if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 0):
        raise InputError(f'{where}: "k" is {shorten(k)}; expected the number of items in the prompt, 0 or more')
    return Row(number, fields["id"], fields["text"], k)


def _printable(value: object) -> str:
    """Give a value as one line that any terminal takes: controls and lone surrogates escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(value))
