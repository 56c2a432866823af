"""lighteval's Pipeline for real. Its import takes 10 s, so all of it is in this module, over one run."""

import json
import os
import subprocess
import sys

import pytest

from tagpr_data import answers
from tagpr_data.lamp.metrics import evaluate as lamp_evaluate
from tagpr_data.records import Prediction
from tagpr_data.tables import read_records, sha256_text
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.run import evaluate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model, toy_data, server_class):
    """A run of a model whose answers are sometimes labels: a served one, which answers by the prompt's hash."""
    server = server_class()  # the fixture `server` lives for one test only
    choices = [
        "red",
        " blue ",
        "green",
        "The answer is green.",
        "<think>x</think>red",
        "<think>not closed",
        "",
        "red thing",
    ]

    def answer(request, body, treatment):
        text = choices[int(sha256_text(json.dumps(body["messages"])), 16) % len(choices)]
        server_class.answer(
            server, request, body, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
        )

    server.answer = answer
    folder = tmp_path_factory.mktemp("lighteval") / "run"
    config = EvaluationConfig(
        dataset=str(toy_data), models=("s=openai:tiny", f"m=hf:{tiny_model}", "knn"), k=(0, 2),
        sampling={"max_new_tokens": 8}, server={"base_url": server.url},
    )  # fmt: skip
    manifest = evaluate(config, folder)
    server.stop()
    return folder, manifest, toy_data


def table(folder, model):
    (path,) = (folder / "lighteval" / "results" / model).glob("results_*.json")
    return json.loads(path.read_text())


def test_its_table_holds_our_numbers_for_every_cell(finished, toy):
    folder, _, _ = finished
    rows = read_records(folder / "predictions.parquet", Prediction)
    for model in ("s", "m"):
        results = table(folder, model)["results"]
        assert set(results) == {
            f"{task}.{cell}.direct.seed0|0" for task in ("colour", "note") for cell in ("none.k0", "bm25.k2")
        } | {"all"}
        for name, found in results.items():
            if name == "all":
                continue
            task, retriever = toy.task(name.split(".")[0]), name.split(".")[1]
            mine = [row for row in rows if (row.model, row.task, row.retriever) == (model, task.name, retriever)]
            golds = {row.example_id: row.gold for row in mine}
            raw = {row.example_id: row.text for row in mine}
            extracted = {key: answers.parsed(text, task).answer or "" for key, text in raw.items()}
            for suffix, given in (("", extracted), ("_strict", raw)):
                for metric, value in lamp_evaluate(task, golds, given).metrics.items():
                    assert found[metric + suffix] == pytest.approx(value, abs=1e-12), (name, metric + suffix)
    cells = [row for name, row in table(folder, "s")["results"].items() if name.startswith("colour")]
    strict, extracted = (sum(row[name] for row in cells) for name in ("accuracy_strict", "accuracy"))
    assert 0 < strict < extracted < 2  # else the two columns were not told apart


def test_our_headline_is_its_table(finished):
    folder, manifest, _ = finished
    for cell in manifest.results["cells"]:
        if cell["model"] != "knn":
            found = table(folder, cell["model"])["results"][f"{cell['cell']}|0"]
            assert {name: found[name] for name in cell["metrics"]} == pytest.approx(cell["metrics"], abs=1e-12)


def test_its_details_hold_prompt_answer_and_example(finished):
    import polars as pl

    folder, _, _ = finished
    rows = {
        (row.task, row.retriever, row.example_id): row
        for row in read_records(folder / "predictions.parquet", Prediction)
        if row.model == "m"
    }
    seen = set()
    for path in (folder / "lighteval" / "details" / "m").rglob("details_*.parquet"):
        for detail in pl.read_parquet(path).iter_rows(named=True):
            cell, example = detail["doc"]["specific"]["cell"], detail["doc"]["specific"]["example_id"]
            row = rows[cell.split(".")[0], cell.split(".")[1], example]
            assert detail["model_response"]["text"] == [row.text]
            assert detail["doc"]["query"] in detail["model_response"]["input"]
            seen.add((row.task, row.retriever, example))
    assert seen == set(rows)


def test_scores_of_labels_go_through_it_as_choices(tmp_path, tiny_model, toy_data, toy):
    import polars as pl

    config = EvaluationConfig(
        dataset=str(toy_data), models=(f"m=hf:{tiny_model}",), k=(2,), tasks=("colour",),
        protocols=("generation", "log-likelihood"), sampling={"max_new_tokens": 4},
        chat={"system_prompt": "Be kind.", "thinking": "off"},
    )  # fmt: skip
    manifest = evaluate(config, tmp_path / "run")
    results = table(tmp_path / "run", "m")["results"]
    name = "colour.bm25.k2.direct.seed0"
    assert set(results) == {f"{name}|0", f"{name}.log-likelihood|0", "all"}
    assert {key for key in results[f"{name}.log-likelihood|0"] if "stderr" not in key} == {"accuracy", "f1"}
    for cell in manifest.results["cells"]:
        found = results[f"{cell['cell']}|0"]
        assert {key: found[key] for key in cell["metrics"]} == pytest.approx(cell["metrics"], abs=1e-12)
    rows = {
        row.example_id: row
        for row in read_records(tmp_path / "run" / "predictions.parquet", Prediction)
        if row.protocol == "log-likelihood"
    }
    (path,) = (tmp_path / "run" / "lighteval" / "details" / "m").rglob("details_*log-likelihood*.parquet")
    for detail in pl.read_parquet(path).iter_rows(named=True):
        row = rows.pop(detail["doc"]["specific"]["example_id"])
        assert detail["doc"]["choices"] == list(toy.task("colour").labels)
        assert detail["doc"]["instruction"].startswith("Be kind.\n\nAnswer as this user would.")
        assert detail["model_response"]["logprobs"] == pytest.approx(row.label_logprobs)
    assert not rows


def test_lighteval_leaves_the_process_as_it_was(finished):
    import datasets
    import torch
    from lighteval.tasks.registry import Registry

    assert torch.is_grad_enabled()
    assert "load_all_task_configs" in str(Registry.load_all_task_configs)
    assert "tagpr-" not in str(datasets.config.HF_DATASETS_CACHE)


def test_its_own_command_line_finds_the_cells_as_custom_tasks(finished):
    folder, _, _ = finished
    code = "from tagpr_eval import lighteval_tasks as t; print(*sorted(c.name for c in t.TASKS_TABLE), sep='\\n')"
    environment = {"TAGPR_PROMPTS": str(folder / "prompts"), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    found = done.stdout.split()
    assert found == sorted(
        f"{task}.{cell}.direct.seed0" for task in ("colour", "note") for cell in ("none.k0", "bm25.k2")
    )


def test_withheld_golds_give_the_share_of_answers_only(tiny_model):
    from tagpr_data.tasks import find_task
    from tagpr_eval.lighteval_tasks import metrics_of

    assert [metric.metric_name for metric in metrics_of(find_task("LaMP-3"), False)] == ["answered"]
    names = [metric.metric_name for metric in metrics_of(find_task("LaMP-3"), True)]
    assert names == ["MAE", "RMSE", "MAE_strict", "RMSE_strict"]
