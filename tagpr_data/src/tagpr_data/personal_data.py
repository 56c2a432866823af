"""Personal data in texts: mail addresses, phone numbers, links that name a user, names of people; found and masked.

Names are those of a list the curator gives, and what follows a trailer such as `Signed-off-by:`. Patterns are simple
and prefer missing one over taking `2018-06-28` for a phone number; nobody should take a text without findings for
anonymous. Guarantee: a mask is in round brackets and replaces no angle or square bracket, quotation mark or line break,
so that the tags, citations and lines of a trace stay as they are. Price: one scan a kind, only where a text has its
sign.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from tagpr_data.errors import InputError

Kind = Literal["mail", "phone", "link", "handle", "name"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_MAIL = re.compile(
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}|[\w.+-]+ (?:\(at\)|at) [\w-]+ (?:\(dot\)|dot) [A-Za-z]{2,}\b"
)
_PHONE = re.compile(
    r"(?<![\w.+])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,11}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-])"
)
_LINK = re.compile(
    r"\b[a-z][a-z0-9+]{1,9}://[^\s<>\[\]\"“”]*?(?:/~|/users?/|/people/|/in/|/profile/|/@|(?:github|gitlab|twitter|x)\.com/)"
    r"[\w.-]*[\w-](?:[^\s<>\[\]\"“”]*[\w/])?",
    re.IGNORECASE,
)
_HANDLE = re.compile(r"(?<![\w@/.])@[A-Za-z_]\w{1,30}\b")
_TRAILER = re.compile(
    r"\b((?:signed-off|reviewed|acked|tested|reported|suggested|co-authored|authored)-by:[ \t]*)"
    r"([^\W\d_][\w.'’-]*(?:[ \t]+[^\W\d_][\w.'’-]*){0,3})",
    re.IGNORECASE,
)
_CAPITALISED = re.compile(r"[^\W\d_][\w.'’-]*(?:[ \t]+[^\W\d_][\w.'’-]*)*")


class Finder:
    """Finds and masks the wanted kinds; `names` are full names of people, of two words or more."""

    def __init__(self, kinds: Sequence[Kind] = ("mail", "phone", "link", "name"), names: Sequence[str] = ()) -> None:
        self.kinds, self.names = tuple(kinds), tuple(names)

    def mask(self, text: str, own: str = "") -> tuple[str, tuple[Kind, ...]]:
        """Give the text with what was found replaced by `(mail)`, `(phone)` …, and the kinds found, in the order of
        `KINDS`. `own` is a name that is not another person's."""
        found: list[Kind] = []
        for kind in KINDS:
            if kind not in self.kinds:
                continue
            masked = self._mask(kind, text, own.casefold())
            if masked != text:
                found.append(kind)
                text = masked
        return text, tuple(found)

    @property
    def sign(self) -> str:
        """A pattern (RE2) that every text with a finding matches, and few others."""
        if self.names and "name" in self.kinds:
            return r"\pL"
        signs: dict[Kind, str] = {
            "mail": r"@|\(at\)| at ",
            "phone": r"\+\d|\(\d{3}\)|\d{3}[.-]\d{3}[.-]\d",
            "link": "://",
            "handle": "@",
            "name": "-[Bb]y:",
        }
        return "|".join(signs[kind] for kind in self.kinds) or r"[^\s\S]"

    def _mask(self, kind: Kind, text: str, own: str) -> str:
        if kind == "mail":
            return _MAIL.sub("(mail)", text) if "@" in text or " at " in text or "(at)" in text else text
        if kind == "phone":
            return _PHONE.sub("(phone)", text)
        if kind == "link":
            return _LINK.sub("(link)", text) if "://" in text else text
        if kind == "handle":
            return _HANDLE.sub("(handle)", text) if "@" in text else text
        if "-by:" in text or "-By:" in text:
            text = _TRAILER.sub(lambda trailer: trailer[1] + ("(name)" if trailer[2] != "name" else "name"), text)
        if self._listed is None or not self._has_listed(text):
            return text
        return self._listed.sub(lambda name: name[0] if name[0].casefold() == own else "(name)", text)

    def _has_listed(self, text: str) -> bool:
        """Whether a first word of a listed name occurs: the whole list is a slow pattern."""
        return not self._first_words.isdisjoint(re.findall(r"[^\W\d_][\w.'’-]*", text.casefold()))

    @cached_property
    def _first_words(self) -> frozenset[str]:
        return frozenset(name.casefold().split()[0] for name in self.names)

    @cached_property
    def _listed(self) -> re.Pattern[str] | None:
        if not self.names:
            return None
        names = sorted({r"[ \t]+".join(map(re.escape, name.split())) for name in self.names}, key=len, reverse=True)
        return re.compile(rf"(?<!\w)(?:{'|'.join(names)})(?!\w)", re.IGNORECASE)


def read_names(path: Path) -> tuple[str, ...]:
    """Read a list of people's names, a line each; blank lines and lines that begin with # are none. Raises InputError
    where there is no such file, and for a name of one word, which would be found in ordinary text."""
    if not path.is_file():
        raise InputError(f"list of names {path} does not exist; give a text file with one full name a line")
    names: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if len(name.split()) < 2:
            raise InputError(
                f"{path}, line {number}: {name!r} is one word; give full names, as words are masked anywhere"
            )
        names.append(name)
    return tuple(names)
