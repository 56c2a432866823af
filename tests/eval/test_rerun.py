"""Runs repeated from their own folder. lighteval is left out (`only_ask`)."""

import json

import pytest
from typer.testing import CliRunner

from tagpr_data.errors import CheckFailed, InputError
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.rerun import rerun
from tagpr_eval.run import Limits, evaluate


def only_ask(prompts, name, answer, output):
    import polars as pl

    for file in sorted(prompts.glob("*.parquet")):
        answer(pl.read_parquet(file)["cell", "example_id"].rows())


def run(config, output, meter=None, **more):
    return evaluate(config, output, meter, score=only_ask, **more)


@pytest.fixture
def finished(toy_data, make_model, tmp_path):
    config = EvaluationConfig(
        dataset=str(toy_data), models=(f"m=hf:{make_model('model')}", "knn"), k=(0, 2), retrievers=("bm25", "random"),
        sampling={"max_new_tokens": 4, "temperature": 0.8}, local={"batch_size": 5}, tasks=("colour",),
    )  # fmt: skip
    run(config, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_of_a_sampling_model_and_a_rule_comes_out_again(finished, tmp_path):
    found = rerun(finished, tmp_path / "again", run=run)
    assert found.is_identical
    assert found.predictions == 15 * 3 + 15
    for name in ("predictions.parquet", "samples.jsonl"):
        assert (finished / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_changed_answers_and_their_metrics_are_named(finished, tmp_path):
    import polars as pl

    frame = pl.read_parquet(finished / "predictions.parquet")
    changed = frame.with_columns(
        text=pl.when((pl.col("model") == "knn") & (pl.col("example_id") == "colour-1-0"))
        .then(pl.lit("a poem"))
        .otherwise("text")
    )
    changed.write_parquet(finished / "predictions.parquet")
    manifest = json.loads((finished / "run.json").read_text())
    manifest["versions"]["torch"] = "0.1"
    next(cell for cell in manifest["results"]["cells"] if cell["model"] == "knn")["metrics"]["accuracy"] = 0.5
    (finished / "run.json").write_text(json.dumps(manifest))
    found = rerun(finished, tmp_path / "again", run=run)
    assert not found.is_identical
    assert found.differences[0] == "1 of 60 answers differ:"
    assert "knn.colour.full.0.direct" in found.differences[1]
    assert "'a poem' → 'blue'" in found.differences[1]
    assert found.differences[2].startswith("metrics of knn colour.full.k0.direct.seed0: accuracy 0.5")
    assert any(line.startswith("version of torch: 0.1 → ") for line in found.surroundings)


def test_other_weights_or_data_are_found_before_anything_is_asked(finished, make_model, make_data, tmp_path):
    other = make_data("other", users=4)
    found = rerun(finished, tmp_path / "again", dataset=other, run=run)
    assert [line.split(":")[0] for line in found.differences] == ["data set toy"]
    make_model("model", seed=3)
    found = rerun(finished, tmp_path / "again", run=run)
    assert [line.split(":")[0] for line in found.differences] == ["model m"]
    assert found.predictions == 0
    assert not (tmp_path / "again").exists()


def test_only_a_finished_evaluation_is_repeated(finished, toy_data, server, tmp_path):
    config = EvaluationConfig(dataset=str(toy_data), models=("s=openai:tiny",), server={"base_url": server.url})
    run(config, tmp_path / "part", limits=Limits(max_samples=2))
    with pytest.raises(CheckFailed, match="is partial; finish it with its own command"):
        rerun(tmp_path / "part", tmp_path / "again")
    with pytest.raises(InputError, match="is the run itself"):
        rerun(finished, finished)
    with pytest.raises(InputError, match=r"run\.json does not exist"):
        rerun(tmp_path, tmp_path / "again")


def test_the_command_tells_and_exits(toy_data, make_data, tmp_path):
    from tagpr_eval.cli import app

    run(EvaluationConfig(dataset=str(toy_data), models=("knn", "own-majority")), tmp_path / "rules")
    same = CliRunner().invoke(app, ["rerun", str(tmp_path / "rules")])
    assert same.exit_code == 0
    assert "identical: 60 answers and all metrics" in same.stdout
    assert (tmp_path / "rules-rerun" / "run.json").is_file()
    other = CliRunner().invoke(app, ["rerun", str(tmp_path / "rules"), "--dataset", str(make_data("x", users=3))])
    assert other.exit_code == 1
    assert "data set toy" in other.stdout
