"""The options of every command with per-row stages: where the rows are worked on (`engine.py`)."""

from typing import Annotated

import typer

from tagpr_data.engine import EngineName

EngineOption = Annotated[EngineName, typer.Option("--engine", help="Where rows are worked on: local, or ray.")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes, or tasks at once of ray (default: all cores).")
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="Of a running Ray cluster, as 10.0.0.1:6379, or auto for one here.")
]
