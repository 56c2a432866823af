import json
import shutil
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from tagpr_data import validate as module
from tagpr_data.build import build
from tagpr_data.dataset import Dataset
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.prompts import prompt_hash
from tagpr_data.records import CorpusManifest, DatasetManifest, FileEntry, PairsManifest, Rejected, Split, Trace
from tagpr_data.row_checks import Engine
from tagpr_data.tables import content_hash, read_json, read_records, sha256_file, write_json
from tagpr_data.tags import load_tagset
from tagpr_data.validate import (
    CHECKS,
    ROW_CHECKS,
    ValidationReport,
    check_rows,
    check_tables,
    raise_for,
    validate,
)

Traces = dict[Split, list[Trace]]
Rejects = dict[Split, list[Rejected]]


@pytest.fixture(scope="module")
def corpus(song_folder, tmp_path_factory) -> Path:
    """A valid corpus with kept and rejected rows in two splits."""
    from tagpr_data.build import CorpusConfig

    config = CorpusConfig(
        name="songs",
        dataset=song_folder,
        output=tmp_path_factory.mktemp("valid") / "corpus",
        k=3,
        attempts=2,
        teacher={"type": "scripted", "hindsight": False},
        selection={"min_score": {"classification": 1.0, "generation": 0.1}},
    )
    build(config)
    return config.output


@pytest.fixture
def rows(corpus) -> tuple[Traces, Rejects]:
    splits: tuple[Split, ...] = ("train", "validation")
    return (
        {split: read_records(corpus / f"traces/{split}.parquet", Trace) for split in splits},
        {split: read_records(corpus / f"rejected/{split}.parquet", Rejected) for split in splits},
    )


def edit(row: Any, **changes: object) -> Any:
    return row.model_copy(update=changes)


def edit_first(rows: dict[Split, list[Any]], **changes: object) -> None:
    rows["train"][0] = edit(rows["train"][0], **changes)


def first_of(rows: Traces, task: str) -> int:
    return next(index for index, row in enumerate(rows["train"]) if row.task == task)


# How to break each check: rows are changed before a manifest that fits them is written, or the manifest after.


def same_id_kept_and_rejected(traces: Traces, rejected: Rejects) -> None:
    fields = {name: getattr(traces["train"][0], name) for name in Rejected.model_fields if name in Trace.model_fields}
    rejected["train"].append(Rejected(**fields, reason="not-best", detail=""))


def same_attempt_twice(traces: Traces, rejected: Rejects) -> None:
    rejected["train"].append(edit(rejected["train"][0], id="a" * 64))


def example_in_two_splits(traces: Traces, rejected: Rejects) -> None:
    other = edit(rejected["train"][0], id="a" * 64, attempt=7)
    other = edit(other, messages=other.messages[1:], prompt_hash=prompt_hash(other.messages[1:]))
    rejected["validation"].append(other)


def prompt_in_two_splits(traces: Traces, rejected: Rejects) -> None:
    rejected["validation"].append(edit(rejected["train"][0], id="a" * 64, attempt=7, example_id="another"))


def second_user_of_an_example(traces: Traces, rejected: Rejects) -> None:
    rejected["train"].append(edit(rejected["train"][0], id="a" * 64, attempt=7, user_id="dan"))


def two_kept_of_one_prompt(traces: Traces, rejected: Rejects) -> None:
    traces["train"].append(edit(traces["train"][0], id="a" * 64, attempt=7))


def gold_in_prompt(traces: Traces, rejected: Rejects) -> None:
    index = first_of(traces, "title")
    row = traces["train"][index]
    gold = row.messages[-1].content.split("\n")[-1]
    traces["train"][index] = edit(row, gold=gold)
    rejected["train"] = [other for other in rejected["train"] if other.example_id != row.example_id]


def answer_off_form(traces: Traces, rejected: Rejects) -> None:
    index = first_of(traces, "genre")
    row = traces["train"][index]
    traces["train"][index] = edit(row, answer="polka", text=row.text.rpartition("\n")[0] + "\npolka")


