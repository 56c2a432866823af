"""A PRMU behind HTTP, for RL on several nodes: one copy of the reward model for all who train (`serve-prmu`).

    POST /score    {"requests": [{"prompt", "completions": […], "user" and/or "items"}, …]}, prompts and items as in
                   `tagpr-train score` → {"scores": [[…], …], "standardised": [[…], …], "weights": hash}
    GET  /model    which PRMU it is: hash of its content, calibration, the evaluation that RL's gate reads, limits
    GET  /health   200 while it takes work; how much waits, and what was done so far
    GET  /docs     all of this as OpenAPI

One thread scores; requests that arrive meanwhile are scored together next. Guarantee: the queue is bounded (503 with
Retry-After beyond it), bodies and requests are limited in size (413, 422), a malformed request is refused with field
and reason and spoils no other, and SIGTERM ends the server after the work it has taken. Scores are those of
`PRMU.score_batch`, up to the rounding of other batches. There is no authentication: serve to a network you trust.
"""

import asyncio
import json
import logging
import math
import signal
import socket
import threading
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tagpr_data.config import Config
from tagpr_data.data_source import fetch
from tagpr_data.errors import InputError, shorten
from tagpr_data.records import Message, ProfileItem
from tagpr_train.pretrained import content_hash
from tagpr_train.prmu import PRMU

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

EVALUATION = "prmu_eval.json"


class Limits(Config):
    """How much a server takes."""

    batch_size: int = Field(default=32, ge=1)
    """Completions scored in one pass of the model."""
    max_waiting: int = Field(default=4096, ge=1)
    """Completions taken and not yet scored; beyond it 503."""
    max_completions: int = Field(default=1024, ge=1)
    """Completions in one request; beyond it 422."""
    max_bytes: int = Field(default=16 << 20, ge=1024)
    """Bytes of one body; beyond it 413."""
    drain_seconds: int = Field(default=60, ge=1)
    """How long work that was taken may last after SIGTERM."""

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        if self.max_completions > self.max_waiting:
            raise ValueError(f"max_completions = {self.max_completions} is more than max_waiting = {self.max_waiting}")
        return self


class ScoreGroup(BaseModel):
    """Completions of one prompt for one user."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str | tuple[Message, ...]
    """What was asked, without past items."""
    completions: tuple[str, ...] = Field(min_length=1)
    """What is scored."""
    user: str | None = None
    """Id of a user in the PRMU's table."""
    items: tuple[ProfileItem, ...] | None = None
    """Past items of the user, oldest first; with both, the table's row meets these items."""

    @model_validator(mode="after")
    def _someone(self) -> Self:
        if self.user is None and self.items is None:
            raise ValueError("`user` or `items` must say who is asked for ([] is nobody known)")
        json.dumps(self.model_dump(), ensure_ascii=False, default=str).encode()  # half a character is a ValueError
        return self


class ScoreBody(BaseModel):
    """The body of POST /score."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: tuple[ScoreGroup, ...] = Field(min_length=1)
    """One for each prompt and user."""


class Scores(BaseModel):
    """The answer to POST /score, in the order of the requests and their completions."""

    scores: list[list[float]]
    """In nats; higher is better."""
    standardised: list[list[float]]
    """Relative to the PRMU's training completions."""
    weights: str
    """Hash of the PRMU that scored: its weights, settings and users."""


class Full(Exception):
    """There is no room in the queue."""


class Scorer:
    """One thread with the model, and a bounded queue before it."""

    def __init__(self, prmu: PRMU, limits: Limits) -> None:
        self.waiting = 0
        """Completions taken and not yet scored."""
        self.scored = self.refused = self.batches = 0
        """Completions scored, requests refused for want of room, batches made."""
        self._prmu, self._limits = prmu, limits
        self._jobs: deque[tuple[Sequence[ScoreGroup], Future[list[list[float]]]]] = deque()
        self._change = threading.Condition()
        self._is_open = True
        self._thread = threading.Thread(target=self._work, name="scorer", daemon=True)
        self._thread.start()

    def submit(self, groups: Sequence[ScoreGroup]) -> Future[list[list[float]]]:
        """Take work; raises Full when there is no room for it."""
        count = _count(groups)
        with self._change:
            if not self._is_open or self.waiting + count > self._limits.max_waiting:
                self.refused += 1
                raise Full
            future: Future[list[list[float]]] = Future()
            self.waiting += count
            self._jobs.append((groups, future))
            self._change.notify()
        return future

    def close(self) -> None:
        """Take no more work, and wait for what was taken."""
        with self._change:
            self._is_open = False
            self._change.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._jobs or not self._is_open)
                if not self._jobs:
                    return
                jobs = [self._jobs.popleft()]
                size = _count(jobs[0][0])
                while self._jobs and size + _count(self._jobs[0][0]) <= self._limits.max_completions:
                    jobs.append(self._jobs.popleft())
                    size += _count(jobs[-1][0])
            self._answer(jobs)
            with self._change:
                self.waiting -= size
                self.scored += size
                self.batches += 1

    def _answer(self, jobs: Sequence[tuple[Sequence[ScoreGroup], Future[list[list[float]]]]]) -> None:
        """Score jobs together; where that fails, each by itself, so that one bad job spoils no other."""
        try:
            scores = self._score([group for groups, _ in jobs for group in groups])
        except Exception as error:  # whatever the model raises is the answer to this job
            if len(jobs) == 1:
                logger.exception("scoring failed")
                jobs[0][1].set_exception(error)
            for job in jobs if len(jobs) > 1 else ():
                self._answer([job])
            return
        for groups, future in jobs:
            future.set_result([scores.pop(0) for _ in groups])

    def _score(self, groups: Sequence[ScoreGroup]) -> list[list[float]]:
        vectors: dict[Any, Any] = {}
        users: list[Any] = []
        for group in groups:
            key = (group.user, group.items)
            if key not in vectors:
                who = group.items if group.user is None else group.user
                assert who is not None, "the model of the body refuses it"
                vectors[key] = self._prmu.embed_user(who, None if group.user is None else group.items)
            users += [vectors[key]] * len(group.completions)
        prompts = [group.prompt for group in groups for _ in group.completions]
        texts = [text for group in groups for text in group.completions]
        flat = self._prmu.score_batch(users, prompts, texts, self._limits.batch_size)
        if not all(map(math.isfinite, flat)):
            raise ValueError("a score is not a finite number; are the PRMU's weights?")
        rest = iter(flat)
        return [[next(rest) for _ in group.completions] for group in groups]


