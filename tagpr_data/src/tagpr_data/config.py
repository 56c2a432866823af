"""Settings: one pydantic model per command, a TOML file, and `--set a.b=value` on top. Nothing else is read."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tagpr_data.errors import InputError
from tagpr_data.tables import explain


class Config(BaseModel):
    """Base of all settings: frozen, unknown keys refused, field docstrings are the documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


C = TypeVar("C", bound=Config)


def load(model: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """Read a TOML file into `model`; each override `a.b=value` wins over the file, its value read as TOML or,
    where that fails, as a bare string. Raises InputError that names file and dotted key."""
    if not path.is_file():
        raise InputError(f"config {path} does not exist; shipped ones: tagpr_*/configs/*.toml")
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"config {path} is not TOML: {error}") from None
    for override in overrides:
        _override(settings, override)
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise InputError(f"config {path}: {explain(error)}") from None


def _override(settings: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise InputError(f"--set {override!r} is not of the form a.b=value")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    place = settings
    for parent in parents:
        inner: Any = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise InputError(f"--set {override!r}: {parent!r} is a value, not a section")
        place = inner
    place[last] = value
