"""A corpus in another tag set: other marks, the same words."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tagpr_data import relabel
from tagpr_data.build import CorpusConfig, build
from tagpr_data.cli import app
from tagpr_data.corpus import open_corpus
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import CorpusManifest, Rejected, Trace
from tagpr_data.tables import read_json, read_records
from tagpr_data.tags import load_tagset, parse
from tagpr_data.validate import validate

FIVE = {
    "identify_patterns": "examine_examples",
    "compare_options": "apply_preference",
    "resolve_conflict": "apply_preference",
    "draft_answer": "verify_answer",
}
NINE = load_tagset()
MARK = re.compile(r"</?[a-z_]+>")


def traces(folder: Path) -> list[Trace]:
    return [row for split in ("train", "validation") for row in read_records(folder / f"traces/{split}.parquet", Trace)]


def test_merged_tags_change_marks_and_steps_and_no_word(corpus_with_pairs, tmp_path):
    five = load_tagset(Path("tagpr-5"))
    manifest = relabel.relabel(open_corpus(corpus_with_pairs), NINE, five, FIVE, tmp_path / "five")
    before, after = traces(corpus_with_pairs), traces(tmp_path / "five")
    assert len(after) == len(before) == manifest.kept
    for old, new in zip(before, after, strict=True):
        assert MARK.sub("", new.text) == MARK.sub("", old.text) and new.answer == old.answer
        assert [step.tag for step in new.steps] == [FIVE.get(step.tag, step.tag) for step in old.steps]
        assert [(step.text, step.cites) for step in new.steps] == [(step.text, step.cites) for step in old.steps]
        assert parse(new.text, five, k=len(new.item_ids)).steps == new.steps
        same = set(Trace.model_fields) - {"text", "steps"}
        assert all(getattr(new, name) == getattr(old, name) for name in same)
    assert "resolve_conflict" in {step.tag for row in before for step in row.steps}, "or merging was not tried"
    report = validate(tmp_path / "five", Path("tagpr-5"))
    assert not report.failed


def test_rejected_rows_keep_their_reasons_and_lose_the_old_marks(corpus_with_pairs, tmp_path):
    one = load_tagset(Path("tagpr-1"))
    manifest = relabel.relabel(open_corpus(corpus_with_pairs), NINE, one, {"*": "step"}, tmp_path / "one")
    assert manifest.rejected == open_corpus(corpus_with_pairs).manifest.rejected != {}
    for row in read_records(tmp_path / "one/rejected/train.parquet", Rejected):
        assert {mark.strip("</>") for mark in MARK.findall(row.text)} <= {"think", "step"}


def test_names_that_mean_nothing_are_a_bijection_and_lead_back(corpus_with_pairs, tmp_path):
    random = load_tagset(Path("tagpr-9-random"))
    names = dict(zip(NINE.names, random.names, strict=True))
    relabel.relabel(open_corpus(corpus_with_pairs), NINE, random, names, tmp_path / "there")
    back = {new: old for old, new in names.items()}
    relabel.relabel(open_corpus(tmp_path / "there"), random, NINE, back, tmp_path / "back")
    assert traces(tmp_path / "back") == traces(corpus_with_pairs)
    assert [row.text for row in traces(tmp_path / "there")] != [row.text for row in traces(corpus_with_pairs)]


def test_prompts_that_list_the_tags_list_the_new_ones(song_folder, tmp_path):
    build(
        CorpusConfig(
            name="songs",
            dataset=song_folder,
            output=tmp_path / "nine",
            prompt={"style": "trace-explained"},
            teacher={"type": "scripted"},
        )
    )
    relabel.relabel(open_corpus(tmp_path / "nine"), NINE, load_tagset(Path("tagpr-1")), {"*": "step"}, tmp_path / "one")
    for old, new in zip(traces(tmp_path / "nine"), traces(tmp_path / "one"), strict=True):
        assert "<examine_examples>" in old.messages[0].content and "<step>…</step>" in new.messages[0].content
        assert "examine_examples" not in new.messages[0].content and new.messages[1:] == old.messages[1:]
        assert new.prompt_hash != old.prompt_hash
    assert not validate(tmp_path / "one", Path("tagpr-1")).failed


def test_a_trace_that_the_new_rules_forbid_is_named_and_nothing_is_written(corpus_with_pairs, tmp_path):
    strict = tmp_path / "strict.toml"
    strict.write_text(
        'name = "strict"\nmin_steps = 2\nmax_steps = 12\n[[tags]]\nname = "s"\nmeaning = "m"\ncites = "required"\n'
    )
    with pytest.raises(CheckFailed, match=r"traces are not valid in strict: [0-9a-f]{12}: missing-citation at \d+"):
        relabel.relabel(open_corpus(corpus_with_pairs), NINE, load_tagset(strict), {"*": "s"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({}, "tag 'identify_patterns' of tagpr-9 is not in tagpr-5; say what it becomes"),
        ({"identify_pattern": "examine_examples"}, "'identify_pattern' is no tag of tagpr-9"),
        ({"identify_patterns": "examine"}, "'examine' is no tag of tagpr-5; its tags: examine_examples, "),
    ],
)
def test_a_map_that_leaves_out_or_misspells_a_tag_is_refused(names, message):
    with pytest.raises(InputError, match=message):
        relabel.full_map(NINE, load_tagset(Path("tagpr-5")), names)


def test_the_command_writes_the_corpus_and_refuses_another_tag_set(corpus_with_pairs, tmp_path):
    one = ["--tagset", "tagpr-1", "--output", str(tmp_path / "one")]
    result = CliRunner().invoke(app, ["relabel", str(corpus_with_pairs), *one, "--map", "*=step"])
    assert result.exit_code == 0 and "in the tag set tagpr-1" in result.stdout
    manifest = read_json(tmp_path / "one/manifest.json", CorpusManifest)
    assert manifest.parameters["relabelled"]["tagset"] == "tagpr-9" and manifest.name == "songs-tagpr-1"
    again = CliRunner().invoke(app, ["relabel", str(tmp_path / "one"), *one, "--map", "*=step"])
    assert isinstance(again.exception, InputError) and "give its file with --from" in str(again.exception)
    wrong = CliRunner().invoke(app, ["relabel", str(corpus_with_pairs), *one, "--map", "step"])
    assert isinstance(wrong.exception, InputError) and "'step' is not OLD=NEW" in str(wrong.exception)
    unknown = CliRunner().invoke(app, ["relabel", str(corpus_with_pairs), "--tagset", "tagpr-7", *one[2:]])
    assert "shipped set: tagpr-1, tagpr-5, tagpr-9, tagpr-9-random" in str(unknown.exception)
