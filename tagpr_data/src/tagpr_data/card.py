"""The documents of a corpus, generated from its data: the card `README.md` and `croissant.json`.

Guarantee: the same corpus and `card.toml` give the same bytes, and no time of day or machine gets in; so a document
that differs from what `documents` gives is stale, which `stale` finds, `validate` reports and `push` refuses. What only
a person can say (authors, language, a note) stands in `card.toml` beside the manifest. Price: the queries of `stats`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import Field

from tagpr_data import markdown
from tagpr_data.config import Config, load
from tagpr_data.corpus import Corpus
from tagpr_data.markdown import fenced, one_line
from tagpr_data.records import CorpusManifest, Trace
from tagpr_data.select import REASONS
from tagpr_data.stats import Statistics, statistics, with_costs
from tagpr_data.tables import write_text

README, CROISSANT, FACTS = "README.md", "croissant.json", "card.toml"

HUB_LICENCES = frozenset(
    {
        "apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-3.0",
        "cc-by-sa-3.0", "odc-by", "odbl", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "mpl-2.0", "pddl",
        "unlicense",
    }
)  # fmt: skip
"""Licence names the Hub knows; any other becomes `other` with its name beside it."""

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


class CardFacts(Config):
    """What a person says about a corpus, in `card.toml`; all optional."""

    title: str | None = None
    """Title of the card; without it the corpus' name."""
    version: str = Field(default="1.0.0", pattern=r"^\d+\.\d+\.\d+$")
    """Version of the corpus, as MAJOR.MINOR.PATCH; a release raises it."""
    creators: tuple[str, ...] = ()
    """Who made it."""
    url: str | None = None
    """Where it is published."""
    date: str | None = Field(default=None, pattern=r"^\d{4}-\d{2}-\d{2}$")
    """Day of publication."""
    language: tuple[str, ...] = ()
    """Languages of the texts, as ISO 639-1 codes."""
    licence_url: str | None = None
    """Address of the licence's text."""
    citation: str | None = None
    """How to cite it."""
    notes: str | None = None
    """Markdown put into the card as it is."""


def documents(corpus: Corpus) -> dict[str, str]:
    """Give the documents of a corpus by file name."""
    from tagpr_data.croissant import croissant

    facts, numbers = read_facts(corpus.folder), statistics(corpus)
    return {README: card(corpus, numbers, facts), CROISSANT: croissant(corpus, numbers, facts)}


def write_documents(corpus: Corpus) -> list[Path]:
    """Write the documents beside the manifest and give their paths."""
    paths: list[Path] = []
    for name, text in documents(corpus).items():
        write_text(corpus.folder / name, text)
        paths.append(corpus.folder / name)
    return paths


def stale(corpus: Corpus) -> list[str]:
    """Give what is wrong with the documents: one line for each that is missing or differs; [] when all are fresh."""
    problems: list[str] = []
    for name, text in documents(corpus).items():
        path = corpus.folder / name
        if not path.is_file():
            problems.append(f"{name}: is missing")
        elif (found := path.read_text(encoding="utf-8", errors="replace")) != text:
            problems.append(f"{name}: is stale, line {markdown.first_difference(found, text)}")
    return problems


def read_facts(folder: Path) -> CardFacts:
    """Read `card.toml` of a corpus folder; without the file nothing is said."""
    path = folder / FACTS
    return load(CardFacts, path) if path.is_file() else CardFacts()