BREAK_ROWS: dict[str, Callable[[Traces, Rejects], None]] = {
    "unique_ids": same_id_kept_and_rejected,
    "unique_attempts": same_attempt_twice,
    "one_split_per_example": example_in_two_splits,
    "one_split_per_prompt": prompt_in_two_splits,
    "consistent_examples": second_user_of_an_example,
    "best_of": two_kept_of_one_prompt,
    "gold_not_in_prompt": gold_in_prompt,
    "answers_in_form": answer_off_form,
    "known_reasons": lambda traces, rejected: edit_first(rejected, reason="bad mood"),
    "known_tasks": lambda traces, rejected: [
        rows.__setitem__(
            "train", [edit(row, task="verse") if row.example_id == "genre-ann-6" else row for row in rows["train"]]
        )
        for rows in (traces, rejected)
    ],
    "score_threshold": lambda traces, rejected: edit_first(traces, score=0.05),
    "grounded_within_claims": lambda traces, rejected: edit_first(traces, claims=1, grounded_claims=2),
    "items_within_k": lambda traces, rejected: edit_first(traces, item_ids=("ann-1", "ann-1", "ann-2")),
    "in_range": lambda traces, rejected: edit_first(rejected, attempt=-1),
    "disjoint_users": lambda traces, rejected: None,
    # rows that great-expectations looks at
    "id_form": lambda traces, rejected: edit_first(traces, id="not a hash"),
    "finished": lambda traces, rejected: edit_first(traces, finish_reason="length"),
    "steps_match": lambda traces, rejected: edit_first(traces, steps=traces["train"][0].steps[:-1]),
    "answer_match": lambda traces, rejected: edit_first(
        traces, answer="rock" if traces["train"][0].answer != "rock" else "jazz"
    ),
    "prompt_hash": lambda traces, rejected: edit_first(traces, prompt_hash="b" * 64),
    "score_range": lambda traces, rejected: edit_first(traces, score=-0.5),
    "grounding": lambda traces, rejected: edit_first(traces, claims=99, grounded_claims=99),
    "grammar": lambda traces, rejected: edit_first(
        traces, text=traces["train"][0].text.replace("\n</think>", "\nby the way\n</think>")
    ),
    "roles": lambda traces, rejected: edit_first(
        traces,
        messages=(messages := traces["train"][0].messages[::-1]),
        prompt_hash=prompt_hash(messages),
    ),
}
BREAK_MANIFEST: dict[str, Callable[[CorpusManifest], dict[str, object]]] = {
    "candidates_add_up": lambda manifest: {"candidates": manifest.candidates + 1},
    "kept_count": lambda manifest: {"kept": manifest.kept - 1, "candidates": manifest.candidates - 1},
    "rejected_count": lambda manifest: {
        "rejected": {**manifest.rejected, "grammar": 1}, "candidates": manifest.candidates + 1,
    },
    "acceptance": lambda manifest: {"acceptance": {**manifest.acceptance, "title": 0.123}},
    "groundedness": lambda manifest: {"claims": manifest.claims + 1},
    "content_hash": lambda manifest: {"content_hash": "0" * 64},
    "known_teachers": lambda manifest: {"teachers": {"scripted": "another revision"}},
    "files_match": lambda manifest: {
        "files": (files := {**manifest.files, "traces/test.parquet": next(iter(manifest.files.values()))}),
        "content_hash": content_hash(manifest.tasks, files, [manifest.tagset_hash]),
    },
}  # fmt: skip


