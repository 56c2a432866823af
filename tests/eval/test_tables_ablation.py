"""The ablation table over seeds, with answers so chosen that a reader can compute each number.

Simulated: the answers are made up; 12 users of 4 examples each."""

import json

import pytest

from tagpr_data.errors import InputError
from tagpr_data.records import Prediction
from tagpr_data.tables import frame_from_records, write_table
from tagpr_eval import cells, stats, tables_ablation
from tagpr_eval.typeset import markdown_rows

from . import report_fixture as fixture
from .test_report_stages import _prediction, write_run

KNOWN = {"whole-seed0": 9, "whole-seed1": 11, "no-prmu-seed0": 6, "no-prmu-seed1": 8, "no-tags-seed1": 3}
"""The first so many users get the right label."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return fixture.make_dataset(tmp_path_factory.mktemp("data") / "toy")


def label(model, example, user):
    right = user < KNOWN[model]
    return example.output if right else next(one for one in fixture.LABELS if one != example.output)


def make(folder, dataset, models=tuple(KNOWN), rules=(), cells_of=None):
    write_run(
        folder, dataset, (*models, *rules), ("component",), {"component": lambda model, example, user: label(
            model, example, user) if model in KNOWN else fixture.LABELS[0]},
        {**{rule: [("full", 0, "direct")] for rule in rules}, **(cells_of or {})},
    )  # fmt: skip
    if rules:
        manifest = json.loads((folder / "run.json").read_text())
        manifest["config"]["models"] = [*(f"{model}=hf:{model}" for model in models), *rules]
        (folder / "run.json").write_text(json.dumps(manifest))
    return folder


def found_cells(folders):
    return cells.make_groups(cells.load_runs(folders))[0].cells


def ablation(*folders, **choice):
    (found,) = tables_ablation.make_ablations(cells.make_groups(cells.load_runs(folders)), **choice)
    table = tables_ablation.ablation_table(found)
    names = [column.name for column in table.columns]
    return table, {row.values[0]: dict(zip(names, row.values, strict=True)) for row in table.rows}


@pytest.fixture(scope="module")
def made(dataset, tmp_path_factory):
    return ablation(make(tmp_path_factory.mktemp("runs") / "run", dataset, rules=("majority",)))


def test_each_seed_its_mean_and_the_difference_to_the_whole_are_those_by_hand(made):
    """12 users: whole 9 and 11 right, without PRMU 6 and 8, without tags 3, whose pair is whole of seed 1."""
    _, rows = made
    whole, prmu, tags = rows["whole"], rows["no-prmu"], rows["no-tags"]
    assert (whole["seed_0"], whole["seed_1"]) == (9 / 12, 11 / 12)
    assert whole["accuracy"].value == pytest.approx(10 / 12)
    assert whole["whole"] is None
    assert (prmu["accuracy"].value, prmu["whole"].value) == pytest.approx((7 / 12, -3 / 12))
    assert (tags["seed_0"], tags["seed_1"], tags["seeds"]) == (None, 3 / 12, 1)
    assert tags["whole"].value == pytest.approx(-8 / 12)
    assert (whole["seeds"], whole["n"], whole["users"]) == (2, 48, 12)


def test_a_row_of_fewer_seeds_or_of_one_is_named(made, dataset, tmp_path):
    table, _ = made
    assert "Not of every seed, and compared on the seeds that both have: no-tags (1)." in table.note
    assert "Of one seed, so that interval and p are over users alone: no-tags (1)." in table.note
    alone, _ = ablation(make(tmp_path / "run", dataset, ("whole-seed0", "no-prmu-seed0")))
    assert "over users alone: whole (0); no-prmu (0)." in alone.note
    assert "every seed" not in alone.note
    both, _ = ablation(
        make(tmp_path / "both", dataset, ("whole-seed0", "whole-seed1", "no-prmu-seed0", "no-prmu-seed1"))
    )
    assert both.note.endswith("differences.")


def test_the_bound_of_a_choice_among_answers_stands_in_the_setting_of_the_table(dataset, tmp_path):
    """The bound is right for 12 users at k = 1, and for 3 at k = 4, which would come last and take its place."""
    bound = "whole-seed0@best4-oracle"
    rows = []
    for model, k, reached in (("whole-seed0", 1, 9), ("no-prmu-seed0", 1, 6), (bound, 1, 12), (bound, 4, 3)):

        def answer(_, example, user, reached=reached):
            return example.output if user < reached else next(o for o in fixture.LABELS if o != example.output)

        rows += [
            _prediction(dataset, example, model, "bm25", k, "trace", {"component": answer})
            for example in dataset.examples("test")
            if example.task == "component"
        ]
    folder = make(tmp_path / "run", dataset, ("whole-seed0", "no-prmu-seed0"))
    keys = ["model", "task", "retriever", "k", "style", "seed", "example_id"]
    write_table(folder / "predictions.parquet", frame_from_records(rows, Prediction), Prediction, keys)
    manifest = json.loads((folder / "run.json").read_text())
    manifest["config"]["models"].append(f"{bound}=oracle")
    (folder / "run.json").write_text(json.dumps(manifest))
    _, found = ablation(folder, k=1)
    assert found[bound]["accuracy"].value == 1
    assert found[bound]["whole"].value == pytest.approx(3 / 12)


def test_lift_valid_traces_and_claims_are_means_over_seeds_too(made):
    """With a wrong user's items every answer of the fixture is wrong, so the lift is the score; its traces hold."""
    table, rows = made
    assert rows["no-prmu"]["wrong_user"].value == pytest.approx(7 / 12)
    assert rows["no-prmu"]["no_profile"] is None
    assert "Δ wrong user" in markdown_rows(table)
    assert "no profile" not in markdown_rows(table)  # nobody ran it
    assert (rows["whole"]["valid"].value, rows["whole"]["grounded"].value) == (1, 1)


