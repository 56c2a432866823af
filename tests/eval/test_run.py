"""Runs without lighteval (`score` only asks for the answers): what is asked, kept, resumed, refused."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import Prediction, RunManifest
from tagpr_data.tables import read_json, read_records
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.run import evaluate, summary

FILES = ("predictions.parquet", "samples.jsonl", "run.json")


def only_ask(prompts, name, answer, output):
    """Stands in for lighteval: asks for every answer and scores none."""
    import polars as pl

    answer(
        [
            pair
            for file in sorted(prompts.glob("*.parquet"))
            for pair in pl.read_parquet(file)["cell", "example_id"].rows()
        ]
    )


def config(data, server=None, **settings):
    settings = {"models": ("openai:tiny",), "retrievers": ("bm25", "wrong-user"), "k": (0, 2, 8), **settings}
    if server:
        settings["server"] = {"base_url": server.url, "retries": 3, "backoff_seconds": 0.01, "concurrency": 3}
    return EvaluationConfig(dataset=str(data), **settings)


def run(config, output, **more):
    return evaluate(config, output, **{"score": only_ask, **more})


def content(folder):
    manifest = json.loads((folder / "run.json").read_text())
    manifest.pop("git_revision")  # somebody may commit between two runs
    return manifest, *((folder / name).read_bytes() for name in FILES[:2])


def test_every_cell_answers_every_example_and_equal_prompts_are_asked_once(toy_data, server, tmp_path):
    manifest = run(config(toy_data, server, seeds=(0, 1)), tmp_path / "run")
    rows = read_records(tmp_path / "run" / "predictions.parquet", Prediction)
    assert len(rows) == 2 * 5 * 2 * 15  # tasks × (none, and two ks of two retrievers) × seeds × examples
    assert len({(r.task, r.retriever, r.k, r.seed, r.example_id) for r in rows}) == len(rows)
    prompts = {row.prompt_hash for row in rows}
    assert len(server.requests) == len(prompts) == manifest.results["samples"]
    assert len(prompts) < len(rows) / 2
    assert manifest.status == "complete"
    assert (manifest.seed, list(manifest.data)) == (0, ["toy"])
    for row in rows:
        assert len(row.item_ids) == min(row.k, row.profile_size) or row.retriever == "wrong-user"
        assert (row.finish_reason, row.gold is not None) == ("stop", True)


def test_what_was_cut_short_or_shorter_than_k_is_counted(toy_data, server, tmp_path):
    server.always = {"choices": [{"message": {"content": "red"}, "finish_reason": "length"}]}
    manifest = run(config(toy_data, server, retrievers=("bm25",), k=(4,), tasks=("colour",)), tmp_path / "run")
    (cell,) = manifest.results["cells"]
    assert cell["shorter_profiles"] == 6  # the users with 0 and 2 items have 3 examples each
    assert cell["cut_at_length"] == cell["n"] == 15
    assert "(15 cut at the length limit)" in summary(manifest)
    assert cell["metrics"]["accuracy"] == 6 / 15  # u0 and u3 like red


def test_the_oracle_is_perfect_and_baselines_need_no_server(toy_data, tmp_path):
    names = ("oracle", "majority", "own-majority", "knn", "copy-last")
    manifest = run(config(toy_data, models=names), tmp_path / "run")
    found = {(row["model"], row["cell"]): row["metrics"] for row in manifest.results["cells"]}
    own, lent = ".full.k0.direct.seed0", ".wrong-user.k0.direct.seed0"
    assert found["oracle", f"colour{own}"] == {"accuracy": 1.0, "f1": 1.0}
    assert found["oracle", f"note{own}"] == {"rouge-1": 1.0, "rouge-L": 1.0}
    # Golds of the train split: red 6 of 15 (u0, u3), blue 6 (u1, u4), green 3; ties go to the first label.
    assert found["majority", f"colour{own}"]["accuracy"] == 6 / 15
    # Every user with items likes the colour of all of them; u0 has none and gets the majority, which is right.
    for name in ("own-majority", "knn", "copy-last"):
        assert found[name, f"colour{own}"]["accuracy"] == 1.0
        assert found[name, f"colour{lent}"]["accuracy"] < 1.0
    assert not any("wrong-user" in cell for name, cell in found if name in ("oracle", "majority"))
    # The last title is "COLOUR n", the gold "COLOUR thing": one of two tokens. u0 gets "blue thing", which of the
    # commonest golds is the first in the alphabet, for "red thing": one of two again.
    assert found["copy-last", f"note{own}"]["rouge-1"] == pytest.approx(0.5)
    assert not (tmp_path / "run" / "prompts").exists()


def test_fewer_examples_are_a_fixed_part_of_all(toy_data, tmp_path):
    run(config(toy_data, models=("knn",), examples=4), tmp_path / "few")
    run(config(toy_data, models=("knn",)), tmp_path / "all")
    few = read_records(tmp_path / "few" / "predictions.parquet", Prediction)
    everything = read_records(tmp_path / "all" / "predictions.parquet", Prediction)
    assert len(few) == 4 * 2 * 2
    assert {row.model_dump_json() for row in few} < {row.model_dump_json() for row in everything}


def test_a_run_that_broke_off_goes_on_and_asks_for_nothing_twice(toy_data, server, tmp_path):
    server.plan = dict.fromkeys(range(20, 999), 500)
    with pytest.raises(CheckFailed, match="no answer in 4 tries"):
        run(config(toy_data, server), tmp_path / "broken")
    assert read_json(tmp_path / "broken" / "run.json", RunManifest).status == "running"
    assert not (tmp_path / "broken" / "predictions.parquet").exists()
    server.plan = {}
    run(config(toy_data, server), tmp_path / "broken")
    assert set(server.answered.values()) == {1}
    run(config(toy_data, server), tmp_path / "whole")
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.run import evaluate
from test_run import only_ask
evaluate(EvaluationConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), score=only_ask)
"""


