"""Tables for a README: numbers by hand, the same as on the page, the same bytes twice, faults named.

Simulated: the answers are made up, so that a reader can compute each number; 12 users of 4 examples each."""

import json
import re

import pytest
from typer.testing import CliRunner

from tagpr_data.dataset import Dataset, write_dataset
from tagpr_data.errors import InputError
from tagpr_data.records import Prediction, RunManifest
from tagpr_data.tables import frame_from_records, write_json, write_table
from tagpr_eval import cells, cli, report, tables
from tagpr_eval.typeset import Table

from . import report_fixture as fixture
from . import training_runs
from .test_report_stages import _prediction

RIGHT = {
    "base": {("bm25", 1): 6, ("bm25", 4): 12, ("random", 1): 0, ("random", 4): 6, ("none", 0): 3},
    "sft": {("bm25", 1): 9, ("bm25", 4): 9, ("random", 1): 9, ("random", 4): 6, ("none", 0): 3},
    "exploratory": {("bm25", 1): 10, ("bm25", 4): 12, ("random", 1): 10, ("random", 4): 12, ("none", 0): 0},
}
"""Model → (retriever, k) → how many users, from the first, get the right label; with another's items nobody does."""
VALID = 9
"""The exploratory stage breaks its trace for users from this one."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The report's data set, with train examples of users 0 to 5."""
    home = tmp_path_factory.mktemp("data")
    plain = fixture.make_dataset(home / "plain")
    test = plain.examples("test")
    train = [row.model_copy(update={"id": f"train-{row.id}"}) for row in test if int(row.user_id[4:]) < 6]
    items = plain.profiles
    write_dataset(
        home / "toy", name="toy", source="made up", licence="CC0-1.0", tasks=fixture.TASKS,
        examples={"train": train, "test": test}, items=items, parameters={}, skipped={},
    )  # fmt: skip
    return Dataset.load(home / "toy")


def make_grid(folder, dataset, right=None, rules=("majority",)):
    """A run of the component task in all settings of `right`."""
    rows = []
    for model, by_setting in (right or RIGHT).items():
        style = "direct" if model == "base" else "trace"
        wrong_user = {("wrong-user", k): 0 for _, k in by_setting if k}
        for (retriever, k), right_users in {**by_setting, **wrong_user}.items():

            def answer(model, example, user, reached=right_users):
                wrong = next(one for one in fixture.LABELS if one != example.output)
                text = example.output if user < reached else wrong
                return f"{text} <draft_answer>x</draft_answer>" if model == "exploratory" and user >= VALID else text

            rows += [
                _prediction(dataset, example, model, retriever, k, style, {"component": answer})
                for example in dataset.examples("test")
                if example.task == "component"
            ]
    for rule in rules:
        rows += [
            _prediction(dataset, example, rule, "full", 0, "direct", {"component": lambda *_: fixture.LABELS[0]})
            for example in dataset.examples("test")
            if example.task == "component"
        ]
    folder.mkdir(parents=True)
    keys = ["model", "task", "retriever", "k", "style", "seed", "example_id"]
    write_table(folder / "predictions.parquet", frame_from_records(rows, Prediction), Prediction, keys)
    models = [*(f"{model}=hf:{model}" for model in right or RIGHT), *rules]
    manifest = RunManifest(
        kind="evaluation", status="complete", seed=0, versions={}, data={"toy": dataset.manifest.content_hash},
        config={"dataset": str(dataset.folder), "split": "test", "models": models}, git_revision="0123abcdef",
    )  # fmt: skip
    write_json(folder / "run.json", manifest)
    return folder


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    return make_grid(tmp_path_factory.mktemp("runs") / "grid", dataset)


@pytest.fixture(scope="module")
def chapters(folder):
    return {chapter.name: chapter for chapter in tables.build(cells.load_runs([folder]), retriever="bm25", k=1)}


def rows_of(chapter, start):
    """The rows of the table whose name starts so, by what their first printed columns say."""
    (table,) = [
        one.shown for one in chapter.entries if isinstance(one.shown, Table) and one.shown.name.startswith(start)
    ]
    names = [column.name for column in table.columns]
    return [dict(zip(names, row.values, strict=True)) for row in table.rows]


