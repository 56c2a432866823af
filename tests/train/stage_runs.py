"""Train stages in a process of its own: `python stage_runs.py JOBS.json`, where each job is a stage and its settings.

Under `torchrun` every rank runs this (test_two_ranks.py); a job with `kills` is killed that often while it writes, and
gone on with (test_kill.py). A random model never closes a think block, so jobs of RL get a reward that varies: the
length of the text, and what a PRMU says of it.
"""

import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path
from typing import Any


def run(kind: str, settings: dict[str, Any], *, resume: bool = False, send: tuple[int, int, int] | None = None) -> Any:
    """Train one stage; give its manifest. `send` = (signal, rank, step): that rank sends it to itself when it has taken
    `step` steps, before its weights change again."""
    from tagpr_train import loop, prmu_fit, ranks, rl, sft
    from tagpr_train.config import Prmu, Rl, Sft

    agree = loop.Durable.agree

    def sending(self: loop.Durable) -> None:
        if send is not None and ranks.index() == send[1] and self.state.global_step == send[2]:
            os.kill(os.getpid(), send[0])
        agree(self)

    loop.Durable.agree = sending
    try:
        if kind == "sft":
            return sft.train(Sft.model_validate(settings), resume=resume)
        if kind == "prmu":
            return prmu_fit.train(Prmu.model_validate(settings), resume=resume)
        return rl.train(Rl.model_validate(settings), resume=resume)
    finally:
        loop.Durable.agree = agree


def vary_rewards() -> None:
    """Make the reward the length of the text modulo 4, and the PRMU's: without one, some groups are dead."""
    from tagpr_train.rl_judge import Judge, Judged

    def gated(self: Judged, name: str) -> float:
        return float(len(self.text) % 4) if name == "answer" else self.raw(name) if name == "personal" else 0.0

    def total(self: Judge, judged: Judged) -> float:
        return sum(weight * gated(judged, name) for name, weight in self.weights.items())

    Judged.gated = gated  # pyright: ignore[reportAttributeAccessIssue]
    Judge.total = total  # pyright: ignore[reportAttributeAccessIssue]


def shard_on_cpu() -> None:
    """Let accelerate split weights (FSDP2) among ranks on a CPU too, where its settings ask for it. It does so for GPUs
    only; what splits, gathers, saves and loads then is torch's, accelerate's and transformers' own."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    begin = AcceleratorState.__init__

    def sharded(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = sharded


def run_with_kills(kind: str, settings: dict[str, Any], kills: int) -> dict[str, Any]:
    """Train a stage whole in OUTPUT-whole; then in OUTPUT, killed `kills` times at random file operations of its folder
    and gone on with. Give how each process ended (-9: killed) and what was wrong with the folder after a kill."""
    from tagpr_train import prmu_fit, rl, sft  # noqa: F401 - once, before the forks

    folder = Path(settings["output"])
    whole = settings | {"output": f"{folder}-whole"}
    ended, operations = _forked(kind, whole, 0)
    codes, faults = [ended], list[str]()
    chance = random.Random(kind)
    for _ in range(kills):
        code, _ = _forked(kind, settings, chance.randrange(2, operations // 2))
        codes.append(code)
        faults += _faults(folder)
    return {"kind": kind, "operations": operations, "codes": [*codes, _forked(kind, settings, 0)[0]], "faults": faults}


def _forked(kind: str, settings: dict[str, Any], kill_at: int) -> tuple[int, int]:
    """Run or resume a stage in a fork, which sends itself SIGKILL before its `kill_at`-th operation on a file of the
    run; give its exit code and how many operations there were (0 when killed)."""
    count = Path(f"{settings['output']}-operations")
    count.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        seen = 0

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal seen
            if event in _OPERATIONS and any(settings["output"] + "/" in str(arg) for arg in args):
                seen += 1
                if seen == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            run(kind, settings, resume=True)
            count.write_text(str(seen))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, int(count.read_text()) if count.exists() else 0


_OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


def _faults(folder: Path) -> list[str]:
    """Give what is wrong with a run folder: a checkpoint under its final name must be whole."""
    faults = list[str]()
    for checkpoint in sorted((folder / "checkpoints").glob("step-*"))[-1:]:
        names = {path.name for path in checkpoint.iterdir()}
        needed = {"clock.json", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
        if not needed <= names or not any(name.endswith(".safetensors") for name in names):
            faults.append(f"{checkpoint}: {sorted(names)}")
    return faults


def main() -> None:
    """Run the jobs of a file, one after the other."""
    from tagpr_data.errors import run_cli

    def all_jobs() -> None:
        vary_rewards()
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            shard_on_cpu()
        for job in json.loads(Path(sys.argv[1]).read_text()):
            if "kills" in job:
                print(json.dumps(run_with_kills(**job)), flush=True)
            else:
                run(**job)

    run_cli(all_jobs)


if __name__ == "__main__":
    main()
