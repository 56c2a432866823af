"""Is a text in the language it should be in? The library py3langid on prose, the script alone on a few words.

Guarantee: no verdict without evidence: a text is only called foreign where most of its letters are of another script,
or where py3langid is sure of another language (`SURE`) and the text has `LEAST_LETTERS` letters. Price: about 0.2 ms a
text that is asked about; the first `MOST_CHARACTERS` characters decide.
"""

import re
from functools import cache
from typing import Any

from tagpr_data.errors import InputError

LEAST_LETTERS = 60
MOST_CHARACTERS = 300
SURE = 0.95

SCRIPTS = {
    "latin": "A-Za-z\u00aa\u00ba\u00c0-\u024f\u1e00-\u1eff", "greek": "\u0370-\u03ff\u1f00-\u1fff",
    "cyrillic": "\u0400-\u052f", "armenian": "\u0531-\u058f", "hebrew": "\u0590-\u05ff",
    "arabic": "\u0600-\u06ff\u0750-\u077f", "devanagari": "\u0900-\u097f", "bengali": "\u0980-\u09ff",
    "tamil": "\u0b80-\u0bff", "thai": "\u0e00-\u0e7f", "georgian": "\u10a0-\u10ff",
    "hangul": "\u1100-\u11ff\uac00-\ud7af",
    "kana": "\u3040-\u30ff", "han": "\u3400-\u4dbf\u4e00-\u9fff",
}  # fmt: skip
"""Letters of each script that is told apart, as a character class."""
_LETTERS = {name: re.compile(f"[{letters}]") for name, letters in SCRIPTS.items()}
_TOGETHER = {"kana": "japanese", "han": "japanese"}


def script_of(text: str) -> str | None:
    """Give the script that most letters of a text are of, one of `SCRIPTS`; None without letters."""
    if text.isascii():
        return "latin" if _LETTERS["latin"].search(text) else None
    counts = {name: len(pattern.findall(text)) for name, pattern in _LETTERS.items()}
    most = max(counts, key=lambda name: counts[name])
    return most if counts[most] else None


def is_other_script(text: str, model: str) -> bool:
    """Whether most letters of `text` are of another script than most of `model`."""
    one, other = script_of(text), script_of(model)
    return one is not None and other is not None and _TOGETHER.get(one, one) != _TOGETHER.get(other, other)


def foreign_language(text: str, wanted: str) -> str | None:
    """Give the language (ISO 639-1) that a text surely is in instead of `wanted`, or None."""
    text = text[:MOST_CHARACTERS]
    if sum(map(str.isalpha, text)) < LEAST_LETTERS:
        return None
    language, probability = _identifier().classify(text)
    return language if language != wanted and probability >= SURE else None


def check_language(code: str) -> None:
    """Raise InputError unless the language is one that py3langid tells apart."""
    known = sorted(_identifier().labels)
    if code not in known:
        raise InputError(f"language {code!r} is not known; known: {', '.join(known)}")


@cache
def _identifier() -> Any:
    try:
        from py3langid import langid  # pyright: ignore[reportMissingImports] - an extra
    except ImportError:
        raise InputError("language needs py3langid; install it with: pip install 'tagpr-data[language]'") from None
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
