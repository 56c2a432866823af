"""Train stages in a process of its own: `python stage_runs.py JOBS.json`, where each job is a stage and its settings.

Under `torchrun` every rank runs this; test_two_ranks.py and test_kill.py start it, and call `run` for the one-process
side. A random model never closes a think block, so jobs of RL get a reward that varies: the length of the text.
"""

import json
import os
import sys
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
    """Make the reward the length of the text, modulo 4: some groups vary, some are dead."""
    from tagpr_train.rl_judge import Judge, Judged

    def gated(self: Judged, name: str) -> float:
        return float(len(self.text) % 4 if name == "answer" else 0)

    def total(self: Judge, judged: Judged) -> float:
        return gated(judged, "answer")

    Judged.gated = gated  # pyright: ignore[reportAttributeAccessIssue]
    Judge.total = total  # pyright: ignore[reportAttributeAccessIssue]


def main() -> None:
    """Run the jobs of a file, one after the other."""
    from tagpr_data.errors import run_cli

    def all_jobs() -> None:
        vary_rewards()
        for job in json.loads(Path(sys.argv[1]).read_text()):
            run(**job)

    run_cli(all_jobs)


if __name__ == "__main__":
    main()
