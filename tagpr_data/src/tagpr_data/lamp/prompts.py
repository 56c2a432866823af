"""The official LaMP prompts, byte for byte: query and corpus texts per task, budget, truncation, wording.

Guarantee: the same text as the official generator under transformers 4.27.1 with the same fast tokenizer and the same
items, its silent behaviours included: above all, where the items do not fit the budget at any share, the profile is
dropped and the raw input comes back. Deviations, where the official code crashes: an input without the task's marker
is its own query, and an empty profile gives the raw input; both are for the caller to count (`find_query` says None).
Price: each item is tokenised up to seven times. Chat prompts are not made here but in `tagpr_data.prompts`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tagpr_data.errors import InputError
from tagpr_data.tasks import canonical_name

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Item = Mapping[str, str]


class _Form(NamedTuple):
    """How a task's prompt is built from items; templates take the item's fields and its `cut` text."""

    text_field: str
    """The field that is tokenised, cut and decoded."""
    frame: str | None
    """The words whose tokens are set aside for an item; None: two tokens."""
    item: str
    """An item in the prompt."""
    whole: str | None
    """The prompt, of the `joined` items and the `input`; None: the items go behind the input's first "title"."""
    spare_words: str | None = None
    """Words whose tokens are set aside once."""
    spare_tokens: int = 1
    """Further tokens set aside once."""


def official_prompt(
    task_name: str, input_text: str, items: Sequence[Item], tokenizer: "LampTokenizer", length: int
) -> str:
    """Give the prompt for `items`, best first, within a budget of `length` tokens (the official max_length).

    The items' share of the budget shrinks by a tenth of `length` at a time until each item's frame fits; where none
    does, or there are no items, the raw input is returned (compare with `input_text` to know). The result may still be
    longer than `length`: the official collator cuts it again, from the right.
    """
    form = _FORMS[_name(task_name)]
    share = 0.6
    input_tokens = tokenizer.count(input_text)
    while items and share >= 0:
        texts = _cut_texts(form, items, tokenizer, length - min(input_tokens, int(share * length)))
        if texts is not None:
            joined = ", and ".join(
                form.item.format_map({**item, "cut": text}) for item, text in zip(items, texts, strict=True)
            )
            if form.whole is None:
                return _after_title(joined, input_text)
            return form.whole.format(joined=joined, input=input_text)
        share -= 0.1  # not i / 10: the floating-point remainders decide the last budgets
    return input_text


def query(task_name: str, input_text: str) -> str:
    """Give the text to retrieve with; the whole input where the task's marker is missing."""
    found = find_query(task_name, input_text)
    return input_text if found is None else found


def find_query(task_name: str, input_text: str) -> str | None:
    """Give the part of the input that the official code retrieves with, None where it finds none (and crashes).

    LaMP-1: the second and the third quoted string, the quotes simply alternating between opening and closing, so that
    a quote inside a title shifts them. Others: what follows the first marker.
    """
    marker = _MARKERS[_name(task_name)]
    if marker == '"':
        quoted = input_text.split('"')[1:-1:2]
        return f"{quoted[1]} {quoted[2]}" if len(quoted) > 2 else None
    _, found, rest = input_text.partition(marker)
    return rest.strip() if found else None


def corpus(task_name: str, profile: Sequence[Item]) -> list[str]:
    """Give the text of each item that the official code ranks by; tags and scores are not part of it."""
    fields = _CORPUS_FIELDS[_name(task_name)]
    return [" ".join(item[field] for field in fields) for item in profile]


class LampTokenizer:
    """A fast tokenizer as the official code uses it: counts with special tokens, cuts, decodes and cleans up."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._special = tokenizer.num_special_tokens_to_add(False)

    @classmethod
    def load(cls, path: Path) -> "LampTokenizer":
        """Read a `tokenizer.json` or the folder that holds one; InputError when there is none or it is broken."""
        from tokenizers import Tokenizer

        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise InputError(f"tokenizer {path} does not exist; give a tokenizer.json or a folder that holds one")
        try:
            return cls(Tokenizer.from_str(file.read_text(encoding="utf-8")))
        except Exception as error:  # the library raises bare Exception for every fault of the file
            raise InputError(f"tokenizer {file} cannot be read: {error}") from None

    def count(self, text: str) -> int:
        """Number of tokens, special ones included."""
        return len(self._tokenizer.encode(text).ids)

    def cut(self, text: str, length: int) -> tuple[str, int]:
        """Cut to `length` ≥ 0 tokens, special ones included; give the text decoded again and the tokens it took.

        Less than the special tokens alone means no cut at all: the library's count runs below zero and round.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if length >= self._special:
            ids = ids[: length - self._special]
        return _clean_up(self._tokenizer.decode(ids, skip_special_tokens=True)), len(ids) + self._special