def make_app(prmu: PRMU, about: dict[str, Any], limits: Limits) -> "FastAPI":
    """Give the application; `about` is what GET /model says, with `weights` in it."""
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse

    scorer = Scorer(prmu, limits)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncGenerator[None, None]:
        yield
        await asyncio.to_thread(scorer.close)

    app = FastAPI(title="PRMU", lifespan=life)
    app.add_middleware(BodyLimit, max_bytes=limits.max_bytes)

    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        reasons = [f"{'.'.join(map(str, one['loc'][1:])) or 'body'}: {one['msg']}" for one in error.errors()]
        return JSONResponse({"detail": "; ".join(reasons[:5])}, 422)

    app.add_exception_handler(RequestValidationError, refuse)  # pyright: ignore[reportArgumentType] - its own handler

    async def score(body: ScoreBody) -> Scores:
        if (count := _count(body.requests)) > limits.max_completions:
            raise HTTPException(422, f"{count} completions in one request; at most {limits.max_completions}")
        for number, group in enumerate(body.requests):
            if group.items is None and group.user not in prmu.users:
                known = f"the {len(prmu.users)} users of this PRMU; give past items instead"
                raise HTTPException(422, f"requests.{number}.user: {shorten(group.user)} is not among {known}")
        try:
            future = scorer.submit(body.requests)
        except Full:
            headers = {"Retry-After": "1"}
            raise HTTPException(503, f"{scorer.waiting} completions wait already", headers) from None
        try:
            found = await asyncio.wrap_future(future)
        except Exception as error:
            raise HTTPException(500, f"scoring failed: {type(error).__name__}: {shorten(str(error), 200)}") from None
        standardised = [prmu.standardised(row) for row in found]
        return Scores(scores=found, standardised=standardised, weights=about["weights"])

    async def model() -> dict[str, Any]:
        return {**about, "limits": limits.model_dump()}

    async def health() -> dict[str, Any]:
        done = {"scored": scorer.scored, "batches": scorer.batches, "refused": scorer.refused}
        return {"status": "ok", "waiting": scorer.waiting, **done}

    app.post("/score")(score)
    app.get("/model")(model)
    app.get("/health")(health)
    return app


class BodyLimit:
    """Answers 413 to a body that is too long, before it is held or read."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Read the body up to the limit and hand it on."""
        from fastapi.responses import JSONResponse

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, is_more = bytearray(), True
        while is_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            is_more = message.get("more_body", False)
            if len(body) > self._max_bytes:
                refusal = JSONResponse({"detail": f"the body is longer than {self._max_bytes} bytes"}, 413)
                await refusal({**scope, "headers": []}, receive, send)
                return
        messages = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replayed() -> Any:
            return messages.pop() if messages else await receive()

        await self._app(scope, replayed, send)


def serve(name: str, host: str, port: int, limits: Limits) -> None:
    """Serve a PRMU (folder or OWNER/NAME[@REVISION]) until SIGTERM or SIGINT; port 0 takes a free one. InputError where
    the address cannot be had or the extra `server` is not installed."""
    try:
        import uvicorn
        from fastapi import FastAPI as _  # noqa: F401 - of the same extra
    except ImportError:
        raise InputError("serving needs FastAPI and uvicorn: pip install 'tagpr-train[server]'") from None
    folder = Path(name) if Path(name).is_dir() else fetch("PRMU", name, "model")
    prmu = PRMU.from_pretrained(folder)
    try:
        listening = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host}:{port}: {error}; choose another --host or --port") from None
    app = make_app(prmu, describe(prmu, name, folder), limits)
    settings: dict[str, Any] = {"log_level": "warning", "access_log": False, "lifespan": "on"}
    server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=limits.drain_seconds, **settings))
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it is done; that ends it well
        signal.signal(number, lambda number, frame: None)
    logger.info("%s on http://%s:%d", name, host, listening.getsockname()[1])
    server.run(sockets=[listening])
    logger.info("stopped; everything that was taken has been answered")


def describe(prmu: PRMU, name: str, folder: Path) -> dict[str, Any]:
    """Give what GET /model says of a PRMU from `folder`, called `name` (of a path the last parts only)."""
    parts = Path(name).parts
    found = next((place / EVALUATION for place in (folder, folder.parent) if (place / EVALUATION).is_file()), None)
    return {
        "name": "/".join(parts[-2:]),
        "weights": content_hash(folder),
        "users": len(prmu.users),
        "score_mean": prmu.config.score_mean,
        "score_std": prmu.config.score_std,
        "evaluation": json.loads(found.read_text(encoding="utf-8")) if found else None,
    }


def _count(groups: Sequence[ScoreGroup]) -> int:
    return sum(len(group.completions) for group in groups)
