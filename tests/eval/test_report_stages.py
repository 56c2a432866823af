"""Models side by side: base, SFT, guided, exploratory, with answers so chosen that a reader can compute each number.

Simulated: the answers are made up; every user has 4 examples in each task, 12 users."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from tagpr_data.records import Prediction, RunManifest
from tagpr_data.tables import frame_from_records, sha256_text, write_json, write_table
from tagpr_eval import cells, report, report_stages, stats
from tagpr_eval.typeset import csv_text, latex, markdown

from . import report_fixture as fixture

MODELS = ("base", "sft", "guided", "exploratory")
KNOWN = {"base": 3, "sft": 6, "guided": 9, "exploratory": 12}
"""The first so many users get the right label."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return fixture.make_dataset(tmp_path_factory.mktemp("data") / "toy")


def label(model, example, user):
    right = user < KNOWN[model]
    return example.output if right else next(one for one in fixture.LABELS if one != example.output)


def stars(model, example, user):
    """Base is 2 off; SFT 1 off for even users, else right; guided is 1 off, exploratory right."""
    off = {"base": 2, "sft": 1 - user % 2, "guided": 1, "exploratory": 0}[model]
    gold = int(example.output)
    return str(gold + off if gold <= 3 else gold - off)


def write_run(folder, dataset, models=MODELS, tasks=("component", "stars"), answers=None, cells_of=None, status=None):
    """A run folder; with another user's profile every answer is wrong. `cells_of`: model → (retriever, k, style)."""
    answers = {"component": label, "stars": stars} | (answers or {})
    rows = []
    for model in models:
        style = "direct" if model == "base" else "trace"
        default = [("bm25", 1, style), ("wrong-user", 1, style)]
        for retriever, k, style in (cells_of or {}).get(model, default):
            for example in dataset.examples("test"):
                if example.task in tasks:
                    rows.append(_prediction(dataset, example, model, retriever, k, style, answers))
    folder.mkdir(parents=True)
    keys = ["model", "task", "retriever", "k", "style", "seed", "example_id"]
    write_table(folder / "predictions.parquet", frame_from_records(rows, Prediction), Prediction, keys)
    config = {"dataset": str(dataset.folder), "split": "test", "models": [f"{model}=hf:{model}" for model in models]}
    manifest = RunManifest(
        kind="evaluation", status="complete", seed=0, config=config, versions={},
        data={"toy": dataset.manifest.content_hash},
    )  # fmt: skip
    write_json(folder / "run.json", manifest)
    return folder


def _prediction(dataset, example, model, retriever, k, style, answers):
    user = int(example.user_id[4:])
    answer = answers[example.task](model, example, user)
    if retriever == "wrong-user":
        answer = "none of them"
    items = dataset.profile(example)[:k] if retriever == "bm25" else ()
    cite = f'<examine_examples>[P1] is filed under "{items[0].label}".</examine_examples>\n' if items else ""
    text = answer
    if style == "trace":
        text = f"<think>\n{cite}<infer_preference>Likes it.</infer_preference>\n"
        text += f"<draft_answer>So it is.</draft_answer>\n</think>\n{answer}"
    return Prediction(
        model=model, task=example.task, retriever=retriever, k=k, style=style, seed=0, example_id=example.id,
        user_id=example.user_id, profile_size=example.profile_size, profile_id=example.profile_id,
        item_ids=tuple(item.item_id for item in items), prompt_hash=sha256_text(example.id), text=text,
        finish_reason="stop", gold=example.output,
    )  # fmt: skip


def found(*folders):
    return report_stages.make_stages(cells.make_groups(cells.load_runs(folders)))


def lines(tables, name):
    (table,) = [one for one in tables if one.name.startswith(name)]
    names = [column.name for column in table.columns]
    return [dict(zip(names, row.values, strict=True)) for row in table.rows]


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "stages", dataset)


@pytest.fixture(scope="module")
def tables(run):
    return report_stages.stage_tables(found(run))


def macro_f1(dataset, model):
    rows = [example for example in dataset.examples("test") if example.task == "component"]
    given = [label(model, row, int(row.user_id[4:])) for row in rows]
    gold = [row.output for row in rows]
    return f1_score(gold, given, labels=list(fixture.LABELS), average="macro", zero_division=0)


def test_models_stand_in_the_order_given_and_not_in_that_of_the_file(tables):
    assert [row["model"] for row in lines(tables, "stages-component")] == list(MODELS)
    assert [row["style"] for row in lines(tables, "stages-component")] == ["direct", "trace", "trace", "trace"]


