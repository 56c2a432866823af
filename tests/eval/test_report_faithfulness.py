"""The report's part on faithfulness, from a run of made-up reasoners that was looked into."""

import shutil

import pytest

from tagpr_data.errors import InputError
from tagpr_data.records import Faithfulness
from tagpr_data.tables import read_json, write_json
from tagpr_eval import plots, report, report_faithfulness, tables
from tagpr_eval.cells import load_runs
from tagpr_eval.faithfulness_run import Choice, examine
from tagpr_eval.typeset import Table, csv_text

from .made_up_reasoners import write_data
from .test_faithfulness_run import make_reasoner, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("looked")
    made = make_run(write_data(folder / "data"), folder / "run", k=(0, 4))
    examine(made, Choice(examples=20), make_model=make_reasoner)
    return made


@pytest.fixture(scope="module")
def page(run):
    return report.build(load_runs([run]))


def section(page):
    (found,) = [one for one in page.sections if one.name == "faithfulness"]
    return found


def lines(table):
    names = [column.name for column in table.columns]
    return [dict(zip(names, row.values, strict=True)) for row in table.rows]


def test_the_page_shows_what_was_found_for_every_model_and_intervention(run, page):
    interventions, answers, by_tag = section(page).tables
    found = read_json(run / "faithfulness" / "faithfulness.json", Faithfulness)
    assert len(answers.rows) == 6
    row = next(
        line for line in lines(interventions)
        if (line["model"], line["k"], line["what"]) == ("trace", 4, "transplant the trace")
    )  # fmt: skip
    assert (row["follows"].value, row["control_follows"], row["n"]) == (1, None, 20)
    relabel = next(line for line in lines(interventions) if (line["model"], line["what"]) == ("items", "relabel items"))
    measured = next(
        one
        for one in found.measures
        if (one.model, one.action, one.target, one.measure, one.tag)
        == ("items", "relabel", "difference", "follows", None)
    )
    assert (relabel["difference_follows"].value, relabel["difference_follows"].low) == (measured.value, measured.low)
    tags = {line["tag"] for line in lines(by_tag) if (line["model"], line["k"]) == ("trace", 4)}
    assert tags == {"examine_examples", "identify_patterns", "infer_preference", "analyze_query"}
    assert "no-citation 20" in next(line["not_made"] for line in lines(answers) if line["k"] == 0)
    assert all("shades" not in table.note and "seed 0" in table.note for table in section(page).tables)


def test_the_early_answer_curve_is_in_the_page_and_ends_at_one(page):
    (plot,) = section(page).plots
    final, worth, missing = plot.draw().axes
    ends = {line.get_label(): line.get_ydata()[-1] for line in final.lines}
    assert set(ends.values()) == {1.0}
    assert worth.lines
    assert {place for line in missing.lines for place in line.get_ydata()} == {0.0}
    assert "answer is already the final one" in plots.svg(plot)


def test_the_numbers_stand_in_markdown_csv_and_html_alike(page, tmp_path):
    written = report.write_report(page, tmp_path / "report.html")
    assert tmp_path / "report-files" / "faithfulness.csv" in written
    assert "## Does the answer follow the reasoning?" in (tmp_path / "report.md").read_text()
    assert 'id="faithfulness"' in (tmp_path / "report.html").read_text()
    assert "transplant the trace" in csv_text(section(page).tables[0])


def test_the_tables_for_a_readme_have_a_chapter_of_it_with_the_numbers_of_the_page(run, page, tmp_path):
    (chapter,) = [one for one in tables.build(load_runs([run])) if one.name == "faithfulness"]
    shown = [one.shown for one in chapter.entries]
    assert [csv_text(one) for one in shown if isinstance(one, Table)] == [csv_text(one) for one in section(page).tables]
    assert isinstance(shown[0], plots.Plot)
    assert "Commit" in tables.markdown(chapter)


def test_a_run_that_was_not_looked_into_has_no_such_part_and_a_stale_one_is_refused(run, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(run, plain, ignore=shutil.ignore_patterns("faithfulness"))
    assert not [one for one in report.build(load_runs([plain])).sections if one.name == "faithfulness"]
    stale = tmp_path / "stale"
    shutil.copytree(run, stale)
    path = stale / "faithfulness" / "faithfulness.json"
    found = read_json(path, Faithfulness)
    write_json(path, found.model_copy(update={"predictions_sha256": "0" * 64}))
    with pytest.raises(InputError, match="is about other predictions"):
        report_faithfulness.load(load_runs([stale]))


def test_a_result_cut_short_or_of_another_model_says_so_under_every_table(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "faithfulness" / "faithfulness.json"
    found = read_json(path, Faithfulness)
    write_json(path, found.model_copy(update={"status": "partial", "run_models": {"trace": "0" * 64}}))
    looked = report_faithfulness.load(load_runs([copy]))
    for table in report_faithfulness.faithfulness_tables(looked):
        assert "PARTIAL" in table.note
        assert "NOT the model, machine or address the run recorded: items, question, trace" in table.note
