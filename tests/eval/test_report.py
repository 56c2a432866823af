"""The report: one structure in every format, hostile text harmless, faults named."""

import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from tagpr_data.errors import InputError
from tagpr_eval import cells, cli, report, report_tables, stats, typeset

from . import report_fixture as fixture
from . import test_dialects as dialect_fixture


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return fixture.make_dataset(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="module")
def run(tmp_path_factory, dataset):
    return fixture.make_run(tmp_path_factory.mktemp("runs") / "first", dataset)


@pytest.fixture(scope="module")
def made(run):
    return report.build(cells.load_runs([run]))


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    output = tmp_path_factory.mktemp("report") / "report.html"
    report.write_report(made, output)
    return output


class Page(HTMLParser):
    """Tables, script elements and all text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.elements, self.attributes, self.text = {}, [], [], ""
        self._row = self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag == "table":
            self._rows = self.tables[dict(attributes)["data-name"]] = []
        elif tag == "tr":
            self._row = []
            self._rows.append(self._row)
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._row.append(self._cell)
            self._cell = None

    def handle_data(self, data):
        self.text += data
        if self._cell is not None:
            self._cell += data


def markdown_tables(text):
    """Rows of cells of each table, in order, with marks and escapes taken away."""
    tables, rows = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            parts = [part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]]
            rows.append([re.sub(r"\\(.)", r"\1", re.sub(r"^\*\*(.*)\*\*$", r"\1", part)) for part in parts])
        elif rows:
            tables.append([rows[0], *rows[2:]])
            rows = []
    return tables


def test_html_markdown_and_csv_hold_the_same_numbers(made, page):
    from_html = Page(page.read_text("utf-8")).tables
    from_markdown = markdown_tables(page.with_suffix(".md").read_text("utf-8"))
    assert len(from_html) == len(from_markdown) == len(made.tables()) >= 9
    for table, rows in zip(made.tables(), from_markdown, strict=True):
        squeezed = [[" ".join(cell.split()) for cell in row] for row in from_html[table.name]]
        assert squeezed == [[" ".join(cell.split()) for cell in row] for row in rows]
        text = (page.with_name("report-files") / f"{table.name}.csv").read_text("utf-8")
        raw = list(csv.DictReader(io.StringIO(text)))
        assert len(raw) == len(rows) - 1
        columns = [column for column in table.columns if column.is_printed]
        for printed, exact in zip(rows[1:], raw, strict=True):
            for cell, column in zip(printed, columns, strict=True):
                if column.kind in ("estimate", "difference", "number") and exact[column.name]:
                    shown = float(cell.split(" [")[0].replace("−", "-"))
                    assert shown == pytest.approx(float(exact[column.name]), abs=0.5001 * 10**-column.digits)


def test_scores_equal_a_computation_of_ones_own(made, run, dataset):
    frame = pl.read_parquet(run / "predictions.parquet").filter(
        (pl.col("model") == "own-majority") & (pl.col("task") == "component") & (pl.col("retriever") == "full")
    )
    gold, given = frame["gold"].to_numpy(), frame["text"].to_numpy()
    table = next(table for table in made.tables() if table.name.startswith("scores-component"))
    names = [column.name for column in table.columns]
    row = next(
        dict(zip(names, row.values, strict=True)) for row in table.rows if row.values[:2] == ("own-majority", "full")
    )
    assert row["accuracy_strict"].value == pytest.approx(np.mean(gold == given))
    expected = f1_score(gold, given, labels=list(fixture.LABELS), average="macro", zero_division=0)
    assert row["f1_strict"].value == pytest.approx(expected)
    assert (row["n"], row["users"]) == (48, 12)
    assert (row["split"], row["data"]) == ("test", dataset.manifest.content_hash[:12])


def test_every_table_of_scores_names_where_its_numbers_come_from(made):
    needed = {"model", "retriever", "k", "style", "protocol", "revision", "split", "data", "mode", "n"}
    for table in made.tables():
        if table.name != "runs":
            assert needed <= {column.name for column in table.columns}, table.name
            assert "split test, data " in table.note, table.name


def test_the_oracle_scores_perfectly_and_is_never_the_best_model(made):
    for table in made.tables():
        if table.name.startswith("scores-"):
            oracle = next(row for row in table.rows if row.values[0] == "oracle")
            first = next(value for value in oracle.values if isinstance(value, stats.Estimate))
            assert first.value == (0 if "stars" in table.name else 1)
            assert not oracle.strong


def test_rules_of_two_runs_and_rules_with_another_name_are_still_rules(tmp_path, dataset):
    folders = [
        fixture.make_run(tmp_path / name, dataset, models=(name,), ks=(1,), retrievers=("bm25",), tasks=("component",))
        for name in ("one", "two")
    ]
    manifest = json.loads((folders[1] / "run.json").read_text())
    manifest["config"]["models"] = ["two=hf:x", "best=oracle"]
    (folders[1] / "run.json").write_text(json.dumps(manifest))
    frame = pl.read_parquet(folders[1] / "predictions.parquet")
    frame.with_columns(model=pl.col("model").replace({"oracle": "best"})).write_parquet(
        folders[1] / "predictions.parquet"
    )
    group = cells.make_groups(cells.load_runs(folders))[0]
    assert {cell.model: cell.rule for cell in group.cells} == {
        "one": None, "two": None, "oracle": "oracle", "best": "oracle", "majority (one)": "majority",
        "majority (two)": "majority", "own-majority (one)": "own-majority", "own-majority (two)": "own-majority",
    }  # fmt: skip
    made = report.build(cells.load_runs(folders))
    assert "Best of 2 settings" in made.findings[0].as_text()
    assert re.search("Best of 2 settings: (one|two) · bm25", made.findings[0].as_text())


def test_lift_is_large_for_the_model_that_reads_profiles_and_unsure_for_the_one_that_guesses(made):
    table = next(table for table in made.tables() if table.name == "lift")
    names = [column.name for column in table.columns]
    rows = [dict(zip(names, row.values, strict=True)) for row in table.rows]
    component = [row for row in rows if row["task"] == "component" and row["control"] == "wrong-user"]
    tuned = [row["difference"] for row in component if row["model"] == "tuned"]
    base = [row["difference"] for row in component if row["model"] == "base"]
    assert len(tuned) == len(base) == 4
    assert all(found.low > 0 for found in tuned)
    assert all(found.low <= 0 <= found.high for found in base)
    assert all(row["p_holm"] >= row["p"] for row in rows)


def test_hostile_text_stays_text(page):
    text = page.read_text("utf-8")
    parsed = Page(text)
    assert parsed.elements.count("script") == 2
    assert "img" not in parsed.elements
    assert "iframe" not in parsed.elements
    scripts = {tag: value for tag, name, value in parsed.attributes if tag == "script" and name == "src"}
    assert not scripts
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    place = data["fields"].index("text")
    assert any(fixture.HOSTILE in sample[place] for sample in data["samples"])
    assert any(fixture.HOSTILE in example["input"] for example in data["examples"])


def test_hostile_names_of_models_stay_text_everywhere(tmp_path, dataset):
    name = fixture.HOSTILE.replace("\u202e", "") + "\n_$\\frac{1}{0}$"
    folder = fixture.make_run(
        tmp_path / "r", dataset, models=(name, "=1+1"), ks=(1,), retrievers=("bm25",), tasks=("component",)
    )
    made = report.build(cells.load_runs([folder]))
    written = report.write_report(made, tmp_path / "out" / "report.html")
    parsed = Page(written[0].read_text("utf-8"))
    assert parsed.elements.count("script") == 2
    assert "img" not in parsed.elements
    assert any(name in cell for rows in parsed.tables.values() for row in rows for cell in row)
    assert "<script>" not in written[1].read_text("utf-8").replace("\\<script\\>", "")
    table = next(path for path in written if path.name.startswith("scores-component") and path.suffix == ".csv")
    assert "'=1+1" in table.read_text("utf-8")


def test_the_page_asks_the_network_for_nothing(page):
    text = page.read_text("utf-8")
    parsed = Page(text)
    links = [value for _, name, value in parsed.attributes if name in ("src", "href", "xlink:href", "action", "data")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert "@import" not in text
    assert not re.search(
        r"url\((?!#)", re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    )
    assert "default-src 'none'" in text


def test_script_json_cannot_end_its_element_and_reads_back():
    value = {"a": ["</script><!--", "\u2028\u2029&amp;", 1.5, None, "\ud800"]}
    text = report.script_json(value)
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text)["a"][:2] == value["a"][:2]


def test_reporting_twice_gives_the_same_bytes(tmp_path, dataset):
    run = fixture.make_run(tmp_path / "run", dataset, ks=(1,), tasks=("stars",))
    for name in ("one", "two"):
        report.write_report(report.build(cells.load_runs([run])), tmp_path / name / "report.html")
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path.name


def test_files_beside_the_page_are_tables_and_plots(page):
    names = {path.suffix for path in page.with_name("report-files").iterdir()}
    assert names == {".csv", ".tex", ".svg", ".png"}
    latex = next(page.with_name("report-files").glob("scores-component*.tex")).read_text("utf-8")
    assert latex.count(r"\toprule") == 1
    assert r"$\uparrow$" in latex


def test_compare_finds_nothing_between_equal_runs_and_something_between_others(tmp_path, dataset):
    options = {"models": ("tuned",), "ks": (4,), "retrievers": ("bm25",)}
    first = fixture.make_run(tmp_path / "a", dataset, **options)
    again = fixture.make_run(tmp_path / "b", dataset, **options)
    other = fixture.make_run(tmp_path / "c", dataset, **(options | {"models": ("base",)}))
    same = report_tables.compare_runs(*cells.load_runs([first, again]))
    place = [column.name for column in same.columns].index("difference")
    assert same.rows
    assert all(row.values[place].value == 0 for row in same.rows)
    better = report_tables.compare_runs(*cells.load_runs([first, other]))
    component = next(row for row in better.rows if row.values[0] == "component" and row.values[2] == "bm25")
    assert component.values[place].low > 0
    result = CliRunner().invoke(cli.app, ["compare", str(first), str(other), "--csv"])
    assert result.exit_code == 0
    rows = list(csv.DictReader(io.StringIO(result.output)))
    assert len(rows) == len(better.rows)
    assert float(rows[0]["p_holm"]) <= 1


def test_report_command_writes_the_page_and_says_what_it_found(tmp_path, dataset):
    run = fixture.make_run(tmp_path / "run", dataset, tasks=("component",))
    result = CliRunner().invoke(
        cli.app, ["report", str(run), "--output", str(tmp_path / "r.html"), "--max-samples", "100"]
    )
    assert result.exit_code == 0, result.output
    assert "component: accuracy" in result.output
    text = (tmp_path / "r.html").read_text("utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert 0 < len(data["samples"]) <= 100
    assert data["total"] == 18 * 48
    kept = {}
    for sample in data["samples"]:
        kept.setdefault(sample[1], set()).add(sample[0])
    assert all(len(places) == 18 for places in kept.values())  # the same examples in every cell


def test_findings_do_not_claim_what_the_correction_takes_back(made):
    for finding in made.findings:
        for fact in finding.facts:
            if "p = 1.000" in fact:
                assert "no effect one can be sure of" in fact


def _report_of_answers(folder, dataset, answers, gold):
    """One cell of the task `subject` for each model, all its answers alike."""
    fixture.make_run(folder, dataset, models=tuple(answers), ks=(1,), retrievers=("bm25",), tasks=("subject",))
    frame = pl.read_parquet(folder / "predictions.parquet").filter(pl.col("retriever") == "bm25")
    frame = frame.with_columns(gold=pl.lit(gold), text=pl.col("model").replace(answers))
    frame.write_parquet(folder / "predictions.parquet")
    return report.build(cells.load_runs([folder]))


def test_the_report_flags_that_the_winner_changes_with_the_dialect(tmp_path, dataset):
    made = _report_of_answers(tmp_path / "flip", dataset, dialect_fixture.SYSTEMS, dialect_fixture.GOLD)
    flag = "THE WINNER CHANGES with the dialect for rouge-1 and rouge-L."
    assert any(flag in finding.as_text() for finding in made.findings)
    assert flag in report.html(made)
    assert flag in report.markdown_text(made, "report-files")


def test_equal_systems_have_no_winner_in_any_dialect(tmp_path, dataset):
    made = _report_of_answers(tmp_path / "equal", dataset, {"one": "flower", "two": "flower"}, "garden flower")
    table = next(table for table in made.tables() if table.name.startswith("dialects"))
    assert "All dialects agree" in table.note
    assert not any(row.strong for row in table.rows)


def test_predictions_without_gold_are_reported_as_unscored(tmp_path, dataset):
    folder = fixture.make_run(tmp_path / "r", dataset, models=("base",), ks=(1,), retrievers=("bm25",))
    frame = pl.read_parquet(folder / "predictions.parquet").with_columns(gold=pl.lit(None, dtype=pl.String))
    frame.write_parquet(folder / "predictions.parquet")
    made = report.build(cells.load_runs([folder]))
    table = next(table for table in made.tables() if table.name.startswith("scores-component"))
    assert "have no gold answer" in table.note
    assert all(
        math.isnan(value.value) for row in table.rows for value in row.values if isinstance(value, stats.Estimate)
    )
    assert report.html(made)


def test_a_report_without_its_data_set_still_has_scores_of_known_tasks(tmp_path, dataset, run):
    folder = fixture.make_run(tmp_path / "r", dataset, models=("base",), ks=(1,), retrievers=("bm25",))
    text = (folder / "run.json").read_text("utf-8").replace(str(dataset.folder), "/gone")
    (folder / "run.json").write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"component.*not defined"):
        report.build(cells.load_runs([folder]))
    assert report.build(cells.load_runs([folder], dataset.folder)).tables()


def test_bad_runs_are_named(tmp_path, dataset, run):
    with pytest.raises(InputError, match=r"run\.json does not exist"):
        cells.load_runs([tmp_path])
    with pytest.raises(InputError, match="two runs are called 'first'"):
        cells.load_runs([run, run])
    other = fixture.make_dataset(tmp_path / "other", users=3)
    with pytest.raises(InputError, match="was made on data"):
        cells.load_runs([run], other.folder)
    with pytest.raises(InputError, match="'nobody' is in no run; there are: base"):
        report.build(cells.load_runs([run]), reference="nobody")
    with pytest.raises(InputError, match=r"must end in \.html"):
        report.write_report(report.Report("", (), (), {}), tmp_path / "report.pdf")
    torn = fixture.make_run(tmp_path / "torn", dataset, models=("base",), ks=(1,), retrievers=("bm25",))
    whole = (torn / "predictions.parquet").read_bytes()
    (torn / "predictions.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a whole Parquet file"):
        cells.load_runs([torn])
    elsewhere = fixture.make_run(tmp_path / "elsewhere", other, models=("base",), ks=(1,), retrievers=("bm25",))
    with pytest.raises(InputError, match="differ"):
        report_tables.compare_runs(*cells.load_runs([run, elsewhere]))


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (stats.Estimate(0.41234, 0.38, 0.45, 9, 3), "estimate", "0.412 [0.380, 0.450]"),
        (stats.Difference(-0.1, -0.2, 0.05, 9, 3, 0.2), "difference", "−0.100 [−0.200, +0.050]"),
        ((12, 250), "share", "12 (4.8 %)"),
        ((0, 0), "share", "–"),
        (0.0004, "p", "<0.001"),
        (0.0312, "p", "0.031"),
        (12345, "count", "12,345"),
        (None, "text", "–"),
        (float("nan"), "number", "–"),
    ],
)
def test_values_are_written_one_way(value, kind, text):
    assert typeset.show(value, typeset.Column("", "", kind)) == text


def test_source_files_of_the_page_are_part_of_the_package():
    folder = Path(report.__file__).parent
    assert (folder / "templates" / "report.html.j2").is_file()
    assert {path.name for path in (folder / "assets").iterdir()} >= {"report.js"}
    assert ".sample" in report.stylesheet()
