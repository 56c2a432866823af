"""Two hundred mutated corpora: each is refused by the check its mutation should wake, none with a traceback.

A mutation changes rows, files, a manifest, pairs, card or Croissant of one valid corpus; where and how is drawn by
seed.
Mutations of rows come with a manifest made to fit (hashes, counts), so that no hash gives them away: `honest`.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tagpr_data import card
from tagpr_data.corpus import open_corpus
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.prompts import prompt_hash
from tagpr_data.records import CorpusManifest, FileEntry, Message, PairsManifest
from tagpr_data.row_checks import ROW_CHECKS
from tagpr_data.tables import content_hash, read_json, sha256_file, write_json
from tagpr_data.validate import CHECKS, raise_for, validate

Row = dict[str, Any]
SEEDS = 200
PARTS = 20
"""Tests they are dealt to, so that each stays under a minute also on a loaded machine."""
REFUSED = "refused as unreadable"
"""In place of a check's name: the folder is no corpus, exit code 2."""


def rows_of(folder: Path, table: str) -> tuple[list[Row], pa.Schema]:
    found = pq.read_table(folder / table)
    return found.to_pylist(), found.schema


def edit_row(table: str, change: Callable[[Row, random.Random], Any]) -> Callable[[Path, random.Random], None]:
    """Change one row, drawn by seed, and make the manifest fit."""

    def mutate(folder: Path, rng: random.Random) -> None:
        rows, schema = rows_of(folder, table)
        change(rng.choice(rows), rng)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / table)
        honest(folder)

    return mutate


def edit_rows(table: str, change: Callable[[list[Row], random.Random], Any]) -> Callable[[Path, random.Random], None]:
    def mutate(folder: Path, rng: random.Random) -> None:
        rows, schema = rows_of(folder, table)
        change(rows, rng)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / table)
        honest(folder)

    return mutate


def edit_table(
    table: str, change: Callable[[pa.Table, random.Random], pa.Table]
) -> Callable[[Path, random.Random], None]:
    def mutate(folder: Path, rng: random.Random) -> None:
        pq.write_table(change(pq.read_table(folder / table), rng), folder / table)
        honest(folder)

    return mutate


def honest(folder: Path) -> None:
    """Bring files, hashes and counts of both manifests into line with the files; no documents, so none is stale."""
    manifest = read_json(folder / "manifest.json", CorpusManifest)
    files = {
        path: FileEntry(rows=pq.read_metadata(folder / path).num_rows, sha256=sha256_file(folder / path))
        for path in manifest.files
    }
    traces = [row for path in files if path.startswith("traces") for row in rows_of(folder, path)[0]]
    rejected = [row for path in files if path.startswith("rejected") for row in rows_of(folder, path)[0]]
    kept_of, all_of, reasons = ({} for _ in range(3))
    for row in traces:
        kept_of[row.get("task")] = kept_of.get(row.get("task"), 0) + 1
    for row in [*traces, *rejected]:
        all_of[row.get("task")] = all_of.get(row.get("task"), 0) + 1
    for row in rejected:
        reasons[row.get("reason")] = reasons.get(row.get("reason"), 0) + 1
    write_json(
        folder / "manifest.json",
        manifest.model_copy(
            update={
                "files": files,
                "content_hash": content_hash(manifest.tasks, files, [manifest.tagset_hash]),
                "kept": len(traces),
                "candidates": len(traces) + len(rejected),
                "rejected": reasons,
                "acceptance": {task: kept_of.get(task, 0) / count for task, count in all_of.items()},
                "claims": sum(row.get("claims") or 0 for row in traces),
                "grounded_claims": sum(row.get("grounded_claims") or 0 for row in traces),
            }
        ),
    )
    pairs = read_json(folder / "pairs/manifest.json", PairsManifest)
    files = {
        path: FileEntry(
            rows=pq.read_metadata(folder / "pairs" / path).num_rows, sha256=sha256_file(folder / "pairs" / path)
        )
        for path in pairs.files
    }
    write_json(
        folder / "pairs/manifest.json",
        pairs.model_copy(update={"files": files, "content_hash": content_hash(pairs.tasks, files)}),
    )


def edit_json(name: str, change: Callable[[Row, random.Random], Any]) -> Callable[[Path, random.Random], None]:
    def mutate(folder: Path, rng: random.Random) -> None:
        value = json.loads((folder / name).read_text())
        change(value, rng)
        (folder / name).write_text(json.dumps(value))

    return mutate


def cut(name: str) -> Callable[[Path, random.Random], None]:
    def mutate(folder: Path, rng: random.Random) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: rng.randrange(len(content) - 9)])

    return mutate


