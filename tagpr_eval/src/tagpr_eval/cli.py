"""The command `tagpr-eval`: a thin shell. Results go to stdout, progress to stderr; exit code 1 means "checked and
bad", 2 "used wrongly". Heavy imports stand inside the commands, so that `--help` answers at once."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from tagpr_data.errors import InputError, run_cli

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Score, evaluate and compare personalized language models on LaMP and on your own data.",
)


@app.callback()
def _root() -> None:
    """Hold the subcommands together even while there is one."""


@app.command()
def score(
    golds: Annotated[Path, typer.Option(help="LaMP output file with the golds.")],
    preds: Annotated[Path, typer.Option(help="Predictions, in the same shape.")],
    mode: Annotated[str, typer.Option(help="exact: plain means. official: LaMP's evaluator, bit for bit.")] = "exact",
    seed: Annotated[int, typer.Option(help="numpy seed of official ROUGE, which is a bootstrap.")] = 0,
    task: Annotated[
        str | None, typer.Option(help="Task of files that name none; LaMP-2-old for news files, which say LaMP_2.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score a prediction file against a gold file by LaMP's metrics."""
    from tagpr_eval.file_scores import score_files

    result = score_files(golds, preds, mode, seed, task)
    for warning in result.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(result.as_json() if as_json else result.as_text())