def card(corpus: Corpus, numbers: Statistics, facts: CardFacts) -> str:
    """Give the text of the card: a YAML header for the Hub and `datasets`, then Markdown."""
    manifest = corpus.manifest
    parts = [
        _header(corpus, facts),
        f"# {facts.title or manifest.name}",
        _summary(corpus, numbers),
        facts.notes,
        "## Load it\n\n" + _loading(corpus),
        "## What is in it\n\n" + _sizes(numbers),
        _lengths(numbers),
        "## Tags\n\n" + _tags(manifest, numbers),
        "## Teachers and acceptance\n\n" + _acceptance(manifest, numbers),
        _costs(manifest, numbers),
        "## Rejected candidates\n\n" + _reasons(manifest, numbers),
        f"## Personal data\n\n{_personal(manifest, numbers)}",
        f"## Preference pairs\n\n{_pairs(numbers)}" if corpus.pairs else None,
        "## One trace\n\n" + _example(corpus) if manifest.kept else None,
        "## Fields of a trace\n\n" + _fields(),
        "## Limits\n\n" + _limits(manifest, numbers),
        "## Licence\n\n" + one_line(manifest.licence) + ".",
        "## How it was made\n\n" + _how_made(manifest),
        f"## Citation\n\n{fenced(facts.citation)}" if facts.citation else None,
        "## Proof\n\n" + _proof(corpus),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def recipe(manifest: CorpusManifest) -> str | None:
    """Give the TOML file that builds this corpus again with `tagpr-data build`, paths left to fill in; None where it
    was not made by `build` (merged, or written by someone else)."""
    from tagpr_data.build import CorpusConfig

    settings = {key: value for key, value in manifest.parameters.items() if key not in _DERIVED}
    if not settings or set(settings) - set(CorpusConfig.model_fields):
        return None
    head = {"name": manifest.name, "dataset": "DATASET-FOLDER", "output": "CORPUS-FOLDER"}
    return toml(head | settings)


_DERIVED = ("min_score", "task_min_score", "best_of", "disjoint_users", "partial", "prices")


def toml(settings: Mapping[str, Any]) -> str:
    """Give settings (texts, numbers, flags, lists, sections) as TOML; None is left out, as TOML has no such value."""
    lines: list[str] = []

    def section(name: str, values: Mapping[str, Any], header: str) -> None:
        if name:
            lines.append(f"\n{header}")
        inner = {key: value for key, value in values.items() if isinstance(value, Mapping)}
        tables = {key: value for key, value in values.items() if _is_tables(value)}
        lines.extend(
            f"{_key(key)} = {_value(value)}"
            for key, value in values.items()
            if key not in inner and key not in tables and value is not None
        )
        for key, value in inner.items():
            path = f"{name}.{_key(key)}".lstrip(".")
            section(path, value, f"[{path}]")
        for key, rows in tables.items():
            path = f"{name}.{_key(key)}".lstrip(".")
            for row in rows:
                section(path, row, f"[[{path}]]")

    section("", settings, "")
    return "\n".join(lines) + "\n"


def _is_tables(value: Any) -> bool:
    """Whether a value is a list of sections, `[[name]]` in TOML."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _header(corpus: Corpus, facts: CardFacts) -> str:
    """The YAML block the Hub reads."""
    manifest = corpus.manifest
    licence = manifest.licence.strip().lower()
    known = licence in HUB_LICENCES
    header: dict[str, Any] = {
        "pretty_name": facts.title or manifest.name,
        "license": licence if known else "other",
        **({} if known else {"license_name": manifest.licence}),
        **({} if known or not facts.licence_url else {"license_link": facts.licence_url}),
        **({"language": list(facts.language)} if facts.language else {}),
        "task_categories": ["text-generation"],
        "tags": ["personalization", "reasoning", "tagged-reasoning", "tagpr", manifest.tagset],
        "size_categories": [next((name for limit, name in _SIZES if manifest.kept < limit), "1M<n<10M")],
        "configs": configs(corpus),
    }
    return markdown.header(header)


def configs(corpus: Corpus) -> list[dict[str, Any]]:
    """Give the configurations of the corpus as `datasets` reads them: name, and Parquet path by split."""
    found: list[dict[str, Any]] = []
    for kind in ("traces", "rejected", "pairs", "profiles"):
        files = [{"split": table.split, "path": table.path} for table in corpus.of(kind) if table.entry.rows]
        if files:
            found.append({"config_name": kind, **({"default": True} if kind == "traces" else {}), "data_files": files})
    return found


def _summary(corpus: Corpus, numbers: Statistics) -> str:
    manifest = corpus.manifest
    users = numbers.users[0]["users"]
    tasks = ", ".join(f"`{one_line(task.name)}`" for task in manifest.tasks)
    pairs = sum(row["pairs"] for row in numbers.pairs)
    return (
        f"{_count(manifest.kept, 'tagged reasoning trace')} about {_count(users, 'user')} on {tasks}, made from the "
        f"data set `{one_line(manifest.dataset)}`. Each trace reads a user's past items, says in steps with "
        f"functional tags what they reveal, and answers as this user would.\n\n"
        f"Beside the traces: {_count(sum(manifest.rejected.values()), 'rejected candidate')}, each with its reason"
        + (f", and {_count(pairs, 'preference pair')} for a reward model" if pairs else "")
        + ".\n\n"
        f"{_share(manifest.grounded_claims, manifest.claims)} of the {_count(manifest.claims, 'checkable claim')} "
        f"about cited items hold; {_share(manifest.kept, manifest.candidates)} of "
        f"{_count(manifest.candidates, 'candidate')} were kept."
    )


def _loading(corpus: Corpus) -> str:
    names = [config["config_name"] for config in configs(corpus)]
    first = next((table.split for table in corpus.of("traces") if table.entry.rows), "train")
    return fenced(
        "from datasets import load_dataset\n\n"
        f'traces = load_dataset("REPO", "traces", split="{first}")\n'
        f"# configurations: {', '.join(names)}\n"
        "# to train on it: a trace's `messages` are the prompt, its `text` is the completion",
        "python",
    )


def _sizes(numbers: Statistics) -> str:
    rows = [
        (
            row["kind"], row["split"], *(f"{row[name]:,}" for name in (
                "rows", "users", "examples", "completion_words", "completion_characters", "prompt_characters"
            )),
            _tokens(row, "completion_tokens"), _tokens(row, "prompt_tokens"),
        )
        for row in numbers.sizes
    ]  # fmt: skip
    names = (
        "", "split", "rows", "users", "examples", "words of completions", "characters of completions",
        "characters of prompts", "completion tokens", "prompt tokens",
    )  # fmt: skip
    return markdown.table(names, rows, text=2) + "\n\nTokens are those the teacher counted; – where it counts none."


def _tokens(row: Mapping[str, Any], name: str) -> str:
    if not row["rows_with_token_counts"] or row[name] is None:
        return "–"
    missing = row["rows"] - row["rows_with_token_counts"]
    return f"{row[name]:,}" + (f" ({missing:,} rows not counted)" if missing else "")


def _lengths(numbers: Statistics) -> str:
    names = {"characters": "characters", "words": "words", "steps": "steps", "items": "items in the prompt"}
    quantiles = ("min", "q05", "q25", "median", "q75", "q95", "max")
    by_name = {row["what"]: row for row in numbers.lengths}
    rows = [
        (label, *(f"{by_name[name][quantile]:,}" for quantile in quantiles))
        for name, label in names.items()
        if name in by_name
    ]
    if not rows:
        return ""
    users = numbers.users[0]
    rows.append(("traces of a user", f"{users['min']:,}", "", "", f"{users['median']:,}", "", "", f"{users['max']:,}"))
    return markdown.table(("a trace has", "min", "5 %", "25 %", "median", "75 %", "95 %", "max"), rows, text=1)


def _tags(manifest: CorpusManifest, numbers: Statistics) -> str:
    total = sum(row["steps"] for row in numbers.tags)
    rows = [
        (
            f"`{one_line(row['tag'])}`", f"{row['steps']:,}", _share(row["steps"], total),
            _share(row["traces"], manifest.kept), _share(row["citing_steps"], row["steps"]), f"{row['citations']:,}",
        )
        for row in numbers.tags
    ]  # fmt: skip
    names = ("tag", "steps", "of all steps", "traces that have it", "steps that cite", "citations")
    return f"Tag set `{one_line(manifest.tagset)}`, grammar version {manifest.grammar_version}.\n\n" + markdown.table(
        names, rows, text=1
    )


def _acceptance(manifest: CorpusManifest, numbers: Statistics) -> str:
    kinds = {task.name: task.kind for task in manifest.tasks}
    rows = [
        (
            one_line(row["task"]), kinds.get(row["task"], "?"), one_line(row["teacher"]),
            f"`{one_line(row['teacher_revision'])}`", f"{row['attempts']:,}", f"{row['kept']:,}",
            _share(row["kept"], row["attempts"]),
            f"{row['micro_score'] / 1e6 / row['kept']:.3f}" if row["kept"] else "–",
            _share(row["grounded_claims"], row["claims"]),
        )
        for row in numbers.tasks
    ]  # fmt: skip
    names = (
        "task", "kind", "teacher", "revision", "attempts", "kept", "acceptance", "mean score of kept",
        "claims that hold",
    )  # fmt: skip
    return markdown.table(names, rows, text=4)


def costs(manifest: CorpusManifest, numbers: Statistics) -> list[str]:
    """Give what a kept trace took, one line for each teacher and task: attempts, tokens, and money where prices are
    known. All attempts count, the rejected ones too."""
    return [
        f"{task}, {teacher}: {kept} kept, {attempts} attempts each, {read} + {written} tokens each, cost {cost} each"
        for task, teacher, kept, attempts, read, written, cost in _cost_rows(manifest, numbers)
    ]


def _costs(manifest: CorpusManifest, numbers: Statistics) -> str | None:
    names = (
        "task", "teacher", "kept", "attempts per kept trace", "prompt tokens per kept trace",
        "completion tokens per kept trace", "cost per kept trace",
    )  # fmt: skip
    if not any(row["rows_with_token_counts"] for row in numbers.tasks):
        return None
    rows = [(one_line(task), one_line(teacher), *rest) for task, teacher, *rest in _cost_rows(manifest, numbers)]
    text = "What a kept trace took, rejected attempts included:\n\n" + markdown.table(names, rows, text=2)
    if not any(row["attempt"] for row in numbers.attempts):
        return text
    rows = [
        (
            one_line(row["task"]), one_line(row["teacher"]), str(row["attempt"]), f"{row['attempts']:,}",
            f"{row['kept']:,}", _or_dash(row["tokens_per_kept"], ",.0f"), _or_dash(row["cost"], ".6g"),
            _or_dash(row["cost_per_kept"], ".6g"),
        )
        for row in numbers.attempts
    ]  # fmt: skip
    names = (
        "task", "teacher", "attempt", "made", "kept", "tokens per kept trace", "cost", "cost per kept trace",
    )  # fmt: skip
    return f"{text}\n\nThe same by attempt, 0 being a prompt's first:\n\n{markdown.table(names, rows, text=2)}"


def _cost_rows(manifest: CorpusManifest, numbers: Statistics) -> list[tuple[str, ...]]:
    """(task, teacher, kept, attempts, tokens read, tokens written, cost), the last four per kept trace."""
    prices = manifest.parameters.get("prices", {})
    found: list[tuple[str, ...]] = []
    for row in numbers.tasks:
        kept, is_counted = row["kept"], row["rows_with_token_counts"] == row["attempts"]
        cost = _or_dash(with_costs(row, prices)["cost_per_kept"], ".6g")
        each = [
            f"{row[name] / kept:,.0f}" if kept and is_counted else "–" for name in ("input_tokens", "output_tokens")
        ]
        attempts = f"{row['attempts'] / kept:.2f}" if kept else "–"
        found.append((row["task"], row["teacher"], f"{kept:,}", attempts, *each, cost))
    return found


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _reasons(manifest: CorpusManifest, numbers: Statistics) -> str:
    if not numbers.reasons:
        return "None: every candidate was kept."
    rows = [
        (f"`{one_line(row['reason'])}`", one_line(REASONS.get(row["reason"], "not a reason of this version")),
         one_line(row["task"]), f"{row['rows']:,}", _share(row["rows"], manifest.candidates))
        for row in numbers.reasons
    ]  # fmt: skip
    return markdown.table(("reason", "meaning", "task", "candidates", "of all candidates"), rows, text=3)


_PERSONAL = {
    "report": "were looked for and left as they are",
    "mask": "were looked for and replaced by `(mail)` and the like, in prompts, golds and completions",
    "drop": "were looked for; rows that hold any were rejected",
}


def _personal(manifest: CorpusManifest, numbers: Statistics) -> str:
    """What was done about personal data, and how many traces it was found in."""
    rules = manifest.parameters.get("selection")
    rules = cast("dict[str, Any]", rules) if isinstance(rules, dict) else {}
    done = _PERSONAL.get(str(rules.get("personal_data")), "")
    if not done:
        return "Nobody looked for mail addresses, phone numbers or names."
    kinds = ", ".join(f"`{one_line(str(kind))}`" for kind in rules.get("personal_kinds", ()))
    text = f"These {done}: {kinds}. The patterns are simple: texts without findings are not anonymous."
    rows = [(row["kind"], one_line(row["task"]), f"{row['traces']:,}") for row in numbers.personal]
    return (
        text
        + "\n\n"
        + (markdown.table(("kind", "task", "traces"), rows, text=2) if rows else "None was found in a trace.")
    )


def _pairs(numbers: Statistics) -> str:
    rows = [
        (row["split"], one_line(row["task"]), row["kind"], f"{row['pairs']:,}", f"{row['users']:,}",
         f"{row['micro_margin'] / 1e6 / row['pairs']:.3f}")
        for row in numbers.pairs
    ]  # fmt: skip
    return (
        "Two completions of one question, the first better for this user. `seen` holds other questions of the users in "
        "`train`; users in `unseen` are in no other split. The users' items are in the configuration `profiles`.\n\n"
        + markdown.table(("split", "task", "kind", "pairs", "users", "mean margin"), rows, text=3)
    )


def _example(corpus: Corpus) -> str:
    connection = corpus.connect()
    try:
        row = connection.execute(
            "SELECT messages, text, gold FROM traces ORDER BY len(item_ids) = 0, id LIMIT 1"
        ).fetchone()
    finally:
        connection.close()
    assert row is not None
    turns = "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in row[0])
    shown = turns if len(turns) <= 4000 else turns[:4000] + " …"
    return f"The prompt:\n\n{fenced(shown)}\n\nThe completion:\n\n{fenced(row[1][:4000])}"


def _fields() -> str:
    rows = [(f"`{name}`", " ".join((field.description or "").split())) for name, field in Trace.model_fields.items()]
    return markdown.table(("field", "meaning"), rows, text=2)


def _limits(manifest: CorpusManifest, numbers: Statistics) -> str:
    parameters = manifest.parameters
    teacher = parameters.get("teacher")
    teachers = [row for row in (teacher if isinstance(teacher, list) else [teacher]) if isinstance(row, dict)]
    partial = parameters.get("partial")
    limits = [
        "The tag set and the grammar are this project's; those of the paper the idea comes from (arXiv 2509.23140) are "
        "not public.",
        "A claim holds when the cited item was in the prompt, lies before the query and contains the quoted words; "
        "that the step's reasoning follows from it is not checked.",
        "Kept traces are those that came near the gold answer; they are no sample of what the teacher writes. The "
        "rejected ones are published for that.",
        "User ids are pseudonyms of the data set; the texts are the users' own and may tell who wrote them.",
    ]
    rules = parameters.get("selection")
    rules = cast("dict[str, Any]", rules) if isinstance(rules, dict) else {}
    if rules.get("personal_data") in _PERSONAL:
        listed = " and in a list of the curator's" if rules.get("names") is not None else ""
        limits.append(
            f"Names of people were looked for behind `Signed-off-by:` and the like{listed}, nowhere else: any "
            "other name stands in the texts as it was written."
        )
    if any("scripted" in name for name in manifest.teachers):
        limits.append(
            "The teacher `scripted` is a program with fixed phrases, not a language model: its prose repeats."
        )
    if any(row.get("hindsight") is True for row in teachers):
        limits.append("A teacher knew the gold answer and argued towards it.")
    if isinstance(partial, dict):
        limits.insert(
            0,
            f"**Partial**: generation stopped at a limit with {partial['candidates']:,} of {partial['planned']:,} "
            "attempts made.",
        )
    if parameters.get("disjoint_users") is False:
        limits.append("The same users are in several splits (a split by time), so none of them is a test of new users.")
    few = numbers.users[0]["users"]
    if few < 100:
        limits.append(f"Only {_count(few, 'user')}: intervals over users are wide.")
    return "\n".join(f"- {limit}" for limit in limits)


def _how_made(manifest: CorpusManifest) -> str:
    made_of = f"data set `{one_line(manifest.dataset)}`, content `{manifest.dataset_hash}`"
    text = recipe(manifest)
    if text is None:
        parameters = json.dumps(manifest.parameters, indent=2, sort_keys=True, ensure_ascii=False)
        return f"From the {made_of}, with these parameters:\n\n{fenced(parameters, 'json')}"
    return (
        f"`tagpr-data build corpus.toml` with the {made_of}, and this `corpus.toml`. Servers and keys of teachers are "
        f"not part of it. `tagpr-data validate` checks the result.\n\n{fenced(text, 'toml')}"
    )


def _proof(corpus: Corpus) -> str:
    rows = [(f"`{table.path}`", f"{table.entry.rows:,}", f"`{table.entry.sha256}`") for table in corpus.tables]
    hashes = f"Content hash `{corpus.manifest.content_hash}`; tag set `{corpus.manifest.tagset_hash}`."
    return f"{hashes}\n\n" + markdown.table(("file", "rows", "SHA-256"), rows, text=1)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"