def test_scores_differences_and_shares_are_those_computed_by_hand(tables, dataset):
    base, sft, guided, exploratory = lines(tables, "stages-component")
    assert [row["accuracy"].value for row in (base, sft, guided, exploratory)] == [0.25, 0.5, 0.75, 1.0]
    assert sft["f1"].value == pytest.approx(macro_f1(dataset, "sft"))
    assert (base["previous"], base["base"], base["relative"]) == (None, None, None)
    assert [row["previous"].value for row in (sft, guided, exploratory)] == [0.25, 0.25, 0.25]
    assert [row["base"].value for row in (sft, guided, exploratory)] == [0.25, 0.5, 0.75]
    assert [row["wrong_user"].value for row in (base, sft, guided, exploratory)] == [0.25, 0.5, 0.75, 1.0]
    assert base["valid"] is None and base["grounded"] is None
    assert (sft["valid"].value, sft["grounded"].value) == (1.0, 1.0)
    assert (sft["n"], sft["users"]) == (48, 12)


def test_a_difference_is_bold_where_its_p_corrected_over_the_table_is_small(tables):
    (table,) = [one for one in tables if one.name.startswith("stages-component")]
    names = [column.name for column in table.columns]
    rows = lines(tables, "stages-component")
    for row, line in zip(table.rows, rows, strict=True):
        bold = {name for name in ("previous", "base", "wrong_user") if (line[f"p_holm_{name}"] or 1) < 0.05}
        assert {names[place] for place in row.strong} == bold
    raw = [row[name].p for row in rows for name in ("previous", "base", "wrong_user") if row[name] is not None]
    told = [row[f"p_holm_{name}"] for row in rows for name in ("previous", "base", "wrong_user") if row[name]]
    assert told == stats.holm(raw)
    assert rows[-1]["p_holm_base"] < 0.05 < rows[1]["p_holm_previous"]


def test_relative_improvement_inverts_errors_and_averages_metrics_and_tasks(tables, dataset):
    """Stars: base is 2 off in MAE and RMSE, guided 1: half of the error is gone, + 50 %; exploratory: all of it."""
    stars_rows = {row["model"]: row["relative"] for row in lines(tables, "stages-stars")}
    assert (stars_rows["guided"].value, stars_rows["exploratory"].value) == pytest.approx((50, 100))
    assert (stars_rows["guided"].low, stars_rows["guided"].high) == pytest.approx((50, 50))
    ratio = macro_f1(dataset, "guided") / macro_f1(dataset, "base") - 1
    component = 100 * (2 + ratio) / 2  # accuracy 0.25 → 0.75 is + 200 %
    (row,) = [row for row in lines(tables, "stages-component") if row["model"] == "guided"]
    assert row["relative"].value == pytest.approx(component)
    average = {row["model"]: row for row in lines(tables, "stages-average")}
    assert list(average) == ["sft", "guided", "exploratory"]
    assert average["guided"]["relative"].value == pytest.approx((component + 50) / 2)
    assert (average["guided"]["tasks"], average["guided"]["names"], average["guided"]["n"]) == (
        2,
        "component, stars",
        96,
    )


def test_its_interval_resamples_users(tables):
    """SFT on stars, anew: users' errors are 1, 0, 1, 0, …; MAE and RMSE of each resample, against 2."""
    errors = np.array([1 - int(user[4:]) % 2 for user in sorted(f"user{n}" for n in range(12))])
    counts = stats.draw(12, 1000, permutations=1, seed=0).counts
    mean = counts @ errors / counts.sum(1)
    improved = ((2 - mean) / 2 + (2 - np.sqrt(mean)) / 2) / 2
    (row,) = [row for row in lines(tables, "stages-stars") if row["model"] == "sft"]
    assert row["relative"].value == pytest.approx(100 * ((2 - 0.5) / 2 + (2 - np.sqrt(0.5)) / 2) / 2)
    expected = 100 * np.quantile(improved, 0.025, method="lower"), 100 * np.quantile(improved, 0.975, method="higher")
    assert (row["relative"].low, row["relative"].high) == pytest.approx(expected, abs=1e-3)


def test_there_is_no_ratio_to_a_base_that_scores_0_and_an_open_end_where_it_may(dataset, tmp_path):
    def answers(right_users):
        def answer(model, example, user):
            return example.output if model == "sft" or user < right_users else "none of them"

        return {"component": answer}

    options = {"models": ("base", "sft"), "tasks": ("component",)}
    never = report_stages.stage_tables(found(write_run(tmp_path / "0", dataset, answers=answers(0), **options)))
    assert [row["relative"] for row in lines(never, "stages-component")] == [None, None]
    assert [row["relative"] for row in lines(never, "stages-average")] == [None]
    rarely = report_stages.stage_tables(found(write_run(tmp_path / "1", dataset, answers=answers(1), **options)))
    (row,) = lines(rarely, "stages-average")
    assert row["relative"].high == np.inf
    assert "+∞]" in markdown(rarely[-1]) and r"$\infty$" in latex(rarely[-1]) and ",inf," in csv_text(rarely[-1])


