"""Best of n: a run that answered each question several times → a run whose models are choices among these answers.

    RUN (of `tagpr-eval run --samples N`)  →  OUTPUT/run.json  predictions.parquet  scores.jsonl (where a PRMU scored)

Each model of RUN becomes one for each rule of `choice.py` and each n, `sft@best4-majority`, answered as the first n
samples decide, in the same cells; `report` and `compare` take OUTPUT as any run. `…-oracle` is an upper bound, and
stands in reports among the rules, not the models. The tokens written of a chosen answer are those of all n.

The PRMU (served, or a file of `tagpr-train score`) reads what it reads in RL: the question without past items, and the
whole completion. It is told of the person what the cell's retriever looks at: the user's profile, the lent one for
`wrong-user`, nothing for `none`; so the controls stay controls. All of this is ours.

Guarantee: every completion is scored once; after `kill -9` the same call goes on; the same samples and scores give the
same bytes. Price: all samples in memory.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tagpr_data import answers, pairs, tags
from tagpr_data.data_source import find_dataset
from tagpr_data.dataset import Dataset
from tagpr_data.errors import CheckFailed, InputError, shorten
from tagpr_data.journal import Journal, folder_lock
from tagpr_data.prmu_client import RemotePRMU, RemoteUser
from tagpr_data.records import CompletionScore, Message, Prediction, ProfileItem, RunManifest, SampledAnswer, Task
from tagpr_data.tables import (
    canonical_json,
    explain,
    frame_from_records,
    read_json,
    read_records,
    sha256_file,
    sha256_text,
    write_json,
    write_table,
    write_text,
)
from tagpr_data.tags import load_tagset
from tagpr_eval.choice import Rule, best_known, best_scored, most_agreed, most_grounded
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.grid import Prompter
from tagpr_eval.meter import Meter, NoMeter
from tagpr_eval.models import parse_spec
from tagpr_eval.run import PREDICTION_KEY, PREDICTIONS, SAMPLES, begin, cell_of, cell_result
from tagpr_eval.sample_scores import gather_evidence

SCORES = "scores.jsonl"
BATCH = 256
"""Completions asked of a server at once."""


@dataclass(frozen=True)
class Request:
    """One completion to be scored for one person."""

    key: str
    """`CompletionScore.key`."""
    user: str | None
    """Whose items these are; None where nothing is known."""
    items: tuple[ProfileItem, ...]
    """What is known of that person, oldest first."""
    prompt: tuple[Message, ...]
    """The question without past items."""
    completion: str
    """What is scored."""

    def as_json(self) -> str:
        """Give the line that `tagpr-train score` reads."""
        line: dict[str, Any] = {"key": self.key, "prompt": [turn.model_dump(mode="json") for turn in self.prompt]}
        line |= {"completion": self.completion, "items": [item.model_dump(mode="json") for item in self.items]}
        return json.dumps(line if self.user is None else {**line, "user": self.user}, ensure_ascii=False)


class ScoredLine(BaseModel):
    """A line that `tagpr-train score` wrote; what is not named here is passed over."""

    model_config = ConfigDict(frozen=True)

    key: str
    """The request's key."""
    score: Annotated[float, Field(allow_inf_nan=False)]
    """In nats."""


