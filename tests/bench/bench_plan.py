"""What `tagpr-train plan` predicts against what real runs then took: steps, tokens, memory, hours.

    python tests/bench/bench_plan.py [NAME …]     # from the repository root; about 10 minutes

Every run is a process of its own, started from the shell, so that its peak memory is its own. Hours are predicted from
a probe of the same settings just before. Prints one line per run with predicted, measured and the error.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tagpr_train import plan

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "tagpr_train" / "configs"
BIN = Path(sys.executable).parent

RUNS = {
    "sft-tiny": ("sft", "personas-sft-cpu.toml", ["trainer.max_steps=40"]),
    "sft-smollm2-lora": ("sft", "xorg-sft-cpu.toml", ["trainer.max_steps=8", "eval_examples=2"]),
    "sft-smollm2-full": (
        "sft",
        "xorg-sft-cpu.toml",
        [
            "trainer.max_steps=5", "eval_examples=2", "adapter=none", "prompt_gradient=true",
            "trainer.per_device_train_batch_size=2",
        ],
    ),
    "prmu-tiny": ("prmu", "personas-prmu-cpu.toml", ["trainer.max_steps=40"]),
    "rl-tiny": (
        "rl",
        "personas-rl-guided-cpu.toml",
        [
            "rewards.personal=0.0", "steps=4", "eval_examples=8", "eval_every_steps=4", "redraws=0",
            "trainer.mask_truncated_completions=false",  # else an untrained model's completions are not computed at all
        ],
    ),
}  # fmt: skip


def main(names: list[str]) -> None:
    """Run the named cases, or all, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for command in (
            "tagpr-data construct personas --output personas/dataset --users 300 --events 12",
            f"tagpr-data build {ROOT}/tagpr_data/configs/personas.toml --set dataset=personas/dataset "
            "--set output=personas/corpus",
            "tagpr-data pairs --dataset personas/dataset --output personas/pairs",
            "tagpr-train tiny-model --corpus personas/corpus --output personas/tiny",
        ):
            _shell(command)
        print("run | steps | tokens | memory GiB | seconds (predicted, measured, error)")
        for name in names or RUNS:
            kind, config, changes = RUNS[name]
            _compare(name, kind, CONFIGS / config, [*changes, "threads=1", f"output=out/{name}"])


def _compare(name: str, kind: str, config: Path, changes: list[str]) -> None:
    inputs = {"sft": ["corpus=personas/corpus"], "prmu": ["pairs=personas/pairs"], "rl": ["dataset=personas/dataset"]}
    model = [] if "smollm2" in name else ["model=personas/tiny"]
    changes = [*inputs[kind], *model, *changes]
    probed = _shell(f"{sys.executable} {__file__} --probe {config} {' '.join(changes)}")
    speed = float(probed.splitlines()[-1])
    (row,) = plan.plan(plan.stages(config, changes), plan.Machine(), flop_per_second=speed)
    _shell(f"tagpr-train {kind} {config} " + " ".join(f"--set {one}" for one in changes))
    measured = json.loads(Path(f"out/{name}/run.json").read_text())["results"]
    assert row.hours is not None
    cells = [
        (row.prediction.work.steps, measured["steps"]),
        (row.prediction.work.tokens, measured["tokens"]),
        (row.prediction.peak / plan.GIB, measured["peak_memory_gib"]),
        (row.hours * 3600, measured["seconds"]),
    ]
    print(name, "|", " | ".join(f"{ours:,.5g} {theirs:,.5g} {ours / theirs - 1:+.0%}" for ours, theirs in cells))
    sys.stdout.flush()


def _shell(command: str) -> str:
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    if sys.argv[1:2] == ["--probe"]:
        (stage,) = plan.stages(Path(sys.argv[2]), sys.argv[3:])
        print(plan.probe(stage.settings)[0])
    else:
        main(sys.argv[1:])
