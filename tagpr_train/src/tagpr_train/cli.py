"""The command `tagpr-train`: a thin shell. Results go to stdout, progress to stderr; exit code 1 means "checked and
bad", 2 "used wrongly". Heavy imports stand inside the commands, so that `--help` answers at once."""

import logging
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagpr_data.errors import run_cli
from tagpr_train.ranks import is_first_launched

if TYPE_CHECKING:
    from tagpr_train.recipe import Settings, Stage

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train a personalized language model: SFT, PRMU, RL.",
)

_PLAIN_SECONDS = 10  # between progress lines where stderr is no terminal


@app.callback()
def _root() -> None:
    """Show what the stages say about themselves on stderr."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("tagpr_train").setLevel(logging.INFO if is_first_launched() else logging.ERROR)
    if not is_first_launched():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - while the process lives; one rank tells


@app.command("base-model")
def base_model_command(
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder to write (default: in the user's cache).")
    ] = None,
) -> None:
    """Make the embedded base model SmolLM2-135M-Instruct ready and print its folder.

    Example: tagpr-eval run --model "hf:$(tagpr-train base-model)" …
    """
    from tagpr_train.base_model import embedded_folder

    typer.echo(embedded_folder(output))


@app.command()
def sft(
    config: Annotated[Path, typer.Argument(help="TOML file; shipped ones: tagpr_train/configs/.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: a.b=value. Repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Save merged weights instead of the adapter.")] = False,
) -> None:
    """Fine-tune a model on the traces of a corpus.

    Example: tagpr-train sft tagpr_train/configs/xorg-sft-cpu.toml --set seed=1
    """
    from tagpr_data.config import load
    from tagpr_train.config import Sft

    settings = load(Sft, config, [*(overrides or []), *(["merge=true"] if merge else [])])
    _be_quiet()
    from tagpr_train.sft import train

    with _running(settings) as report:
        manifest = train(settings, resume=resume, report=report)
    if manifest.status == "running":
        typer.echo(f"stopped; `--resume` continues the run in {settings.output}", err=True)
        raise typer.Exit(143)
    results = manifest.results
    validation = results["validation_loss"]
    typer.echo(
        f"{settings.output / 'model'}: {results['steps']} steps, {results['examples']} examples, "
        f"loss {results['train_loss_last_10']:.3f}, "
        f"validation {'not measured' if validation is None else f'{validation:.3f}'}, "
        f"{results['seconds']:.0f} s, {results['tokens_per_second']:.0f} tokens/s, {results['peak_memory_gib']} GiB"
    )


@app.command()
def prmu(
    config: Annotated[Path, typer.Argument(help="TOML file; shipped ones: tagpr_train/configs/.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: a.b=value. Repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
) -> None:
    """Train a reward model that knows the user, and evaluate it.

    Example: tagpr-train prmu tagpr_train/configs/personas-prmu-cpu.toml --set seed=1
    """
    from tagpr_data.config import load
    from tagpr_train.config import Prmu

    settings = load(Prmu, config, overrides or [])
    _be_quiet()
    from tagpr_train.prmu_fit import train

    with _running(settings) as report:
        manifest = train(settings, resume=resume, report=report)
    if manifest.status == "running":
        typer.echo(f"stopped; `--resume` continues the run in {settings.output}", err=True)
        raise typer.Exit(143)
    typer.echo(f"{settings.output / 'prmu'}: {manifest.results['steps']} steps, {manifest.results['seconds']:.0f} s")
    typer.echo((settings.output / "prmu_eval.md").read_text(encoding="utf-8"), nl=False)


@app.command("prmu-eval")
def prmu_eval_command(
    model: Annotated[str, typer.Option("--prmu", help="PRMU: a folder or a Hub id.")],
    pairs: Annotated[Path, typer.Option(help="Folder of pairs; `seen` and `unseen` are scored.")],
    output: Annotated[Path, typer.Option(help="Folder for prmu_eval.json, .md and .svg.")],
) -> None:
    """Evaluate a PRMU on held-out pairs; exit code 1 when it does not pass the gate for RL.

    Example: tagpr-train prmu-eval --prmu runs/personas/prmu/prmu --pairs runs/personas/pairs --output out
    """
    from tagpr_data.errors import CheckFailed
    from tagpr_data.pairs import PairFolder

    folder = PairFolder(pairs)
    _be_quiet()
    from tagpr_train import prmu_eval
    from tagpr_train.prmu import PRMU

    evaluation = prmu_eval.evaluate(PRMU.from_pretrained(model), folder)
    prmu_eval.write(output, evaluation)
    typer.echo((output / "prmu_eval.md").read_text(encoding="utf-8"), nl=False)
    verdict = prmu_eval.gate(evaluation)
    if not verdict.passed:
        missed = "; ".join(reason for reason in verdict.reasons if reason.startswith("NOT MET"))
        raise CheckFailed(f"the PRMU does not pass the gate for RL: {missed}")


@app.command()
def score(
    model: Annotated[str, typer.Option("--prmu", help="PRMU: a folder or a Hub id.")],
    input: Annotated[Path, typer.Option(help="JSON lines: prompt, completion, user and/or items.")],
    output: Annotated[Path, typer.Option(help="JSON lines to write: each line with score and standardised.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Completions scored together.")] = 32,
) -> None:
    """Score completions for users with a PRMU.

    Example: tagpr-train score --prmu runs/personas/prmu/prmu --input completions.jsonl --output scores.jsonl
    """
    from tagpr_train.score import read_requests, score_file

    requests = read_requests(input)
    _be_quiet()
    from tagpr_train.prmu import PRMU

    count = score_file(PRMU.from_pretrained(model), requests, output, batch_size)
    typer.echo(f"{output}: {count} completions")


@app.command("serve-prmu")
def serve_prmu_command(
    model: Annotated[str, typer.Argument(metavar="PRMU", help="PRMU: a folder or OWNER/NAME[@REVISION] of the Hub.")],
    host: Annotated[str, typer.Option(help="Address to listen on; there is no authentication.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8700,
    batch_size: Annotated[int, typer.Option(min=1, help="Completions scored in one pass.")] = 32,
    max_waiting: Annotated[int, typer.Option(min=1, help="Completions that may wait; beyond it 503.")] = 4096,
    max_completions: Annotated[int, typer.Option(min=1, help="Completions in one request; beyond it 422.")] = 1024,
    max_bytes: Annotated[int, typer.Option(min=1024, help="Bytes of one request; beyond it 413.")] = 16 << 20,
    drain_seconds: Annotated[int, typer.Option(min=1, help="How long taken work may last after SIGTERM.")] = 60,
) -> None:
    """Serve a PRMU over HTTP, for RL on several nodes: set `prmu = "http://HOST:PORT"` there. Needs the extra `server`.

    Example: tagpr-train serve-prmu runs/personas/prmu/prmu --host 0.0.0.0 --port 8700
    """
    from tagpr_data.errors import InputError

    if max_completions > max_waiting:
        raise InputError(f"--max-completions {max_completions} is more than --max-waiting {max_waiting}")
    _be_quiet()
    from tagpr_train.prmu_server import Limits, serve

    limits = Limits(
        batch_size=batch_size,
        max_waiting=max_waiting,
        max_completions=max_completions,
        max_bytes=max_bytes,
        drain_seconds=drain_seconds,
    )
    serve(model, host, port, limits)


@app.command()
def rl(
    config: Annotated[Path, typer.Argument(help="TOML file; shipped ones: tagpr_train/configs/.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: a.b=value. Repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
) -> None:
    """Train by reinforcement learning: one stage, guided or exploratory. Exit code 1 when the hacking stop ended it.

    Example: tagpr-train rl tagpr_train/configs/personas-rl-guided-cpu.toml --set steps=10
    """
    from tagpr_data.config import load
    from tagpr_data.errors import CheckFailed
    from tagpr_train.config import Rl

    settings = load(Rl, config, overrides or [])
    _be_quiet()
    from tagpr_train.rl import train

    with _running(settings) as report:
        manifest = train(settings, resume=resume, report=report)
    if manifest.status == "running":
        typer.echo(f"stopped; `--resume` continues the run in {settings.output}", err=True)
        raise typer.Exit(143)
    results = manifest.results
    change = results["held_out_change"]
    typer.echo(
        f"{settings.output / 'model'}: {results['steps']} steps, {results['examples']} completions, held-out answers "
        f"{results['held_out_answer_first']:.3f} to {results['held_out_answer']:.3f} "
        f"({change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}], "
        f"{results['held_out_examples']} examples), "
        f"{results['seconds']:.0f} s, {results['peak_memory_gib']} GiB"
    )
    if results["stopped"]:
        raise CheckFailed(results["stopped"])


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="TOML file; shipped ones: tagpr_train/configs/*-recipe.toml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="inputs.NAME=…, output=… or STAGE.SETTING=value. Repeatable."),
    ] = None,
) -> None:
    """Run all stages of a recipe: sft, prmu, rl guided, rl exploratory. The same command goes on where it stopped.

    Example: tagpr-train run tagpr_train/configs/personas-recipe.toml --set sft.trainer.max_steps=20
    """
    from tagpr_train.recipe import chain, check_data, load_recipe

    loaded, for_stages = load_recipe(recipe, overrides or [])
    one = chain(loaded, recipe.parent, for_stages)
    check_data(one.stages)
    _be_quiet()
    _run_stages(one.stages)
    typer.echo(f"{one.model}: the last model")


@app.command()
def ablate(
    recipe: Annotated[Path, typer.Argument(help="TOML file; shipped ones: tagpr_train/configs/*-recipe.toml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="inputs.NAME=…, output=…, seeds=[…] or STAGE.SETTING=value. Repeatable."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this variant. Repeatable.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs, and which are there already.")] = False,
    evaluate: Annotated[
        bool, typer.Option(help="Afterwards answer the recipe's evaluation grid and write the report (tagpr-eval).")
    ] = True,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side, each with its part of the cores.")] = 1,
) -> None:
    """Run a recipe and its variants, each with something taken away, and compare them. Shared stages run once.

    Example: tagpr-train ablate tagpr_train/configs/personas-recipe.toml --only whole --only sft-only
    """
    from tagpr_train.recipe import chains, check_data, is_finished, load_recipe, state_of, write_grid

    loaded, for_stages = load_recipe(recipe, overrides or [])
    made = chains(loaded, recipe.parent, for_stages, only or [])
    stages = list({stage.settings.output: stage for one in made for stage in one.stages}.values())
    for stage in stages:
        users = ", ".join(one.name for one in made if stage in one.stages)
        typer.echo(f"{stage.settings.output}: {stage.kind}, {state_of(stage)}; {users}")
    if dry_run:
        return
    check_data(stages)
    if jobs > 1:
        from tagpr_train.side_by_side import run_side_by_side

        _be_quiet()
        _run_stages([stage for stage in stages if is_finished(stage)])  # refuses other settings, data or models
        if status := run_side_by_side(stages, loaded.output, jobs, lambda line: typer.echo(line, err=True)):
            typer.echo("stopped; the same command goes on", err=True)
            raise typer.Exit(status)
    else:
        _be_quiet()
        _run_stages(stages)
    grid = write_grid(loaded, made)
    results = loaded.output / "evaluation"
    commands = [
        ["tagpr-eval", "ablate", str(grid), "--output", str(results)],
        ["tagpr-eval", "report", str(results), "--output", str(loaded.output / "report.html")],
    ]
    program = Path(sys.executable).with_name("tagpr-eval")
    for command in commands:
        typer.echo(" ".join(command))
        if evaluate and program.exists():
            import subprocess

            if status := subprocess.run([program, *command[1:]], check=False).returncode:
                raise typer.Exit(status)


def _run_stages(stages: "Sequence[Stage]") -> None:
    from tagpr_train.recipe import is_finished, run_stage

    for number, stage in enumerate(stages, 1):
        where = f"[{number}/{len(stages)}] {stage.name} ({stage.kind}) in {stage.settings.output}"
        was_there = is_finished(stage)
        typer.echo(where, err=True)
        with _running(stage.settings) as report:
            manifest = run_stage(stage, report)
        if manifest.status == "running":
            typer.echo("stopped; the same command goes on", err=True)
            raise typer.Exit(143)
        results = manifest.results
        seconds = "was finished" if was_there else f"{results['steps']} steps, {results['seconds']:.0f} s"
        typer.echo(f"{stage.product}: {seconds}")
        if results.get("stopped"):
            typer.echo(f"{stage.name}: {results['stopped']}; going on from its best checkpoint", err=True)


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="TOML file of a stage, or a recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="As in the command that would run it. Repeatable.")
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=1e-9, help="Speed as measured, of all processes together.")
    ] = None,
    flops: Annotated[
        float | None, typer.Option(min=1.0, help="FLOP/s that a process reaches, for example 4e10.")
    ] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Take a few real steps of each stage and time them.")] = False,
    price_per_hour: Annotated[float | None, typer.Option(min=0, help="What an hour costs, in any currency.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda: cuda counts tensors only.")] = "cpu",
    processes: Annotated[int, typer.Option(min=1, help="Processes (GPUs); memory is that of one.")] = 1,
    sharded: Annotated[bool, typer.Option("--sharded", help="Weights and optimiser are split among them.")] = False,
    memory: Annotated[float | None, typer.Option(min=0.01, help="GiB there are, instead of this machine's.")] = None,
) -> None:
    """Predict memory, steps, tokens, hours and price of a stage or a recipe, without loading weights.

    Exit code 1 when a stage needs more memory than there is; then it says what would need less.

    Example: tagpr-train plan tagpr_train/configs/xorg-sft-cpu.toml --tokens-per-second 400 --price-per-hour 0.1
    """
    from tagpr_data.errors import CheckFailed, InputError
    from tagpr_train import plan as plans

    if device not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: known are cpu and cuda")
    speeds = [name for name, value in (("--tokens-per-second", tokens_per_second), ("--flops", flops)) if value]
    if len(speeds) + probe > 1:
        raise InputError(f"{' and '.join([*speeds, *(['--probe'] if probe else [])])} are two speeds; give one")
    if probe:
        _be_quiet()
    stages = plans.stages(config, overrides or [])
    machine = plans.Machine(device, processes, sharded)
    result = plans.plan(stages, machine, tokens_per_second, flops, probe)
    typer.echo(plans.table(result, price_per_hour))
    for line in plans.remarks(result):
        typer.echo(line)
    if memory is None and device == "cuda":
        return  # what a GPU holds is not known without loading torch
    if problem := plans.too_large(result, memory * 2**30 if memory else plans.memory_limit(), machine):
        raise CheckFailed(problem)


@app.command("card")
def card_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a finished stage.")],
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit code 1 when the card is stale.")] = False,
    results: Annotated[
        Path | None,
        typer.Option(help="Take over scores: the folder of one model by tagpr-eval export --format eval-results."),
    ] = None,
) -> None:
    """Write the card of what a run made; RUN/card.toml adds what only a person can say (licence, base_model, notes).

    Example: tagpr-train card runs/personas/sft --results runs/hub/sft
    """
    from tagpr_data.errors import CheckFailed, InputError
    from tagpr_train import model_card

    if check:
        if results is not None:
            raise InputError("--check writes nothing, --results does; give one of them")
        if problems := model_card.stale(model_card.open_run(run)):
            raise CheckFailed(f"{run}: {'; '.join(problems)}; write it anew with: tagpr-train card {run}")
        typer.echo(f"{run}: the card fits the run")
        return
    for path in model_card.take_results(run, results) if results is not None else ():
        typer.echo(path)
    typer.echo(model_card.write(run))


@app.command("push")
def push_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a finished stage.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME of a model repository on the Hub.")],
    push: Annotated[bool, typer.Option("--push", help="Send it. Without this nothing leaves the machine.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public (default: private).")] = False,
    revision: Annotated[str, typer.Option(help="Branch to commit to.")] = "main",
    tag: Annotated[str | None, typer.Option(help="Name for the commit, for example v1.0.0.")] = None,
) -> None:
    """Publish a run's model, adapter or PRMU with card, settings and results, in one commit; without --push only say
    what would be sent.

    The same content pushed again is a no-op. The token comes from HF_TOKEN or `hf auth login`.

    Example: tagpr-train push runs/personas/sft OWNER/NAME --push --tag v1.0.0
    """
    from tagpr_data import publish as hub
    from tagpr_train import publish

    target = hub.Target(repo_id, revision, tag, public)
    hub.run(publish.collect(run, repo_id), target, push, typer.echo, lambda line: typer.echo(line, err=True))


@app.command("tiny-model")
def tiny_model_command(
    corpus: Annotated[Path, typer.Option(help="Corpus whose words the tokenizer learns.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    layers: Annotated[int, typer.Option(min=1, help="Decoder layers.")] = 4,
    width: Annotated[int, typer.Option(min=16, help="Hidden size.")] = 128,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
) -> None:
    """Make a small model from scratch, with random weights and a tokenizer trained on a corpus.

    Example: tagpr-train tiny-model --corpus runs/personas/corpus --output runs/personas/tiny
    """
    from tagpr_data.tags import load_tagset
    from tagpr_train.tiny_model import TinyModel, write_model

    _be_quiet()
    sizes = TinyModel(layers=layers, width=width, heads=heads, seed=seed)
    typer.echo(f"{output}: {write_model(output, corpus, sizes, load_tagset()):,} weights")


@contextmanager
def _running(settings: "Settings") -> Generator[Callable[[dict[str, Any]], None], None, None]:
    """Show how a stage gets on; where memory does not suffice, say what would need less."""
    from tagpr_train.plan import within_memory

    with within_memory(settings), _progress(settings.max_minutes) as report:
        yield report


@contextmanager
def _progress(minutes: float | None) -> Generator[Callable[[dict[str, Any]], None], None, None]:
    """Show loss, speed, memory and time left: a bar on a terminal, else a line every few seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, quiet=not is_first_launched())
    last = -float(_PLAIN_SECONDS)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("preparing", total=None)

        def report(line: dict[str, Any]) -> None:
            nonlocal last
            text = describe(line)
            if console.is_terminal and "loss" in line:
                spent = line["seconds"] / (minutes * 60) if minutes else 0.0
                bar.update(task, description=text, total=1.0, completed=max(spent, line["step"] / line["steps"]))
            elif "loss" not in line or time.monotonic() - last >= _PLAIN_SECONDS:
                last = time.monotonic()
                bar.console.print(text, highlight=False, soft_wrap=True)

        yield report


def describe(line: dict[str, Any]) -> str:
    """Give a line of metrics.jsonl for people."""
    if "held_out_answer" in line:
        rest = ", ".join(
            f"{name} {line[f'held_out_{name}']:.3f}" for name in ("tags", "personal") if f"held_out_{name}" in line
        )
        return f"step {line['step']}: held-out answers {line['held_out_answer']:.3f}, {rest}"
    if "loss" not in line:
        return f"step {line['step']}: validation loss {line['validation_loss']:.3f}"
    accuracy = f"accuracy {line['accuracy']:.2f}, " if "accuracy" in line else ""
    if "reward" in line:
        accuracy = f"reward {line['reward']:.3f}, answers {line['answer_raw']:.2f}, tags {line['tags_raw']:.2f}, "
    return (
        f"step {line['step']}: loss {line['loss']:.3f}, {accuracy}{line['tokens_per_second']:.0f} tokens/s, "
        f"{line['memory_gib']:.1f} GiB, {line['seconds_left']:.0f} s left"
    )


def _be_quiet() -> None:
    """Keep the libraries' own bars and notes off stderr; their errors still come through."""
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def main() -> None:
    """Entry point of the console script."""
    run_cli(app)
