"""Runs of a recipe side by side: each in a process of its own, as soon as what it starts from is there.

Guarantee: a stage begins when the stages whose products it names are finished; every process is the command that
trains one stage alone, on a file of its settings that stays in OUTPUT/stages/. The first that fails, or a signal to
stop, stops the others at their next step with a checkpoint; nothing is left running. Price: a process for each run,
and a part of the cores: small models gain from it, since two processes of one thread do more than one of two.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue

from tagpr_data.tables import write_text
from tagpr_train.config import Rl
from tagpr_train.recipe import Stage, is_finished, toml_lines

_COMMAND = "from tagpr_train.cli import main; main()"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_TERMINATED = 143
_STOPPED_BY_GUARD = 1


def starts_from(stage: Stage, stages: Sequence[Stage]) -> list[Stage]:
    """Give those of the stages whose model or PRMU this one names."""
    named = {str(stage.settings.model)}
    if isinstance(stage.settings, Rl) and stage.settings.prmu is not None:
        named.add(str(stage.settings.prmu))
    return [one for one in stages if str(one.product) in named]


def run_side_by_side(stages: Sequence[Stage], folder: Path, jobs: int, tell: Callable[[str], object]) -> int:
    """Train the stages that are not finished, `jobs` at a time; what they say goes to `tell`, their names before it.

    `folder` takes the files of settings. The exit code is 0, or that of the first run that failed or was stopped. A
    stage that the hacking stop ended is finished: its best checkpoint is what the next one starts from. Each process
    computes with its part of the cores, unless OMP_NUM_THREADS or the stage's own `threads` say otherwise.
    """
    waiting = [stage for stage in stages if not is_finished(stage)]
    running: dict[Path, subprocess.Popen[str]] = {}
    ended: SimpleQueue[Stage] = SimpleQueue()
    failed = 0
    cores = max(1, len(os.sched_getaffinity(0)) // jobs)
    environment = {"OMP_NUM_THREADS": str(cores), **os.environ}

    def start(stage: Stage) -> None:
        home = stage.settings.output
        name = str(home.relative_to(folder)) if home.is_relative_to(folder) else str(home)
        config = folder / "stages" / f"{name.replace('/', '-')}.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        write_text(config, "\n".join(toml_lines(stage.settings.model_dump(mode="json", exclude_none=True))) + "\n")
        resume = ["--resume"] if (home / "run.json").exists() else []
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, stage.kind, str(config), *resume],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the others once
            env=environment,
        )
        running[home] = process
        tell(f"{name}: started ({len(waiting)} wait)")

        def pass_on() -> None:
            assert process.stdout is not None
            with process.stdout as lines:
                for line in lines:
                    tell(f"{name}: {line.rstrip()}")
            process.wait()
            ended.put(stage)

        threading.Thread(target=pass_on, daemon=True).start()

    def stop_all() -> None:
        for process in running.values():
            process.terminate()

    def stop(number: int, frame: object) -> None:
        nonlocal failed
        del number, frame
        failed = failed or _TERMINATED
        stop_all()

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        while (waiting and not failed) or running:
            unfinished = {stage.settings.output for stage in waiting} | set(running)
            for stage in list(waiting):
                blocked = any(one.settings.output in unfinished for one in starts_from(stage, stages))
                if not failed and not blocked and len(running) < jobs:
                    waiting.remove(stage)
                    start(stage)
            stage = ended.get()
            status = running.pop(stage.settings.output).returncode
            guarded = status == _STOPPED_BY_GUARD and is_finished(stage)
            if status and not guarded and not failed:
                failed = _TERMINATED if status < 0 else status
                stop_all()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return failed