class SampledRun:
    """A finished run with several answers to each question, open for choosing."""

    def __init__(self, folder: Path, dataset: Path | None = None) -> None:
        """Open a run; `dataset` stands in for a data set that has moved. InputError for a run that asked once,
        CheckFailed for one that is not finished."""
        self.folder = folder
        self.manifest = read_json(folder / "run.json", RunManifest)
        if self.manifest.kind != "evaluation":
            raise InputError(f"{folder} is a run of kind {self.manifest.kind!r}; best-of chooses in evaluations")
        if self.manifest.status == "running":
            raise CheckFailed(f"{folder} is not finished; go on with its own command first")
        if "best_of" in self.manifest.config or not (folder / SAMPLES).is_file():
            raise InputError(
                f"{folder} holds one answer to each question; ask for several with tagpr-eval run --samples 4 "
                "--temperature 0.8"
            )
        self.config = EvaluationConfig.model_validate(self.manifest.config)
        self.dataset = Dataset.load(dataset or find_dataset(self.config.dataset))
        if self.dataset.manifest.content_hash not in self.manifest.data.values():
            raise InputError(
                f"{folder} was made on data {', '.join(self.manifest.data.values())}, but {self.dataset.folder} is "
                f"{self.dataset.manifest.content_hash}; give the one it was made on with --dataset"
            )
        rows = read_records(folder / SAMPLES, SampledAnswer)
        key = lambda row: tuple(getattr(row, name) for name in PREDICTION_KEY)  # noqa: E731
        self.questions = [list(group) for _, group in itertools.groupby(rows, key)]
        """The samples of each question of each model, in the order drawn."""

    def task(self, row: Prediction) -> Task:
        """Give the task of an answer."""
        return self.dataset.task(row.task)

    def truths(self) -> dict[SampledAnswer, tuple[bool, float]]:
        """Say of every completion whether it breaks no rule of the grammar, and the share of its checkable claims that
        hold; InputError for a cell whose style asks for no trace, or a tag set that has gone."""
        rows = list(itertools.chain.from_iterable(self.questions))
        if untagged := next((row for row in rows if not row.style.startswith("trace")), None):
            raise InputError(
                f"rule grounded reads the claims of traces; {untagged.model} was asked in style {untagged.style!r}"
            )
        evidence = gather_evidence(self.dataset, frame_from_records(rows, SampledAnswer))
        tagsets = {model: self._tagset(model) for model in {row.model for row in rows}}
        found: dict[SampledAnswer, tuple[bool, float]] = {}
        for row in rows:
            items = evidence.prompt_items(row.profile_id, row.item_ids)
            if items is None:
                raise CheckFailed(f"{self.folder}: {self.dataset.folder} lacks items shown for {row.example_id}")
            parsed = tags.parse(row.text, tagsets[row.model], k=len(items))
            claims = tags.ground(parsed.steps, items, evidence.examples[row.example_id].date)
            found[row] = parsed.is_valid, sum(claim.holds for claim in claims) / max(len(claims), 1)
        return found

    def _tagset(self, model: str) -> tags.TagSet:
        own = self.config.per_model.get(model)
        named = (own.tagset if own else None) or self.config.tagset
        return load_tagset(Path(named) if named else None)

    def requests(self) -> list[Request]:
        """Give every distinct completion with the person it is to be scored for."""
        tasks = self.config.tasks or [task.name for task in self.dataset.manifest.tasks]
        pool = [row for row in self.dataset.examples(self.config.split) if row.task in tasks]  # wrong users are of it
        by_id = {row.id: row for row in pool}
        owners = {row.profile_id: row.user_id for row in pool}
        prompter = Prompter(self.dataset, [], pool, load_tagset())
        found: dict[str, Request] = {}
        for row in itertools.chain.from_iterable(self.questions):
            key = score_key(row)
            if key in found:
                continue
            example = by_id[row.example_id]
            is_known = row.retriever != "none"
            items = prompter.profile(example, row.retriever, row.seed) if is_known else ()
            if any(item.profile_id != row.profile_id for item in items):
                raise CheckFailed(
                    f"{self.folder}: {row.example_id} shows items of {row.profile_id}, not of who is lent"
                )
            found[key] = Request(
                key,
                owners[row.profile_id] if is_known else None,
                items,
                pairs.question(self.task(row), example.input, self.config.prompt_options(cell_of(row).style)),
                row.text,
            )
        return list(found.values())


