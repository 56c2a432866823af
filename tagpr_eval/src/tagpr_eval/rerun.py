"""A run, repeated from its own folder, and what came out differently.

The folder's run.json names settings, models and data. Other data or other weights are found before anything is asked,
and then nothing is: their answers would differ for a known reason. Otherwise the run is repeated whole in a new folder,
and every answer and metric is compared. Versions and commit are told but are no difference of their own. Guarantee: on
the same machine local models repeat to the letter; a served model may not. Price: that of the run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagpr_data.data_source import find_dataset
from tagpr_data.dataset import Dataset
from tagpr_data.errors import CheckFailed, InputError, shorten
from tagpr_data.provenance import git_revision, versions
from tagpr_data.records import Prediction, RunManifest
from tagpr_data.tables import read_json, read_records
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.meter import Meter
from tagpr_eval.models import open_model, parse_spec
from tagpr_eval.run import PACKAGES, PREDICTION_KEY, PREDICTIONS, evaluate

_SHOWN = 5
"""Changed answers that are shown."""


@dataclass(frozen=True)
class Repeat:
    """What a repeated run found."""

    differences: tuple[str, ...]
    """Data, models, answers and metrics that differ, a line each; empty where the run repeats."""
    surroundings: tuple[str, ...]
    """Versions and commit that differ."""
    predictions: int
    """Answers compared; 0 where nothing was asked."""

    @property
    def is_identical(self) -> bool:
        """Whether every answer and metric came out again."""
        return not self.differences


def rerun(
    folder: Path,
    output: Path,
    dataset: Path | None = None,
    meter: Meter | None = None,
    run: Callable[..., RunManifest] = evaluate,
) -> Repeat:
    """Repeat the evaluation in `folder` in `output` and compare; `dataset` stands in for a data set that has moved.

    InputError for a folder that is no evaluation; CheckFailed for one that is not complete.
    """
    before = read_json(folder / "run.json", RunManifest)
    if before.kind != "evaluation":
        raise InputError(f"{folder} is a run of kind {before.kind!r}; rerun repeats evaluations")
    if before.status != "complete":
        raise CheckFailed(f"{folder} is {before.status}; finish it with its own command, then repeat it")
    if "best_of" in before.config:
        raise InputError(f"{folder} is a choice among answers: repeat the run that gave them, then best-of")
    if output.resolve() == folder.resolve():
        raise InputError(f"--output {output} is the run itself; give another folder")
    config = EvaluationConfig.model_validate(before.config)
    if dataset is not None:
        config = config.model_copy(update={"dataset": str(dataset)})
    changed = (*_changed_data(before, config), *_changed_models(before, config))
    around = (
        *_changed("version of", before.versions, versions(PACKAGES)),
        *_changed("", {"commit": before.git_revision}, {"commit": git_revision()}),
    )
    if changed:
        return Repeat(changed, around, 0)
    after = run(config, output, meter)
    rows, again = (
        {_key(row): row for row in read_records(place / PREDICTIONS, Prediction)} for place in (folder, output)
    )
    return Repeat((*_changed_answers(rows, again), *_changed_metrics(before, after)), around, len(rows))


def _changed_data(before: RunManifest, config: EvaluationConfig) -> tuple[str, ...]:
    found = Dataset.load(find_dataset(config.dataset)).manifest
    return _changed("data set", before.data, {found.name: found.content_hash})


def _changed_models(before: RunManifest, config: EvaluationConfig) -> tuple[str, ...]:
    specs = [spec for spec in map(parse_spec, config.models) if spec.kind != "baseline"]
    found = {spec.name: open_model(spec, config.for_model(spec.name)).identity for spec in specs}
    return _changed("model", before.results.get("models", {}), found)


def _changed_answers(before: Mapping[Any, Prediction], after: Mapping[Any, Prediction]) -> tuple[str, ...]:
    lines: list[str] = []
    for what, keys in (("is missing now", before.keys() - after), ("was not there", after.keys() - before)):
        if keys:
            lines.append(f"{len(keys)} answers: {what}, for example {_named(min(keys))}")
    shared = sorted(before.keys() & after.keys())
    prompts = [key for key in shared if before[key].prompt_hash != after[key].prompt_hash]
    if prompts:
        lines.append(f"{len(prompts)} of {len(shared)} prompts differ, for example that of {_named(prompts[0])}")
    texts = [key for key in shared if before[key].text != after[key].text]
    if texts:
        lines.append(f"{len(texts)} of {len(shared)} answers differ:")
        lines += [
            f"  {_named(key)}: {shorten(before[key].text)} → {shorten(after[key].text)}" for key in texts[:_SHOWN]
        ]
    return tuple(lines)


def _changed_metrics(before: RunManifest, after: RunManifest) -> tuple[str, ...]:
    def table(manifest: RunManifest) -> dict[str, Any]:
        cells = manifest.results.get("cells", [])
        return {f"{cell['model']} {cell['cell']}": cell["metrics"] for cell in cells}

    return _changed("metrics of", table(before), table(after))


def _changed(what: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"{what} {name}: {_text(before.get(name))} → {_text(after.get(name))}".strip()
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    )


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number:.6g}" for name, number in value.items()) or "none"  # pyright: ignore[reportUnknownVariableType]
    return str(value)


def _key(row: Prediction) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in PREDICTION_KEY)


def _named(key: tuple[Any, ...]) -> str:
    return ".".join(map(str, key))
