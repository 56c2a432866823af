"""The task table: LaMP-1…7 in one form, and how to find a task by either spelling of its name.

Self-constructed tasks are `records.Task` too, written in the manifest of their data set. Label lists in the
official evaluator's order: movie tags after, news categories before 2024-03-20 (see LaMP-2 and LaMP-2-old).
"""

from collections.abc import Sequence

from tagpr_data.errors import InputError
from tagpr_data.records import Task

_MOVIE_TAGS = (
    "sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia", "dark comedy", "classic",
    "psychology", "fantasy", "romance", "thought-provoking", "social commentary", "violence", "true story",
)  # fmt: skip
_NEWS_CATEGORIES = (
    "food & drink", "sports", "education", "parents", "religion", "travel", "business", "crime",
    "science & technology", "culture & arts", "entertainment", "politics", "women", "style & beauty",
    "healthy living",
)  # fmt: skip

LAMP_TASKS: tuple[Task, ...] = (
    Task(
        name="LaMP-1", kind="classification", labels=("[1]", "[2]"), answer_form="[1] or [2]",
        item_template='"{title}": {text}',
    ),
    Task(
        name="LaMP-2", kind="classification", labels=_MOVIE_TAGS, answer_form="one of the tags",
        item_template='{label}: "{text}"',
    ),
    Task(
        name="LaMP-2-old", kind="classification", labels=_NEWS_CATEGORIES, answer_form="one of the categories",
        item_template='{label}: "{text}"',
    ),
    Task(
        name="LaMP-3", kind="rating", labels=("1", "2", "3", "4", "5"), answer_form="1, 2, 3, 4 or 5",
        item_template='{label}: "{text}"',
    ),
    Task(
        name="LaMP-4", kind="generation", answer_form="a headline", item_template='"{title}": {text}',
    ),
    Task(
        name="LaMP-5", kind="generation", answer_form="a title", item_template='"{title}": {text}',
    ),
    Task(
        name="LaMP-6", kind="generation", answer_form="a subject line", item_template='"{title}": {text}',
    ),
    Task(
        name="LaMP-7", kind="generation", answer_form="the paraphrased tweet", item_template='"{text}"',
    ),
)  # fmt: skip

_ALIASES = {"LaMP-2M": "LaMP-2", "LaMP-2N": "LaMP-2-old"}


def canonical_name(name: str) -> str:
    """Give a task's one name: `LaMP_3`, `lamp-3` → `LaMP-3`; `LaMP-2M` → `LaMP-2`; `LaMP-2N` → `LaMP-2-old`.
    Names of other tasks come back unchanged."""
    dashed = name.replace("_", "-")
    if not dashed.lower().startswith("lamp-"):
        return name
    rest = dashed[5:]
    dashed = "LaMP-" + (rest.lower() if rest.lower().endswith("old") else rest.upper())
    return _ALIASES.get(dashed, dashed)


def find_task(name: str, defined: Sequence[Task] = ()) -> Task:
    """Give the task of that name from LaMP or from `defined` (a manifest's tasks); InputError lists the known."""
    wanted = canonical_name(name)
    for task in (*defined, *LAMP_TASKS):
        if task.name == wanted:
            return task
    known = ", ".join(task.name for task in (*defined, *LAMP_TASKS))
    raise InputError(f"task {name!r} is unknown; known: {known}")