def _cut_texts(form: _Form, items: Sequence[Item], tokenizer: LampTokenizer, budget: int) -> list[str] | None:
    """Cut each item's text to its part of the budget, what one leaves over going to later ones; None if none is left
    for an item's frame."""
    once = form.spare_tokens + 2 * (len(items) - 1)
    if form.spare_words is not None:
        once += tokenizer.count(form.spare_words)
    part = (budget - once) // len(items)
    saved = 0
    texts: list[str] = []
    for item in items:
        frame = 2 if form.frame is None else tokenizer.count(form.frame.format_map(item))
        allowed = part + saved - frame
        if allowed < 0:
            return None
        text, used = tokenizer.cut(item[form.text_field], allowed)
        saved += part - used - frame
        texts.append(text)
    return texts


def _clean_up(text: str) -> str:
    """Take out the blanks that transformers 4.27.1 takes out after decoding, in its order."""
    for blank in (" .", " ?", " !", " ,"):
        text = text.replace(blank, blank[1:])
    text = text.replace(" ' ", "'")
    for blank in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(blank, blank[1:])
    return text


def _name(task_name: str) -> str:
    name = canonical_name(task_name)
    if name not in _FORMS:
        raise InputError(f"task {task_name!r} has no official prompt; known: {', '.join(_FORMS)}")
    return name


def _after_title(joined: str, text: str) -> str:
    before, title, after = text.partition("title")
    return f"{before}title, and {joined}{after}" if title else text


_TITLED = _Form(
    text_field="text",
    frame='"{title}" is the title for " " ',
    item='"{title}" is the title for "{cut}" ',
    whole="{joined}. {input}",
)

_FORMS: dict[str, _Form] = {
    "LaMP-1": _Form(text_field="title", frame=None, item='"{cut}"', whole=None, spare_tokens=0),
    "LaMP-2": _Form(
        text_field="description",
        frame='the tag for the movie: " " is "{tag}" ',
        item='the tag for the movie: "{cut}" is "{tag}" ',
        whole="{joined}. {input}",
    ),
    "LaMP-2-old": _Form(
        text_field="text",
        frame='the category for the article: " " is "{category}" ',
        item='the category for the article: "{cut}" is "{category}" ',
        whole="{joined}. {input}",
    ),
    "LaMP-3": _Form(
        text_field="text",
        frame='{score} is the score for " " ',
        item='{score} is the score for "{cut}" ',
        whole="{joined}. {input}",
    ),
    "LaMP-4": _TITLED,
    "LaMP-5": _Form(
        text_field="abstract",
        frame='"{title}" is a title " " ',  # the official frame lacks the word "for"
        item='"{title}" is a title for "{cut}" ',
        whole="{joined}. Following the given patterns {input}",
        spare_words="Following the given patterns",
    ),
    "LaMP-6": _TITLED,
    "LaMP-7": _Form(
        text_field="text",
        frame='"" ',
        item='"{cut}" ',
        whole="{joined} are written by a person. Following the given patterns {input}",
        spare_words="are written by user. Following the given patterns",  # officially not the words of the prompt
    ),
}

_MARKERS = {
    "LaMP-1": '"',
    "LaMP-2": "description:",
    "LaMP-2-old": "article:",
    "LaMP-3": "review:",
    "LaMP-4": "article:",
    "LaMP-5": "paper:",
    "LaMP-6": ":",
    "LaMP-7": ":",
}

_CORPUS_FIELDS: dict[str, tuple[str, ...]] = {
    "LaMP-1": ("title", "abstract"),
    "LaMP-2": ("description",),
    "LaMP-2-old": ("title", "text"),
    "LaMP-3": ("text",),
    "LaMP-4": ("title", "text"),
    "LaMP-5": ("title", "abstract"),
    "LaMP-6": ("text",),
    "LaMP-7": ("text",),
}
