"""A corpus written by a stranger: from `schemas/` alone (the JSON Schemas and the page), without our package.

Nothing of tagpr is imported here; the checks run as the command. Where this test must be changed for a corpus to pass,
the page or a schema has changed its word, and strangers have to change theirs.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

PROFILE = [("Northern lights", "poem"), ("Bread at dawn", "recipe"), ("Slow rivers", "poem")]
LABELS = ["poem", "recipe"]


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def sha256(value: bytes | str) -> str:
    return hashlib.sha256(value if isinstance(value, bytes) else value.encode()).hexdigest()


def arrow_schema(schema: dict[str, Any]) -> pa.Schema:
    """The Parquet types of a JSON Schema, by the rules of the page."""

    def field(name: str, said: dict[str, Any]) -> pa.Field:
        choices = said.get("anyOf", [said])
        (value,) = [choice for choice in choices if choice.get("type") != "null"]
        return pa.field(name, kind(value), nullable=len(choices) > 1)

    def kind(said: dict[str, Any]) -> pa.DataType:
        if "$ref" in said:
            return kind(schema["$defs"][said["$ref"].rpartition("/")[2]])
        if said["type"] == "array":
            return pa.list_(kind(said["items"]))
        if said["type"] == "object":
            return pa.struct([field(name, part) for name, part in said["properties"].items()])
        return {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}[
            said["type"]
        ]

    return pa.schema([field(name, part) for name, part in schema["properties"].items()])


def trace(user: int, number: int, kept: bool) -> dict[str, Any]:
    """One attempt: user `number` asks where a text belongs."""
    gold = LABELS[number % 2]
    answer = gold if kept else LABELS[1 - number % 2]
    lines = "\n".join(f'[P{place}] "{title}" is a {label}' for place, (title, label) in enumerate(PROFILE, 1))
    messages = [
        {"role": "system", "content": "Reason in tagged steps, then answer."},
        {"role": "user", "content": f"{lines}\n\nIs text {number} of person {user} a poem or a recipe? Ünï©ode."},
    ]
    steps = [
        ("examine_examples", '[P1] and [P3] are called "poem"; [P1] again', [1, 3]),
        ("identify_patterns", "[P2] differs from [P1]", [2, 1]),
        ("analyze_query", "the text is <b>short</b>, see #include <X11/Xlib.h>", []),
        ("infer_preference", "this person likes weather", []),
    ]
    body = "\n".join(f"<{tag}>{words}</{tag}>" for tag, words, _ in steps)
    row: dict[str, Any] = {
        "id": sha256(f"stranger/{user}/{number}/{kept}"), "example_id": f"e{user}-{number}", "task": "shelf",
        "user_id": f"person {user}", "retriever": "recency", "k": 4, "item_ids": ["a", "b", "c"],
        "messages": messages, "prompt_hash": sha256(canonical(messages)), "teacher": "me", "teacher_revision": "1",
        "sampling": {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 300, "stop": []}, "seed": 1,
        "attempt": 0 if kept else 1, "parents": [], "text": f" <think>\n{body}\n\n</think>\n{answer}\n",
        "finish_reason": "stop", "input_tokens": None, "output_tokens": 40, "gold": gold,
    }  # fmt: skip
    if kept:
        cited = [{"tag": tag, "text": words, "cites": cites} for tag, words, cites in steps]
        return row | {"steps": cited, "answer": answer, "score": 1.0, "claims": 4, "grounded_claims": 4}
    return row | {"reason": "low-score", "detail": "another shelf"}


def write(folder: Path, schemas: Path) -> None:
    said = {name: json.loads((schemas / f"{name}.schema.json").read_text()) for name in ("Trace", "Rejected")}
    places = {("train", user): [] for user in range(3)} | {("test", 3): []}
    files: dict[str, Any] = {}
    for kind, name, kept in (("traces", "Trace", True), ("rejected", "Rejected", False)):
        for split in ("train", "test"):
            rows = [trace(user, n, kept) for part, user in places if part == split for n in range(2)]
            defaults = {key: part["default"] for key, part in said[name]["properties"].items() if "default" in part}
            path = folder / kind / f"{split}.parquet"
            path.parent.mkdir(exist_ok=True)
            full = [defaults | row for row in rows]
            pq.write_table(pa.Table.from_pylist(full, schema=arrow_schema(said[name])), path, compression="snappy")
            files[f"{kind}/{split}.parquet"] = {"rows": len(rows), "sha256": sha256(path.read_bytes())}
    task = {
        "name": "shelf", "kind": "classification", "labels": LABELS, "question": "", "answer_form": "a shelf",
        "item_template": '"{title}" is a {label}',
    }  # fmt: skip
    tagset = "1309151ed9c54f92c7ab7c57fd34040cdee0fc8822ce7333ab8791a7939a71c9"  # as the page says
    content = {"tasks": [task], "files": {path: entry["sha256"] for path, entry in files.items()}, "extra": [tagset]}
    manifest = {
        "format_version": 1, "kind": "corpus", "name": "strange", "grammar_version": 1, "tagset": "tagpr-9",
        "tagset_hash": tagset, "dataset": "mine", "dataset_hash": sha256("mine"), "licence": "CC0-1.0",
        "tasks": [task], "teachers": {"me": "1"}, "files": files, "content_hash": sha256(canonical(content)),
        "candidates": 16, "kept": 8, "rejected": {"low-score": 8}, "acceptance": {"shelf": 0.5}, "claims": 32,
        "grounded_claims": 32,
        "parameters": {"disjoint_users": True, "best_of": 1, "min_score": {"classification": 1.0}},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))


def validate(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from tagpr_data.cli import main; main()"
    command = [sys.executable, "-c", code, "validate", str(folder), "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def corpus(root: Path, tmp_path: Path) -> Path:
    write(tmp_path, root / "schemas")
    return tmp_path


def test_what_a_stranger_writes_from_the_schemas_and_the_page_is_valid(corpus: Path):
    done = validate(corpus)
    assert done.returncode == 0, done.stderr
    status = {check["name"]: check["status"] for check in json.loads(done.stdout)["checks"]}
    assert status.pop("grounding") == "not-run" and set(status.values()) == {"passed"}


def test_the_tag_set_of_the_page_has_the_hash_of_the_page(root: Path):
    """The page's table and rule, read as a stranger would, give the hash that the page states."""
    text = (root / "schemas/README.md").read_text(encoding="utf-8")
    rows = [
        line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `") and line.count("|") == 4
    ]
    tags = [
        {"name": name.strip("`"), "meaning": meaning, "cites": cites}
        for name, cites, meaning in rows
        if cites in ("required", "pattern", "optional", "no")
    ]
    tagset = {
        "name": "tagpr-9", "tags": tags, "required_any": ["infer_preference", "resolve_conflict"], "min_steps": 2,
        "max_steps": 12,
    }  # fmt: skip
    assert len(tags) == 9 and sha256(canonical(tagset)) in text
