"""The client of all servers with the OpenAI chat API: one question, one answer, or a clear error.

Guarantee: an answer that did not arrive is an error, never an empty text, and nothing that was answered is asked
again. 408, 429, 5xx, time-outs, refused and cut connections and broken answers are tried again with growing waits; a
`Retry-After` holds back all questions to that server, not only the one that met it. Other refusals end at once, with
the server's words; 400, 413 and 422 may mean this one question alone and are told apart (`PromptRefused`). The key
comes from a named environment variable and is in no message.

How many questions are on their way to a server adapts (AIMD, as in TCP): 429 and 503 halve the number, answers let it
grow by one per round until `concurrency`. Several addresses are several servers of one model: a question goes to the
one with most room, and after a fault to another one first. Questions beyond the room wait here, ready to be sent: when
an answer comes, the first of them goes out before the answer is read and handed on, so who asks with more tasks than
`at_once` keeps the server busy while it works on answers. Price: waits are real time; an answer is read whole into
memory, at most 64 MiB.
"""

import asyncio
import json
import os
import random
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pydantic import Field

from tagpr_data.config import Config
from tagpr_data.constrain import ServerKind
from tagpr_data.errors import CheckFailed, InputError, shorten
from tagpr_data.records import FinishReason, Message, Sampling

if TYPE_CHECKING:
    import aiohttp

_LONGEST_WAIT_SECONDS = 60.0
_LONGEST_RETRY_AFTER_SECONDS = 600.0
_LONGEST_ANSWER_BYTES = 64 * 2**20
_MAY_BE_THE_PROMPT = (400, 413, 422)
_FINISH: dict[str, FinishReason] = {
    "stop": "stop", "eos": "stop", "stop_sequence": "stop", "length": "length", "content_filter": "error",
}  # fmt: skip
_OWN_FIELDS = ("model", "messages", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "n")

Job = TypeVar("Job")


class ServerOptions(Config):
    """How a server is reached."""

    base_url: str | tuple[str, ...]
    """Address up to `/v1`, for example `http://127.0.0.1:8000/v1`, or several of servers of the same model; no user,
    password or query."""
    model: str
    """Model name as the server knows it."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; unset means no key."""
    concurrency: int = Field(default=8, ge=1)
    """Most questions on their way to one address; fewer while the server says 429 or 503."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """Longest wait for one answer."""
    retries: int = Field(default=8, ge=0)
    """Further tries at every address after a failed one."""
    backoff_seconds: float = Field(default=1.0, ge=0)
    """Wait after the first failed try; doubles with each, at most 60 s."""
    extra_body: dict[str, Any] = Field(default={})
    """Further fields of every request, such as `top_k` or `chat_template_kwargs`, where the server knows them."""
    constrain: ServerKind = "none"
    """How the server takes the tag grammar, so that it enforces it: `vllm`, `llama-cpp`, or `none`."""

    @property
    def name(self) -> str:
        """The model's name in rows and price files."""
        return self.model

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses, at least one."""
        return (self.base_url,) if isinstance(self.base_url, str) else self.base_url

    @property
    def at_once(self) -> int:
        """Most questions on their way to all addresses together."""
        return self.concurrency * len(self.addresses)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said."""

    text: str
    finish_reason: FinishReason
    input_tokens: int | None
    output_tokens: int | None


@dataclass
class _Place:
    """One address, and how much may be asked of it now."""

    url: str
    room: float
    """Questions that may be on their way; between 1 and `concurrency`."""
    proxy: str | None
    in_flight: int = 0
    not_before: float = 0.0
    """Event-loop time until which nothing is asked."""
    cut_at: float = -1.0
    """When the room was last halved: questions sent before do not halve it again."""
    failed_at: float = -1.0
    """The same for `failures`."""
    failures: int = 0
    """In a row, counted once a round."""


class PromptRefused(InputError):
    """The server refused a question with a status that may mean this question alone, as one too long for its model."""


class Stopped(CheckFailed):
    """The client was told to stop before this question was answered."""


class _Retry(Exception):
    """This try failed in a way that may pass."""

    def __init__(self, reason: str, wait_seconds: float | None = None, is_overload: bool = False) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds
        """What the server asked for."""
        self.is_overload = is_overload


