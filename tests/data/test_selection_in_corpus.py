"""What the rules of selection leave in a corpus: its card, its manifest and its validation."""

import pytest

from tagpr_data import card
from tagpr_data.build import CorpusConfig, build
from tagpr_data.corpus import open_corpus
from tagpr_data.records import CorpusManifest, Rejected, Trace
from tagpr_data.tables import read_json, read_records
from tagpr_data.validate import check_tables, validate


@pytest.fixture
def strict_config(song_config, tmp_path) -> CorpusConfig:
    names = tmp_path / "names.txt"
    names.write_text("guitar riff\n")  # a person of that name
    rules = {
        "personal_data": "mask", "names": names, "task_min_score": {"title": 0.9}, "near_duplicates_within": 0.9,
        "near_duplicates_across": 0.95, "language": "en", "max_words": 400,
    }  # fmt: skip
    return CorpusConfig.model_validate({**song_config.model_dump(), "selection": rules, "attempts": 2})


def test_a_corpus_with_all_rules_validates_adds_up_and_names_no_path(strict_config):
    manifest = build(strict_config)
    folder = strict_config.output
    kept = [r for split in ("train", "validation") for r in read_records(folder / f"traces/{split}.parquet", Trace)]
    lost = [
        r for split in ("train", "validation") for r in read_records(folder / f"rejected/{split}.parquet", Rejected)
    ]
    assert manifest.candidates == len(kept) + len(lost) and manifest.kept == len(kept) > 0
    assert manifest.rejected == {
        reason: sum(row.reason == reason for row in lost) for reason in dict.fromkeys(row.reason for row in lost)
    }
    assert manifest.parameters["selection"]["names"] == "names.txt"
    assert str(strict_config.output.parent) not in manifest.model_dump_json()
    statuses = {result.name: result.status for result in validate(folder, dataset_folder=strict_config.dataset).results}
    assert set(statuses.values()) == {"passed"}


def test_masked_names_are_in_no_table_and_the_card_counts_them(strict_config):
    build(strict_config)
    folder = strict_config.output
    for kind, model in (("traces", Trace), ("rejected", Rejected)):
        for split in ("train", "validation"):
            text = "".join(row.model_dump_json() for row in read_records(folder / f"{kind}/{split}.parquet", model))
            assert "guitar riff" not in text.lower()
    traces = [
        row for split in ("train", "validation") for row in read_records(folder / f"traces/{split}.parquet", Trace)
    ]
    masked = [row for row in traces if row.personal_data]
    assert masked and {row.personal_data for row in masked} == {("name",)}
    text = (folder / card.README).read_text()
    for task in ("genre", "title"):
        count = sum(row.task == task for row in masked)
        assert f"| name | {task} | {count} |" in text
    assert "were looked for and replaced by `(mail)`" in text
    assert card.stale(open_corpus(folder)) == []


def test_a_score_below_the_threshold_of_its_task_fails_validation(song_config, make_corpus, tmp_path):
    build(song_config)
    rows = {"train": read_records(song_config.output / "traces/train.parquet", Trace)}
    title = next(index for index, row in enumerate(rows["train"]) if row.task == "title")
    rows["train"][title] = rows["train"][title].model_copy(update={"score": 0.5})
    for least, expected in ((0.4, []), (0.6, ["score_threshold"])):
        folder = tmp_path / str(least)
        make_corpus(folder, rows, {"train": []}, task_min_score={"title": least})
        results = check_tables(folder, read_json(folder / "manifest.json", CorpusManifest))
        assert [result.name for result in results if result.status == "failed"] == expected