def test_the_main_table_stands_in_the_setting_asked_for_against_the_reference(chapters):
    """bm25, k = 1: 6, 9 and 10 of 12 users; lift over no profile 3, 6 and 10; over the wrong user the score itself."""
    base, sft, exploratory, majority = rows_of(chapters["main"], "stages-component")
    assert [row["accuracy"].value for row in (base, sft, exploratory)] == pytest.approx([6 / 12, 9 / 12, 10 / 12])
    assert [row["no_profile"].value for row in (base, sft, exploratory)] == pytest.approx([3 / 12, 6 / 12, 10 / 12])
    assert [row["wrong_user"].value for row in (base, sft, exploratory)] == pytest.approx([6 / 12, 9 / 12, 10 / 12])
    assert (base["base"], sft["base"].value, exploratory["base"].value) == (None, 3 / 12, pytest.approx(4 / 12))
    assert majority["base"].value == pytest.approx(majority["accuracy"].value - 6 / 12)
    assert (base["strict"].value, sft["strict"].value) == (0.5, 0)  # a trace is no label
    average = {row["model"]: row for row in rows_of(chapters["main"], "stages-average")}
    assert set(average) == {"sft", "exploratory", "majority"}


def test_another_reference_turns_the_differences(folder):
    made = tables.build(cells.load_runs([folder]), reference="majority", retriever="bm25", k=1)
    base, *_, majority = rows_of(made[0], "stages-component")
    assert base["base"].value == pytest.approx(base["accuracy"].value - majority["accuracy"].value)
    assert majority["base"] is None
    assert "base is the model majority" in made[0].intro


def test_the_retriever_table_has_a_score_for_each_k_and_the_difference_to_the_first_retriever(chapters):
    rows = {(row["model"], row["retriever"]): row for row in rows_of(chapters["robustness"], "retrievers-")}
    sft = rows["sft", "random"]
    assert [sft[name].value for name in ("k_0", "k_1", "k_4")] == pytest.approx([3 / 12, 9 / 12, 6 / 12])
    assert (sft["difference"].value, sft["at"]) == (pytest.approx(-3 / 12), 4)
    assert rows["sft", "bm25"]["difference"] is None
    assert rows["base", "wrong-user"]["difference"].value == pytest.approx(-1)
    assert rows["base", "wrong-user"]["k_0"].value == pytest.approx(3 / 12)


def test_spread_is_best_minus_worst_over_retrievers_and_over_k(chapters):
    """Base over retrievers 6/12 at both k, over k 6/12 for both; SFT 0 and 3/12, 0 and 3/12; exploratory 0, 2/12."""
    base, sft, exploratory = rows_of(chapters["robustness"], "robustness-")
    assert [row["mean"].value for row in (base, sft, exploratory)] == pytest.approx([24 / 48, 33 / 48, 44 / 48])
    assert [row["over_retrievers"].value for row in (base, sft, exploratory)] == pytest.approx([6 / 12, 1.5 / 12, 0])
    assert [row["over_k"].value for row in (base, sft, exploratory)] == pytest.approx([6 / 12, 1.5 / 12, 2 / 12])
    assert (base["less_over_k"], base["mean_difference"]) == (None, None)
    assert [row["less_over_retrievers"].value for row in (sft, exploratory)] == pytest.approx([4.5 / 12, 6 / 12])
    assert [row["less_over_k"].value for row in (sft, exploratory)] == pytest.approx([4.5 / 12, 4 / 12])
    assert [row["mean_difference"].value for row in (sft, exploratory)] == pytest.approx([9 / 48, 20 / 48])


