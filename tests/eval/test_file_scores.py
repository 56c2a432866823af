"""`tagpr-eval score` on LaMP's own files."""

import json
import sys

import pytest

from tagpr_data.lamp.files import write_outputs
from tagpr_eval.cli import main


@pytest.fixture
def score(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tagpr-eval", "score", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def files(tmp_path):
    def write(golds, predictions, gold_task="LaMP_3", prediction_task=None):
        paths = tmp_path / "g.json", tmp_path / "p.json"
        tasks = gold_task, prediction_task or gold_task
        for path, task, outputs in zip(paths, tasks, (golds, predictions), strict=True):
            if isinstance(outputs, dict):
                write_outputs(path, task, outputs)
            else:
                path.write_text(json.dumps(outputs), encoding="utf-8")
        return "--golds", paths[0], "--preds", paths[1]

    return write


def test_every_official_case_comes_out_of_the_command(score, files, shared_lamp):
    reference = json.loads((shared_lamp / "official_metrics.json").read_text(encoding="utf-8"))
    for case in reference["cases"]:
        both = files(
            *({str(n): text for n, text in enumerate(case[key])} for key in ("golds", "predictions")), case["task"]
        )
        seed = [] if case["numpy_seed"] is None else ["--seed", case["numpy_seed"]]
        code, out, err = score(*both, "--mode", "official", *seed, "--json")
        if "exception" in case["result"]:
            assert (code, out) == (1, "")
            assert "not finite" in err
            continue
        result = json.loads(out)
        assert (code, result["metrics"]) == (0, case["result"])
        assert result["task"] == case["task"].replace("_", "-")
        assert (result["mode"], result["n"]) == ("official", len(case["golds"]))
        assert result.get("seed") == case["numpy_seed"]


def test_exact_is_the_default_and_nan_is_counted(score, files):
    code, out, err = score(*files({"a": "5", "b": "3"}, {"b": "3", "a": "nan"}), "--json")
    result = json.loads(out)
    assert (code, err) == (0, "")
    assert list(result) == ["task", "mode", "n", "metrics", "counts"]
    assert result["mode"] == "exact"
    assert result["metrics"] == {"MAE": 2.0, "RMSE": pytest.approx(8**0.5)}
    assert {name: count for name, count in result["counts"].items() if count} == {"non_finite": 1}


def test_people_get_lines(score, files):
    _, out, _ = score(*files({"a": "x y"}, {"a": "x"}, "LaMP_4"), "--mode", "official", "--seed", "3")
    assert out.splitlines() == ["LaMP-4 · mode official · seed 3 · n = 1", "rouge-1   0.666667", "rouge-L   0.666667"]


def test_of_duplicate_ids_the_last_wins_and_is_counted(score, files):
    predictions = {"task": "LaMP_3", "golds": [{"id": "a", "output": "1"}, {"id": "a", "output": 5}]}
    (_, gold, _, preds) = files({"a": "5"}, {})
    preds.write_text(json.dumps(predictions))
    result = json.loads(score("--golds", gold, "--preds", preds, "--json")[1])
    assert result["metrics"]["MAE"] == 0
    assert result["counts"]["duplicate_predictions"] == 1


def test_ids_that_differ_end_with_code_1_and_are_named(score, files):
    code, out, err = score(*files({"a": "5", "b": "3"}, {"a": "5", "z": "3"}))
    assert (code, out) == (1, "")
    assert "'b'" in err
    assert "'z'" in err


def test_golds_of_another_label_list_are_warned_about(score, files):
    code, _, err = score(*files({"a": "politics"}, {"a": "garbage"}, "LaMP_2"))
    assert code == 0
    assert "try --task LaMP-2-old" in err
    code, out, err = score(*files({"a": "politics"}, {"a": "garbage"}, "LaMP_2"), "--task", "LaMP_2N", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["metrics"] == {"accuracy": 0.0, "f1": 0.0}


def test_a_bare_list_needs_the_task(score, files):
    both = files([{"id": "a", "output": "5"}], [{"id": "a", "output": "5"}])
    assert score(*both)[0] == 2
    assert score(*both, "--task", "LaMP_3")[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode", "best"], "mode 'best' is unknown"),
        (["--task", "LaMP-7"], "is of task LaMP-3, not LaMP-7"),
        (["--task", "xyz"], "'xyz' is unknown"),
        (["--preds", "nowhere.json"], "nowhere.json does not exist"),
    ],
)
def test_misuse_ends_with_code_2(score, files, options, message):
    code, out, err = score(*files({"a": "5"}, {"a": "5"}), *options)
    assert (code, out) == (2, "")
    assert message in err


def test_tasks_that_differ_and_a_bad_seed_are_misuse(score, files):
    code, _, err = score(*files({"a": "5"}, {"a": "5"}, "LaMP_3", "LaMP_4"))
    assert (code, "they must be equal" in err) == (2, True)
    code, _, err = score(*files({"a": "5"}, {"a": "5"}, "LaMP_4"), "--mode", "official", "--seed", "-1")
    assert (code, "seed -1" in err) == (2, True)
