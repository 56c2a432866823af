"""The card and Croissant of a corpus: true, deterministic, and harmless whatever the data says."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml

from tagpr_data import card, stats
from tagpr_data.build import CorpusConfig, build
from tagpr_data.corpus import open_corpus
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import Rejected, Trace
from tagpr_data.tables import read_records
from tagpr_data.validate import raise_for, validate


@pytest.fixture(scope="module")
def corpus(corpus_with_pairs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "corpus"
    shutil.copytree(corpus_with_pairs, folder)
    return folder


@pytest.fixture
def copy(corpus, tmp_path) -> Path:
    shutil.copytree(corpus, tmp_path / "corpus")
    return tmp_path / "corpus"


def header(text: str) -> dict[str, object]:
    return yaml.safe_load(text.split("---\n")[1])


def test_numbers_of_the_card_are_those_of_the_rows(corpus):
    opened = open_corpus(corpus)
    rows = {split: read_records(corpus / f"traces/{split}.parquet", Trace) for split in ("train", "validation")}
    numbers = stats.statistics(opened)
    for size in numbers.sizes:
        if size["kind"] == "traces":
            here = rows[size["split"]]
            assert size["rows"] == len(here)
            assert size["users"] == len({row.user_id for row in here})
            assert size["completion_characters"] == sum(len(row.text) for row in here)
            assert size["completion_words"] == sum(len(row.text.split()) for row in here)
            assert size["prompt_characters"] == sum(len(turn.content) for row in here for turn in row.messages)
            assert size["completion_tokens"] is None
    everything = [row for split in rows.values() for row in split]
    steps = [step for row in everything for step in row.steps]
    assert {row["tag"]: row["steps"] for row in numbers.tags} == {
        tag: sum(step.tag == tag for step in steps) for tag in {step.tag for step in steps}
    }
    assert {row["tag"]: row["citations"] for row in numbers.tags} == {
        tag: sum(len(step.cites) for step in steps if step.tag == tag) for tag in {step.tag for step in steps}
    }
    (words,) = [row for row in numbers.lengths if row["what"] == "words"]
    lengths = sorted(len(row.text.split()) for row in everything)
    assert (words["min"], words["max"], words["total"]) == (lengths[0], lengths[-1], sum(lengths))
    assert sum(row["kept"] for row in numbers.tasks) == len(everything) == opened.manifest.kept
    assert sum(row["rows"] for row in numbers.reasons) == sum(opened.manifest.rejected.values()) > 0
    text = card.documents(opened)["README.md"]
    assert f"{opened.manifest.kept:,} tagged reasoning traces about 3 users" in text


def test_the_header_names_every_configuration_with_files_that_are_there(corpus):
    configs = header(card.documents(open_corpus(corpus))["README.md"])["configs"]
    assert isinstance(configs, list)
    assert [config["config_name"] for config in configs] == ["traces", "rejected", "pairs", "profiles"]
    for config in configs:
        for file in config["data_files"]:
            assert (corpus / file["path"]).is_file()


def test_documents_are_the_same_bytes_in_another_place(corpus, copy):
    assert card.documents(open_corpus(corpus)) == card.documents(open_corpus(copy))


def test_the_recipe_in_the_card_builds_the_same_corpus_again(corpus, song_folder, tmp_path):
    text = card.documents(open_corpus(corpus))["README.md"]
    (recipe,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    settings = tomllib.loads(recipe) | {"dataset": song_folder, "output": tmp_path / "again"}
    manifest = build(CorpusConfig.model_validate(settings))
    assert manifest.content_hash == open_corpus(corpus).manifest.content_hash


def test_toml_reads_back_as_it_was():
    settings = {"a": 'quo"te\\ \u2028 é\x07', "b": [1, 2.5, True], "c d": {"e": {"f": "x\ny"}, "g": []}, "none": None}
    assert tomllib.loads(card.toml(settings)) == {key: value for key, value in settings.items() if value is not None}


def test_a_stale_document_is_found_by_card_validate_and_named_with_its_line(copy):
    card.write_documents(open_corpus(copy))
    assert card.stale(open_corpus(copy)) == []
    readme = copy / "README.md"
    readme.write_text(readme.read_text().replace(" tagged reasoning traces about", " wonderful traces about"))
    (problem,) = card.stale(open_corpus(copy))
    assert problem.startswith("README.md: is stale, line 12 says") and "wonderful" in problem
    report = validate(copy)
    assert [result.name for result in report.failed] == ["documents"]
    with pytest.raises(CheckFailed, match="wonderful"):
        raise_for(report, copy)
    (copy / "croissant.json").unlink()
    assert card.stale(open_corpus(copy))[-1] == "croissant.json: is missing"
    card.write_documents(open_corpus(copy))
    readme.write_text(readme.read_text().replace('"split": "validation"', '"split": "validatoin"', 1))
    (problem,) = card.stale(open_corpus(copy))  # far behind in a long line: what differs is shown all the same
    assert "validatoin" in problem.partition(", not ")[0] and "validation" in problem.partition(", not ")[2]


def test_what_a_person_says_is_in_card_toml_and_a_typo_in_it_is_named(copy):
    (copy / "card.toml").write_text('title = "Songs | of <three>"\nnotes = "Made for fun."\nlanguage = ["en"]\n')
    text = card.documents(open_corpus(copy))["README.md"]
    assert "Made for fun." in text and header(text)["pretty_name"] == "Songs | of <three>"
    assert header(text)["language"] == ["en"]
    (copy / "card.toml").write_text('titel = "x"\n')
    with pytest.raises(InputError, match=r"card\.toml.*titel"):
        card.documents(open_corpus(copy))


def test_hostile_names_cannot_break_out_of_the_card(make_corpus, corpus, tmp_path):
    row = read_records(corpus / "traces/train.parquet", Trace)[0]
    evil = 'x|y</td>\n---\nlicense: "mit"\n```\n<script>alert(1)</script>'
    hostile = row.model_copy(update={"teacher": evil, "text": f"````\n```\n{row.text}"})
    make_corpus(tmp_path, {"train": [hostile]}, {"train": []})
    text = card.documents(open_corpus(tmp_path))["README.md"]
    assert header(text)["license"] == "cc0-1.0"
    table = next(line for line in text.splitlines() if "alert(1)" in line and line.startswith("|"))
    assert "<script" not in table and table.count(" | ") == 8
    assert "`````text\n````\n```\n<think>" in text


def test_an_empty_corpus_has_a_card(make_corpus, tmp_path):
    make_corpus(tmp_path, {"train": []}, {"train": []})
    text = card.documents(open_corpus(tmp_path))["README.md"]
    assert "0 tagged reasoning traces about 0 users" in text
    assert header(text)["configs"] == []


def test_croissant_says_file_field_and_lineage(corpus):
    opened = open_corpus(corpus)
    described = json.loads(card.documents(opened)["croissant.json"])
    assert described["conformsTo"] == "http://mlcommons.org/croissant/1.1"
    hashes = {file["contentUrl"]: file["sha256"] for file in described["distribution"]}
    assert hashes == {table.path: table.entry.sha256 for table in opened.tables if table.entry.rows}
    (traces,) = [part for part in described["recordSet"] if part["@id"] == "traces-train"]
    assert [field["name"] for field in traces["field"]] == list(Trace.model_fields)
    (text,) = [field for field in traces["field"] if field["name"] == "text"]
    lineage = {note["equivalentProperty"]: [field["name"] for field in note["subField"]] for note in text["annotation"]}
    assert lineage["prov:wasAttributedTo"] == ["teacher", "teacher_revision"]
    assert lineage["prov:wasDerivedFrom"] == ["example_id", "item_ids", "prompt_hash", "parents"]
    assert described["prov:wasDerivedFrom"]["@id"] == f"urn:sha256:{opened.manifest.dataset_hash}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the validator's own use of rdflib
def test_an_independent_validator_accepts_croissant_and_reads_rows_by_it(copy):
    import mlcroissant  # slow to import

    (copy / "card.toml").write_text(
        'creators = ["A"]\nurl = "https://example.org/x"\ndate = "2026-01-01"\ncitation = "c"\n'
    )
    card.write_documents(open_corpus(copy))
    described = mlcroissant.Dataset(str(copy / "croissant.json"))
    assert not described.metadata.issues.errors and not described.metadata.issues.warnings
    found = {row["traces-train/id"].decode() for row in described.records("traces-train")}
    assert found == {row.id for row in read_records(copy / "traces/train.parquet", Trace)}


def test_a_damaged_or_missing_file_is_named(copy):
    path = copy / "traces/train.parquet"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CheckFailed, match=r"traces/train\.parquet is not the file"):
        open_corpus(copy)
    path.unlink()
    with pytest.raises(InputError, match=r"traces/train\.parquet of its manifest is missing"):
        open_corpus(copy)
    with pytest.raises(InputError, match="does not exist"):
        open_corpus(copy / "nowhere")


def test_the_card_says_where_names_of_people_were_looked_for(corpus):
    opened = open_corpus(corpus)
    numbers, rules = stats.statistics(opened), opened.manifest.parameters["selection"]

    def limits(**changes):
        parameters = {**opened.manifest.parameters, "selection": {**rules, **changes}}
        return card._limits(opened.manifest.model_copy(update={"parameters": parameters}), numbers)

    assert "behind `Signed-off-by:` and the like, nowhere else" in limits()
    assert "and the like and in a list of the curator's, nowhere else" in limits(names="authors.txt")
    assert "Names of people" not in limits(personal_data="off")


def test_a_kept_trace_costs_what_all_attempts_took_by_teacher_and_attempt(make_corpus, corpus, tmp_path):
    kept = read_records(corpus / "traces/train.parquet", Trace)[:3]
    refused = read_records(corpus / "rejected/train.parquet", Rejected)[:2]
    counted = {"task": kept[0].task, "teacher": "m-hindsight", "input_tokens": 100, "output_tokens": 10}
    traces = [row.model_copy(update=counted | {"attempt": int(place > 0)}) for place, row in enumerate(kept)]
    rejected = [row.model_copy(update=counted | {"attempt": 0}) for row in refused]
    make_corpus(tmp_path, {"train": traces}, {"train": rejected}, prices={"m": [1.0, 10.0], "other": [9.0, 9.0]})
    first, second = stats.statistics(open_corpus(tmp_path)).attempts
    # an attempt takes 110 tokens and (100 · 1 + 10 · 10) / 10⁶; one of three first ones was kept, and both second ones
    assert (first["attempt"], first["attempts"], first["kept"], first["tokens_per_kept"]) == (0, 3, 1, 330)
    assert (second["attempt"], second["attempts"], second["kept"], second["tokens_per_kept"]) == (1, 2, 2, 110)
    assert (first["cost"], first["cost_per_kept"]) == pytest.approx((6e-4, 6e-4))
    assert (second["cost"], second["cost_per_kept"]) == pytest.approx((4e-4, 2e-4))
    lines = card.documents(open_corpus(tmp_path))["README.md"].splitlines()
    task = kept[0].task
    assert f"| {task} | m-hindsight | 3 | 1.67 | 167 | 17 | 0.000333333 |" in lines
    assert f"| {task} | m-hindsight | 0 | 3 | 1 | 330 | 0.0006 | 0.0006 |" in lines
    assert f"| {task} | m-hindsight | 1 | 2 | 2 | 110 | 0.0004 | 0.0002 |" in lines


def test_what_a_trace_cost_is_unknown_where_an_attempt_counted_no_tokens(make_corpus, corpus, tmp_path):
    counted, uncounted = read_records(corpus / "traces/train.parquet", Trace)[:2]
    same = {"task": counted.task, "teacher": "m", "attempt": 0}
    rows = [
        counted.model_copy(update=same | {"input_tokens": 5, "output_tokens": 5}),
        uncounted.model_copy(update=same),
    ]
    make_corpus(tmp_path, {"train": rows}, {"train": []}, prices={"m": [1.0, 1.0]})
    (row,) = stats.statistics(open_corpus(tmp_path)).attempts
    assert (row["tokens_per_kept"], row["cost"], row["cost_per_kept"]) == (None, None, None)
