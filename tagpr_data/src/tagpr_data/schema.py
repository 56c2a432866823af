"""The JSON Schemas in `schemas/`: generated from the records, so that others can read and write our files.

Beside them lies a page for people, `README.md`: layout, hashes, grammar. Written by hand, but for its tables of checks
and of reasons, which stand between two comments each and are generated too.
"""

import json
from pathlib import Path

from tagpr_data.records import (
    AnnotatedChain,
    AnnotationManifest,
    AnsweringChain,
    Audit,
    Candidate,
    ChainRow,
    CompletionScore,
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
    SampledAnswer,
    Task,
    Trace,
)

WRITTEN: tuple[type[Record], ...] = (
    AnnotatedChain, AnnotationManifest, AnsweringChain, Audit, Candidate, ChainRow, CompletionScore, CorpusManifest,
    DatasetManifest, Example, Faithfulness, Intervention, PairsManifest, Prediction, PreferencePair, ProfileItem,
    Rejected, RejectedChain, Rollout, RunManifest, Sample, SampledAnswer, Task, Trace,
)  # fmt: skip
"""Every record that is written to disk as a row or a file of its own."""

PAGE = "README.md"
"""The page for people in the folder of the schemas."""


def file_name(model: type[Record]) -> str:
    """Give the name of a record's schema file."""
    return f"{model.__name__}.schema.json"


def render(model: type[Record]) -> str:
    """Give the JSON Schema text of a record; the same bytes for the same record."""
    schema = model.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["$id"] = f"urn:tagpr:v1:{model.__name__}"
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def page(text: str) -> str:
    """Give the text of the page with its generated tables as they should be."""
    from tagpr_data.row_checks import ROW_CHECKS
    from tagpr_data.select import REASONS
    from tagpr_data.validate import CHECKS, COLUMNS, DOCUMENTS

    queries = {
        path.stem: path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("-- ")
        for path in sorted(CHECKS.glob("*.sql"))
    }
    checks = dict([COLUMNS, *queries.items(), *ROW_CHECKS.items(), DOCUMENTS])
    for name, rows, head in (
        ("checks", checks, "| check | question |"), ("reasons", REASONS, "| reason | what it says |"),
    ):  # fmt: skip
        table = "\n".join([head, "|---|---|", *(f"| `{key}` | {value} |" for key, value in rows.items())])
        before, begin, rest = text.partition(f"<!-- generated: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}{begin}{table}\n{end}{after}" if begin and end else text
    return text


def write_schemas(folder: Path) -> list[Path]:
    """Write one schema file per record into `folder`, remove orphans, bring the page there up to date; give the
    paths of the schemas."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / file_name(model) for model in WRITTEN]
    for orphan in set(folder.glob("*.schema.json")) - set(paths):
        orphan.unlink()
    for path, model in zip(paths, WRITTEN, strict=True):
        path.write_text(render(model), encoding="utf-8")
    readme = folder / PAGE
    if readme.is_file():
        readme.write_text(page(readme.read_text(encoding="utf-8")), encoding="utf-8")
    return paths