def test_a_task_that_the_reference_did_not_run_says_so_and_the_average_counts_common_answers(dataset, tmp_path):
    """Base answered the stars of half the examples, and no component: 24 of 48 answers are common."""
    from tagpr_data.tables import read_records

    full = write_run(tmp_path / "full", dataset, ("sft", "guided"))
    half = write_run(tmp_path / "half", dataset, ("base",), ("stars",))
    rows = [row for row in read_records(half / "predictions.parquet", Prediction) if int(row.user_id[4:]) < 6]
    keys = ["model", "task", "retriever", "k", "style", "seed", "example_id"]
    write_table(half / "predictions.parquet", frame_from_records(rows, Prediction), Prediction, keys)
    groups = cells.make_groups(cells.load_runs([half, full]))
    made = report_stages.stage_tables(report_stages.make_stages(groups, "base"))
    notes = {table.name.split("-")[1]: table.note for table in made}
    assert "Did not run this task: base." in notes["component"]
    assert "Did not run" not in notes["stars"]
    assert {row["model"]: row["n"] for row in lines(made, "stages-average")} == {"sft": 24, "guided": 24}


def test_a_rule_that_knows_the_gold_is_called_a_bound(dataset, tmp_path):
    folder = write_run(
        tmp_path / "run", dataset, ("base", "sft", "oracle", "knn"), ("component",),
        {"component": lambda model, example, user: example.output},
        {"oracle": [("full", 0, "direct")], "knn": [("full", 0, "direct")]},
    )  # fmt: skip
    text = (folder / "run.json").read_text()
    (folder / "run.json").write_text(text.replace("oracle=hf:oracle", "oracle").replace("knn=hf:knn", "knn"))
    note = report_stages.stage_tables(found(folder))[0].note
    assert "Rules read the whole profile: knn. Upper bounds, which know the gold: oracle." in note


def test_several_run_folders_stand_in_the_order_they_are_given(dataset, tmp_path):
    folders = [write_run(tmp_path / f"run-{model}", dataset, models=(model,)) for model in MODELS]
    (component, _) = found(*folders)
    assert component.models == list(MODELS)
    (component, _) = found(*folders[::-1])
    assert component.models == list(MODELS)[::-1]


def test_the_largest_k_that_most_models_ran_is_taken_and_who_did_not_is_told(dataset, tmp_path):
    cells_of = {
        "base": [("bm25", 1, "direct"), ("bm25", 4, "direct")],
        "sft": [("bm25", 1, "trace"), ("bm25", 4, "trace"), ("bm25", 8, "trace")],
        "guided": [("bm25", 8, "trace"), ("none", 0, "trace")],
        "exploratory": [("bm25", 4, "trace")],
    }
    (stages,) = found(write_run(tmp_path / "run", dataset, cells_of=cells_of, tasks=("component",)))
    assert {(stages.cell(place).retriever, stages.cell(place).k) for place in stages.places} == {("bm25", 4)}
    assert stages.models == ["base", "sft", "exploratory"]
    table = report_stages.stage_tables([stages])[0]
    assert table.note.endswith("Not in this setting: guided.")


def test_a_model_of_two_styles_is_compared_to_by_the_same_style(dataset, tmp_path):
    """Base answers directly and in a trace; what follows is set against its trace, and base is never against itself."""
    cells_of = {"base": [("bm25", 1, "direct"), ("bm25", 1, "trace")]}

    (stages,) = found(
        write_run(tmp_path / "run", dataset, models=("base", "sft"), cells_of=cells_of, tasks=("component",))
    )
    direct, trace, sft = stages.places
    assert (stages.base(sft), stages.previous(sft)) == (trace, trace)
    assert (stages.base(trace), stages.previous(trace), stages.base(direct)) == (None, None, None)
    figure = report_stages.stage_plots([stages])[0].draw()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["base, direct", "base, trace", "sft"]


def test_one_model_alone_has_nothing_beside_it(dataset, tmp_path):
    runs = cells.load_runs([write_run(tmp_path / "run", dataset, models=("sft",), tasks=("component",))])
    assert report_stages.make_stages(cells.make_groups(runs)) == []
    assert "stages" not in {section.name for section in report.build(runs).sections}


def test_the_page_opens_with_it_and_the_headline_names_the_last_model(run):
    made = report.build(cells.load_runs([run]))
    assert made.sections[0].name == "stages"
    (finding,) = [one for one in made.findings if one.task == "Average relative improvement over base"]
    (row,) = [row for row in lines(made.tables(), "stages-average") if row["model"] == "exploratory"]
    assert finding.score.startswith(f"+{row['relative'].value:.1f} % [+")
    assert finding.facts == ("exploratory, mean over component, stars, n = 96. The formula is ours.",)
    curve = made.sections[0].plots[0].draw().axes[0]
    right, wrong = (list(line.get_ydata()) for line in curve.lines)
    assert (right, wrong) == ([0.25, 0.5, 0.75, 1.0], [0, 0, 0, 0])


def test_the_headline_names_no_model_that_ran_fewer_tasks_than_another(dataset, tmp_path):
    both = write_run(tmp_path / "both", dataset, models=("base", "sft"))
    one = write_run(tmp_path / "one", dataset, models=("guided",), tasks=("component",))
    made = report.build(cells.load_runs([both, one]))
    (finding,) = [one for one in made.findings if one.task == "Average relative improvement over base"]
    assert finding.facts[0].startswith("sft, mean over component, stars")