def flip_byte(name: str) -> Callable[[Path, random.Random], None]:
    """Change one byte in the middle: of a page of data, mostly."""

    def mutate(folder: Path, rng: random.Random) -> None:
        content = bytearray((folder / name).read_bytes())
        content[rng.randrange(4, len(content) // 3)] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(content)

    return mutate


def reprompt(row: Row, messages: list[Row]) -> None:
    row["messages"] = messages
    row["prompt_hash"] = prompt_hash([Message(**turn) for turn in messages])


def step_text(row: Row, old: str, new: str) -> None:
    row["text"] = row["text"].replace(old, new, 1)


def unsteady(row: Row, rng: random.Random) -> None:
    step = rng.choice(row["steps"])
    step[rng.choice(("tag", "text"))] += "x"


TRACES, REJECTED, PAIRS = "traces/train.parquet", "rejected/train.parquet", "pairs/pairs/train.parquet"
PROFILES = "pairs/profiles.parquet"
HEX = "0123456789abcdef"

MUTATIONS: dict[str, tuple[set[str], Callable[[Path, random.Random], None]]] = {
    # rows of traces and rejected
    "score above 1": ({"score_range"}, edit_row(TRACES, lambda row, rng: row.update(score=1 + rng.random()))),
    "score not a number": ({"score_range"}, edit_row(TRACES, lambda row, rng: row.update(score=float("nan")))),
    "score too low": ({"score_threshold"}, edit_row(TRACES, lambda row, rng: row.update(score=0.09 * rng.random()))),
    "stray text": (
        {"grammar"},
        edit_row(TRACES, lambda row, rng: step_text(row, "</think>", rng.choice("abc") + "</think>")),
    ),
    "think block open": ({"grammar"}, edit_row(TRACES, lambda row, rng: step_text(row, "</think>", ""))),
    "two think blocks": (
        {"grammar"},
        edit_row(TRACES, lambda row, rng: step_text(row, "</think>", "</think></think>")),
    ),
    "citation out of range": (
        {"grammar"},
        edit_row(TRACES, lambda row, rng: step_text(row, "</analyze_query>", "[P99]</analyze_query>")),
    ),
    "other steps": ({"steps_match"}, edit_row(TRACES, unsteady)),
    "other citations": ({"steps_match"}, edit_row(TRACES, lambda row, rng: row["steps"][0].update(cites=[7]))),
    "other answer": ({"answer_match"}, edit_row(TRACES, lambda row, rng: row.update(text=row["text"] + " indeed"))),
    "other prompt": (
        {"prompt_hash"},
        edit_row(TRACES, lambda row, rng: row["messages"][-1].update(content=str(rng.random()))),
    ),
    "assistant speaks last": (
        {"roles"},
        edit_row(TRACES, lambda row, rng: reprompt(row, [*row["messages"], {"role": "assistant", "content": "hm"}])),
    ),
    "no user turn": ({"roles"}, edit_row(TRACES, lambda row, rng: reprompt(row, row["messages"][:1]))),
    "cut off and kept": ({"finished"}, edit_row(TRACES, lambda row, rng: row.update(finish_reason="length"))),
    "unknown end": ({"in_range"}, edit_row(REJECTED, lambda row, rng: row.update(finish_reason="tired"))),
    "negative attempt": ({"in_range"}, edit_row(REJECTED, lambda row, rng: row.update(attempt=-1 - rng.randrange(9)))),
    "absurd sampling": ({"in_range"}, edit_row(TRACES, lambda row, rng: row["sampling"].update(top_p=1.5))),
    "id no hash": ({"id_form"}, edit_row(TRACES, lambda row, rng: row.update(id=row["id"].upper() + "Z"))),
    "id twice": ({"unique_ids"}, edit_rows(TRACES, lambda rows, rng: rows.append(rng.choice(rows)))),
    "attempt twice": (
        {"unique_attempts"},
        edit_rows(REJECTED, lambda rows, rng: rows.append({**rng.choice(rows), "id": rng.choice(HEX) * 64})),
    ),
    "example of two users": (
        {"consistent_examples"},
        edit_rows(
            REJECTED,
            lambda rows, rng: rows.append(
                {**rng.choice(rows), "id": rng.choice(HEX) * 64, "attempt": 8, "user_id": "zoe"}
            ),
        ),
    ),
    "reason unknown": ({"known_reasons"}, edit_row(REJECTED, lambda row, rng: row.update(reason="bad mood"))),
    "task unknown": ({"known_tasks"}, edit_row(REJECTED, lambda row, rng: row.update(task="verse"))),
    "teacher unknown": ({"known_teachers"}, edit_row(TRACES, lambda row, rng: row.update(teacher="someone"))),
    "more grounded than claimed": (
        {"grounded_within_claims"},
        edit_row(TRACES, lambda row, rng: row.update(grounded_claims=row["claims"] + 1)),
    ),
    "item twice": ({"items_within_k"}, edit_row(REJECTED, lambda row, rng: row.update(item_ids=["a", "a"]))),
    "more items than k": (
        {"items_within_k"},
        edit_row(REJECTED, lambda row, rng: row.update(item_ids=list("abcdefg"))),
    ),
    "text missing": (
        {"columns"},
        edit_table(TRACES, lambda table, rng: nulled(table, rng.choice(("text", "user_id", "score", "messages")), rng)),
    ),
    # columns
    "column missing": (
        {"columns"},
        edit_table(TRACES, lambda table, rng: table.drop_columns([rng.choice(table.column_names[7:])])),
    ),
    "column too many": ({"columns"}, edit_table(REJECTED, lambda table, rng: table.append_column("mood", table["id"]))),
    "column of another type": (
        {"columns"},
        edit_table(
            TRACES, lambda t, rng: t.set_column(t.column_names.index("seed"), "seed", t["seed"].cast(pa.string()))
        ),
    ),
    # files
    "file cut": ({"columns"}, cut(TRACES)),
    "file empty": ({"columns"}, lambda folder, rng: (folder / REJECTED).write_bytes(b"")),
    "file gone": ({"files_match"}, lambda folder, rng: (folder / REJECTED).unlink()),
    "file too many": (
        {"files_match"},
        lambda folder, rng: shutil.copy(folder / REJECTED, folder / f"rejected/x{rng.randrange(9)}.parquet"),
    ),
    "byte flipped": ({"files_match", "columns"}, flip_byte(TRACES)),
    "rows dropped": (
        {"files_match"},
        lambda folder, rng: pq.write_table(pq.read_table(folder / TRACES)[rng.randrange(1, 3) :], folder / TRACES),
    ),
    # manifest
    "content hash": (
        {"content_hash"},
        edit_json("manifest.json", lambda m, rng: m.update(content_hash=rng.choice(HEX) * 64)),
    ),
    "licence changed is no fault of data but of the card": (
        {"documents"},
        edit_json("manifest.json", lambda m, rng: m.update(licence="MIT")),
    ),
    "kept": (
        {"kept_count"},
        edit_json("manifest.json", lambda m, rng: m.update(kept=m["kept"] + 1 + rng.randrange(9))),
    ),
    "candidates": (
        {"candidates_add_up"},
        edit_json("manifest.json", lambda m, rng: m.update(candidates=rng.randrange(3))),
    ),
    "ledger": ({"rejected_count"}, edit_json("manifest.json", lambda m, rng: m["rejected"].update(grammar=77))),
    "acceptance": (
        {"acceptance"},
        edit_json("manifest.json", lambda m, rng: m["acceptance"].update(title=rng.random())),
    ),
    "claims": ({"groundedness"}, edit_json("manifest.json", lambda m, rng: m.update(claims=m["claims"] + 1))),
    "file hash": (
        {"files_match"},
        edit_json("manifest.json", lambda m, rng: m["files"][TRACES].update(sha256=rng.choice(HEX) * 64)),
    ),
    "unknown key": ({REFUSED}, edit_json("manifest.json", lambda m, rng: m.update({f"key{rng.randrange(9)}": 1}))),
    "key missing": (
        {REFUSED},
        edit_json("manifest.json", lambda m, rng: m.pop(rng.choice(("tagset", "files", "kept")))),
    ),
    "other version": (
        {REFUSED},
        edit_json("manifest.json", lambda m, rng: m.update(format_version=2 + rng.randrange(9))),
    ),
    "other tag set": ({REFUSED}, edit_json("manifest.json", lambda m, rng: m.update(tagset_hash=rng.choice(HEX) * 64))),
    "number as text": ({REFUSED}, edit_json("manifest.json", lambda m, rng: m.update(kept="many"))),
    "manifest cut": ({REFUSED}, cut("manifest.json")),
    "manifest gone": ({REFUSED}, lambda folder, rng: (folder / "manifest.json").unlink()),
    # pairs
    "margin": ({"pairs_margin"}, edit_row(PAIRS, lambda row, rng: row.update(margin=0.01 + row["margin"] / 3))),
    "pair worse than its other": (
        {"pairs_margin"},
        edit_row(PAIRS, lambda row, rng: row.update(chosen_score=0.0, rejected_score=0.5)),
    ),
    "pair twice": (
        {"unique_pairs"},
        edit_rows(PAIRS, lambda rows, rng: rows.__setitem__(0, {**rows[0], "id": rows[1]["id"]})),
    ),
    "pair of another split": ({"pairs_split"}, edit_row(PAIRS, lambda row, rng: row.update(split="unseen"))),
    "pair dropped": ({"pairs_counted"}, edit_rows(PAIRS, lambda rows, rng: rows.pop(rng.randrange(len(rows))))),
    "items dropped": (
        {"pairs_profiles"},
        edit_table(PROFILES, lambda table, rng: table.filter(pa.compute.field("position") > 0)),
    ),
    "pairs file changed": (
        {"files_match"},
        lambda folder, rng: pq.write_table(pq.read_table(folder / PAIRS), folder / PAIRS, compression="none"),
    ),
    "pairs manifest cut": ({REFUSED}, cut("pairs/manifest.json")),
    "pairs manifest gone": ({"files_match"}, lambda folder, rng: (folder / "pairs/manifest.json").unlink()),
    # documents
    "card edited": ({"documents"}, lambda folder, rng: (folder / "README.md").write_text(f"# Songs {rng.random()}")),
    "croissant edited": (
        {"documents"},
        edit_json("croissant.json", lambda c, rng: c.update(version=str(rng.random()))),
    ),
    "croissant cut": ({"documents"}, cut("croissant.json")),
    "card gone": ({"documents"}, lambda folder, rng: (folder / "README.md").unlink()),
    "card facts with a typo": ({"documents"}, lambda folder, rng: (folder / "card.toml").write_text('titel = "x"\n')),
}


CONSEQUENCES: dict[str, set[str]] = {
    "think block open": {"answer_match"},
    "citation out of range": {"steps_match"},
    "id twice": {"best_of"},
    "task unknown": {"consistent_examples"},
    "file gone": {"acceptance", "rejected_count"},
    "file too many": {"acceptance", "rejected_count", "unique_ids", "one_split_per_example", "one_split_per_prompt"},
    "byte flipped": {*ROW_CHECKS, *(path.stem for path in CHECKS.glob("*.sql"))},
    "rows dropped": {"acceptance", "groundedness", "kept_count"},
    "kept": {"candidates_add_up"},
    "ledger": {"candidates_add_up"},
    "file hash": {"content_hash"},
    "pairs manifest gone": {"pairs_counted"},
}
"""What else a mutation breaks by its nature. That the card no longer fits goes for all."""


def nulled(table: pa.Table, column: str, rng: random.Random) -> pa.Table:
    place = rng.randrange(table.num_rows)
    values = [None if index == place else value for index, value in enumerate(table[column].to_pylist())]
    field = table.schema.field(column).with_nullable(True)
    return table.set_column(table.column_names.index(column), field, pa.array(values, type=field.type))


@pytest.fixture(scope="module")
def valid(corpus_with_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "corpus"
    shutil.copytree(corpus_with_pairs, folder, ignore=shutil.ignore_patterns(".work", "data_docs"))
    assert not validate(folder).failed
    return folder


def refused_by(folder: Path) -> set[str]:
    """Give the checks that fail, after seeing that the error the user gets names them."""
    try:
        report = validate(folder)
    except InputError as error:
        assert str(folder) in str(error)
        return {REFUSED}
    failed = {result.name: result for result in report.failed}
    # a damaged page stops the checks that read it; the hash has told of it then
    assert not report.crashed or "files_match" in failed, [(result.name, result.error) for result in report.crashed]
    if failed:
        with pytest.raises(CheckFailed) as raised:
            raise_for(report, folder)
        assert all(name in str(raised.value) and result.rows for name, result in failed.items())
    return set(failed)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_two_hundred_mutated_corpora_are_each_refused_for_the_right_reason(part: int, valid: Path, tmp_path: Path):
    names = list(MUTATIONS)
    wrong: list[str] = []
    for seed in range(part, SEEDS, PARTS):
        name = names[seed % len(names)]
        wanted, mutate = MUTATIONS[name]
        folder = tmp_path / f"{seed}"
        shutil.copytree(valid, folder)
        mutate(folder, random.Random(seed))
        try:
            found = refused_by(folder)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {name}") from error
        allowed = wanted | CONSEQUENCES.get(name, set()) | {"documents"}
        if not found & wanted or not found <= allowed:
            wrong.append(f"seed {seed}, {name}: {sorted(found) or 'accepted'} instead of {sorted(wanted)}")
        shutil.rmtree(folder)
    assert not wrong, "\n".join(wrong)


def test_a_mutation_of_each_kind_names_its_files(valid: Path):
    """The unmutated corpus passes, and `honest` alone changes nothing: the mutations are what is refused."""
    before = open_corpus(valid).manifest.content_hash
    honest(valid)
    assert open_corpus(valid).manifest.content_hash == before
    assert card.stale(open_corpus(valid)) == [] and not validate(valid).failed