def best_of(
    run: SampledRun,
    output: Path,
    rules: Sequence[Rule],
    numbers: Sequence[int] = (),
    prmu: RemotePRMU | None = None,
    scores: Path | None = None,
    meter: Meter | None = None,
) -> RunManifest:
    """Choose by every rule among the first n samples for every n of `numbers` (none: all) and write a run folder; give
    its manifest.

    Rule `prmu` needs a served one or a file of `scores`. InputError for an n beyond the samples there are, a folder
    that holds something else, scores that are missing; CheckFailed when the server changes its PRMU.
    """
    numbers = sorted(set(numbers)) or [run.config.samples]
    if numbers[0] < 2 or numbers[-1] > run.config.samples:
        raise InputError(f"{run.folder} has {run.config.samples} samples to a question; n can be 2 to that")
    if "prmu" in rules and (prmu is None) == (scores is None):
        raise InputError("rule prmu needs scores: give either --prmu http://… or --scores FILE")
    about = _about(prmu, scores) if "prmu" in rules else {}
    truths = run.truths() if "grounded" in rules else {}  # refuses before anything is written
    names: dict[tuple[str, int, Rule], str] = {
        (row.model, n, rule): f"{row.model}@best{n}-{rule}"
        for row in (samples[0] for samples in run.questions)
        for n in numbers
        for rule in rules
    }
    with folder_lock(output):
        manifest = _open(run, output, names, about)
        if manifest.status != "running":
            return manifest
        by_key: Mapping[str, float] = {}
        if "prmu" in rules:
            wanted = run.requests()
            if prmu is not None:
                by_key = _served(prmu, wanted, output, meter or NoMeter())
            elif scores is not None:
                by_key = _from_file(scores, wanted)
        chosen = [
            _chosen(run.task(samples[0]), samples[:n], rule, names[samples[0].model, n, rule], by_key, truths)
            for samples in run.questions
            for n in numbers
            for rule in rules
        ]
        frame = frame_from_records(chosen, Prediction)
        write_table(output / PREDICTIONS, frame, Prediction, PREDICTION_KEY)
        results = {"models": _identities(run, names, about), "predictions": len(chosen), "cells": _cells(run, chosen)}
        status = "partial" if run.manifest.status == "partial" else "complete"
        done = manifest.model_copy(update={"status": status, "results": results})
        write_json(output / "run.json", done)
    return done


def write_requests(run: SampledRun, path: Path) -> int:
    """Write what is to be scored for `tagpr-train score`; give how many."""
    requests = run.requests()
    write_text(path, "".join(f"{request.as_json()}\n" for request in requests))
    return len(requests)


def score_key(row: Prediction) -> str:
    """Give the identity of a completion and whom it is scored for; which items were lent depends on the seed."""
    whose = [row.profile_id, row.seed] if row.retriever == "wrong-user" else [row.profile_id]
    who = None if row.retriever == "none" else whose
    return sha256_text(canonical_json([row.task, row.example_id, who, row.text]))


def _chosen(
    task: Task,
    samples: Sequence[SampledAnswer],
    rule: Rule,
    name: str,
    scores: Mapping[str, float],
    truths: Mapping[SampledAnswer, tuple[bool, float]],
) -> Prediction:
    found = [answers.parsed(row.text, task).answer for row in samples]
    if rule == "majority":
        place = most_agreed(task, found)
    elif rule == "grounded":
        place = most_grounded(task, found, [truths[row] for row in samples])
    elif rule == "prmu":
        place = best_scored(found, [scores[score_key(row)] for row in samples])
    else:
        place = best_known(task, found, samples[0].gold)
    values: dict[str, Any] = {field: getattr(samples[place], field) for field in Prediction.model_fields}
    written = [row.output_tokens for row in samples if row.output_tokens is not None]
    total = sum(written) if len(written) == len(samples) else None
    return Prediction.model_validate(values | {"model": name, "output_tokens": total})


def _served(prmu: RemotePRMU, wanted: Sequence[Request], output: Path, meter: Meter) -> dict[str, float]:
    """Have a server score what is not in the journal yet."""
    with Journal(output / SCORES, CompletionScore) as journal:
        known = {row.key: row.score for row in journal.rows}
        todo = [request for request in wanted if request.key not in known]
        meter.start("prmu", len(wanted), len(wanted) - len(todo))
        users: dict[tuple[str | None, tuple[ProfileItem, ...]], RemoteUser] = {}
        for batch in _batches(todo):
            for request in batch:
                user, items = who = (request.user, request.items)
                if who not in users:
                    users[who] = prmu.embed_user(items) if user is None else prmu.embed_user(user, items)
            found = prmu.score_batch(
                [users[request.user, request.items] for request in batch],
                [request.prompt for request in batch],
                [request.completion for request in batch],
            )
            for request, score in zip(batch, found, strict=True):
                journal.append(CompletionScore(key=request.key, score=score))
                known[request.key] = score
                meter.advance(0, "")
    return known


