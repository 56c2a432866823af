"""Runs side by side: what waits for what, what a failure and a signal do. The stages are real, of a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tagpr_train import recipe, side_by_side

SHIPPED = Path(__file__).parents[2] / "tagpr_train/configs"


def test_a_stage_waits_for_those_whose_product_it_names() -> None:
    loaded, rest = recipe.load_recipe(SHIPPED / "personas-recipe.toml")
    stages = {stage.name: stage for stage in recipe.chain(loaded, SHIPPED, rest).stages}
    all_of_them = list(stages.values())
    waits = {name: [one.name for one in side_by_side.starts_from(stage, all_of_them)] for name, stage in stages.items()}
    assert waits == {"sft": [], "prmu": [], "guided": ["sft", "prmu"], "exploratory": ["guided"]}


def _recipe(folder: Path, tiny_model: Path, corpus: Path, steps: tuple[int, ...], seeds: str = "[0]") -> Path:
    for number, count in enumerate(steps):
        (folder / f"sft{number}.toml").write_text(
            f'corpus = "{corpus}"\noutput = "x"\nmodel = "{tiny_model}"\nadapter = "none"\ndtype = "float32"\n'
            f"[trainer]\nmax_steps = {count}\nper_device_train_batch_size = 2\n"
        )
    path = folder / "some.toml"
    path.write_text(
        f'output = "{folder}/runs"\nseeds = {seeds}\n'
        + "".join(
            f'[[stages]]\nname = "s{number}"\nkind = "sft"\nconfig = "sft{number}.toml"\n'
            for number in range(len(steps))
        )
    )
    return path


def _stages(path: Path) -> list[recipe.Stage]:
    loaded, rest = recipe.load_recipe(path)
    made = recipe.chains(loaded, path.parent, rest)
    return list({stage.settings.output: stage for one in made for stage in one.stages}.values())


@pytest.mark.slow
def test_runs_side_by_side_are_those_of_one_after_the_other(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    path = _recipe(tmp_path, tiny_model, corpus, (2, 3), "[0, 1]")
    said: list[str] = []
    stages = _stages(path)
    assert side_by_side.run_side_by_side(stages, tmp_path / "runs", 2, said.append) == 0
    assert [stage.settings.output for stage in stages if not recipe.is_finished(stage)] == []
    assert sum(line.endswith("wait)") for line in said) == 4
    alone = tmp_path / "alone"
    alone.mkdir()
    single = _stages(_recipe(alone, tiny_model, corpus, (2, 3), "[0, 1]"))
    for stage in single:
        recipe.run_stage(stage)
    for one, other in zip(stages, single, strict=True):
        first, second = (
            json.loads((stage.settings.output / "run.json").read_text())["results"]["train_loss_last_10"]
            for stage in (one, other)
        )
        assert first == pytest.approx(second, rel=1e-5)


@pytest.mark.slow
def test_the_first_that_fails_stops_the_others_with_a_checkpoint(
    tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    path = _recipe(tmp_path, tiny_model, corpus, (100_000, 1))
    (tmp_path / "sft1.toml").write_text((tmp_path / "sft1.toml").read_text().replace(str(corpus), "/no/such/corpus"))
    said: list[str] = []
    assert side_by_side.run_side_by_side(_stages(path), tmp_path / "runs", 2, said.append) == 2
    assert any(line.startswith("s1: ") and "/no/such/corpus" in line for line in said)
    assert not (tmp_path / "runs/s0/model").exists()


@pytest.mark.slow
def test_a_signal_stops_all_and_the_same_command_goes_on(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    path = _recipe(tmp_path, tiny_model, corpus, (100_000, 100_000))
    command = "from tagpr_train.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "ablate", str(path), "--jobs", "2", "--no-evaluate"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    homes = [tmp_path / "runs/s0", tmp_path / "runs/s1"]
    deadline = time.monotonic() + 300
    while not all((home / "metrics.jsonl").exists() for home in homes) and process.poll() is None:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 143
    assert process.stderr is not None
    with process.stderr as said:
        assert "the same command goes on" in said.read()
    for home in homes:
        assert json.loads((home / "run.json").read_text())["status"] == "running"
        assert list(home.glob("checkpoint*"))