class ChatServer:
    """One model behind one or several addresses; use it within one event loop and close it there."""

    def __init__(self, options: ServerOptions) -> None:
        if not options.addresses or len(set(options.addresses)) < len(options.addresses):
            raise InputError(f"base_url {list(options.addresses)} must name at least one address, each once")
        for address in options.addresses:
            _check_address(address)
        if own := sorted(set(options.extra_body) & set(_OWN_FIELDS)):
            raise InputError(f"extra_body must not set {', '.join(own)}: they come from the sampling and the prompt")
        self.options = options
        self._places = [
            _Place(address.rstrip("/") + "/chat/completions", float(options.concurrency), _proxy(address))
            for address in options.addresses
        ]
        self._key = os.environ.get(options.key_env)
        self._session: aiohttp.ClientSession | None = None
        self._waiting: deque[tuple[Collection[str], asyncio.Future[_Place]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._arrived: deque[asyncio.Future[None]] = deque()
        self._stopped = asyncio.Event()

    @property
    def url(self) -> str:
        """Where the first address takes questions."""
        return self._places[0].url

    @property
    def room(self) -> int:
        """Questions that may be on their way at present."""
        return sum(int(place.room) for place in self._places)

    async def ask(
        self, messages: Sequence[Message], sampling: Sampling, seed: int, extra: Mapping[str, Any] | None = None
    ) -> Answer:
        """Give the answer. CheckFailed when all tries failed (Stopped: was stopped), InputError when the server
        refuses, its kind PromptRefused when that may be for this question alone.

        `extra` are further fields of this request, beside the options' own. Where the last message is the
        assistant's, the server is asked to go on with it (`continue_final_message`, as vLLM has it) and the answer is
        what comes after; a server that ignores the field starts anew, which no field of its answer tells.
        """
        payload = _encoded(self._body(messages, sampling, seed) | dict(extra or {}))
        tried: set[str] = set()
        most = (self.options.retries + 1) * len(self._places)
        for tries in range(1, most + 1):
            place = await self._enter(tried)
            started, answer, is_told_when = _now(), None, False
            try:
                answer = await self._try(place, payload)
            except _Retry as problem:
                self._note_failure(place, problem, started)
                if tries == most:
                    raise CheckFailed(
                        f"{self._where} gave no answer in {tries} tries, last: {problem}. "
                        "All answers so far are kept; the same command goes on from there"
                    ) from None
                tried.add(place.url)
                is_told_when = problem.wait_seconds is not None
            else:
                self._note_answer(place)
            finally:
                place.in_flight -= 1
                if answer is None:  # who asked may stop all now
                    asyncio.get_running_loop().call_soon(self._hand_out_room)
                else:
                    self._hand_out_room()
            if answer is not None:
                await self._turn()
                return answer
            if tries % len(self._places) == 0:  # all of them failed: wait
                tried.clear()
                growing = self.options.backoff_seconds * 2 ** (tries // len(self._places) - 1)
                # spread, so that those who failed together do not come back together
                await self._pause(min(growing, _LONGEST_WAIT_SECONDS) * random.uniform(0.75, 1.25), is_told_when)
        raise AssertionError("the loop above returns or raises")

    def stop(self) -> None:
        """Ask nothing more: what is on its way still arrives, what waits for room or a further try ends in Stopped."""
        self._stopped.set()
        for _, room in self._waiting:
            if not room.done():
                room.set_exception(self._stopped_error())
        self._waiting.clear()

    async def close(self) -> None:
        """Close the connections; a later question opens new ones."""
        if self._timer is not None:
            self._timer.cancel()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _body(self, messages: Sequence[Message], sampling: Sampling, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.options.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if messages[-1].role == "assistant":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body | self.options.extra_body

    @property
    def _where(self) -> str:
        return ", ".join(place.url for place in self._places)

    async def _enter(self, tried: Collection[str]) -> _Place:
        """Wait for a place with room, one not yet tried before one that was; its room is taken."""
        if self._stopped.is_set():
            raise self._stopped_error()
        if not self._waiting and (place := self._free_place(tried, _now())) is not None:
            place.in_flight += 1
            return place
        room: asyncio.Future[_Place] = asyncio.get_running_loop().create_future()
        self._waiting.append((tried, room))
        self._hand_out_room()
        try:
            return await room
        except asyncio.CancelledError:
            if room.done() and not room.cancelled() and room.exception() is None:  # it was given in the same moment
                room.result().in_flight -= 1
                self._hand_out_room()
            raise

    def _hand_out_room(self) -> None:
        """Give room to those who wait, in their order; where all that is left is held back, again when it ends."""
        now = _now()
        while self._waiting:
            tried, room = self._waiting[0]
            if not room.done():
                place = self._free_place(tried, now)
                if place is None:
                    break
                place.in_flight += 1
                room.set_result(place)
            self._waiting.popleft()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and (held := [place.not_before for place in self._places if place.not_before > now]):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(min(held) + random.uniform(0, 0.1), self._hand_out_room)

    def _free_place(self, tried: Collection[str], now: float) -> _Place | None:
        """Give the place a question goes to now; None where all are full or held back."""
        free = [place for place in self._places if place.not_before <= now and place.in_flight < int(place.room)]
        if len(free) < 2:
            return free[0] if free else None
        return min(free, key=lambda place: (place.url in tried, place.in_flight / place.room))

    async def _turn(self) -> None:
        """Let requests go out before answers are worked on, and those one by one, with a look at what came in between:
        worked on in a burst, they would hold up all that comes meanwhile, and the next burst would be longer."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrived.append(turn)
        if len(self._arrived) == 1:
            asyncio.get_running_loop().call_soon(self._next_turn)
        await turn

    def _next_turn(self) -> None:
        turn = self._arrived.popleft()
        if not turn.done():
            turn.set_result(None)
        if self._arrived:
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _stopped_error(self) -> Stopped:
        return Stopped(f"{self._where}: stopped before there was an answer")

    async def _pause(self, seconds: float, is_told_when: bool) -> None:
        if is_told_when:  # `_enter` waits as long as the server asked for
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()

    def _note_answer(self, place: _Place) -> None:
        place.failures = 0
        place.room = min(float(self.options.concurrency), place.room + 1 / place.room)

    def _note_failure(self, place: _Place, problem: _Retry, started: float) -> None:
        now = _now()
        if problem.is_overload and started > place.cut_at:
            place.room, place.cut_at = max(1.0, place.room / 2), now
        if problem.wait_seconds is not None:
            place.not_before = max(place.not_before, now + problem.wait_seconds)
        elif len(self._places) > 1 and started > place.failed_at:  # the others answer meanwhile
            wait = min(self.options.backoff_seconds * 2 ** min(place.failures, 10), _LONGEST_WAIT_SECONDS)
            place.not_before = max(place.not_before, now + wait)
            place.failures, place.failed_at = place.failures + 1, now

    async def _try(self, place: _Place, payload: bytes) -> Answer:
        import aiohttp

        if self._session is None:
            self._session = _open_session(self._key)
        try:
            async with (
                asyncio.timeout(self.options.timeout_seconds),
                self._session.post(place.url, data=payload, proxy=place.proxy, allow_redirects=False) as response,
            ):
                content = await _read_whole(response)
                status, wait = response.status, _retry_after(response.headers.get("retry-after"))
        except TimeoutError:
            raise _Retry(f"no answer within {self.options.timeout_seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Retry(f"{type(error).__name__}: {error}") from None
        if status == 200:
            return read_answer(content)
        words = content[:1000].decode("utf-8", "replace")
        words = shorten(words.replace(self._key, "…") if self._key else words, 300)
        if status in (408, 429) or status >= 500:
            raise _Retry(f"status {status}, {words}", wait, status in (429, 503))
        kind = PromptRefused if status in _MAY_BE_THE_PROMPT else InputError
        raise kind(
            f"{place.url} refused model {self.options.model!r} with status {status}: {words}; "
            f"the key is read from {self.options.key_env} ({'set' if self._key else 'not set'})"
        )


async def work_through(
    jobs: Iterable[Job], work: Callable[[Job], Awaitable[None]], at_once: int, server: ChatServer
) -> None:
    """Do all jobs, at most `at_once` together, then close the server. After an error no new job starts, but answers
    on their way are still taken in (they are paid for); then the first error is raised."""
    errors: list[Exception] = []
    todo = iter(jobs)

    async def worker() -> None:
        for job in todo:
            try:
                await work(job)
            except Exception as error:  # raised below, when what is on its way has arrived
                errors.append(error)
                server.stop()
            if errors:
                return

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())
                await asyncio.sleep(0)  # the first question goes out before the last is made
    except ExceptionGroup as group_of_errors:
        raise group_of_errors.exceptions[0] from None
    finally:
        await server.close()
    if errors:
        raise errors[0]


def _encoded(body: Mapping[str, Any]) -> bytes:
    import orjson

    try:
        return orjson.dumps(body)
    except TypeError:  # what orjson refuses and json does not: lone surrogates, integers of more than 64 bits
        return json.dumps(body).encode()


def _decoded(content: bytes) -> Any:
    import orjson

    try:
        return orjson.loads(content)
    except ValueError:  # what orjson refuses and json does not: lone surrogates, NaN, UTF-16
        try:
            return json.loads(content)
        except UnicodeDecodeError:
            return json.loads(content.decode("utf-8", "replace"))


def read_answer(content: bytes) -> Answer:
    """Read the body of an answer; whatever is broken in it is worth another try."""
    try:
        value = _decoded(content)
        choice = value["choices"][0]
        text, reason = _text(choice["message"]), choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _Retry(f"not a chat completion: {shorten(content[:200])}") from None
    finish = _FINISH.get(reason) if isinstance(reason, str) else None
    if finish == "error" and text is None:
        text = ""
    if text is None or finish is None:
        raise _Retry(f"content {shorten(text)} with finish_reason {reason!r}; expected text ended by stop or length")
    usage = value.get("usage")
    counts: dict[str, Any] = usage if isinstance(usage, dict) else {}
    return Answer(
        text.encode("utf-8", "replace").decode("utf-8"),  # a lone surrogate fits neither UTF-8 nor Parquet
        finish,
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
    )


def _text(message: Mapping[str, Any]) -> str | None:
    """The raw completion: some servers hand the think block out on its own, here it is put back in front; without
    content it was never closed."""
    content = message.get("content")
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and thought:
        return f"<think>{thought}" + (f"</think>{content}" if isinstance(content, str) else "")
    return content if isinstance(content, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def _retry_after(header: str | None) -> float | None:
    """Give the seconds of a `Retry-After` header, a number or an HTTP date; None where it is neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time()
        except ValueError:
            return None
    return min(max(0.0, seconds), _LONGEST_RETRY_AFTER_SECONDS) if seconds == seconds else None  # noqa: PLR0124 - NaN


def _open_session(key: str | None) -> "aiohttp.ClientSession":
    import aiohttp

    return aiohttp.ClientSession(
        headers={"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}),
        timeout=aiohttp.ClientTimeout(total=None),  # `_try` has a cheaper one
        connector=aiohttp.TCPConnector(limit=0, enable_cleanup_closed=False),  # `room` is the limit
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _read_whole(response: "aiohttp.ClientResponse") -> bytes:
    if (response.content_length or _LONGEST_ANSWER_BYTES + 1) <= _LONGEST_ANSWER_BYTES:
        return await response.read()
    pieces: list[bytes] = []
    length = 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        length += len(piece)
        if length > _LONGEST_ANSWER_BYTES:
            raise _Retry(f"an answer of more than {_LONGEST_ANSWER_BYTES // 2**20} MiB")
    return b"".join(pieces)


def _check_address(address: str) -> None:
    parts = urlsplit(address)
    if parts.username or parts.password or parts.query:
        raise InputError("base_url must not carry a user, password or query; the key comes from key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"base_url {address!r} is no http(s) address")


def _proxy(address: str) -> str | None:
    """Give the proxy that the environment names for this address."""
    parts = urlsplit(address)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _now() -> float:
    return asyncio.get_running_loop().time()