@app.command()
def run(
    model: Annotated[list[str], typer.Option(help="hf:DIR_OR_ID, openai:NAME or a baseline; NAME=hf:DIR names it.")],
    dataset: Annotated[Path, typer.Option(help="Data set folder.")],
    output: Annotated[Path, typer.Option(help="Run folder; an unfinished run in it goes on.")],
    task: Annotated[list[str] | None, typer.Option(help="Task of the data set; default: all.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    retriever: Annotated[list[str] | None, typer.Option(help="Default bm25; controls: none, wrong-user.")] = None,
    encoder: Annotated[str, typer.Option(help="For dense and hybrid: minilm, contriever, folder, id.")] = "minilm",
    k: Annotated[list[int] | None, typer.Option(help="Items per prompt, default 4; 0 is the control none.")] = None,
    style: Annotated[list[str] | None, typer.Option(help="direct (default), chain, trace or trace-explained.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Default 0.")] = None,
    max_samples: Annotated[int | None, typer.Option(help="Examples per task, a fixed draw; default: all.")] = None,
    item_words: Annotated[int | None, typer.Option(help="Cut each field of an item after so many words.")] = None,
    input_words: Annotated[int | None, typer.Option(help="Cut the input after so many words.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest completion.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    samples: Annotated[
        int, typer.Option(help="Answers to each question, for best-of; above 1 with --temperature.")
    ] = 1,
    top_p: Annotated[float, typer.Option(help="Nucleus.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many likeliest tokens; default: all.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends a completion.")] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="generation (default); log-likelihood: take the likeliest label (hf).")
    ] = None,
    system_prompt: Annotated[str | None, typer.Option(help="Text before our instruction in the system turn.")] = None,
    system_prompt_file: Annotated[Path | None, typer.Option(help="The same from a file.")] = None,
    thinking: Annotated[str, typer.Option(help="on or off: told to chat templates; auto: nothing is.")] = "auto",
    chat_template_file: Annotated[
        Path | None, typer.Option(help="Jinja chat template instead of the model's (hf).")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts computed together at most (hf).")] = 64,
    constrain: Annotated[
        str, typer.Option(help="no; tags: traces are kept to the tag grammar; labels: answers to the labels too.")
    ] = "no",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16 (hf).")] = "auto",
    base_url: Annotated[
        list[str] | None, typer.Option(help="Server address, such as http://127.0.0.1:8000/v1; or several.")
    ] = None,
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the server's key.")] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(help="Requests in flight.")] = 16,
    timeout_seconds: Annotated[float, typer.Option(help="Longest wait for one answer of a server.")] = 120.0,
    retries: Annotated[int, typer.Option(help="Further tries after 429, 5xx, time-outs and broken answers.")] = 6,
    server_grammar: Annotated[
        str, typer.Option(help="How a server takes the grammar of --constrain: none, vllm or llama-cpp.")
    ] = "none",
) -> None:
    """Have models answer a data set in every combination of task, retriever, k, style and seed."""
    from tagpr_eval.config import from_options
    from tagpr_eval.meter import meter
    from tagpr_eval.run import evaluate, summary

    settings = {
        "models": model, "dataset": str(dataset), "tasks": task, "split": split, "retrievers": retriever,
        "encoder": encoder, "k": k,
        "styles": style, "seeds": seed, "examples": max_samples, "item_words": item_words, "input_words": input_words,
        "sampling": {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k,
                     "stop": stop or [], "constrain": constrain},
        "samples": samples,
        "protocols": protocol,
        "chat": {"system_prompt": system_prompt, "system_prompt_file": system_prompt_file, "thinking": thinking,
                 "template_file": chat_template_file},
        "local": {"batch_size": batch_size, "dtype": dtype},
        "server": {
            "base_url": base_url or None, "api_key_env": api_key_env, "concurrency": concurrency,
            "timeout_seconds": timeout_seconds, "retries": retries, "constrain": server_grammar,
        },
    }  # fmt: skip
    config = from_options(settings)
    with meter() as shown:
        manifest = evaluate(config, output, shown)
    typer.echo(summary(manifest))
    typer.echo(f"predictions: {output / 'predictions.parquet'}")


@app.command()
def ablate(
    grids: Annotated[list[Path], typer.Argument(metavar="GRID.toml…", help="Settings: config.EvaluationConfig.")],
    output: Annotated[Path, typer.Option(help="Run folder, of several grids one below it for each; goes on.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="a.b=value, wins over the file.")] = None,
    shard: Annotated[str, typer.Option(help="I/N: only this part; `merge` joins the folders.")] = "1/1",
    max_samples: Annotated[int | None, typer.Option(help="Stop after so many samples in the folder.", min=1)] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Stop after so many tokens in the folder.", min=1)] = None,
    max_cost: Annotated[float | None, typer.Option(help="Stop at this cost of the folder.", min=0)] = None,
    prices: Annotated[Path | None, typer.Option(help="TOML: [MODEL] input = …, output = … a million tokens.")] = None,
) -> None:
    """Run whole grids: models, tasks, retrievers, k, styles and seeds from one file for each data set.

    Limits are those of one run folder."""
    from tagpr_data.budget import read_prices
    from tagpr_data.config import load
    from tagpr_eval.config import EvaluationConfig, read_shard
    from tagpr_eval.meter import meter
    from tagpr_eval.run import Limits, evaluate, summary

    folders = [output / grid.stem if len(grids) > 1 else output for grid in grids]
    if len(set(folders)) < len(grids):
        raise InputError("two grids have the same file name; their runs would share a folder")
    configs = [load(EvaluationConfig, grid, overrides or ()) for grid in grids]
    limits = Limits(read_shard(shard), max_samples, max_tokens, max_cost, read_prices(prices, max_cost))
    for config, folder in zip(configs, folders, strict=True):
        with meter() as shown:
            manifest = evaluate(config, folder, shown, limits)
        typer.echo(summary(manifest))


@app.command("best-of")
def best_of_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run with --samples above 1.")],
    output: Annotated[Path | None, typer.Option(help="Run folder to write, for `report` and `compare`.")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="majority, grounded, prmu or oracle (an upper bound: it knows the gold). Repeatable."),
    ] = None,
    n: Annotated[list[int] | None, typer.Option(help="Choose among the first n samples; default: all.", min=2)] = None,
    prmu: Annotated[str | None, typer.Option(help="Address of `tagpr-train serve-prmu`.")] = None,
    scores: Annotated[Path | None, typer.Option(help="Instead: what `tagpr-train score` made of --requests.")] = None,
    requests: Annotated[
        Path | None, typer.Option(help="Only write the completions to be scored, for `tagpr-train score`.")
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, where it has moved.")] = None,
) -> None:
    """Choose one of several answers to each question: by majority, by its claims' truth, by a PRMU or the gold.

    Writes a run whose models are named like sft@best4-prmu. Example: tagpr-eval best-of runs/eval --by majority
    --by prmu --prmu http://127.0.0.1:8700 --output runs/eval-best"""
    from tagpr_data.prmu_client import RemotePRMU
    from tagpr_eval.best_of import SampledRun, best_of, write_requests
    from tagpr_eval.choice import RULES, Rule
    from tagpr_eval.meter import meter
    from tagpr_eval.run import summary

    run = SampledRun(folder, dataset)
    if requests is not None:
        typer.echo(f"{requests}: {write_requests(run, requests)} completions; score them with tagpr-train score")
        return
    if output is None:
        raise InputError("--output is missing: the run folder to write")
    rules: list[Rule] = [rule for rule in RULES if rule in (by or ["majority"])]
    if unknown := set(by or ()) - set(RULES):
        raise InputError(f"--by {min(unknown)!r} is unknown; known: {', '.join(RULES)}")
    with meter() as shown:
        served = RemotePRMU(prmu) if prmu is not None else None
        manifest = best_of(run, output, rules, n or (), served, scores, shown)
    typer.echo(summary(manifest))


@app.command()
def merge(
    shards: Annotated[list[Path], typer.Argument(help="Run folders of all shards.")],
    output: Annotated[Path, typer.Option(help="Run folder to write.")],
) -> None:
    """Join the shards of a grid; the files are those of a run in one piece."""
    from tagpr_eval.run import merge, summary

    typer.echo(summary(merge(shards, output)))


@app.command()
def rerun(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run folder.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the repeated run; default: RUN-rerun.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, where it has moved.")] = None,
) -> None:
    """Repeat a run from its own folder and say what differs; exit code 1 where an answer or metric does."""
    from tagpr_eval.meter import meter
    from tagpr_eval.rerun import rerun

    output = output or folder.with_name(f"{folder.resolve().name}-rerun")
    with meter() as shown:
        found = rerun(folder, output, dataset, shown)
    for line in found.surroundings:
        typer.echo(f"note: {line}")
    for line in found.differences:
        typer.echo(line)
    if not found.is_identical:
        raise typer.Exit(1)
    typer.echo(f"identical: {found.predictions} answers and all metrics of {folder} came out again in {output}")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run folder.")],
    output: Annotated[Path, typer.Option(help="Folder for the files.")],
    form: Annotated[
        str, typer.Option("--format", help="lamp: predictions. eval-results: scores for the Hub.")
    ] = "lamp",
    strict: Annotated[bool, typer.Option(help="lamp: completions as they are, not the extracted answers.")] = False,
    dataset: Annotated[Path | None, typer.Option(help="lamp: data set folder, where it has moved.")] = None,
    dataset_id: Annotated[
        str | None, typer.Option(help="eval-results: OWNER/NAME of the benchmark; default: the run's data set.")
    ] = None,
) -> None:
    """Write a run for others: predictions in LaMP's own format, or scores as the Hub's .eval_results files."""
    from tagpr_eval.export import Format, export_eval_results, export_lamp

    if form not in get_args(Format):
        raise InputError(f"--format {form!r} is unknown; known: {', '.join(get_args(Format))}")
    if form == "lamp":
        written = export_lamp(folder, output, "strict" if strict else "parsed", dataset)
    else:
        written = export_eval_results(folder, output, dataset_id)
    for path in written:
        typer.echo(path)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, the base model's first.")],
    output: Annotated[Path, typer.Option(help="Page to write; a .md and files come beside it.")],
    reference: Annotated[str | None, typer.Option(help="Model that others are compared to; default: first.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, where it has moved.")] = None,
    max_samples: Annotated[int, typer.Option(help="Most samples in the sample browser.", min=0)] = 10_000,
    audit: Annotated[list[Path] | None, typer.Option(help="audit.json of the data (`tagpr-data audit`).")] = None,
    training: Annotated[
        list[Path] | None, typer.Option(help="Finished run folder of tagpr-train (sft, prmu, rl); once for each.")
    ] = None,
) -> None:
    """Write one page with scores, intervals, controls, failures and all samples of finished runs.

    With --training also how the models were trained: losses, reward curves, held-out answers, pair accuracies."""
    from tagpr_data.records import Audit
    from tagpr_data.tables import read_json
    from tagpr_eval.cells import load_runs
    from tagpr_eval.report import build, write_report
    from tagpr_eval.training import load_training

    audits = [read_json(path, Audit) for path in audit or ()]
    trained = load_training(training or ())
    made = build(load_runs(runs, dataset), reference, max_samples, audits, trained)
    written = write_report(made, output)
    for finding in made.findings:
        typer.echo(finding.as_text())
    typer.echo(f"{written[0]}, {written[1].name} and {len(written) - 2} files in {written[2].parent.name}/")


@app.command()
def tables(
    output: Annotated[Path, typer.Option(help="Folder for the Markdown files, plots and CSV files.")],
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN…", help="Run folders, the base model's first.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Model or variant others are compared to; default: base, whole, else the first.")
    ] = None,
    retriever: Annotated[
        str | None, typer.Option(help="Retriever of tables of one setting; default: of most models.")
    ] = None,
    k: Annotated[int | None, typer.Option(help="Their k; default: the largest that most models ran.", min=1)] = None,
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, where it has moved.")] = None,
    training: Annotated[
        list[Path] | None, typer.Option(help="Finished run folder of tagpr-train (sft, prmu, rl); once for each.")
    ] = None,
) -> None:
    """Write tables and plots of finished runs as Markdown for a README, with the commands that repeat them.

    Example: tagpr-eval tables runs/eval-base runs/eval-sft --training runs/prmu --reference base --output DIR"""
    from tagpr_eval.cells import load_runs
    from tagpr_eval.tables import build, write
    from tagpr_eval.training import load_training

    if not runs and not training:
        raise InputError("nothing to show: name run folders of tagpr-eval, or of tagpr-train with --training")
    chapters = build(load_runs(runs or (), dataset), load_training(training or ()), reference, retriever, k)
    written = write(chapters, output)
    for path in written[: len(chapters)]:
        typer.echo(path)
    typer.echo(f"{len(written) - len(chapters)} plots and CSV files beside them")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="Run folder.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Run folder it is compared to.")],
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, where it has moved.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Unrounded numbers as CSV.")] = False,
) -> None:
    """Print RUN_A minus RUN_B on their common examples: paired, clustered by user, corrected by Holm."""
    from tagpr_eval.cells import load_runs
    from tagpr_eval.report_tables import compare_runs
    from tagpr_eval.typeset import csv_text, markdown

    table = compare_runs(*load_runs([first, second], dataset))
    typer.echo(csv_text(table) if as_csv else markdown(table), nl=False)


