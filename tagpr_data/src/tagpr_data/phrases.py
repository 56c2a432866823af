"""Words that texts have in common, and how a trace speaks of them: telling words, citations, listings.

Guarantee: what comes out stands in the texts as it is written there. Price: words are compared by their letters alone,
and the words too common to tell anything are an English list of ours, short and bent towards commit messages.
"""

import re
from collections.abc import Sequence

from tagpr_data.records import ProfileItem

_WORD = re.compile(r"[^\W\d_](?:[\w'./+-]*\w)?")
_HASH = re.compile(r"[0-9a-f]{7,}")
_CODE = re.compile(r"\w_\w|[a-z][A-Z]|[A-Za-z]\d|/")
_COMMON = frozenset(
    re.findall(
        r"\S+",
        """
        afterwards already cherry commit currently existing however picked rather similarly therefore
        actually add added adds allow always avoid change changed changes check correct fix fixed fixes instead
        make makes made move never remove removed removes
        about after again all also and any are aren't because been before being both but can can't cannot could did
        didn't does doesn't don't down each else even ever for from get gets got had has hasn't have having her here
        his how i.e if into isn't it's its itself just like may might more most much must need needs new not now off
        old one only other our out over own same see set should since so some still such than that that's the their
        them then there these they this those through too two under until up use used uses using very was wasn't way
        we well were what when where whether which while who why will with without won't would yet you your
        """,
    )
)


def content_words(text: str) -> list[str]:
    """Give the telling words of a text in order, each once, as they stand; 3 to 20 characters."""
    found: dict[str, str] = {}
    for word in _WORD.findall(text):
        if 3 <= len(word) <= 20 and word.lower() not in _COMMON and not _HASH.fullmatch(word):
            found.setdefault(word.lower(), word)
    return list(found.values())


def shared_words(query: str, items: Sequence[ProfileItem]) -> list[list[tuple[str, str]]]:
    """Give for each item the words of the query that stand in it, rarest among the items first: (lower case, as in
    the item)."""
    wanted = {word.lower() for word in content_words(query)}
    texts = [content_of(item).lower() for item in items]
    spread = {word: sum(word in text for text in texts) for word in wanted}
    shared: list[list[tuple[str, str]]] = []
    for item in items:
        own = {word.lower(): word for word in content_words(content_of(item)) if word.lower() in wanted}
        shared.append(sorted(own.items(), key=lambda pair: (spread[pair[0]], -len(pair[0]), pair[0])))
    return shared


def content_of(item: ProfileItem) -> str:
    """Give the title and the text of an item."""
    return f"{item.title or ''}\n{item.text}"


def topic_words(query: str, first: Sequence[str], limit: int = 2) -> list[str]:
    """Give up to `limit` telling words of the query in its order: those in `first` (lower case), then names of code
    (`glXWait`, `fb_copy`), then long words, which are rarer than short ones."""
    words = content_words(query)
    by_worth = sorted(words, key=lambda word: (word.lower() not in first, not _CODE.search(word), -len(word)))
    return [word for word in words if word in by_worth[:limit]]


def names_label(query: str, label: str) -> bool:
    """Whether the label stands in the query as a word of its own."""
    return re.search(rf"(?<!\w){re.escape(label.lower())}(?!\w)", query.lower()) is not None


def telling_span(query: str, text: str, most: int = 10) -> str:
    """Give the start of the sentence of the query that has most words in common with the text, endings aside, the first
    of equals: at most so many words, none with a quotation mark or bracket. Empty where there is none."""
    wanted = set(stems(text))
    parts = re.split(r'["<>\[\]\n…“”]|(?<=[.!?;:])\s', query)
    spans = [" ".join(part.split()[:most]).strip(" ,;:.-") for part in parts]
    return max(spans, key=lambda span: (len(wanted & set(stems(span))), len(span.split()) > 2), default="")


def stems(text: str) -> list[str]:
    """Give words to compare: letters and digits in lower case, without the plainest English endings."""
    return [re.sub(r"(?<=\w{3})(?:ing|ed|es|s)$", "", word) for word in re.findall(r"[^\W_]+", text.lower())]


def most_similar(items: Sequence[ProfileItem], shared: Sequence[Sequence[tuple[str, str]]], limit: int) -> list[int]:
    """Give the numbers of the `limit` items that share most words with the query, in prompt order."""
    numbers = sorted(range(1, len(items) + 1), key=lambda number: (-len(shared[number - 1]), number))
    return sorted(numbers[:limit])


def is_quotable(label: str | None) -> bool:
    """Whether a label can stand between quotation marks in a step."""
    return bool(label) and not re.search(r"[\"<>\[\]\n…]", label or "")


def citing(numbers: Sequence[int]) -> str:
    """Cite items: `[P1], [P2] and [P4]`."""
    return listing([f"[P{number}]" for number in numbers])


def citing_range(numbers: Sequence[int]) -> str:
    """Cite ascending numbers, as a range where they leave none out."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"[P{numbers[0]}] to [P{numbers[-1]}]"
    return citing(numbers)


def quoted_listing(words: Sequence[str]) -> str:
    """Join words, each between quotation marks."""
    return listing([f'"{word}"' for word in words])


def listing(words: Sequence[str]) -> str:
    """Join words by commas and a last `and`."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part) if words else ""
