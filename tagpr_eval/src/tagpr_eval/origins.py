"""Where the numbers of a table come from, as the runs themselves record it: commands, commits, hardware, settings.

Nothing is guessed: a command is the settings of `run.json` written as options (or as a TOML file, where options cannot
say them), so it repeats the run wherever its data and models lie; what a run does not record is said to be unrecorded.
Runs that differ in what should be equal for a comparison are named.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tagpr_data.card import toml
from tagpr_data.records import RunManifest
from tagpr_eval.cells import HASH_CHARACTERS, Run
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.training import TrainingRun

if TYPE_CHECKING:
    import polars as pl

COMMIT_CHARACTERS = 7
_OPTIONS = {
    "--model": "models", "--dataset": "dataset", "--task": "tasks", "--split": "split", "--retriever": "retrievers",
    "--encoder": "encoder", "--k": "k", "--style": "styles", "--seed": "seeds", "--max-samples": "examples",
    "--item-words": "item_words", "--input-words": "input_words", "--max-new-tokens": "sampling.max_new_tokens",
    "--temperature": "sampling.temperature", "--samples": "samples", "--top-p": "sampling.top_p",
    "--top-k": "sampling.top_k",
    "--stop": "sampling.stop", "--constrain": "sampling.constrain", "--protocol": "protocols",
    "--system-prompt": "chat.system_prompt", "--thinking": "chat.thinking", "--batch-size": "local.batch_size",
    "--dtype": "local.dtype", "--base-url": "server.base_url", "--api-key-env": "server.api_key_env",
    "--concurrency": "server.concurrency", "--timeout-seconds": "server.timeout_seconds",
    "--retries": "server.retries", "--server-grammar": "server.constrain",
}  # fmt: skip
"""Option of `tagpr-eval run` → the setting it fills."""
_ALIKE = {
    "item_words": "words kept of an item's field", "input_words": "words kept of the input", "tagset": "tag set",
    "chat.system_prompt": "system prompt", "chat.thinking": "thinking", "chat.template": "chat template",
    "sampling.temperature": "temperature", "sampling.top_p": "top_p", "sampling.top_k": "top_k",
    "sampling.stop": "stop texts", "sampling.constrain": "constraint", "local.dtype": "dtype", "encoder": "encoder",
}  # fmt: skip
"""Settings that must be equal for runs to be compared, beside those that a table shows."""
_LIBRARIES = ("python", "torch", "transformers", "lighteval", "trl")


@dataclass(frozen=True)
class Origin:
    """What stands below a table."""

    facts: str
    """Runs, commits, hardware, seeds and settings, a sentence each."""
    warnings: tuple[str, ...]
    """What differs between the runs though it should not, a sentence each."""
    commands: tuple[str, ...]
    """Lines for a shell that repeat the runs."""
    files: tuple[tuple[str, str], ...]
    """(name, TOML) of the settings files that the commands name."""


def origin(runs: Sequence[Run], training: Sequence[TrainingRun] = ()) -> Origin:
    """Give where numbers computed from these runs come from."""
    named = [*((run.name, run.manifest) for run in runs), *((run.name, run.manifest) for run in training)]
    made = [_repeat(run.name, run.manifest) for run in training]
    made += [_repeat(run.name, run.manifest, run.folder) for run in runs]
    return Origin(
        facts=" ".join(_sentences(runs, training)),
        warnings=tuple(_warnings(runs, named)),
        commands=tuple(command for command, _ in made),
        files=tuple(file for _, file in made if file is not None),
    )


def run_command(output: str, config: EvaluationConfig) -> str | None:
    """Give the `tagpr-eval run` that has these settings and writes into the folder `output`; None where options cannot
    say them."""
    given = _given(config)
    if given.keys() - set(_OPTIONS.values()):
        return None
    words = ["tagpr-eval", "run"]
    for option, place in _OPTIONS.items():
        values = given.get(place, ())
        for value in values if isinstance(values, list) else [values] if place in given else []:
            words += [option, str(value)]
    return shlex.join([*words, "--output", output])


def _sentences(runs: Sequence[Run], training: Sequence[TrainingRun]) -> Iterable[str]:
    manifests = {run.name: run.manifest for run in (*runs, *training)}
    yield f"Runs: {', '.join(manifests)}."
    yield f"Commit {_grouped({name: _commit(one) for name, one in manifests.items()})}."
    yield f"Hardware: {_grouped({name: _hardware(one) for name, one in manifests.items()})}."
    found = {
        library: {name: one.versions[library] for name, one in manifests.items() if library in one.versions}
        for library in _LIBRARIES
    }
    versions = [f"{library} {_grouped(values)}" for library, values in found.items() if values]
    yield f"Versions: {', '.join(versions) or 'not recorded'}."
    if runs:
        data = {run.name: f"{_names(run.manifest.data)}, split {run.setting('split')}" for run in runs}
        seeds = {run.name: _listed(run.manifest.config.get("seeds", [run.manifest.seed])) for run in runs}
        number = {run.name: str(run.manifest.config.get("examples") or "all") for run in runs}
        yield f"Data: {_grouped(data)}. Seeds of retrieval and sampling: {_grouped(seeds)}."
        yield f"Examples a task: {_grouped(number)}."
    if asked := [run for run in runs if run.manifest.results.get("models", True)]:
        yield f"Decoding: {_grouped({run.name: _decoding(run.manifest.config) for run in asked})}."
    for run in training:
        found = run.results
        yield (
            f"{run.name}: seed {run.manifest.seed}, {found.steps} steps, {found.examples:,} examples, "
            f"{found.seconds / 60:.1f} minutes, {found.peak_memory_gib:.1f} GiB, from {run.start}, "
            f"data {_names(run.manifest.data)}."
        )


def _warnings(runs: Sequence[Run], named: Sequence[tuple[str, RunManifest]]) -> Iterable[str]:
    answered = [(name, manifest) for name, manifest in named if manifest.kind == "evaluation"]
    commits = {name: _commit(manifest) for name, manifest in answered or named}
    if len(set(commits.values())) > 1:
        yield f"The {'answers' if answered else 'runs'} are of different versions of the code: {_grouped(commits)}."
    commits = {name: _commit(manifest) for name, manifest in named}
    if dirty := [name for name, commit in commits.items() if "dirty" in commit]:
        yield f"The code had changes beside its commit: {', '.join(dirty)}."
    libraries = {name: _libraries(manifest) for name, manifest in answered}
    if len(set(libraries.values())) > 1:
        yield f"The evaluations used different versions of libraries: {_grouped(libraries)}."
    if partial := [name for name, manifest in named if manifest.status != "complete"]:
        yield f"Stopped before the end: {', '.join(partial)}."
    asked = [run for run in runs if run.manifest.results.get("models", True)]
    for place, title in _ALIKE.items():
        values = {run.name: _shown(_at(run.manifest.config, place)) for run in asked}
        if len(set(values.values())) > 1:
            yield f"The runs differ in {title}: {_grouped(values)}."
    yield from _other_prompts(asked)
    yield from _other_questions(runs)


def _other_prompts(runs: Sequence[Run]) -> Iterable[str]:
    """Examples that two runs asked about in the same cell by different prompts."""
    import polars as pl

    keys = ("task", "retriever", "k", "style", "seed", "example_id")
    asked = [(run, _prompts(run, keys)) for run in runs]
    for place, (run, prompts) in enumerate(asked):
        for other, others in asked[place + 1 :]:
            if run.data_hash != other.data_hash:
                continue
            both = prompts.join(others, on=keys, how="inner", suffix="_other")
            differ = both.filter(pl.col("prompt_hash") != pl.col("prompt_hash_other")).height
            if differ:
                yield f"{differ} of {both.height} prompts that {run.name} and {other.name} share by setting differ."


def _other_questions(runs: Sequence[Run]) -> Iterable[str]:
    """Tasks of which the runs, those of rules too, answered different questions."""
    found: dict[tuple[str, str, str], dict[str, set[tuple[Any, ...]]]] = {}
    for run in runs:
        for (task,), part in run.predictions.select("task", "example_id", "seed").unique().group_by("task"):
            asked = set(part.select("example_id", "seed").iter_rows())
            found.setdefault((str(task), run.setting("split"), run.data_hash), {})[run.name] = asked
    for (task, *_), by_run in sorted(found.items()):
        common = set.intersection(*by_run.values())
        if any(asked != common for asked in by_run.values()):
            counts = ", ".join(f"{len(asked)} ({name})" for name, asked in by_run.items())
            yield (
                f"The runs answered different questions (example and seed) of {task}: {counts}, {len(common)} of them "
                "common to all. Differences are on the common ones of two models, scores on all of each."
            )


def _prompts(run: Run, keys: Sequence[str]) -> "pl.DataFrame":
    import polars as pl

    rules = [model for model in run.predictions["model"].unique() if run.rule(model)]
    return run.predictions.filter(~pl.col("model").is_in(rules)).select(*keys, "prompt_hash").unique()


def _repeat(name: str, manifest: RunManifest, folder: Path | None = None) -> tuple[str, tuple[str, str] | None]:
    """The command, and the settings file that it names. It leaves an evaluation where it lies, if that is told relative
    to where one stands, else in a folder of its name."""
    output = name if folder is None or folder.is_absolute() else folder.as_posix()
    file = f"{name.replace('/', '-')}.toml"
    if manifest.kind != "evaluation":
        return shlex.join(["tagpr-train", manifest.kind, file]), (file, toml(manifest.config))
    if made := manifest.config.get("best_of"):
        by = [word for rule in made["rules"] for word in ("--by", rule)] + [f"--n={n}" for n in made["n"]]
        scorer = (
            [] if not made["prmu"] else ["--scores", "FILE"] if "scores_sha256" in made["prmu"] else ["--prmu", "URL"]
        )
        return shlex.join(["tagpr-eval", "best-of", made["run"], *by, *scorer, "--output", output]), None
    try:
        config = EvaluationConfig.model_validate(manifest.config)
    except ValidationError:
        return f"# {name}: its settings are of another version; `tagpr-eval rerun` of that version repeats it", None
    command = run_command(output, config)
    if command is not None:
        return command, None
    return shlex.join(["tagpr-eval", "ablate", file, "--output", output]), (file, toml(_nested(_given(config))))


def _given(config: EvaluationConfig) -> dict[str, Any]:
    """The settings that are not the defaults, by their place; the encoder only where a retriever uses it."""
    values, defaults = _flat(config.model_dump(mode="json")), _flat(_DEFAULTS.model_dump(mode="json"))
    required = ("models", "dataset")
    found = {place: value for place, value in values.items() if value != defaults.get(place) or place in required}
    if not {"dense", "hybrid"} & set(config.retrievers):
        found.pop("encoder", None)
    return found


_DEFAULTS = EvaluationConfig(dataset="", models=("oracle",))
_OPEN = ("server.extra_body", "per_model")
"""Settings whose keys are the user's."""


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        place = f"{prefix}{key}"
        found |= _flat(value, f"{place}.") if isinstance(value, dict) and place not in _OPEN else {place: value}
    return found


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for place, value in flat.items():
        *path, last = place.split(".")
        inner = found
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return found