def test_curves_over_k_and_over_retrievers_may_lie_in_two_runs(dataset, folder, tmp_path):
    """bm25 at k = 1 and 4 in one run, random at k = 4 in the other: base spreads 12 - 6 users over both, SFT 0 over k
    and 3 over retrievers. Lift is against the wrong user of the other run."""
    names = {"lengths": [("bm25", 1), ("bm25", 4), ("none", 0)], "retrievers": [("random", 4)]}
    folders = []
    for name, kept in names.items():
        right = {model: {one: RIGHT[model][one] for one in kept} for model in ("base", "sft")}
        folders.append(make_grid(tmp_path / name, dataset, right))
        manifest = json.loads((folders[-1] / "run.json").read_text())
        manifest["results"] = {"models": {"base": "b" * 64, "sft": "s" * 64}}
        (folders[-1] / "run.json").write_text(json.dumps(manifest))
    made = {chapter.name: chapter for chapter in tables.build(cells.load_runs(folders))}
    base, sft = rows_of(made["robustness"], "robustness-")
    assert [row["model"] for row in (base, sft)] == ["base", "sft"]
    assert (base["over_retrievers"].value, base["over_k"].value) == pytest.approx((6 / 12, 6 / 12))
    assert (sft["over_retrievers"].value, sft["over_k"].value) == pytest.approx((3 / 12, 0))
    assert sft["less_over_k"].value == pytest.approx(6 / 12)
    (table,) = [one.shown for one in made["robustness"].entries if one.shown.name.startswith("robustness-")][-1:]
    assert "3 settings: bm25 with k = 1, 4 and random with k = 4;" in table.note
    assert [row["model"] for row in rows_of(made["main"], "stages-component")] == ["base", "sft", "majority"]
    text = tables.markdown(made["robustness"])
    assert "Runs: lengths, retrievers." in text

    manifest["results"]["models"]["sft"] = "t" * 64  # other weights, so another model
    (folders[-1] / "run.json").write_text(json.dumps(manifest))
    models = {
        cell.model for group in cells.make_groups(cells.load_runs(folders), is_joined=True) for cell in group.cells
    }
    assert models == {"base", "sft (lengths)", "sft (retrievers)", "majority"}
    assert "base (lengths)" in {
        cell.model for group in cells.make_groups(cells.load_runs(folders)) for cell in group.cells
    }
    other = make_grid(tmp_path / "other", dataset, {"base": {("bm25", 4): 5}}, rules=())
    manifest["config"] = json.loads((other / "run.json").read_text())["config"]
    (other / "run.json").write_text(json.dumps(manifest))  # the same weights, and other answers in a cell of both
    models = {
        cell.model for group in cells.make_groups(cells.load_runs([*folders, other]), True) for cell in group.cells
    }
    assert {"base (lengths)", "base (retrievers)", "base (other)"} < models


def test_what_becomes_of_tags_and_lift_is_told_from_stage_to_stage(chapters):
    """Base wrote no trace. The exploratory stage breaks the traces of 3 of 12 users; its lift rises from 9 to 10."""
    sft, exploratory = rows_of(chapters["reasoning"], "reasoning-")
    assert (sft["valid"].value, sft["valid_change"]) == (1.0, None)
    assert (exploratory["valid"].value, exploratory["valid_change"].value) == pytest.approx((9 / 12, -3 / 12))
    assert (sft["lift"].value, exploratory["lift_change"].value) == pytest.approx((9 / 12, 1 / 12))
    assert (sft["grounded"].value, exploratory["grounded_change"].value) == pytest.approx((1, 0))


def test_short_histories_and_unseen_users_have_their_own_scores(chapters):
    """Profiles hold 0, 2, 5, 9 or 20 items, by user modulo 5; users 0 to 5 are in the train split."""
    right = {"base": 6, "sft": 9, "exploratory": 10}
    bands = {"0-2": [0, 1, 5, 6, 10, 11], "3-7": [2, 7], "8+": [3, 4, 8, 9]}
    found = {(row["model"], row["band"]): row for row in rows_of(chapters["cold-start"], "history-")}
    for model, reached in right.items():
        for band, users in bands.items():
            row = found[model, band]
            share = sum(user < reached for user in users) / len(users)
            assert (row["score"].value, row["users"], row["n"]) == (pytest.approx(share), len(users), 4 * len(users))
            if model != "base":
                against = sum(user < right["base"] for user in users) / len(users)
                assert row["base"].value == pytest.approx(share - against)
    seen = {(row["model"], row["band"]): row for row in rows_of(chapters["cold-start"], "seen-")}
    assert [seen["sft", band]["score"].value for band in ("seen", "unseen")] == pytest.approx([1, 3 / 6])
    assert seen["sft", "unseen"]["wrong_user"].value == pytest.approx(3 / 6)


