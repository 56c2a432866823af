"""A corpus as one HTML page to read in: every trace and rejected candidate with its prompt, steps and fate.

Guarantee: the page needs nothing but itself and asks for nothing; data enters it as JSON and becomes text nodes only,
so no text of a corpus is ever markup; the same corpus gives the same bytes. Its frame is `html_page.py`. Price: about
the size of the texts shown; above `max_rows`, examples are drawn by the hash of their id, with all their attempts.
"""

import json
from html import escape
from pathlib import Path
from typing import Any

from tagpr_data.corpus import Corpus
from tagpr_data.html_page import ASSETS, document
from tagpr_data.stats import Statistics, statistics
from tagpr_data.tables import write_text
from tagpr_data.tags import load_tagset

FILTERS = {"kind": "Fate", "split": "Split", "task": "Task", "teacher": "Teacher", "reason": "Reason", "user": "User"}
"""What rows can be filtered by: field → label."""

_ITEM = "[P"


def write_page(corpus: Corpus, path: Path, max_rows: int = 5_000) -> int:
    """Write the page; give the number of rows in it."""
    data = browser_data(corpus, max_rows)
    write_text(path, page(corpus, statistics(corpus), data))
    return len(data["rows"])


def browser_data(corpus: Corpus, max_rows: int) -> dict[str, Any]:
    """Give the rows of the page as plain JSON values; prompts that rows share come once."""
    connection = corpus.connect()
    shared = (
        "id, split, example_id, task, user_id, teacher, teacher_revision, retriever, k, sampling, seed, attempt, "
        "parents, prompt_hash, messages, text, finish_reason, gold"
    )
    union = (
        f"SELECT {shared}, score, claims, grounded_claims, NULL AS reason, NULL AS detail FROM traces UNION ALL "
        f"SELECT {shared}, NULL, NULL, NULL, reason, detail FROM rejected"
    )
    try:
        total = connection.execute(f"SELECT count(*) FROM ({union})").fetchall()[0][0]
        # whole examples, by a hash that does not depend on the engine's version
        found = connection.execute(
            f"""SELECT * FROM ({union})
                QUALIFY count(*) OVER (ORDER BY md5(example_id), example_id RANGE UNBOUNDED PRECEDING) <= ?
                ORDER BY task, example_id, attempt, id""",
            [max_rows],
        )
        names = [column[0] for column in found.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    finally:
        connection.close()
    prompts: dict[str, int] = {}
    texts: list[tuple[str, str, str]] = []
    for row in rows:
        if row["prompt_hash"] not in prompts:
            prompts[row["prompt_hash"]] = len(texts)
            texts.append(_parts(row["messages"]))
    shipped, found_tags = load_tagset(), [tag["tag"] for tag in statistics(corpus).tags]
    in_order = list(shipped.names) if shipped.hash == corpus.manifest.tagset_hash else []
    return {
        "total": total,
        "tags": [*in_order, *sorted(set(found_tags) - set(in_order))],
        "prompts": texts,
        "rows": [_row(row, prompts[row["prompt_hash"]]) for row in rows],
    }


def page(corpus: Corpus, numbers: Statistics, data: dict[str, Any]) -> str:
    """Give the text of the page."""
    manifest = corpus.manifest
    title = escape(manifest.name)
    users = numbers.users[0]["users"]
    facts = {
        "Traces": (f"{manifest.kept:,}", f"of {manifest.candidates:,} candidates, {users:,} users"),
        "Claims that hold": (
            f"{100 * manifest.grounded_claims / manifest.claims:.1f} %" if manifest.claims else "–",
            f"of {manifest.claims:,} claims about cited items",
        ),
        "Tasks": (f"{len(manifest.tasks)}", escape(", ".join(task.name for task in manifest.tasks))),
        "Content": (manifest.content_hash[:12], escape(f"{manifest.tagset}; {manifest.licence}")),
    }
    filters = "\n".join(f'<label>{label} <select id="f-{name}"></select></label>' for name, label in FILTERS.items())
    js = (ASSETS / "corpus.js").read_text(encoding="utf-8")
    return document(
        kicker="TagPR corpus",
        title=title,
        findings=facts,
        links={"samples": "Traces"},
        main=f"""<section id="samples">
<h2>Traces and rejected candidates</h2>
<p class="intro">Every attempt with its prompt, its steps and what became of it. Keys: <kbd>j</kbd> <kbd>k</kbd> next
and previous, <kbd>/</kbd> search, <kbd>Esc</kbd> leave a field. A click on a citation shows the item.</p>
<noscript><p class="note">The browser needs JavaScript.</p></noscript>
<form id="filters" aria-label="Filter rows">
{filters}
<label class="wide">Text <input id="f-text" type="search" placeholder="in ids, prompts and completions"></label>
<span id="count" role="status"></span>
</form>
<div id="browser">
<div id="list" tabindex="0" role="listbox" aria-label="Rows"><div id="rows"></div></div>
<div id="detail" tabindex="0" aria-live="polite"></div>
</div>
</section>""",
        footer=f"{title}, content {escape(manifest.content_hash)}",
        scripts=f"""<script type="application/json" id="data">{_script_json(data)}</script>
<script>
{js}
</script>""",
    )


def _row(row: dict[str, Any], prompt: int) -> dict[str, Any]:
    sampling = ", ".join(f"{name} {value}" for name, value in row["sampling"].items() if value != [])
    lineage = (
        f"id {row['id']}\nprompt {row['prompt_hash']}\nteacher {row['teacher']} at {row['teacher_revision']}\n"
        f"{row['retriever']}, k = {row['k']}; {sampling}, seed {row['seed']}, attempt {row['attempt']}, "
        f"ended by {row['finish_reason']}" + "".join(f"\nmade from {parent}" for parent in row["parents"])
    )
    return {
        "id": row["id"],
        "kind": "kept" if row["reason"] is None else "rejected",
        "split": row["split"],
        "task": row["task"],
        "teacher": row["teacher"],
        "reason": row["reason"],
        "user": row["user_id"],
        "example": row["example_id"],
        "prompt": prompt,
        "text": row["text"],
        "gold": row["gold"],
        "score": row["score"],
        "claims": row["claims"],
        "grounded": row["grounded_claims"],
        "detail": row["detail"],
        "lineage": lineage,
    }


def _parts(messages: list[dict[str, str]]) -> tuple[str, str, str]:
    """Split a prompt into instruction, lines of past items and question, as far as it has that form."""
    before = "\n\n".join(turn["content"] for turn in messages[:-1])
    lines = messages[-1]["content"].split("\n") if messages else []
    first = next((place for place, line in enumerate(lines) if line.startswith(_ITEM)), len(lines))
    end = next((place for place in range(first, len(lines)) if not lines[place].strip()), len(lines))
    if first == len(lines):
        return before, "", "\n".join(lines)
    return before, "\n".join(lines[first:end]), "\n".join(lines[end:]).strip("\n")


def _script_json(data: dict[str, Any]) -> str:
    """Give JSON that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text
