"""`schemas/` is what the records say, and an independent reader of the contract agrees with them."""

import json
from pathlib import Path

import jsonschema

from tagpr_data.records import Example, Step
from tagpr_data.row_checks import ROW_CHECKS
from tagpr_data.schema import PAGE, WRITTEN, file_name, page, render, write_schemas
from tagpr_data.select import REASONS
from tagpr_data.validate import CHECKS

REGENERATE = "run: make schemas"


def test_committed_schemas_are_what_the_records_say(root: Path) -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in (root / "schemas").glob("*.json")}
    generated = {file_name(model): render(model) for model in WRITTEN}
    assert committed.keys() == generated.keys(), REGENERATE
    stale = [name for name in generated if committed[name] != generated[name]]
    assert stale == [], REGENERATE


def test_the_page_names_every_check_and_reason_of_this_version(root: Path) -> None:
    text = (root / "schemas" / PAGE).read_text(encoding="utf-8")
    assert page(text) == text, REGENERATE
    for name in (*ROW_CHECKS, *REASONS, *(path.stem for path in CHECKS.glob("*.sql")), "columns", "documents"):
        assert f"| `{name}` |" in text


def test_an_orphaned_schema_is_removed(tmp_path: Path) -> None:
    (tmp_path / "Gone.schema.json").write_text("{}")
    write_schemas(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {file_name(model) for model in WRITTEN}


def test_an_independent_validator_accepts_a_record_and_refuses_an_unknown_key() -> None:
    schema = json.loads(render(Example))
    row = Example(id="1", task="LaMP-3", user_id="u", profile_id="p", profile_size=0, input="x").model_dump(mode="json")
    validator = jsonschema.Draft202012Validator(schema)
    assert not list(validator.iter_errors(row))
    assert list(validator.iter_errors({**row, "surprise": 1}))


def test_field_docstrings_are_the_descriptions() -> None:
    properties = json.loads(render(Step))["properties"] if Step in WRITTEN else Step.model_json_schema()["properties"]
    assert properties["text"]["description"] == "The step's words, exactly as written."
    for model in WRITTEN:
        undocumented = [name for name, info in model.model_fields.items() if not info.description]
        assert undocumented == [], model.__name__