def test_a_model_without_a_training_seed_stands_beside_every_seed(dataset, tmp_path):
    """Base, which is asked directly, is right for 3 of 12 users; the whole for 9 and 11: 3/12 against 10/12."""
    models = ("whole-seed0", "whole-seed1", "base")
    known = KNOWN | {"base": 3}

    def answer(model, example, user):
        return example.output if user < known[model] else next(o for o in fixture.LABELS if o != example.output)

    folder = write_run(tmp_path / "run", dataset, models, ("component",), {"component": answer})
    table, rows = ablation(folder)
    assert (rows["base"]["accuracy"].value, rows["base"]["whole"].value) == pytest.approx((3 / 12, -7 / 12))
    assert (rows["base"]["seeds"], [row.role for row in table.rows]) == (None, ["", ""])


def test_a_rule_stands_below_and_against_every_seed_of_the_whole(made):
    table, rows = made
    share = rows["majority"]["accuracy"].value
    assert rows["majority"]["whole"].value == pytest.approx(share - 10 / 12)
    assert (rows["majority"]["seeds"], rows["majority"]["seed_0"]) == (None, None)
    assert [row.role for row in table.rows] == ["", "", "", "baseline"]


def test_bold_is_what_holm_over_all_differences_leaves_below_5_per_cent(made):
    table, rows = made
    names = ("whole", "no_profile", "wrong_user")
    raw = [row[name].p for row in rows.values() for name in names if row[name] is not None]
    told = [row[f"p_holm_{name}"] for row in rows.values() for name in names if row[name] is not None]
    assert told == stats.holm(raw)
    assert f"{len(raw)} differences" in table.note
    columns = [column.name for column in table.columns]
    for row, values in zip(table.rows, rows.values(), strict=True):
        assert {columns[place] for place in row.strong} == {n for n in names if (values[f"p_holm_{n}"] or 1) < 0.05}


def test_seeds_may_lie_in_run_folders_named_by_seed(dataset, tmp_path, made):
    """The same answers under the names whole and no-prmu in two folders give the same numbers."""
    folders = []
    for seed in (0, 1):
        folder = tmp_path / f"eval-seed{seed}"

        def answer(model, example, user, seed=seed):
            return label(f"{model}-seed{seed}", example, user)

        folders.append(write_run(folder, dataset, ("whole", "no-prmu"), ("component",), {"component": answer}))
        manifest = json.loads((folder / "run.json").read_text())  # `whole` has the same weights, as a base model would
        manifest["results"] = {"models": {"whole": "a" * 64, "no-prmu": f"{seed}" * 64}}
        (folder / "run.json").write_text(json.dumps(manifest))
    _, rows = ablation(*folders)
    joined = cells.make_groups(cells.load_runs(folders), is_joined=True)
    assert [cell.model for cell in joined[0].cells] == [cell.model for cell in found_cells(folders)]
    assert list(rows) == ["whole", "no-prmu"]
    for variant in rows:
        for name in ("accuracy", "whole", "wrong_user"):
            assert rows[variant][name] == made[1][variant][name]


def test_a_variant_of_one_seed_in_two_runs_is_refused(dataset, tmp_path):
    folders = [make(tmp_path / name, dataset, ("whole-seed0", "no-prmu-seed0")) for name in ("a", "b")]
    with pytest.raises(InputError, match="whole of seed 0 stands in two runs, a and b"):
        ablation(*folders)


def test_the_setting_that_most_ran_is_taken_or_the_one_asked_for(dataset, tmp_path):
    small, large = [("bm25", 1, "trace"), ("bm25", 4, "trace")], [("bm25", 1, "trace"), ("bm25", 8, "trace")]
    models = ("whole-seed0", "no-prmu-seed0")
    folder = make(tmp_path / "run", dataset, models, cells_of={models[0]: small, models[1]: [*small, *large[1:]]})
    table, rows = ablation(folder)
    assert rows["whole"]["k"] == 4
    assert "bm25, k = 4" in table.note
    assert ablation(folder, k=1)[1]["no-prmu"]["k"] == 1


def test_models_without_a_whole_recipe_are_no_ablation(dataset, tmp_path):
    folder = make(tmp_path / "run", dataset, ("no-prmu-seed0", "no-prmu-seed1"))
    assert tables_ablation.make_ablations(cells.make_groups(cells.load_runs([folder]))) == []
