"""The life of a finished corpus: differences, a user forgotten, two merged, rows shown."""

import gzip
import html
import io
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tagpr_data import browse, card, corpus_cli, diff, forget, show
from tagpr_data import merge as merging
from tagpr_data.corpus import open_corpus
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.merge import merge
from tagpr_data.records import CorpusManifest, PreferencePair, Rejected, Trace
from tagpr_data.tables import read_json, read_records, sha256_file, sha256_text, write_json
from tagpr_data.tags import load_tagset
from tagpr_data.validate import validate

SPLITS = ("train", "validation")
_POOLS: list[pa.MemoryPool] = []
"""Counting pools, which must outlive what was allocated from them."""


@pytest.fixture
def corpus(corpus_with_pairs, tmp_path) -> Path:
    shutil.copytree(corpus_with_pairs, tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.fixture
def rows(corpus_with_pairs):
    return (
        {split: read_records(corpus_with_pairs / f"traces/{split}.parquet", Trace) for split in SPLITS},
        {split: read_records(corpus_with_pairs / f"rejected/{split}.parquet", Rejected) for split in SPLITS},
    )


def test_a_corpus_does_not_differ_from_its_copy(corpus, corpus_with_pairs):
    difference = diff.compare(open_corpus(corpus_with_pairs), open_corpus(corpus))
    assert difference.is_same and difference.p_value is None
    assert all(not (change.added or change.removed or change.changed) for change in difference.rows)
    assert "Nothing differs" in diff.markdown(difference)


def test_added_removed_changed_and_moved_rows_are_told_by_id_and_field(rows, make_corpus, tmp_path):
    traces, rejected = rows
    make_corpus(tmp_path / "a", traces, rejected)
    first, second, third = traces["train"][:3]
    changed = first.model_copy(update={"score": 0.5, "answer": "other"})
    fields = {name: getattr(second, name) for name in Rejected.model_fields if name in Trace.model_fields}
    now_refused = Rejected(**fields, reason="not-best", detail="")
    moved = {"train": [changed, *traces["train"][3:]], "validation": [*traces["validation"], third]}
    new = rejected["train"][0].model_copy(update={"id": "f" * 64})
    make_corpus(tmp_path / "b", moved, {**rejected, "train": [*rejected["train"], now_refused, new]}, best_of=2)
    difference = diff.compare(open_corpus(tmp_path / "a"), open_corpus(tmp_path / "b"))
    kept, refused = difference.rows
    assert (kept.added, kept.removed, kept.changed) == (0, 1, 2)
    assert kept.fields == {"answer": 1, "score": 1, "split": 1}
    assert kept.same == sum(map(len, traces.values())) - 3
    assert kept.examples["removed"] == [second.id]
    assert f"{first.id}: answer, score" in kept.examples["changed"]
    assert refused.added == 2 and not refused.changed
    assert difference.ledger == {"kept before, rejected now": 1, "rejected before, kept now": 0}
    assert difference.answers["with other answers"] == 1 and difference.answers["no longer there"] == 1
    assert difference.schema == ["parameters.best_of: 1 → 2"]
    text = diff.markdown(difference)
    assert "| traces |" in text and "parameters.best_of: 1 → 2" in text


def test_the_tag_test_gives_the_numbers_of_a_small_case_by_hand():
    # one user alone on each side, tags 10/0 against 0/10: chi-square 20, and half of the two labellings are as extreme
    before, after = np.array([[10, 0], [0, 0]]), np.array([[0, 0], [0, 10]])
    statistic, v, p = diff.permutation_test(before, after)
    assert statistic == pytest.approx(20.0) and v == pytest.approx(1.0) and p == pytest.approx(1.0)
    # 12 users in both, all shifted the same way: only 2 of 4096 swaps are as extreme
    before, after = np.tile([8, 2], (12, 1)), np.tile([2, 8], (12, 1))
    statistic, v, p = diff.permutation_test(before, after)
    assert statistic == pytest.approx(240 * (0.3 / 0.5) ** 2) and v == pytest.approx(0.6)
    assert p is not None and p < 0.005


def test_the_tag_test_is_honest_where_nothing_differs():
    generator = np.random.default_rng(0)
    values: list[float] = []
    for seed in range(60):
        lean = generator.dirichlet([1, 1, 1], size=20)
        sides = [np.stack([generator.multinomial(30, share) for share in lean]) for _ in range(2)]
        p = diff.permutation_test(*sides, seed=seed, permutations=99)[2]
        assert p is not None
        values.append(p)
    assert sum(value <= 0.1 for value in values) <= 14  # 6 expected; more would be seen once in 2,000 runs


def test_a_forgotten_user_is_in_no_file_and_the_rest_is_as_before(corpus, tmp_path):
    output = tmp_path / "without"
    manifest, certificate = forget.forget(open_corpus(corpus), "ann", output)
    proof = json.loads(certificate)
    assert "ann" not in re.findall(r"\w+", certificate)
    assert proof["user_sha256"] == sha256_text("ann")
    assert (
        proof["to_content_hash"]
        == manifest.content_hash
        == read_json(output / "manifest.json", CorpusManifest).content_hash
    )
    assert {file["path"] for file in proof["files"]} == {
        path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()
    }
    for split in SPLITS:
        before = read_records(corpus / f"traces/{split}.parquet", Trace)
        assert read_records(output / f"traces/{split}.parquet", Trace) == [
            row for row in before if row.user_id != "ann"
        ]
    pairs = [row for path in (output / "pairs/pairs").glob("*") for row in read_records(path, PreferencePair)]
    assert all("ann" not in (row.user_id, row.other_user_id) for row in pairs)
    assert not [result for result in validate(output).results if result.status in ("failed", "crashed")]
    assert forget.check_gone(output, "ann") == len(proof["files"])
    assert card.stale(open_corpus(output)) == []


def test_the_search_finds_a_user_wherever_they_are_put(corpus, tmp_path):
    forget.forget(open_corpus(corpus), "ann", tmp_path / "without")
    (tmp_path / "without/notes.txt").write_text("thanks to ann, and to the annual fair")
    with pytest.raises(CheckFailed, match=r"notes\.txt, line 1: 'thanks to ann"):
        forget.check_gone(tmp_path / "without", "ann")
    with pytest.raises(CheckFailed, match="still names the user"):
        forget.check_gone(corpus, "ann")
    found, _ = forget.search(corpus, forget.Identity({"user": frozenset({"ann"})}))
    places = {(place.file, place.where.rpartition(", ")[2]) for place in found}
    assert {("traces/train.parquet", "user_id"), ("pairs/profiles.parquet", "profile_id")} <= places
    assert {file for file, _ in places} >= {"rejected/train.parquet", ".work/candidates.jsonl"}


def test_rows_made_from_a_users_rows_go_and_rows_that_name_them_are_refused(rows, make_corpus, tmp_path):
    traces, rejected = rows
    own = next(row for row in traces["train"] if row.user_id == "ann")
    others = [place for place, row in enumerate(traces["train"]) if row.user_id == "bob"]
    child = traces["train"][others[0]].model_copy(update={"parents": (own.id,)})
    grandchild = traces["train"][others[1]].model_copy(update={"parents": (child.id,)})
    traces["train"][others[0]], traces["train"][others[1]] = child, grandchild
    make_corpus(tmp_path / "a", traces, rejected, min_score={})
    forget.forget(open_corpus(tmp_path / "a"), "ann", tmp_path / "b")
    left = {row.id for row in read_records(tmp_path / "b/traces/train.parquet", Trace)}
    assert child.id not in left and grandchild.id not in left and len(left) > 0
    traces["train"][others[2]] = traces["train"][others[2]].model_copy(update={"gold": "as ann would"})
    make_corpus(tmp_path / "c", traces, {}, min_score={})
    with pytest.raises(CheckFailed, match=r"gold: 'as ann would'"):
        forget.forget(open_corpus(tmp_path / "c"), "ann", tmp_path / "d")
    assert not (tmp_path / "d").exists() and not list(tmp_path.glob(".*"))
    forget.forget(open_corpus(tmp_path / "c"), "ann", tmp_path / "d", drop_mentions=True)
    with pytest.raises(InputError, match="no user 'zoe'"):
        forget.forget(open_corpus(tmp_path / "a"), "zoe", tmp_path / "e")


def test_a_rejected_row_outlives_the_forgotten_row_it_was_a_duplicate_of(rows, make_corpus, tmp_path):
    traces, rejected = rows
    own = next(row for row in traces["train"] if row.user_id == "ann")
    place = next(place for place, row in enumerate(rejected["train"]) if row.user_id == "bob")
    told = {"reason": "duplicate", "detail": f"{own.id} was kept with the same text"}
    duplicate = rejected["train"][place] = rejected["train"][place].model_copy(update=told)
    make_corpus(tmp_path / "a", traces, rejected, min_score={})
    forget.forget(open_corpus(tmp_path / "a"), "ann", tmp_path / "b")
    left = {row.id: row for row in read_records(tmp_path / "b/rejected/train.parquet", Rejected)}
    assert left[duplicate.id] == duplicate.model_copy(
        update={"detail": "one since removed was kept with the same text"}
    )


def test_two_halves_merge_into_the_whole(rows, make_corpus, tmp_path):
    traces, rejected = rows
    whole = make_corpus(tmp_path / "whole", traces, rejected, min_score={"classification": 1.0, "generation": 0.1})
    by_user = {
        half: [
            {split: [row for row in part[split] if (row.user_id == "ann") == half] for split in SPLITS}
            for part in (traces, rejected)
        ]
        for half in (True, False)
    }
    for half, name in ((True, "a"), (False, "b")):
        make_corpus(tmp_path / name, *by_user[half], min_score={"classification": 1.0, "generation": 0.1})
    merged = merge(open_corpus(tmp_path / "a"), open_corpus(tmp_path / "b"), tmp_path / "c")
    assert merged.content_hash == whole.content_hash
    again = merge(open_corpus(tmp_path / "whole"), open_corpus(tmp_path / "a"), tmp_path / "d")
    assert again.content_hash == whole.content_hash  # equal rows come once
    counted = ("candidates", "kept", "rejected", "acceptance", "claims", "grounded_claims", "teachers")
    assert [getattr(merged, name) for name in counted] == [getattr(whole, name) for name in counted]
    with pytest.raises(InputError, match="is there already"):
        merge(open_corpus(tmp_path / "a"), open_corpus(tmp_path / "b"), tmp_path / "c")


def test_rows_in_any_order_merge_into_the_same_bytes(rows, make_corpus, tmp_path, monkeypatch):
    traces, rejected = rows
    whole = make_corpus(tmp_path / "whole", traces, rejected, min_score={})
    path = tmp_path / "whole/traces/train.parquet"
    pq.write_table(pq.read_table(path)[::-1], tmp_path / "turned.parquet")
    monkeypatch.setattr(merging, "GROUP_ROWS", 3)
    for files in ([path], [tmp_path / "turned.parquet"], [path, path], [tmp_path / "turned.parquet", path]):
        batches = merging._unique(merging._sorted(files, "traces"), "traces", equal_once=True)
        ids = [id_ for batch in batches for id_ in batch["id"].to_pylist()]
        assert ids == sorted(row.id for row in traces["train"])
    assert whole.kept == sum(map(len, traces.values()))


def test_what_does_not_fit_together_is_not_merged(rows, make_corpus, tmp_path):
    traces, rejected = rows
    manifest = make_corpus(tmp_path / "a", traces, rejected, min_score={})
    changed = {**traces, "train": [traces["train"][0].model_copy(update={"seed": 7}), *traces["train"][1:]]}
    make_corpus(tmp_path / "b", changed, rejected, min_score={})
    a, b = open_corpus(tmp_path / "a"), open_corpus(tmp_path / "b")
    with pytest.raises(CheckFailed, match=rf"one id and two contents: {traces['train'][0].id} \(seed\)"):
        merge(a, b, tmp_path / "c")
    for change, problem in (
        ({"tagset_hash": "1" * 64}, "corpora of one tag set"),
        ({"licence": "MIT"}, "say with --licence"),
        ({"teachers": dict.fromkeys(manifest.teachers, "newer")}, "one revision of each teacher"),
        ({"tasks": tuple(task.model_copy(update={"question": "?"}) for task in manifest.tasks)}, "differently"),
    ):
        write_json(tmp_path / "b/manifest.json", manifest.model_copy(update=change))
        with pytest.raises(InputError, match=problem):
            merge(a, open_corpus(tmp_path / "b", verify=False), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_row_is_found_by_the_beginning_of_its_id_and_shown_with_its_steps(corpus, rows):
    from rich.console import Console

    opened, trace = open_corpus(corpus), rows[0]["train"][0]
    split, found = show.find(opened, trace.id[:12])
    assert (split, found) == ("train", trace)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(show.render(split, found, load_tagset()))
    text = console.export_text()
    for part in (trace.example_id, *(step.tag for step in trace.steps), f"seed {trace.seed}", "[P1]"):
        assert part in text
    for kind, model in (("rejected", Rejected), ("pairs/pairs", PreferencePair)):
        row = read_records(corpus / f"{kind}/train.parquet", model)[0]
        assert show.find(opened, row.id)[1] == row
        console.print(show.render("train", row, load_tagset()))
    firsts = Counter(row.id[0] for part in rows for table in part.values() for row in table)
    with pytest.raises(InputError, match="stands for several rows"):
        show.find(opened, firsts.most_common(1)[0][0])
    with pytest.raises(InputError, match="no row whose id begins with 'xyz'"):
        show.find(opened, "xyz")


def test_the_page_holds_every_row_and_no_text_of_it_is_markup(rows, make_corpus, tmp_path):
    traces, rejected = rows
    evil = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
    traces["train"][0] = traces["train"][0].model_copy(update={"gold": evil, "teacher": evil})
    make_corpus(tmp_path / "a", traces, rejected)
    count = browse.write_page(open_corpus(tmp_path / "a"), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert count == sum(len(rows) for part in (traces, rejected) for rows in part.values())
    assert "<img" not in text and text.count("</script>") == 3 and "default-src 'none'" in text
    data = json.loads(re.findall(r'id="data">(.*?)</script>', text, re.S)[0])
    assert {row["id"] for row in data["rows"]} >= {row.id for row in traces["train"]}
    assert any(row["gold"] == evil for row in data["rows"])
    few = browse.browser_data(open_corpus(tmp_path / "a"), max_rows=6)
    assert 0 < len(few["rows"]) <= 6 and few["total"] == count


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_the_page_runs_in_a_browser_and_shows_the_first_row(corpus, tmp_path):
    browse.write_page(open_corpus(corpus), tmp_path / "page.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'page.html'}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert 'data-ready="true"' in done.stdout
    detail = done.stdout.partition('id="detail"')[2]
    assert "Completion" in detail and 'class="step' in detail and ">null<" not in detail.partition("<script")[0]


def test_commands_answer_on_stdout_and_tell_misuse(corpus, tmp_path):
    from typer.testing import CliRunner

    def call(*arguments: object) -> tuple[int, str, object]:
        result = CliRunner().invoke(corpus_cli.app, [*map(str, arguments)])
        return result.exit_code, result.output, result.exception

    assert call("card", corpus, "--check")[0] == 0
    code, text, _ = call("diff", corpus, corpus)
    assert code == 0 and "Nothing differs" in text
    code, text, _ = call("stats", corpus, "--json")
    assert code == 0 and json.loads(text)["users"][0]["users"] == 3
    assert "analyze_query" in call("stats", corpus)[1]
    code, text, _ = call("forget", corpus, "--user", "bob", "--output", tmp_path / "new")
    assert code == 0 and (tmp_path / "new.certificate.json").is_file()
    assert call("forget", tmp_path / "new", "--user", "bob", "--check")[0] == 0
    assert isinstance(call("forget", corpus, "--user", "bob", "--check")[2], CheckFailed)
    assert isinstance(call("forget", corpus, "--user", "bob")[2], InputError)
    assert isinstance(call("show", tmp_path, "x")[2], InputError)
    who = tmp_path / "who.csv"
    who.write_text("pseudonym,user\r\nann,Anna Blume\r\n")
    asked = ("--user", "Anna Blume", "--user-map", who)
    assert isinstance(call("forget", corpus, *asked, "--check")[2], CheckFailed)
    code, text, _ = call("forget", corpus, *asked, "--output", tmp_path / "newer")
    assert code == 0 and call("forget", tmp_path / "newer", *asked, "--check")[0] == 0
    (tmp_path / "newer/notes.txt").write_text("thanks to Anna Blume")
    assert isinstance(call("forget", tmp_path / "newer", *asked, "--check")[2], CheckFailed)
    assert isinstance(call("forget", corpus, "--user", "Eve", "--user-map", who, "--check")[2], InputError)


def test_other_pairs_of_the_same_traces_are_a_difference(corpus, corpus_with_pairs):
    path, manifest = corpus / "pairs/pairs/train.parquet", corpus / "pairs/manifest.json"
    pq.write_table(pq.read_table(path)[1:], path)
    said = json.loads(manifest.read_text())
    said["files"]["pairs/train.parquet"]["sha256"] = sha256_file(path)
    manifest.write_text(json.dumps(said))
    difference = diff.compare(open_corpus(corpus_with_pairs), open_corpus(corpus))
    assert not difference.is_same and "Nothing differs" not in diff.markdown(difference)
    (pairs,) = [change for change in difference.rows if change.kind == "pairs"]
    assert (pairs.added, pairs.removed, pairs.changed) == (0, 1, 0)


@pytest.mark.parametrize("name", ["Ann Müller", 'Ann "the guitar" <b>'])
def test_a_name_is_found_as_json_and_html_write_it_and_in_packed_files(corpus, name):
    def places() -> list[str]:
        return [place.file for place in forget.search(corpus, forget.Identity({"user": frozenset({name})}))[0]]

    assert places() == []
    with gzip.open(corpus / "notes.txt.gz", "wt", encoding="utf-8") as notes:
        notes.write(f"thanks to {name} of the band")
    (corpus / "notes.json").write_text(json.dumps([name]))
    (corpus / "notes.html").write_text(f"<p>{html.escape(name)}</p>")
    assert set(places()) == {"notes.html", "notes.json", "notes.txt.gz"}
    (corpus / "notes.txt.gz").write_bytes((corpus / "notes.txt.gz").read_bytes()[:20])
    with pytest.raises(InputError, match=r"notes.txt.gz cannot be searched, as it is not whole"):
        places()


def test_tables_that_are_damaged_or_lack_a_column_are_told(corpus, corpus_with_pairs, tmp_path):
    path = corpus / "traces/train.parquet"
    whole = pq.read_table(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckFailed, match=r"its traces cannot be read .*validate"):
        show.find(open_corpus(corpus, verify=False), "0")
    pq.write_table(whole.drop_columns(["gold", "score"]), path)
    with pytest.raises(CheckFailed, match=r"train.parquet has no column gold, score"):
        merge(open_corpus(corpus, verify=False), open_corpus(corpus_with_pairs), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_forget_and_merge_hold_no_more_rows_of_a_larger_corpus(rows, make_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "GROUP_ROWS", 50)  # so that a thousand rows are many groups
    monkeypatch.setattr(forget, "SEARCHED_ROWS", 50)
    traces, rejected = rows
    filler = [row for row in rejected["train"] if row.user_id == "bob"]

    def peak(copies: int) -> int:
        """Most bytes that Arrow held at once while one user was forgotten and the result merged with the whole."""
        many = [
            row.model_copy(update={"id": sha256_text(f"{row.id} {copy}"), "attempt": 10 + copy})
            for copy in range(copies)
            for row in filler
        ]
        whole, left, both = (tmp_path / f"{name}-{copies}" for name in ("whole", "left", "both"))
        make_corpus(whole, traces, {**rejected, "train": [*rejected["train"], *many]}, min_score={})
        before = pa.default_memory_pool()
        counted = pa.proxy_memory_pool(before)
        _POOLS.append(counted)
        pa.set_memory_pool(counted)
        try:
            forget.forget(open_corpus(whole), "ann", left)
            merge(open_corpus(left), open_corpus(whole), both)
        finally:
            pa.set_memory_pool(before)
        assert {row.id for row in read_records(both / "rejected/train.parquet", Rejected)} >= {row.id for row in many}
        most = counted.max_memory()
        assert most is not None
        return most

    size = -(-300 // len(filler))
    assert peak(5 * size) < 1.5 * peak(size)