def change_pairs(**changes: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Change the first pair of the training split."""
    return lambda pairs, profiles: (pairs[:1].with_columns(**changes).extend(pairs[1:]), profiles)


BREAK_PAIRS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "pairs_margin": change_pairs(margin=pl.lit(0.123)),
    "pairs_split": change_pairs(split=pl.lit("unseen")),
    "pairs_profiles": lambda pairs, profiles: (pairs, profiles.filter(pl.col("position") != 1)),
    "unique_pairs": lambda pairs, profiles: (pairs.with_columns(id=pl.col("id").replace(*pairs["id"][:2])), profiles),
    "pairs_counted": lambda pairs, profiles: (pairs[1:], profiles),
}
OTHER = {"columns"}


def failed(folder: Path, dataset: Dataset | None, with_rows: bool = True) -> dict[str, tuple[int, tuple[str, ...]]]:
    manifest = read_json(folder / "manifest.json", CorpusManifest)
    results = [
        *check_tables(folder, manifest),
        *(check_rows(sorted(folder.glob("traces/*")), load_tagset(), dataset) if with_rows else ()),
    ]
    assert not [result for result in results if result.status == "crashed"]
    return {result.name: (result.offending, result.rows) for result in results if result.status == "failed"}


def test_every_check_has_a_corpus_that_breaks_it():
    assert {*BREAK_ROWS, *BREAK_MANIFEST, *BREAK_PAIRS, *OTHER} == {
        *ROW_CHECKS,
        "columns",
        *(path.stem for path in CHECKS.glob("*.sql")),
    }


def test_every_query_starts_with_its_question():
    for path in CHECKS.glob("*.sql"):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        assert first.startswith("-- ") and first.endswith("?"), path.name


@pytest.mark.parametrize("name", BREAK_ROWS)
def test_broken_rows_fail_exactly_their_check(name, rows, make_corpus, songs, tmp_path):
    traces, rejected = rows
    BREAK_ROWS[name](traces, rejected)
    minimum = {"classification": 1.0, "generation": 0.1}
    make_corpus(tmp_path, traces, rejected, min_score=minimum, disjoint_users=name == "disjoint_users")
    assert list(failed(tmp_path, songs if name == "grounding" else None)) == [name]


@pytest.mark.parametrize("name", BREAK_MANIFEST)
def test_a_wrong_manifest_fails_exactly_its_check(name, corpus, tmp_path):
    shutil.copytree(corpus, tmp_path, dirs_exist_ok=True)
    manifest = read_json(tmp_path / "manifest.json", CorpusManifest)
    write_json(tmp_path / "manifest.json", edit(manifest, **BREAK_MANIFEST[name](manifest)))
    assert list(failed(tmp_path, None, with_rows=False)) == [name]


@pytest.mark.parametrize("name", BREAK_PAIRS)
def test_broken_pairs_fail_exactly_their_check(name, corpus_with_pairs, tmp_path):
    shutil.copytree(corpus_with_pairs, tmp_path, dirs_exist_ok=True)
    paths = [tmp_path / "pairs/pairs/train.parquet", tmp_path / "pairs/profiles.parquet"]
    frames = BREAK_PAIRS[name](*map(pl.read_parquet, paths))
    manifest = read_json(tmp_path / "pairs/manifest.json", PairsManifest)
    files = dict(manifest.files)
    for path, frame in zip(paths, frames, strict=True):
        frame.write_parquet(path)
        place = path.relative_to(tmp_path / "pairs").as_posix()
        files[place] = FileEntry(rows=frame.height, sha256=sha256_file(path))
    changed = edit(manifest, files=files, content_hash=content_hash(manifest.tasks, files))
    write_json(tmp_path / "pairs/manifest.json", changed)
    assert list(failed(tmp_path, None, with_rows=False)) == [name]


def test_a_changed_pairs_file_or_manifest_is_seen(corpus_with_pairs, tmp_path):
    shutil.copytree(corpus_with_pairs, tmp_path, dirs_exist_ok=True)
    manifest = read_json(tmp_path / "pairs/manifest.json", PairsManifest)
    write_json(tmp_path / "pairs/manifest.json", edit(manifest, content_hash="0" * 64))
    pl.read_parquet(tmp_path / "pairs/pairs/seen.parquet").write_parquet(tmp_path / "pairs/pairs/seen.parquet")
    found = failed(tmp_path, None, with_rows=False)
    assert list(found) == ["content_hash", "files_match"]
    assert found["files_match"][1] == ("pairs/pairs/seen.parquet: has another hash than the manifest says",)


def test_the_report_names_the_row_and_what_is_wrong_with_it(rows, make_corpus, tmp_path):
    traces, rejected = rows
    edit_first(traces, score=0.05)
    make_corpus(tmp_path, traces, rejected, min_score={"classification": 1.0, "generation": 0.1})
    (offending, (shown,)) = failed(tmp_path, None)["score_threshold"]
    assert offending == 1
    assert shown.startswith(f"{traces['train'][0].id}: score 0.05 is below ")


def test_files_are_compared_by_hash_rows_and_presence(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path, dirs_exist_ok=True)
    (tmp_path / "traces/extra.parquet").write_bytes((tmp_path / "traces/train.parquet").read_bytes())
    table = pq.read_table(tmp_path / "rejected/train.parquet")
    pq.write_table(table, tmp_path / "rejected/train.parquet", compression="none")
    shown = failed(tmp_path, None)["files_match"][1]
    assert shown == (
        "rejected/train.parquet: has another hash than the manifest says",
        "traces/extra.parquet: is in the folder but not in the manifest",
    )


def test_a_missing_column_fails_and_the_checks_that_need_it_are_not_run(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "traces/train.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["score"]), path)
    report = validate(tmp_path)
    assert [result.name for result in report.failed] == ["columns"]
    assert report.failed[0].rows == ("traces/train.parquet: missing columns ['score'], unknown columns []",)
    assert all(result.status == "not-run" for result in report.results[1:])


def test_a_missing_value_fails_and_names_the_row(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "traces/train.parquet"
    frame = pl.read_parquet(path).with_row_index()
    frame.with_columns(text=pl.when(pl.col("index") == 2).then(None).otherwise("text")).drop("index").write_parquet(
        path
    )
    report = validate(tmp_path)
    assert report.failed[0].rows == ("traces/train.parquet: text is missing in row 2; it must have a value",)


def test_files_by_different_writers_are_checked_together(corpus, tmp_path):
    paths = [tmp_path / "train.parquet", tmp_path / "validation.parquet"]
    pl.read_parquet(corpus / "traces/train.parquet").write_parquet(paths[0])  # Polars writes large strings
    shutil.copy(corpus / "traces/validation.parquet", paths[1])
    assert pq.read_schema(paths[0]).field("id").type != pq.read_schema(paths[1]).field("id").type
    results = check_rows(paths, load_tagset())
    assert {result.status for result in results} == {"passed", "not-run"}


def test_worker_processes_find_what_this_process_finds(rows, make_corpus, songs, tmp_path):
    traces, rejected = rows
    edit_first(traces, score=float("nan"), claims=99, grounded_claims=0)
    make_corpus(tmp_path, traces, rejected)
    paths = sorted(tmp_path.glob("traces/*"))
    alone = check_rows(paths, load_tagset(), songs, Engine(workers=1))
    assert {result.name for result in alone if result.status == "failed"} == {"score_range", "grounding"}
    assert check_rows(paths, load_tagset(), songs, Engine(workers=2)) == alone


def test_a_file_that_is_no_parquet_fails_with_its_name(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path, dirs_exist_ok=True)
    (tmp_path / "rejected/train.parquet").write_text("<html>not found</html>")
    (columns,) = validate(tmp_path).failed
    assert columns.rows[0].startswith("rejected/train.parquet: is not a whole Parquet file")


def test_a_crashed_check_is_not_a_failed_check(corpus, tmp_path, monkeypatch):
    checks = tmp_path / "checks"
    shutil.copytree(CHECKS, checks)
    (checks / "typo.sql").write_text("-- Does it run?\nSELECT row FROM nowhere")
    monkeypatch.setattr(module, "CHECKS", checks)
    report = validate(corpus)
    assert [(result.name, result.status) for result in report.crashed] == [("typo", "crashed")]
    assert report.failed == ()
    with pytest.raises(InputError, match="typo could not run"):
        raise_for(report, corpus)


def report_of(folder: Path, place: Path) -> tuple[ValidationReport, str]:
    report = validate(folder, report=place)
    return report, (place / "index.html").read_text(encoding="utf-8")


def test_a_failed_check_is_on_the_page_and_in_the_json_with_its_rows_and_data_escaped(rows, make_corpus, tmp_path):
    traces, rejected = rows
    edit_first(rejected, reason="<script>alert(1)</script>")
    edit_first(traces, score=float("nan"))
    make_corpus(tmp_path / "corpus", traces, rejected, min_score={})
    report, page = report_of(tmp_path / "corpus", tmp_path / "report")
    with pytest.raises(CheckFailed, match=r"known_reasons \(1 rows\)"):
        raise_for(report, tmp_path / "corpus")
    stored = json.loads((tmp_path / "report/report.json").read_text())
    status = {check["name"]: check["status"] for check in stored["checks"]}
    assert {name for name, value in status.items() if value == "failed"} == {"known_reasons", "score_range"}
    assert stored["rows"] == {
        "traces": sum(map(len, traces.values())), "rejected": sum(map(len, rejected.values())),
    }  # fmt: skip
    assert ">not valid<" in page and 'id="check-known_reasons"' in page
    assert rejected["train"][0].id in page and "&lt;script&gt;alert(1)" in page and "<script>alert" not in page
    assert f'{traces["train"][0].id}</td><td class="text long">score is nan; expected 0 to 1</td>' in page


def test_the_page_says_of_every_check_what_it_asked_and_what_came_of_it(corpus, tmp_path):
    report, page = report_of(corpus, tmp_path)
    for result in report.results:
        assert page.count(f'<td class="text">{result.name}</td>') == 1
        assert escape(result.question) in page
    assert ">valid<" in page and "What was found" not in page
    assert ">not run</span> (no data set given)<" in page
    assert escape((CHECKS / "in_range.sql").read_text(encoding="utf-8").partition("\n")[2].strip()) in page


def test_a_crashed_check_is_on_the_page_as_such(corpus, tmp_path, monkeypatch):
    (tmp_path / "checks").mkdir()
    (tmp_path / "checks/typo.sql").write_text("-- Does it run?\nSELECT row FROM nowhere")
    monkeypatch.setattr(module, "CHECKS", tmp_path / "checks")
    _, page = report_of(corpus, tmp_path)
    assert ">not fully checked<" in page and "The check could not run: CatalogException" in page
    assert ">not valid<" not in page


def test_page_and_json_are_the_same_bytes_for_the_same_corpus_wherever_it_lies(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "copy")
    report_of(corpus, tmp_path / "one")
    report_of(tmp_path / "copy", tmp_path / "two")
    for name in ("index.html", "report.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_page_asks_for_nothing(corpus, tmp_path):
    class Links(HTMLParser):
        found: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found += [value or "" for name, value in attrs if name in ("src", "href", "action")]
            assert tag not in ("link", "img", "iframe", "object")

    _, page = report_of(corpus, tmp_path)
    parser = Links()
    parser.feed(page)
    assert parser.found == ["#tables", "#rows"]
    assert "url(" not in page and "@import" not in page and "default-src 'none'" in page


def test_an_empty_corpus_is_valid(make_corpus, songs, tmp_path):
    make_corpus(tmp_path, {"train": []}, {"train": []})
    assert failed(tmp_path, songs) == {}


def test_no_manifest_or_another_tag_set_is_an_input_error(corpus, tmp_path):
    with pytest.raises(InputError, match=r"manifest\.json does not exist"):
        validate(tmp_path)
    other = tmp_path / "other.toml"
    shipped = load_tagset()
    other.write_text(
        'name = "other"\nmax_steps = 3\n[[tags]]\nname = "look"\nmeaning = "looks"\ncites = "no"\n', encoding="utf-8"
    )
    assert load_tagset(other).hash != shipped.hash
    with pytest.raises(InputError, match="is written in the tag set tagpr-9"):
        validate(corpus, tagset_path=other)


def test_without_the_data_set_grounding_is_not_run_and_another_data_set_is_refused(corpus, song_folder, tmp_path):
    status = {result.name: result.status for result in validate(corpus).results}
    assert status.pop("grounding") == "not-run" and set(status.values()) == {"passed"}
    status = {result.name: result.status for result in validate(corpus, dataset_folder=song_folder).results}
    assert set(status.values()) == {"passed"}
    shutil.copytree(song_folder, tmp_path, dirs_exist_ok=True)
    manifest = read_json(tmp_path / "manifest.json", DatasetManifest)
    write_json(tmp_path / "manifest.json", edit(manifest, content_hash="0" * 64))
    with pytest.raises(InputError, match="was made from the data set songs"):
        validate(corpus, dataset_folder=tmp_path)


def test_hashes_of_the_corpus_are_those_of_its_files(corpus):
    manifest = read_json(corpus / "manifest.json", CorpusManifest)
    for name, entry in manifest.files.items():
        assert sha256_file(corpus / name) == entry.sha256
