"""`kill -9` while checkpoints are written: the folder always goes on, and ends as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tagpr_data.dataset import Dataset
from tagpr_data.pairs import PairOptions, write_pairs
from tagpr_data.sources import personas

pytestmark = pytest.mark.slow
KILLS = 3


@pytest.fixture(scope="module")
def killed(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """SFT, PRMU and RL with that PRMU, each run whole and killed several times, in one driving process."""
    home = tmp_path_factory.mktemp("killed")
    personas.construct(home / "dataset", users=30, events=8)
    write_pairs(home / "pairs", Dataset.load(home / "dataset"), PairOptions(kinds=("user",)))
    common = {"model": str(tiny_model), "adapter": "none", "dtype": "float32"}
    trainer = {"per_device_train_batch_size": 3, "learning_rate": 1e-3, "save_steps": 1}
    short = {"max_steps": 4}
    rl = {"num_generations": 3, "steps_per_generation": 2, "max_completion_length": 6}
    values: dict[str, dict[str, Any]] = {
        "sft": {"corpus": str(corpus), "trainer": trainer},
        "prmu": {"pairs": str(home / "pairs"), "max_tokens": 120, "eval_pairs": 8, "trainer": trainer | short},
        "rl": {
            "dataset": str(home / "dataset"), "tasks": ["personas-choice"], "k": 1, "steps": 4, "redraws": 1,
            "rewards": {"personal": 0.3}, "prmu": str(home / "prmu-whole/prmu"), "ignore_gate": True,
            "eval_examples": 2, "eval_every_steps": 1,
            "trainer": trainer | rl | {"mask_truncated_completions": False},
        },
    }  # fmt: skip
    jobs = [
        {"kind": kind, "settings": common | settings | {"output": str(home / kind)}, "kills": KILLS}
        for kind, settings in values.items()
    ]
    (home / "jobs.json").write_text(json.dumps(jobs))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(Path(__file__).with_name("stage_runs.py")), str(home / "jobs.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"kind"')]
    assert [report["codes"][0] for report in reports] == [0, 0, 0], done.stderr
    return home, {report["kind"]: report | {"stderr": done.stderr} for report in reports}


@pytest.mark.parametrize("kind", ["sft", "prmu", "rl"])
def test_a_run_killed_while_it_writes_goes_on_and_equals_an_uninterrupted_one(kind: str, killed: Any) -> None:
    home, reports = killed
    report = reports[kind]
    assert report["codes"][1:-1].count(-9) >= 2, "the test must kill"
    assert report["codes"][-1] == 0 and not report["faults"], report
    ours, theirs = (
        [json.loads(line) for line in (home / name / "metrics.jsonl").read_text().splitlines()]
        for name in (kind, f"{kind}-whole")
    )
    for key in ("loss", "grad_norm", "learning_rate", "held_out_answer", "held_out_personal", "personal_raw"):
        assert [row.get(key) for row in ours] == [row.get(key) for row in theirs], key
    (ours, theirs) = (load_file(next((home / name).glob("*/model.safetensors"))) for name in (kind, f"{kind}-whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    files = ({path.relative_to(home / name) for path in (home / name).rglob("*")} for name in (kind, f"{kind}-whole"))
    ours, theirs = ({str(path) for path in paths if "tensorboard" not in path.parts} for paths in files)
    assert ours == theirs, "nothing half-written is left"
    if kind == "rl":
        assert any(row.get("grad_norm", 0) > 0 for row in theirs_lines(home)), "the test must train something"
        for path in (home / "rl-whole/completions").iterdir():
            assert (home / "rl/completions" / path.name).read_bytes() == path.read_bytes()


def theirs_lines(home: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home / "rl-whole/metrics.jsonl").read_text().splitlines()]