@app.command()
def faithfulness(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run folder with answers in style trace.")],
    output: Annotated[Path | None, typer.Option(help="Default RUN/faithfulness, where `report` finds it.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Name in the run; NAME=hf:DIR where it has moved.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, where it has moved.")] = None,
    cell: Annotated[list[str] | None, typer.Option(help="TASK.RETRIEVER.kK.STYLE.seedS; default: all.")] = None,
    examples: Annotated[int | None, typer.Option(help="Examples per cell, a fixed draw; default: all.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of donors, labels put in and uncited items.")] = 0,
    base_url: Annotated[str | None, typer.Option(help="Server address, where it is another one.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests in flight; default: the run's.", min=1)] = None,
    max_samples: Annotated[int | None, typer.Option(help="Stop after so many samples in the folder.", min=1)] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Stop after so many tokens in the folder.", min=1)] = None,
    max_cost: Annotated[float | None, typer.Option(help="Stop at this cost of the folder.", min=0)] = None,
    prices: Annotated[Path | None, typer.Option(help="TOML: [MODEL] input = …, output = … a million tokens.")] = None,
) -> None:
    """Change what a run's models read and thought, and see whether their answers follow."""
    from tagpr_data.budget import read_prices
    from tagpr_eval.faithfulness import FOLDER, MANIFEST
    from tagpr_eval.faithfulness_run import Choice, examine, other_models, summary
    from tagpr_eval.meter import meter
    from tagpr_eval.run import Limits

    given = {"base_url": base_url, "concurrency": concurrency}
    server = {name: value for name, value in given.items() if value is not None}
    choice = Choice(tuple(model or ()), tuple(cell or ()), examples, seed, server)
    limits = Limits((1, 1), max_samples, max_tokens, max_cost, read_prices(prices, max_cost))
    with meter() as shown:
        manifest = examine(folder, choice, output, dataset, shown, limits)
    for name in other_models(manifest):
        typer.echo(f"warning: model {name} is not the one the run recorded, or on another machine or address", err=True)
    typer.echo(summary(manifest))
    typer.echo(f"measures: {(output or folder / FOLDER) / MANIFEST}")


def main() -> None:
    """Entry point of the console script."""
    run_cli(app)