def test_where_all_users_are_of_one_kind_the_main_table_says_so_instead(folder, dataset, tmp_path):
    runs = cells.load_runs([folder])
    everyone = {row.user_id for row in dataset.examples("test")}
    from tagpr_eval import report_stages, tables_cold_start

    (stages,) = report_stages.make_stages(cells.make_groups(runs))
    assert tables_cold_start.users_of_one_kind(stages) == ""
    index, names = tables_cold_start._by_seen(stages.group.cells, everyone)
    assert tables_cold_start._Slicing("seen", "users in training", index, names).found() == ["seen"]


def test_page_and_readme_hold_the_same_numbers(folder):
    """Where both show a table, it is one and the same."""
    runs = cells.load_runs([folder])
    page = {table.name: table for table in report.build(runs).tables()}
    mine = [one.shown for chapter in tables.build(runs) for one in chapter.entries if isinstance(one.shown, Table)]
    shared = [table for table in mine if table.name in page]
    assert {table.name.split("-")[0] for table in shared} == {"stages"}
    for table in shared:
        assert [row.values for row in table.rows] == [row.values for row in page[table.name].rows]


def test_the_reward_model_has_its_accuracies_by_kind_and_its_calibration(tmp_path):
    from tagpr_eval.training import load_training

    runs = load_training([training_runs.make_prmu(tmp_path / "prmu")])
    (chapter,) = tables.build([], runs)
    assert chapter.name == "prmu"
    everything, by_kind = rows_of(chapter, "training-pairs")
    assert (everything["group"], by_kind["group"]) == ("all pairs", "kind user")
    assert (everything["calibration"], by_kind["calibration"]) == (0.04, None)
    assert (by_kind["right"].value, by_kind["swapped"].value, by_kind["length"].value) == (0.9, 0.2, 0.55)
    text = tables.markdown(chapter)
    assert "tagpr-train prmu prmu.toml" in text
    assert "Commit 0123abc. Hardware: not recorded (no platform recorded)." in text