def test_killed_at_random_points_it_ends_in_the_same_files(toy_data, server, tmp_path):
    server.delay_seconds = 0.02
    settings = config(toy_data, server)
    command = [
        sys.executable,
        "-c",
        KILLED,
        settings.model_dump_json(),
        str(tmp_path / "killed"),
        "",
        str(Path(__file__).parent),
    ]
    generator = random.Random(4)
    for _ in range(3):
        before = len(server.requests)
        process = subprocess.Popen(command)
        wait_for = before + generator.randint(1, 25)
        while process.poll() is None and len(server.requests) < wait_for:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    kept = (tmp_path / "killed" / "samples.jsonl").read_bytes().count(b"\n")
    subprocess.run(command, check=True)
    total = sum(server.answered.values())
    assert kept > 0
    assert total - len(server.answered) <= 3 * 3  # asked twice: at most what was in flight at each kill
    run(settings, tmp_path / "whole")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_finished_run_is_left_as_it_is(toy_data, server, tmp_path):
    first = run(config(toy_data, server), tmp_path / "run")
    asked = len(server.requests)
    faster = config(toy_data, server).model_copy(
        update={"server": config(toy_data, server).server.model_copy(update={"concurrency": 9, "retries": 0})}
    )
    assert run(faster, tmp_path / "run") == first
    assert len(server.requests) == asked


def test_a_folder_is_for_one_run_of_one_configuration(toy_data, make_data, tmp_path):
    run(config(toy_data, models=("knn",)), tmp_path / "run")
    with pytest.raises(InputError, match=r"run of other settings: k is \[0, 2, 8\] there and \[1\] here"):
        run(config(toy_data, models=("knn",), k=(1,)), tmp_path / "run")
    changed = config(make_data("changed", users=4), models=("knn",))
    moved = json.loads((tmp_path / "run" / "run.json").read_text())
    moved["config"]["dataset"] = changed.dataset
    (tmp_path / "run" / "run.json").write_text(json.dumps(moved))
    with pytest.raises(InputError, match="run of other data: toy is"):
        run(changed, tmp_path / "run")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("diary")
    with pytest.raises(InputError, match=r"no run folder and not empty \(it holds 'dear.txt'\)"):
        run(config(toy_data, models=("knn",)), tmp_path / "letters")


