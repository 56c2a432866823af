"""The JSON Schemas in `schemas/`: generated from the records, so that others can read and write our files."""

import json
from pathlib import Path

from tagpr_data.records import (
    AnnotatedChain,
    AnnotationManifest,
    Audit,
    Candidate,
    ChainRow,
    CorpusManifest,
    DatasetManifest,
    Example,
    Faithfulness,
    Intervention,
    PairsManifest,
    Prediction,
    PreferencePair,
    ProfileItem,
    Record,
    Rejected,
    RejectedChain,
    Rollout,
    RunManifest,
    Sample,
    Task,
    Trace,
)

WRITTEN: tuple[type[Record], ...] = (
    AnnotatedChain, AnnotationManifest, Audit, Candidate, ChainRow, CorpusManifest, DatasetManifest, Example,
    Faithfulness, Intervention, PairsManifest, Prediction, PreferencePair, ProfileItem, Rejected, RejectedChain,
    Rollout, RunManifest, Sample, Task, Trace,
)  # fmt: skip
"""Every record that is written to disk as a row or a file of its own."""


def file_name(model: type[Record]) -> str:
    """Give the name of a record's schema file."""
    return f"{model.__name__}.schema.json"


def render(model: type[Record]) -> str:
    """Give the JSON Schema text of a record; the same bytes for the same record."""
    schema = model.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["$id"] = f"urn:tagpr:v1:{model.__name__}"
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_schemas(folder: Path) -> list[Path]:
    """Write one schema file per record into `folder` and remove orphans; give the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / file_name(model) for model in WRITTEN]
    for orphan in set(folder.glob("*.schema.json")) - set(paths):
        orphan.unlink()
    for path, model in zip(paths, WRITTEN, strict=True):
        path.write_text(render(model), encoding="utf-8")
    return paths
