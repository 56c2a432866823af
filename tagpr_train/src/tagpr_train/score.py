"""Score a file of completions with a PRMU: JSON lines in, the same lines with `score` and `standardised` out.

A line holds `prompt` (text or messages, without past items), `completion`, and who is asked for: `user` (an id of the
PRMU's table), `items` (past items, as records of a profile), or both: the table's row meets these items. Other keys
are kept. Guarantee: the output appears whole or not at all, in the order of the input.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tagpr_data.errors import InputError
from tagpr_data.records import Message, ProfileItem
from tagpr_data.tables import explain, write_text

if TYPE_CHECKING:
    from tagpr_train.prmu import PRMU


class ScoreRequest(BaseModel):
    """One completion to be scored; unknown keys are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    prompt: str | tuple[Message, ...]
    """What was asked."""
    completion: str
    """What is scored."""
    user: str | None = None
    """Id of a user in the PRMU's table."""
    items: tuple[ProfileItem, ...] | None = None
    """Past items of the user, oldest first."""


def read_requests(path: Path) -> list[ScoreRequest]:
    """Read the lines of a file; InputError names line and field."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    requests: list[ScoreRequest] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            request = ScoreRequest.model_validate_json(line)
        except ValidationError as error:
            raise InputError(f"{path}, line {number}: {explain(error)}") from None
        if request.user is None and request.items is None:
            raise InputError(f"{path}, line {number}: `user` or `items` must say who is asked for ([] is nobody known)")
        requests.append(request)
    return requests


def score_file(prmu: "PRMU", requests: Sequence[ScoreRequest], output: Path, batch_size: int = 32) -> int:
    """Score requests and write them with their scores; give how many. InputError for a user the table lacks."""
    vectors: dict[Any, Any] = {}
    users: list[Any] = []
    for request in requests:
        key = (request.user, request.items)
        if key not in vectors:
            who = request.items if request.user is None else request.user
            assert who is not None, "read_requests refuses it"
            vectors[key] = prmu.embed_user(who, None if request.user is None else request.items)
        users.append(vectors[key])
    prompts = [request.prompt for request in requests]
    scores = prmu.score_batch(users, prompts, [request.completion for request in requests], batch_size)
    lines = [
        json.dumps(
            {**request.model_dump(mode="json", exclude_unset=True), "score": score, "standardised": standardised},
            ensure_ascii=False,
        )
        for request, score, standardised in zip(requests, scores, prmu.standardised(scores), strict=True)
    ]
    write_text(output, "".join(f"{line}\n" for line in lines))
    return len(lines)
