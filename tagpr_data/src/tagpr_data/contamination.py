"""What of an evaluation must not be trained on: its users, and its questions, golds and profiles as runs of words.

A text is contaminated where it shares a run of `words` words with the evaluation, or is, if shorter, equal to one of
its texts (from `LEAST_WORDS` words on). Evaluations are data set folders (their validation and test splits) or folders
with LaMP's own files (`dev_questions.json`, `test_questions.json`, with the outputs beside them, at any depth, under a
folder named after the task). LaMP's frame around a question ("Which tag does this movie relate to …") is no content.
Guarantee: no shared run is missed. Price: 8 bytes per run in a file that all processes map; paraphrases are not found.

A data set's own later splits are another matter: they share users, items and, where answers are a person's own, whole
questions with the earlier ones by design. `OwnEvaluation` finds what is left to call a leak, a question asked again.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_data.records import Split
from tagpr_data.words import run_hashes, words_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LEAST_WORDS = 5
_CHUNK = 20_000
_LAMP_TASK = re.compile(r"(?i)lamp[-_ ]?([1-7][a-z]?(?:[-_]old)?)(?![0-9])")


@dataclass(frozen=True)
class Evaluations:
    """What was read from evaluation folders, as files of sorted hashes: pickled by path, mapped where it is used."""

    folder: Path
    words: int
    users: frozenset[str]

    @cached_property
    def _runs(self) -> "npt.NDArray[np.uint64]":
        import numpy as np

        return np.load(self.folder / "runs.npy", mmap_mode="r")

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "words": self.words, "users": self.users}

    def shared(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text shares a run of words, or the whole of a short text, with an evaluation."""
        import numpy as np

        found = np.zeros(len(texts), dtype=bool)
        if len(self._runs):
            hashes, owners = run_hashes(texts, self.words, LEAST_WORDS)
            places = np.searchsorted(self._runs, hashes)
            hits = self._runs[np.minimum(places, len(self._runs) - 1)] == hashes
            found[owners[hits]] = True
        return found.tolist()


def read_evaluations(paths: Sequence[Path], words: int, folder: Path) -> Evaluations:
    """Read evaluation folders and leave their hashes in `folder`. Raises InputError for one that holds neither."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    users: set[str] = set()
    parts: list[npt.NDArray[np.uint64]] = []
    texts: list[str] = []

    def flush() -> None:
        parts.append(np.unique(run_hashes(texts, words, LEAST_WORDS)[0]))
        if len(parts) > 32:
            parts[:] = [np.unique(np.concatenate(parts))]
        texts.clear()

    for path in paths:
        for user, text in _content(path):
            if user is not None:
                users.add(user)
            texts.append(text)
            if len(texts) >= _CHUNK:
                flush()
    flush()
    np.save(folder / "runs.npy", np.unique(np.concatenate(parts)))
    return Evaluations(folder, words, frozenset(users))


class OwnEvaluation:
    """Which questions of a data set are asked again in a later split: train < validation < test.

    Again is: by the same user, in the same words; or by anyone with the same gold, if it has `words` words or more
    (a shorter one may recur among people). Price: 16 bytes for each example of validation and test.
    """

    def __init__(self, dataset: Dataset, words: int) -> None:
        import numpy as np
        import polars as pl

        self._words = words
        later: dict[Split, list[int]] = {"validation": [], "test": []}
        for split in dataset.splits:
            if split not in later:
                continue
            path = dataset.folder / f"examples/{split}.parquet"
            for row in pl.scan_parquet(path).select("task", "user_id", "input", "output").collect().iter_rows():
                later[split] += self._keys(*row)
        self._of_train = np.unique(np.array(later["validation"] + later["test"], dtype=np.uint64))
        self._of_validation = np.unique(np.array(later["test"], dtype=np.uint64))

    def has(self, split: str, task: str, user: str, question: str, gold: str | None) -> bool:
        """Whether a later split than `split` asks this."""
        import numpy as np

        known = {"train": self._of_train, "validation": self._of_validation}.get(split)
        if known is None or not len(known):
            return False
        keys = np.array(self._keys(task, user, question, gold), dtype=np.uint64)
        return bool((known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys).any())

    def _keys(self, task: str, user: str, question: str, gold: str | None) -> list[int]:
        asked = words_of(question_text(task, question))
        parts = [("user", task, user, *asked)] if asked else []
        if gold is not None and len(asked) >= self._words:
            parts.append(("gold", task, " ".join(words_of(gold)), *asked))
        texts = ("\0".join(part).encode("utf-8", "surrogatepass") for part in parts)
        return [int.from_bytes(sha256(text).digest()[:8], "big") for text in texts]


def question_text(task: str, input_text: str) -> str:
    """Give the content of a question: of a LaMP task without the frame, which all its questions share."""
    from tagpr_data.lamp.prompts import find_query
    from tagpr_data.tasks import LAMP_TASKS, canonical_name

    name = canonical_name(task)
    if name not in {known.name for known in LAMP_TASKS}:
        return input_text
    return find_query(name, input_text) or input_text


def _content(path: Path) -> Iterator[tuple[str | None, str]]:
    """Give (user, text) for each question, gold and profile item of an evaluation."""
    if (path / "manifest.json").is_file():
        yield from _dataset_content(path)
        return
    files = sorted(path.rglob("*_questions.json")) if path.is_dir() else []
    wanted = [file for file in files if not file.name.startswith("train")]
    if not wanted:
        raise InputError(
            f"contamination: {path} is neither a data set folder nor one with LaMP's dev_questions.json or "
            f"test_questions.json (found {len(files)} train files)"
        )
    for file in wanted:
        yield from _lamp_content(file)


def _dataset_content(path: Path) -> Iterator[tuple[str | None, str]]:
    dataset = Dataset.load(path, verify=False)
    profiles: set[str] = set()
    for split in dataset.splits:
        if split == "train":
            continue
        for example in dataset.examples(split):
            profiles.add(example.profile_id)
            yield example.user_id, question_text(example.task, example.input)
            if example.output is not None:
                yield None, example.output
    import polars as pl

    items = dataset.profiles.filter(pl.col("profile_id").is_in(list(profiles)))
    for title, text in items.select("title", "text").iter_rows():
        yield None, " ".join(part for part in (title, text) if part)


def _lamp_content(file: Path) -> Iterator[tuple[str | None, str]]:
    from tagpr_data.lamp.convert import profile_items
    from tagpr_data.lamp.files import read_outputs, read_questions
    from tagpr_data.tables import canonical_json, sha256_text
    from tagpr_data.tasks import canonical_name

    named = [found for part in file.parts if (found := _LAMP_TASK.search(part))]
    if not named:
        raise InputError(f"contamination: no folder of {file} says which LaMP task it is; name one LaMP_1 … LaMP_7")
    task = canonical_name(f"LaMP-{named[-1][1].replace('_', '-')}")
    for question in read_questions(file, task):
        user = question.user_id or sha256_text(canonical_json(question.profile))[:24]  # as `import lamp` names them
        yield user, question_text(task, question.input)
        for item in profile_items(task, "", question.profile):
            yield None, " ".join(part for part in (item.title, item.text) if part)
    outputs = file.with_name(file.name.replace("_questions", "_outputs"))
    if outputs.is_file():
        for gold in read_outputs(outputs)[1].values():
            yield None, gold
