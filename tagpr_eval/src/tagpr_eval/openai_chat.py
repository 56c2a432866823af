"""A model behind any server with the OpenAI chat API, asked with bounded concurrency.

Guarantee: an answer that failed to arrive is an error, never an empty text; nothing that was answered is asked again.
429, 5xx, time-outs, refused connections and broken answers are tried again with growing waits (`Retry-After` is
honoured); other refusals end the run at once, with the server's words. Price: one request a prompt.
"""

import asyncio
import os
import random
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tagpr_data.errors import CheckFailed, InputError, shorten
from tagpr_data.records import FinishReason, Sampling
from tagpr_data.tables import canonical_json, sha256_text
from tagpr_eval.config import ServerOptions
from tagpr_eval.models import Completion, Finished, Prompt

if TYPE_CHECKING:
    import httpx

_LONGEST_WAIT_SECONDS = 60.0
_LONGEST_RETRY_AFTER_SECONDS = 600.0
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "eos": "stop", "stop_sequence": "stop"}


class _Retry(Exception):
    """This try failed in a way that may pass; `wait_seconds` is what the server asked for."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class OpenAIModel:
    """A served model."""

    def __init__(self, served_name: str, sampling: Sampling, options: ServerOptions) -> None:
        if not options.base_url:
            raise InputError(f"model openai:{served_name} needs --base-url, such as http://127.0.0.1:8000/v1")
        parts = urlsplit(options.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"--base-url {options.base_url!r} is no http(s) address")
        if parts.username or parts.password or parts.query:
            raise InputError("--base-url must not carry a user, password or query; the key comes from --api-key-env")
        self.served_name = served_name
        self.sampling = sampling
        self.options = options
        self.url = options.base_url.rstrip("/") + "/chat/completions"

    @property
    def identity(self) -> str:
        """Hash of address and name: what runs behind them is the server's secret."""
        return sha256_text(canonical_json({"url": self.url, "model": self.served_name}))

    def batches(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """One request a prompt, in their order."""
        return [[index] for index in range(len(prompts))]

    def generate(self, prompts: Sequence[Prompt], batches: Sequence[Sequence[int]], finished: Finished) -> None:
        """Ask for all; CheckFailed when a prompt stays unanswered after all tries."""
        asyncio.run(self._generate(prompts, [index for batch in batches for index in batch], finished))

    async def _generate(self, prompts: Sequence[Prompt], wanted: list[int], finished: Finished) -> None:
        import httpx

        key = os.environ.get(self.options.api_key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=self.options.concurrency)
        timeout = httpx.Timeout(self.options.timeout_seconds, pool=None)
        jobs = iter(wanted)
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.options.concurrency, len(wanted))):
                        group.create_task(self._work(client, jobs, prompts, finished))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None

    async def _work(
        self, client: "httpx.AsyncClient", jobs: Iterator[int], prompts: Sequence[Prompt], finished: Finished
    ) -> None:
        for index in jobs:
            finished(index, await self._ask(client, prompts[index]))

    async def _ask(self, client: "httpx.AsyncClient", prompt: Prompt) -> Completion:
        """Try until there is an answer."""
        body: dict[str, Any] = {
            "model": self.served_name,
            "messages": [message.model_dump(mode="json") for message in prompt.messages],
            "max_tokens": self.sampling.max_new_tokens,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "seed": prompt.seed,
        }
        if self.sampling.stop:
            body["stop"] = list(self.sampling.stop)
        for attempt in range(self.options.retries + 1):
            try:
                return await self._try(client, body)
            except _Retry as problem:
                if attempt == self.options.retries:
                    raise CheckFailed(
                        f"{self.url} gave no answer in {attempt + 1} tries, last: {problem}. "
                        "All answers so far are kept; the same command goes on from there"
                    ) from None
                growing = min(self.options.backoff_seconds * 2**attempt, _LONGEST_WAIT_SECONDS)
                wait = problem.wait_seconds if problem.wait_seconds is not None else growing
                # Spread, so that all workers do not come back in the same instant; never earlier than asked for.
                await asyncio.sleep(wait + random.random() * 0.25 * growing)
        raise AssertionError("the loop above returns or raises")

    async def _try(self, client: "httpx.AsyncClient", body: dict[str, Any]) -> Completion:
        import httpx

        try:
            response = await client.post(self.url, json=body)
        except httpx.TimeoutException:
            raise _Retry(f"no answer within {self.options.timeout_seconds:g} s") from None
        except httpx.TransportError as error:
            raise _Retry(f"{type(error).__name__}: {error}") from None
        if response.status_code == 429 or response.status_code >= 500 or response.status_code == 408:
            raise _Retry(f"status {response.status_code}", _retry_after(response.headers.get("retry-after")))
        if response.status_code != 200:
            raise CheckFailed(
                f"{self.url} refused model {self.served_name!r} with status {response.status_code}: "
                f"{shorten(response.text, 300)}"
            )
        return _completion(response)


def _completion(response: "httpx.Response") -> Completion:
    """Read an answer; whatever is broken in it is worth another try."""
    try:
        answer = response.json()
        choice = answer["choices"][0]
        text = _text(choice["message"])
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _Retry(f"not a chat completion: {shorten(response.text)}") from None
    reason = _FINISH.get(str(choice.get("finish_reason")))
    if text is None or reason is None:
        raise _Retry(
            f"a completion with content {shorten(text)} and finish_reason {choice.get('finish_reason')!r}, "
            "expected a text that ended by stop or length"
        )
    usage = answer.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Completion(
        text.encode("utf-8", "replace").decode("utf-8"),  # a lone surrogate fits neither UTF-8 nor Parquet
        reason,
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
    )


def _text(message: dict[str, Any]) -> str | None:
    """The raw completion: some servers hand the think block out on its own, here it is put back in front; without
    content it was never closed."""
    content = message.get("content")
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and thought:
        return f"<think>{thought}" + (f"</think>{content}" if isinstance(content, str) else "")
    return content if isinstance(content, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _retry_after(header: str | None) -> float | None:
    """Seconds or an HTTP date; None where it is neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time()
        except (ValueError, TypeError):
            return None
    return min(max(0.0, seconds), _LONGEST_RETRY_AFTER_SECONDS) if seconds == seconds else None  # noqa: PLR0124 - NaN
