"""What must hold of the whole: a model that ignores the person shows no lift, constants score what a hand computes,
two data sets stand in one report, an audit is shown, a partial run is marked."""

import json

import pytest

from tagpr_data.records import Audit, AuditRow, Prediction
from tagpr_data.tables import read_records, sha256_text
from tagpr_eval.cells import load_runs, make_groups
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.models import Completion
from tagpr_eval.report import build, html
from tagpr_eval.report_tables import audit_tables, lift_table
from tagpr_eval.run import Limits, evaluate


class Written:
    """A model that a function writes: prompt text → answer."""

    def __init__(self, answer, identity="0" * 64):
        self.answer, self.identity = answer, identity

    def batches(self, prompts):
        return [[place] for place in range(len(prompts))]

    def generate(self, prompts, batches, finished):
        for batch in batches:
            for place in batch:
                finished(place, Completion(self.answer(prompts[place].messages[-1].content), "stop"))


def only_ask(prompts, name, answer, output):
    import polars as pl

    for file in sorted(prompts.glob("*.parquet")):
        answer(pl.read_parquet(file)["cell", "example_id"].rows())


def run(folder, answer, **settings):
    settings = {"models": ("m=openai:any",), **settings}
    limits = settings.pop("limits", Limits())
    config = EvaluationConfig(**settings)
    return evaluate(config, folder, limits=limits, make_model=lambda spec, _: Written(answer), score=only_ask)


def asked_thing(prompt):
    """An answer that depends on the question alone: its last line, not on the items."""
    return ("red", "blue", "green")[int(sha256_text(prompt[-14:]), 16) % 3]


def test_a_model_that_ignores_the_profile_shows_a_lift_interval_that_contains_0(make_data, tmp_path):
    data = make_data(users=12, each=4)
    cells = {"dataset": str(data), "retrievers": ("bm25", "random", "wrong-user"), "k": (0, 2, 4), "tasks": ("colour",)}
    run(tmp_path / "run", asked_thing, **cells)
    table = lift_table(make_groups(load_runs([tmp_path / "run"])))
    names = [column.name for column in table.columns]
    rows = [dict(zip(names, row.values, strict=True)) for row in table.rows]
    assert {row["control"] for row in rows} == {"none", "wrong-user"}
    assert len(rows) == 8
    for row in rows:
        assert row["difference"].low <= 0 <= row["difference"].high
        assert row["p_holm"] > 0.05

    def reads_items(prompt):
        seen = [prompt.count(f" {label}") for label in ("red", "blue", "green")]
        return ("red", "blue", "green")[seen.index(max(seen))]

    run(tmp_path / "reader", lambda prompt: reads_items(prompt.split("Which colour?")[0]), **cells)
    found = lift_table(make_groups(load_runs([tmp_path / "reader"])))
    best = [dict(zip(names, row.values, strict=True)) for row in found.rows]
    assert all(row["difference"].low > 0 for row in best if row["control"] == "wrong-user" and row["k"] == 4)


def test_a_constant_5_on_real_lamp_3_users_gives_what_a_hand_computes(shared_lamp, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = shared_lamp / "LaMP_3_time_derived"
    golds = [int(row["output"]) for row in json.loads((folder / "dev_outputs.json").read_text())["golds"]]
    mae = sum(5 - gold for gold in golds) / len(golds)
    rmse = (sum((5 - gold) ** 2 for gold in golds) / len(golds)) ** 0.5
    manifest = run(tmp_path / "run", lambda _: "5", dataset=str(folder), split="validation", k=(0, 1),
                   models=("m=openai:any", "oracle"))  # fmt: skip
    assert len(golds) == 30
    for cell in manifest.results["cells"]:
        expected = {"MAE": 0.0, "RMSE": 0.0} if cell["model"] == "oracle" else {"MAE": mae, "RMSE": rmse}
        assert cell["metrics"] == pytest.approx(expected, abs=1e-6)  # the official metric goes through float32
    (group,) = make_groups(load_runs([tmp_path / "run"]))
    for metric, expected in (("MAE", mae), ("RMSE", rmse)):
        found = group.grid(metric, "parsed").estimates()[0]
        assert found.value == pytest.approx(expected, abs=1e-6)


def test_models_of_two_data_sets_keep_their_names_in_one_report(toy_data, make_data, tmp_path):
    other = make_data("other", users=4)
    for name, data in (("one", toy_data), ("two", other)):
        run(tmp_path / name, asked_thing, dataset=str(data))
    groups = make_groups(load_runs([tmp_path / "one", tmp_path / "two"]))
    assert {cell.model for group in groups for cell in group.cells} == {"m"}
    run(tmp_path / "again", asked_thing, dataset=str(toy_data))
    groups = make_groups(load_runs([tmp_path / "one", tmp_path / "again"]))
    assert {cell.model for group in groups for cell in group.cells} == {"m (one)", "m (again)"}


def test_an_audit_and_a_partial_run_are_shown(toy_data, tmp_path):
    run(tmp_path / "part", asked_thing, dataset=str(toy_data), limits=Limits(max_samples=20))
    assert 0 < len(read_records(tmp_path / "part" / "predictions.parquet", Prediction)) < 30
    rows = [
        AuditRow(check=check, split=split, task="colour", found=n, rows=15, share=n / 15, ids=(), detail="<b>seen</b>")
        for check, split, n in (("gold-in-profile", "test", 3), ("gold-in-profile", "train", 0))
    ]
    audit = Audit(dataset="toy", dataset_hash="a" * 64, examples={"train": 15, "test": 15}, parameters={}, rows=rows)
    found = audit_tables([audit])
    assert [table.title for table in found] == ["toy: train", "toy: test"]
    assert found[1].rows[0].values[3] == (3, 15)
    page = html(build(load_runs([tmp_path / "part"]), audits=[audit]))
    assert "Is the data clean?" in page
    assert "&lt;b&gt;seen" in page
    assert "PARTIAL: part stopped at a limit" in page