def test_a_second_process_is_refused(toy_data, tmp_path):
    from tagpr_data.journal import folder_lock

    with folder_lock(tmp_path / "run"), pytest.raises(InputError, match="is in use by process"):
        run(config(toy_data, models=("knn",)), tmp_path / "run")


def test_weights_that_changed_after_a_finished_run_are_noticed(toy_data, make_model, tmp_path):
    settings = config(
        toy_data, models=(f"m=hf:{make_model('model')}",), retrievers=("bm25",), k=(1,), tasks=("colour",),
        sampling={"max_new_tokens": 2},
    )  # fmt: skip
    run(settings, tmp_path / "run")
    make_model("model", seed=7)
    with pytest.raises(InputError, match="run of other models: m is"):
        run(settings, tmp_path / "run")


def test_a_batch_that_was_cut_off_is_computed_again_whole_and_gives_the_same(toy_data, tiny_model, tmp_path):
    settings = config(
        toy_data, models=(f"m=hf:{tiny_model}",), sampling={"max_new_tokens": 6}, local={"batch_size": 7}, k=(0, 2)
    )
    run(settings, tmp_path / "whole")
    run_folder = tmp_path / "cut"
    run_folder.mkdir()
    lines = (tmp_path / "whole" / "samples.jsonl").read_bytes().splitlines(keepends=True)
    manifest = read_json(tmp_path / "whole" / "run.json", RunManifest)
    (run_folder / "run.json").write_text(
        manifest.model_copy(update={"status": "running", "results": {}}).model_dump_json()
    )  # fmt: skip
    (run_folder / "samples.jsonl").write_bytes(b"".join(lines[::3]) + b'{"key": "to')
    run(settings, run_folder)
    assert content(run_folder) == content(tmp_path / "whole")


def test_two_models_of_one_name_are_refused(toy_data, tmp_path):
    with pytest.raises(InputError, match="two models are called 'a'"):
        run(config(toy_data, models=("a=knn", "a=oracle")), tmp_path / "run")


def test_a_full_disk_leaves_no_final_file_and_the_run_goes_on_later(toy_data, server, tmp_path, monkeypatch):
    import errno

    from tagpr_data.journal import Journal

    whole, written = Journal.append, []

    def full_after_five(self, record):
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(record)
        whole(self, record)

    monkeypatch.setattr(Journal, "append", full_after_five)
    with pytest.raises(OSError, match="No space"):
        run(config(toy_data, server), tmp_path / "run")
    assert not (tmp_path / "run" / "predictions.parquet").exists()
    monkeypatch.undo()
    assert run(config(toy_data, server), tmp_path / "run").status == "complete"
    assert (tmp_path / "run" / "samples.jsonl").read_bytes().count(b"\n") == len(server.answered)


def test_a_user_reads_one_line_about_a_mistake(toy_data, tmp_path):
    def command(*options):
        arguments = ["run", "--dataset", str(toy_data), "--output", str(tmp_path / "run"), *options]
        with pytest.raises((InputError, CheckFailed)) as caught:
            CliRunner().invoke(app, arguments, catch_exceptions=False)
        return str(caught.value)

    from tagpr_eval.cli import app

    assert "model 'gpt' is unknown" in command("--model", "gpt")
    assert "task 'colors' is unknown; known: colour, note" in command("--model", "knn", "--task", "colors")
    assert "retriever 'bm52' is unknown" in command("--model", "knn", "--retriever", "bm52")
    assert "has no split 'validation'" in command("--model", "knn", "--split", "validation")
    assert "wrong option: split" in command("--model", "knn", "--split", "dev")
    assert "k.0" in command("--model", "knn", "--k", "-1")
    assert "styles.0" in command("--model", "knn", "--style", "poem")
    assert "models names something twice: knn" in command("--model", "knn", "--model", "knn")
    assert not (tmp_path / "run").exists() or not (tmp_path / "run" / "run.json").exists()
