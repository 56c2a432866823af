"""Run folders as tagpr_train writes them, made up: SFT, PRMU and two RL stages that follow each other.

Simulated: the numbers are chosen so that a reader can compute what the report must say; `test_report_training` reads
folders of the real program too."""

import json

from tagpr_data.records import Rollout, RunManifest, Step
from tagpr_data.tables import frame_from_records, write_json, write_table

TOTALS = {"tokens": 1000, "seconds": 90.0, "tokens_per_second": 11.1, "peak_memory_gib": 0.5}


def make_sft(folder):
    """Loss 4, 3, 2, 1; held-out 2.5 at step 2, and 1.5 at the end, which only the manifest tells."""
    lines = [{"step": step, "steps": 4, "loss": 5.0 - step} for step in range(1, 5)]
    lines.insert(1, {"step": 2, "validation_loss": 2.5})
    results = {"steps": 4, "examples": 24, "train_loss_last_10": 2.5, "validation_loss": 1.5, **TOTALS}
    return _write(folder, "sft", {"model": "tiny", "output": "runs/sft"}, lines, results)


def make_prmu(folder):
    """Right user 0.9, another user 0.2 on unseen users; the gate is passed."""
    lines = [{"step": step, "steps": 2, "loss": 0.7, "accuracy": 0.5} for step in (1, 2)]
    results = {
        "steps": 2, "examples": 32, "train_loss_last_10": 0.7, "validation_loss": 0.6, **TOTALS, "gate_passed": True,
        "gate": ["ok: pair accuracy 0.900 against 0.200 with users swapped"],
    }  # fmt: skip
    _write(folder, "prmu", {"model": "tiny", "output": "runs/prmu"}, lines, results)
    group = {
        "pairs": 50, "users": 10, "right": _about(0.9), "swapped": _about(0.2), "user_off": _about(0.5),
        "length": _about(0.55), "text": _about(0.6),
        "right_minus": {
            name: _about(value) for name, value in
            (("swapped", 0.7), ("user_off", 0.4), ("length", 0.35), ("text", 0.3))
        },
    }  # fmt: skip
    split = {
        "pairs": 50, "users": 10, "groups": {"all": group, "kind user": group, "task colour": group},
        "by_user": {"accuracy": {"u1": 0.9}, "lowest": 0.9, "median": 0.9, "users": 1},
        "calibration": {"expected_calibration_error": 0.04, "bins": []}, "metric_correlation": {"colour": 0.5},
    }  # fmt: skip
    evaluation = {"format_version": 1, "pairs_hash": "c" * 64, "splits": {"unseen": split}}
    (folder / "prmu_eval.json").write_text(json.dumps(evaluation))
    return folder


def make_rl(folder, stage="guided", steps=40, model="runs/sft/model", **results):
    """Step s of S earns answer s/100 and, guided, tags 2·s/100 at weight 0.3; each second step has no variance; held
    out 0.5 at the start and 0.5 + S/100 at the end, with an interval of ± 0.05."""
    lines = []
    for step in range(1, steps + 1):
        tags = {"tags_raw": step / 50, "tags_weighted": 0.3 * step / 50 * (stage == "guided")}
        lines.append(
            {
                "step": step, "steps": steps, "loss": 0.0, "reward": step / 100 + tags["tags_weighted"],
                "answer_raw": step / 100, "answer_weighted": step / 100, "answer_zero_variance": 0.25, **tags,
                "tags_zero_variance": 0.0, "zero_variance": float(step % 2 == 0), "gate_open": 1.0, "valid": 0.5,
                "redrawn": 2.0, "kl": step / 1000,
            }
        )  # fmt: skip
    change = steps / 100
    ends = [(0, 0.5, 0.0, 0.0, 0.0), (steps, 0.5 + change, change, change - 0.05, change + 0.05)]
    held_out = [
        {"step": step, "held_out_answer": answer, "held_out_tags": 0.8, "held_out_valid": 1.0, "held_out_change": mean,
         "held_out_change_low": low, "held_out_change_high": high}
        for step, answer, mean, low, high in ends
    ]  # fmt: skip
    found = {
        "steps": steps, "stage": stage, "stopped": None, "held_out_examples": 64, "held_out_answer_first": 0.5,
        "held_out_answer": 0.5 + change, "held_out_best": 0.5 + change, "examples": 16 * steps,
        "held_out_change": {"mean": change, "low": change - 0.05, "high": change + 0.05}, **TOTALS,
    } | results  # fmt: skip
    config = {
        "model": model, "output": f"runs/{stage}", "stage": stage, "overlong_weight": 0.5,
        "rewards": {"answer": 1.0, "tags": 0.3, "personal": 0.3},
    }  # fmt: skip
    _write(folder, "rl", config, [held_out[0], *lines, held_out[1]], found)
    for step in (0, steps - 1):
        _write_completions(folder / "completions" / f"step-{step:05}.parquet", step)
    return folder


def make_chain(folder):
    """All four, the exploratory stage of three steps; give the folders in order."""
    return [
        make_sft(folder / "sft"),
        make_prmu(folder / "prmu"),
        make_rl(folder / "guided"),
        make_rl(folder / "exploratory", "exploratory", steps=3, model="runs/guided/model"),
    ]


def _about(value):
    return {"estimate": value, "low": value - 0.05, "high": value + 0.05}


def _write(folder, kind, config, lines, results):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = RunManifest(
        kind=kind, status="complete", config=config, data={"toy": "d" * 64}, seed=7, versions={},
        git_revision="0123abc", results=results,
        models={"prmu": "e" * 64} if config.get("stage") == "guided" else {},
    )  # fmt: skip
    write_json(folder / "run.json", manifest)
    return folder


def _write_completions(path, step):
    """Five, of rewards 0.4, 0.0, 1.3, 0.8, 0.1; the middle one is that of 0.4."""
    rows = [
        Rollout(
            step=step, row=row, example_id=f"e{row}", task="colour", user_id="u1", text=f"<think> {reward} </think>",
            tokens=9, steps=(Step(tag="infer_preference", text=f"earns {reward}", cites=()),),
            violations=() if reward else ("unclosed-think", "unclosed-think"), answer="red" if reward else "",
            gold="red", gate_open=reward > 0, answer_reward=float(reward > 0.5), tags_reward=0.5, personal_reward=None,
            overlong=0.0, reward=reward, normalised=0.0, redrawn=0,
        )
        for row, reward in enumerate((0.4, 0.0, 1.3, 0.8, 0.1))
    ]  # fmt: skip
    write_table(path, frame_from_records(rows, Rollout), Rollout, ["row"])