def test_the_same_runs_give_the_same_bytes_and_every_picture_is_there(folder, tmp_path):
    training = [str(one) for one in training_runs.make_chain(tmp_path / "training")]
    options = [word for one in training for word in ("--training", one)]
    for name in ("a", "b"):
        done = CliRunner().invoke(cli.app, ["tables", str(folder), *options, "--output", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    first = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    pages = {name for name in first if name.endswith(".md")}
    assert pages == {"main.md", "robustness.md", "prmu.md", "reasoning.md", "cold-start.md"}
    for page in pages:
        text = first[page].decode()
        for picture in re.findall(r"!\[[^\n]*\]\((.+)\)", text):
            assert picture in first, picture
        assert text.count("\n### ") == text.count("<details>") == text.count("Commit 0123abc")
        assert "tagpr-train" in text if page == "prmu.md" else "tagpr-eval run --model base=hf:base" in text


def test_a_main_table_tells_how_its_models_were_trained(dataset, tmp_path):
    """Of the four training runs: SFT and guided, which made them, and the PRMU that guided was rewarded by."""
    from tagpr_eval.training import load_training

    sft, prmu, guided, exploratory = training_runs.make_chain(tmp_path)
    manifest = json.loads((guided / "run.json").read_text())
    manifest["config"]["prmu"] = "runs/prmu/prmu"
    (guided / "run.json").write_text(json.dumps(manifest))
    run = make_grid(tmp_path / "eval", dataset)
    manifest = json.loads((run / "run.json").read_text())
    manifest["config"]["models"][1] = f"sft=hf:{guided / 'model'}"
    (run / "run.json").write_text(json.dumps(manifest))
    chapter = tables.build(cells.load_runs([run]), load_training([sft, prmu, guided, exploratory]))[0]
    table = chapter.entries[-1]
    assert [one.name for one in table.training] == ["sft", "prmu", "guided"]
    assert "sft: seed 7, 4 steps, 24 examples, 1.5 minutes, 0.5 GiB, from tiny" in tables.markdown(chapter)


def test_a_table_says_when_its_runs_were_not_made_alike(folder, dataset, tmp_path):
    other = make_grid(tmp_path / "other", dataset, {"late": RIGHT["sft"]}, rules=())
    manifest = json.loads((other / "run.json").read_text())
    manifest["git_revision"] = "fedcba9876"
    (other / "run.json").write_text(json.dumps(manifest))
    chapter = tables.build(cells.load_runs([folder, other]))[0]
    assert "**The answers are of different versions of the code: 0123abc (grid), fedcba9 (other).**" in tables.markdown(
        chapter
    )


def test_seeds_of_an_ablation_stand_in_their_chapter_alone_unless_one_is_asked_for(dataset, tmp_path):
    seeds = {
        "whole-seed0": RIGHT["base"],
        "whole-seed1": RIGHT["sft"],
        "half-seed0": RIGHT["sft"],
        "base": RIGHT["base"],
    }
    runs = cells.load_runs([make_grid(tmp_path / "run", dataset, seeds)])
    made = {chapter.name: chapter for chapter in tables.build(runs, retriever="bm25", k=1)}
    assert [row["model"] for row in rows_of(made["main"], "stages-component")] == ["base", "majority"]
    assert [row["variant"] for row in rows_of(made["ablation"], "ablation-")] == ["whole", "half", "base", "majority"]
    other = {chapter.name: chapter for chapter in tables.build(runs, reference="half", retriever="bm25", k=1)}
    half, whole, *_ = rows_of(other["ablation"], "ablation-")
    assert (half["variant"], whole["variant"], whole["whole"].value) == ("half", "whole", pytest.approx(-3 / 12))
    alone = {chapter.name: chapter for chapter in tables.build(runs, reference="whole-seed1", retriever="bm25", k=1)}
    (seed,) = [row for row in rows_of(alone["main"], "stages-component") if row["model"] == "whole-seed0"]
    assert seed["base"].value == pytest.approx(-3 / 12)


def test_an_unfinished_run_is_refused_with_what_to_do(folder, tmp_path):
    manifest = json.loads((folder / "run.json").read_text()) | {"status": "running"}
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.json").write_text(json.dumps(manifest))
    for predictions in (None, (folder / "predictions.parquet").read_bytes()):  # of before, with which it goes on
        if predictions is not None:
            (tmp_path / "half" / "predictions.parquet").write_bytes(predictions)
        with pytest.raises(InputError, match="half is an unfinished run; its own command goes on with it"):
            cells.load_runs([tmp_path / "half"])


def test_wrong_asks_are_told_with_what_there_is(folder, dataset, tmp_path):
    runs = cells.load_runs([folder])
    with pytest.raises(
        InputError, match="reference model 'bse' is in no run; there are: base, sft, exploratory, majority"
    ):
        tables.build(runs, reference="bse")
    with pytest.raises(
        InputError, match="no model ran with retriever bm25, k 2, controls aside; there are: bm25 k = 1"
    ):
        tables.build(runs, retriever="bm25", k=2)
    with pytest.raises(
        InputError, match="no model ran with retriever wrong-user, controls aside; there are: bm25 k = 1"
    ):
        tables.build(runs, retriever="wrong-user")
    with pytest.raises(InputError, match=r"ran with k 2, controls aside; there are: bm25 k = 1, .*, random k = 4$"):
        tables.build(runs, k=2)
    seeds = make_grid(tmp_path / "seeds", dataset, {"whole-seed0": RIGHT["base"], "half-seed0": RIGHT["sft"]})
    with pytest.raises(InputError, match="there are: majority; variants of ablations: half, whole"):
        tables.build(cells.load_runs([seeds]), reference="base")
    with pytest.raises(InputError, match=r"sft is a run of kind 'sft'; .* take training runs with --training"):
        cells.load_runs([training_runs.make_chain(tmp_path / "training")[0]])
    alone = CliRunner().invoke(cli.app, ["tables", "--output", str(tmp_path / "x")])
    assert isinstance(alone.exception, InputError)
    assert not (tmp_path / "x").exists()