def _at(config: Mapping[str, Any], place: str) -> Any:
    found: Any = config
    for key in place.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found  # pyright: ignore[reportUnknownVariableType] - of a JSON file


def _commit(manifest: RunManifest) -> str:
    commit, mark, _ = (manifest.git_revision or "").partition("+")
    return f"{commit[:COMMIT_CHARACTERS]}{' (dirty)' if mark else ''}" if commit else "not recorded"


def _hardware(manifest: RunManifest) -> str:
    platform = manifest.versions.get("platform", "no platform recorded")
    return manifest.versions.get("hardware") or f"not recorded ({platform})"


def _libraries(manifest: RunManifest) -> str:
    return ", ".join(f"{name} {manifest.versions[name]}" for name in _LIBRARIES if name in manifest.versions)


def _decoding(config: Mapping[str, Any]) -> str:
    temperature, most = _at(config, "sampling.temperature"), _at(config, "sampling.max_new_tokens")
    how = "greedy" if temperature == 0 else f"temperature {temperature}"
    own = [one.get("max_new_tokens") for one in (config.get("per_model") or {}).values()]
    lengths = " or ".join(str(one) for one in dict.fromkeys((most, *own)) if one is not None)
    return f"{how}, at most {lengths or 'an unrecorded number of'} new tokens"


def _names(data: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value[:HASH_CHARACTERS]}" for name, value in data.items()) or "not recorded"


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _shown(value: Any) -> str:
    text = "none" if value in (None, [], "") else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _grouped(values: Mapping[str, str]) -> str:
    """`x` where all are equal, else `x (run a, run b), y (run c)`."""
    by_value: dict[str, list[str]] = {}
    for name, value in values.items():
        by_value.setdefault(value, []).append(name)
    if len(by_value) == 1:
        return next(iter(by_value))
    return ", ".join(f"{value} ({', '.join(names)})" for value, names in by_value.items())