def _batches(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    for start in range(0, len(requests), BATCH):
        yield requests[start : start + BATCH]


def _from_file(path: Path, wanted: Sequence[Request]) -> dict[str, float]:
    """Read scores; InputError names the line that is no score, and what is missing."""
    try:
        lines = path.read_bytes().decode().split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}") from None
    scores: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = ScoredLine.model_validate_json(line)
        except ValidationError as error:
            raise InputError(f"{path}, line {number}: {explain(error)}") from None
        scores[row.key] = row.score
    missing = [request for request in wanted if request.key not in scores]
    if missing:
        raise InputError(
            f"{path} lacks the scores of {len(missing)} of {len(wanted)} completions, the first: "
            f"{shorten(missing[0].completion)}; write the requests of this run anew with --requests"
        )
    return scores


def _about(prmu: RemotePRMU | None, scores: Path | None) -> dict[str, Any]:
    """What says which PRMU it was."""
    if prmu is not None:
        return {"name": prmu.about.get("name"), "weights": prmu.about["weights"]}
    if scores is None or not scores.is_file():
        raise InputError(
            f"{scores} does not exist; write it: tagpr-eval best-of --requests FILE, then tagpr-train score"
        )
    return {"scores_sha256": sha256_file(scores)}


def _open(
    run: SampledRun, output: Path, names: Mapping[tuple[str, int, Rule], str], about: Mapping[str, Any]
) -> RunManifest:
    """Give the manifest of the run in `output`: the one found there, or a new one, written now."""
    places = {spec.name: spec for spec in map(parse_spec, run.config.models)}
    models = [
        f"{name}={'oracle' if rule == 'oracle' else f'{places[model].kind}:{places[model].place}'}"
        for (model, _, rule), name in names.items()
    ]
    made = {
        "run": run.folder.resolve().name,
        "samples_sha256": sha256_file(run.folder / SAMPLES),
        "rules": list(dict.fromkeys(rule for _, _, rule in names)),
        "n": sorted({n for _, n, _ in names}),
        "prmu": dict(about),
    }
    own: Mapping[str, Any] = run.manifest.config.get("per_model", {})
    per_model = {name: own[model] for (model, _, _), name in names.items() if model in own}
    config = run.manifest.config | {"models": models, "per_model": per_model, "best_of": made}
    path = output / "run.json"
    if path.exists():
        found = read_json(path, RunManifest)
        for key in ("models", "best_of"):
            if found.config.get(key) != config[key]:
                raise InputError(
                    f"{output} holds something else: {key} is {shorten(found.config.get(key))} there and "
                    f"{shorten(config[key])} here; choose another folder"
                )
        return found
    return begin(output, config, run.manifest.data, run.manifest.seed)


def _identities(
    run: SampledRun, names: Mapping[tuple[str, int, Rule], str], about: Mapping[str, Any]
) -> dict[str, str]:
    of: Mapping[str, str] = run.manifest.results.get("models", {})
    return {
        name: sha256_text(canonical_json([of.get(model), n, rule, dict(about) if rule == "prmu" else None]))
        for (model, n, rule), name in names.items()
    }


def _cells(run: SampledRun, chosen: Iterable[Prediction]) -> list[dict[str, Any]]:
    by_cell: dict[tuple[str, Any], list[Prediction]] = {}
    for row in chosen:
        by_cell.setdefault((row.model, cell_of(row)), []).append(row)
    return [
        cell_result(model, cell, rows, run.dataset.task(cell.task), len(rows))
        for (model, cell), rows in by_cell.items()
    ]
