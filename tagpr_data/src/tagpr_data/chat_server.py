"""A client of any server with the OpenAI chat API: one question, one answer, or a clear error.

Guarantee: an answer that did not arrive is an error, never an empty text. 408, 429, 5xx, time-outs, refused
connections and broken answers are tried again with growing waits; a `Retry-After` holds back all questions of this
client, not only the one that met it. Other refusals end at once, with the server's words. The key comes from a named
environment variable and is in no message. Price: waits are real time; the caller bounds how many ask at once.
"""

import asyncio
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import Field

from tagpr_data.config import Config
from tagpr_data.errors import InputError, shorten
from tagpr_data.records import FinishReason, Message, Sampling

if TYPE_CHECKING:
    import httpx

_LONGEST_WAIT_SECONDS = 60.0
_LONGEST_RETRY_AFTER_SECONDS = 600.0
_FINISH: dict[str, FinishReason] = {
    "stop": "stop", "eos": "stop", "stop_sequence": "stop", "length": "length", "content_filter": "error",
}  # fmt: skip


class ServerOptions(Config):
    """How a server is reached."""

    base_url: str
    """Address up to `/v1`, for example `http://127.0.0.1:8000/v1`; no user, password or query."""
    model: str
    """Model name as the server knows it."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; unset means no key."""
    concurrency: int = Field(default=8, ge=1)
    """Questions asked at once."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """Longest wait for one answer."""
    retries: int = Field(default=8, ge=0)
    """Further tries after a failed one."""
    backoff_seconds: float = Field(default=1.0, ge=0)
    """Wait after the first failed try; doubles with each, at most 60 s."""


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    text: str
    finish_reason: FinishReason
    input_tokens: int | None
    output_tokens: int | None


class _Retry(Exception):
    """This try failed in a way that may pass; `wait_seconds` is what the server asked for."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class ChatServer:
    """One server and model; use it within one event loop and close it there."""

    def __init__(self, options: ServerOptions) -> None:
        parts = urlsplit(options.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"base_url {options.base_url!r} is no http(s) address")
        if parts.username or parts.password or parts.query:
            raise InputError("base_url must not carry a user, password or query; the key comes from key_env")
        self.options = options
        self.url = options.base_url.rstrip("/") + "/chat/completions"
        self._key = os.environ.get(options.key_env)
        self._client: httpx.AsyncClient | None = None
        self._not_before = 0.0  # event-loop time until which the server asked all to wait

    async def ask(self, messages: Sequence[Message], sampling: Sampling, seed: int) -> Answer:
        """Give the answer; InputError when the server refuses or all tries failed."""
        body: dict[str, Any] = {
            "model": self.options.model,
            "messages": [message.model_dump(mode="json") for message in messages],
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        spread = random.Random(seed)
        for tries in range(1, self.options.retries + 2):
            await self._wait_until_welcome(spread)
            try:
                return await self._try(body)
            except _Retry as problem:
                if tries > self.options.retries:
                    raise InputError(
                        f"{self.url} gave no answer in {tries} tries, last: {problem}. "
                        "All answers so far are kept; the same command goes on from there"
                    ) from None
                growing = min(self.options.backoff_seconds * 2 ** (tries - 1), _LONGEST_WAIT_SECONDS)
                if problem.wait_seconds is not None:
                    self._not_before = max(self._not_before, _now() + problem.wait_seconds)
                    growing = 0.0
                # spread, so that those who failed together do not come back together
                await asyncio.sleep(growing * (0.75 + spread.random() / 2))
        raise AssertionError("the loop above returns or raises")

    async def close(self) -> None:
        """Close the connections; a later question opens new ones."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _wait_until_welcome(self, spread: random.Random) -> None:
        while (wait := self._not_before - _now()) > 0:
            await asyncio.sleep(wait + spread.random() * 0.1)

    async def _try(self, body: dict[str, Any]) -> Answer:
        import httpx

        if self._client is None:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            timeout = httpx.Timeout(self.options.timeout_seconds, pool=None)
            limits = httpx.Limits(max_connections=self.options.concurrency)
            self._client = httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits)
        try:
            async with asyncio.timeout(self.options.timeout_seconds):  # httpx's own limit is per piece of data
                response = await self._client.post(self.url, json=body)
        except (httpx.TimeoutException, TimeoutError):
            raise _Retry(f"no answer within {self.options.timeout_seconds:g} s") from None
        except httpx.TransportError as error:
            raise _Retry(f"{type(error).__name__}: {error}") from None
        if response.status_code in (408, 429) or response.status_code >= 500:
            wait = _retry_after(response.headers.get("retry-after"))
            raise _Retry(f"status {response.status_code}", wait)
        if response.status_code != 200:
            words = response.text.replace(self._key, "…") if self._key else response.text
            raise InputError(
                f"{self.url} refused model {self.options.model!r} with status {response.status_code}: "
                f"{shorten(words, 300)}; the key is read from {self.options.key_env} "
                f"({'set' if self._key else 'not set'})"
            )
        return _answer(response)


def _answer(response: "httpx.Response") -> Answer:
    """Read an answer; whatever is broken in it is worth another try."""
    try:
        value = response.json()
        choice = value["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _Retry(f"not a chat completion: {shorten(response.text)}") from None
    finish = _FINISH.get(reason) if isinstance(reason, str) else None
    if finish == "error" and text is None:
        text = ""
    if not isinstance(text, str) or finish is None:
        raise _Retry(f"content {shorten(text)} with finish_reason {reason!r}; expected text ended by stop or length")
    usage = value.get("usage")
    counts: dict[str, Any] = usage if isinstance(usage, dict) else {}
    return Answer(
        text.encode("utf-8", "replace").decode("utf-8"),  # a lone surrogate fits neither UTF-8 nor Parquet
        finish,
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


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


def _now() -> float:
    return asyncio.get_running_loop().time()
