"""A model behind any server with the OpenAI chat API: `tagpr_data.chat_server` as a model of the evaluation.

Guarantee and price are that client's: an answer that failed to arrive is an error, never an empty text; nothing that
was answered is asked again; one request a prompt.
"""

import asyncio
from collections.abc import Sequence

from tagpr_data import chat_server
from tagpr_data.chat_server import ChatServer
from tagpr_data.constrain import request_fields
from tagpr_data.errors import InputError
from tagpr_data.tables import canonical_json, sha256_text
from tagpr_eval.config import Decoding, ServerOptions
from tagpr_eval.models import Completion, Finished, Prompt


class OpenAIModel:
    """A served model."""

    def __init__(self, served_name: str, sampling: Decoding, options: ServerOptions) -> None:
        if not options.base_url:
            raise InputError(f"model openai:{served_name} needs --base-url, such as http://127.0.0.1:8000/v1")
        if sampling.constrain != "no" and options.constrain == "none":
            raise InputError(
                f"model openai:{served_name} is to be constrained, but how the server takes a grammar is not said: "
                "give --server-grammar vllm or llama-cpp (server.constrain in a grid)"
            )
        self.sampling = sampling
        self.options = chat_server.ServerOptions(
            base_url=options.base_url,
            model=served_name,
            key_env=options.api_key_env,
            concurrency=options.concurrency,
            timeout_seconds=options.timeout_seconds,
            retries=options.retries,
            backoff_seconds=options.backoff_seconds,
            extra_body=options.extra_body,
            constrain=options.constrain,
        )
        self.url = ChatServer(self.options).url  # refuses what cannot be an address now, not at the first prompt

    @property
    def identity(self) -> str:
        """Hash of the first address, the name and further fields: what runs behind them is the server's secret, and
        further addresses are taken to serve the same."""
        parts = {"url": self.url, "model": self.options.model}
        return sha256_text(
            canonical_json(parts | ({"extra": self.options.extra_body} if self.options.extra_body else {}))
        )

    def batches(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """One request a prompt, in their order."""
        return [[index] for index in range(len(prompts))]

    def generate(self, prompts: Sequence[Prompt], batches: Sequence[Sequence[int]], finished: Finished) -> None:
        """Ask for all; CheckFailed when a prompt stays unanswered after all tries, InputError when it is refused.
        What was answered by then is handed out first."""
        asyncio.run(self._generate(prompts, [index for batch in batches for index in batch], finished))

    async def _generate(self, prompts: Sequence[Prompt], wanted: list[int], finished: Finished) -> None:
        server = ChatServer(self.options)

        async def answer(index: int) -> None:
            prompt = prompts[index]
            grammar = request_fields(self.options.constrain, prompt.constraint)
            said = await server.ask(prompt.messages, self.sampling, prompt.seed, grammar)
            finished(index, Completion(said.text, said.finish_reason, said.input_tokens, said.output_tokens))

        # no request ahead of its turn: limits of tokens and cost count what was answered before they let the next go
        await chat_server.work_through(wanted, answer, min(self.options.at_once, len(wanted)), server)
