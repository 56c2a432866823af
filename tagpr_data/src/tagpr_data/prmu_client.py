"""A PRMU on another machine, used as one in this process: the reward in RL, and the choice among several answers.

The server is `tagpr-train serve-prmu`. Guarantee: scores come in the order asked and are those of the weights that
answered first; a server that serves other weights meanwhile is an error. A server that is busy or away is asked again,
for a bounded time, then the run ends with a message and can go on later. Requests are cut to the server's limits.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from tagpr_data.errors import CheckFailed, InputError, shorten
from tagpr_data.records import Message, ProfileItem

logger = logging.getLogger(__name__)

WAITS_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Pauses before the next attempts at a server that does not answer."""

BUSY_SECONDS = 600.0
"""How long a server may say that it is full."""


@dataclass(frozen=True, slots=True, eq=False)
class RemoteUser:
    """Whom a server is to score for."""

    user: str | None
    items: tuple[ProfileItem, ...] | None


@dataclass(frozen=True, slots=True)
class _Row:
    user: RemoteUser
    prompt: str | Sequence[Message]
    completion: str


class RemotePRMU:
    """A served PRMU, with what RL calls of a `PRMU`: `embed_user`, `score_batch`, `standardised`."""

    def __init__(
        self, url: str, waits_seconds: Sequence[float] = WAITS_SECONDS, timeout_seconds: float = 300.0
    ) -> None:
        """Ask the server at `url` which PRMU it serves. InputError when none answers there."""
        self.url = url.rstrip("/")
        self._waits = tuple(waits_seconds)
        self._options: dict[str, Any] = {
            "timeout": httpx.Timeout(timeout_seconds, connect=10.0),
            "verify": self.url.startswith("https"),  # else certificates are read for nothing
        }
        self.about = self._ask("GET", "/model")
        """What the server says of its PRMU."""
        try:
            self._weights = str(self.about["weights"])
            self._mean, self._std = float(self.about["score_mean"]), float(self.about["score_std"])
            limits = self.about["limits"]
            self._max_completions, self._max_bytes = int(limits["max_completions"]), int(limits["max_bytes"])
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{self.url}/model is not that of a PRMU server; start one: tagpr-train serve-prmu"
            ) from None

    def embed_user(self, user: str | Sequence[ProfileItem], items: Sequence[ProfileItem] | None = None) -> RemoteUser:
        """Give who is meant, as `PRMU.embed_user` takes it; the server embeds."""
        if isinstance(user, str):
            return RemoteUser(user, None if items is None else tuple(items))
        return RemoteUser(None, tuple(user))

    def score_batch(
        self,
        users: Sequence[RemoteUser],
        prompts: Sequence[str | Sequence[Message]],
        completions: Sequence[str],
    ) -> list[float]:
        """Score many, in nats. Completions that follow each other with the same user object and prompt are sent with
        one prompt. InputError when the server refuses or stays away, CheckFailed when it serves other weights now."""
        return self._scored([_Row(*row) for row in zip(users, prompts, completions, strict=True)])

    def standardised(self, scores: Sequence[float]) -> list[float]:
        """Give scores minus the training mean, over the training deviation."""
        return [(score - self._mean) / self._std for score in scores]

    def _scored(self, rows: Sequence[_Row]) -> list[float]:
        if not rows:
            return []
        if len(rows) > self._max_completions:
            return self._halves(rows)
        body = json.dumps({"requests": _groups(rows)}).encode()
        if len(body) > self._max_bytes:
            if len(rows) == 1:
                raise InputError(
                    f"one completion with its prompt and past items takes {len(body)} bytes, and {self.url} "
                    f"takes {self._max_bytes}; start it with a larger --max-bytes"
                )
            return self._halves(rows)
        answer = self._ask("POST", "/score", body)
        if answer.get("weights") != self._weights:
            raise CheckFailed(
                f"{self.url} serves another PRMU now (weights {shorten(str(answer.get('weights'))[:12])}, before "
                f"{self._weights[:12]!r}); rewards before and after would not compare"
            )
        scores = [score for group in answer["scores"] for score in group]
        if len(scores) != len(rows) or not all(isinstance(score, float) and math.isfinite(score) for score in scores):
            raise InputError(f"{self.url} did not answer {len(rows)} completions with as many finite scores")
        return scores

    def _halves(self, rows: Sequence[_Row]) -> list[float]:
        middle = (len(rows) + 1) // 2
        return self._scored(rows[:middle]) + self._scored(rows[middle:])

    def _ask(self, method: str, path: str, content: bytes | None = None) -> dict[str, Any]:
        """Send a request until it is answered; see the module docstring."""
        headers = {"Content-Type": "application/json"} if content is not None else {}
        waits, busy_until = list(self._waits), time.monotonic() + BUSY_SECONDS
        while True:
            try:
                response = httpx.request(method, f"{self.url}{path}", content=content, headers=headers, **self._options)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise InputError(f"{self.url!r} is not the address of a PRMU server: {error}") from None
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {shorten(str(error))}"
                wait = waits.pop(0) if waits else None
            else:
                if response.status_code == 200:
                    return _json(response, self.url)
                problem = f"status {response.status_code}: {shorten(_detail(response), 200)}"
                if response.status_code == 503 and "Retry-After" in response.headers:
                    wait = _seconds(response.headers["Retry-After"]) if time.monotonic() < busy_until else None
                elif response.status_code in (502, 503, 504):
                    wait = waits.pop(0) if waits else None
                else:
                    raise InputError(f"the PRMU server {self.url} refused {method} {path} with {problem}")
            if wait is None:
                raise InputError(
                    f"the PRMU server {self.url} does not answer ({problem}; {len(self._waits) + 1} attempts); start "
                    "it again (tagpr-train serve-prmu), then go on (RL: with --resume)"
                )
            logger.warning("PRMU server %s: %s; trying again in %g s", self.url, problem, wait)
            time.sleep(wait)


def _groups(rows: Sequence[_Row]) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = []
    last: _Row | None = None
    for row in rows:
        if last is not None and row.user is last.user and row.prompt == last.prompt:
            groups[-1]["completions"].append(row.completion)
            continue
        prompt = row.prompt
        group: dict[str, Any] = {
            "prompt": prompt if isinstance(prompt, str) else [turn.model_dump(mode="json") for turn in prompt],
            "completions": [row.completion],
        }
        if row.user.user is not None:
            group["user"] = row.user.user
        if row.user.items is not None:
            group["items"] = [item.model_dump(mode="json") for item in row.user.items]
        groups.append(group)
        last = row
    return groups


def _json(response: httpx.Response, url: str) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{url} did not answer with a JSON object; is it a PRMU server (tagpr-train serve-prmu)?")
    return found


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text


def _seconds(text: str) -> float:
    try:
        return min(30.0, max(0.05, float(text)))
    except ValueError:
        return 1.0
