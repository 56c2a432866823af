"""A model run by vLLM in this process, offline: for GPUs, the extra `vllm`.

`VllmChat` answers a batch of questions, `VllmServer` single ones as `ChatServer` does: those that wait go to vLLM
together. Guarantee: prompts, sampling, seeds and the grammar of constrained decoding (vLLM's structured outputs) are
those of a served vLLM; a question that vLLM refuses is told apart and costs the others nothing. Price: the answers of a
batch come all at once, so a kill loses one batch; which prompts share a batch is vLLM's choice, so in bf16 two runs may
differ in a rounding.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tagpr_data.chat_server import Answer, PromptRefused
from tagpr_data.config import Config
from tagpr_data.errors import CheckFailed, InputError, TagprError
from tagpr_data.model_files import model_folder
from tagpr_data.records import FinishReason, Message, Sampling

_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class VllmOptions(Config):
    """Which model vLLM runs, and how."""

    model: str
    """A whole model's folder, or a repository id of the Hub; merge LoRA adapters first."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the weights; auto: what the model's config says."""
    engine: dict[str, Any] = Field(default={})
    """Further arguments of `vllm.LLM`, such as `max_model_len` or `tensor_parallel_size`."""
    concurrency: int = Field(default=256, ge=1)
    """Most questions that vLLM is given together."""
    constrain: Literal["none", "vllm"] = "none"
    """`vllm`: completions are kept to the tag grammar."""

    @property
    def name(self) -> str:
        """The model's name in rows and price files: a folder's last part, or the repository id."""
        folder = Path(self.model)
        return folder.resolve().name if folder.is_dir() else self.model

    @property
    def extra_body(self) -> dict[str, Any]:
        """What decides the answers besides model, prompt and sampling; as of a server, part of a row's lineage."""
        return self.engine | ({} if self.dtype == "auto" else {"dtype": self.dtype})


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt to be answered."""

    messages: Sequence[Message]
    """The chat. A last turn of role `assistant` is the start of the answer: the answer is what follows it."""
    sampling: Sampling
    """How to sample."""
    seed: int
    """Seed of this question."""
    top_k: int | None = None
    """Draw from so many likeliest tokens only; None from all."""
    grammar: str | None = None
    """GBNF grammar that the answer is kept to."""


class VllmChat:
    """A model that vLLM has in memory from the first question on."""

    def __init__(
        self,
        model: str,
        dtype: str = "auto",
        template: str | None = None,
        thinking: Literal["auto", "on", "off"] = "auto",
        engine: Mapping[str, Any] | None = None,
    ) -> None:
        """template: Jinja chat template instead of the model's own. thinking: what templates that know
        `enable_thinking` are told. engine: further arguments of `vllm.LLM`. InputError for an adapter or no model."""
        self.folder = model_folder(model)
        if (self.folder / "adapter_config.json").is_file():
            raise InputError(f"{self.folder} is a LoRA adapter; merge it into its base for vLLM")
        self.dtype, self.template, self.thinking = dtype, template, thinking
        self._engine = dict(engine or {})

    def answer(self, questions: Sequence[Question]) -> list[Answer | PromptRefused]:
        """Give an answer to each question, in their order, or why vLLM refuses it, as one too long for the model.
        InputError where vLLM is not installed or cannot load the model."""
        found: dict[int, Answer | PromptRefused] = {}
        for is_begun in (False, True):  # one call has one way to end its prompts
            wanted = [
                index
                for index, question in enumerate(questions)
                if (question.messages[-1].role == "assistant") is is_begun
            ]
            if wanted:
                said = self._answer_alike([questions[index] for index in wanted], is_begun)
                found |= zip(wanted, said, strict=True)
        return [found[index] for index in range(len(questions))]

    def _answer_alike(self, questions: Sequence[Question], is_begun: bool) -> list[Answer | PromptRefused]:
        """Answer questions that end in the same way; where vLLM refuses the batch, each half by itself."""
        llm = self._llm
        thinking = {} if self.thinking == "auto" else {"enable_thinking": self.thinking == "on"}
        try:
            outputs = llm.chat(
                [[message.model_dump(mode="json") for message in question.messages] for question in questions],
                [_parameters(question) for question in questions],
                use_tqdm=False,
                chat_template=self.template,
                add_generation_prompt=not is_begun,
                continue_final_message=is_begun,
                chat_template_kwargs=thinking or None,
            )
        except _refusals() as error:
            if len(questions) == 1:
                return [PromptRefused(f"vLLM refused a prompt: {_first_line(error)}")]
            half = len(questions) // 2
            return self._answer_alike(questions[:half], is_begun) + self._answer_alike(questions[half:], is_begun)
        return [
            Answer(
                output.outputs[0].text,
                _FINISH.get(str(output.outputs[0].finish_reason), "error"),
                len(output.prompt_token_ids),
                len(output.outputs[0].token_ids),
            )
            for output in outputs
        ]

    @cached_property
    def _llm(self) -> Any:
        try:
            from vllm import LLM  # pyright: ignore[reportMissingImports] - the extra
        except ImportError:
            raise InputError(
                "vLLM, a GPU library, is not installed: pip install 'tagpr-data[vllm]'; without it use a server "
                "(openai), or in an evaluation hf:DIR_OR_ID"
            ) from None
        try:
            return LLM(
                model=str(self.folder), **{"dtype": self.dtype, "seed": 0, "disable_log_stats": True} | self._engine
            )
        except (TypeError, ValueError, OSError, RuntimeError) as error:
            raise InputError(f"vLLM does not load {self.folder}: {_first_line(error)}") from None


class VllmServer:
    """Single questions to a model in this process, as `ChatServer` takes them; use it within one event loop."""

    def __init__(self, options: VllmOptions) -> None:
        self.options = options
        self.chat = VllmChat(options.model, options.dtype, engine=options.engine)
        self._waiting: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._worker: asyncio.Task[None] | None = None
        self._is_stopped = False

    async def ask(
        self, messages: Sequence[Message], sampling: Sampling, seed: int, extra: Mapping[str, Any] | None = None
    ) -> Answer:
        """Give the answer. InputError when vLLM is missing or refuses (PromptRefused: this question alone), CheckFailed
        when it breaks off. `extra` is what `constrain.request_fields` gives for vLLM."""
        if self._is_stopped:
            raise CheckFailed("vLLM: stopped before there was an answer")
        grammar = (extra or {}).get("structured_outputs", {}).get("grammar")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((Question(messages, sampling, seed, grammar=grammar), answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await answer

    def stop(self) -> None:
        """Ask nothing more: the batch on its way still arrives, what waits for the next one ends in CheckFailed."""
        self._is_stopped = True

    async def close(self) -> None:
        """Wait for the batch on its way."""
        if self._worker is not None:
            await self._worker

    async def _work(self) -> None:
        """Put what waits to vLLM, until nothing does."""
        while self._waiting:
            await asyncio.sleep(0)  # those about to ask join in
            batch, self._waiting = self._waiting, []
            said: Sequence[Answer | TagprError]
            try:
                if self._is_stopped:
                    raise CheckFailed("vLLM: stopped before there was an answer")
                said = await asyncio.to_thread(self.chat.answer, [question for question, _ in batch])
            except TagprError as error:
                said = [error] * len(batch)
            except Exception as error:  # whatever kills vLLM's engine: memory, a signal, a driver
                kept = "All answers so far are kept; the same command goes on from there"
                broken = CheckFailed(f"vLLM broke off: {type(error).__name__}: {_first_line(error)}. {kept}")
                said = [broken] * len(batch)
            for (_, future), one in zip(batch, said, strict=True):
                if future.done():
                    continue
                if isinstance(one, Answer):
                    future.set_result(one)
                else:
                    future.set_exception(one)


def _parameters(question: Question) -> Any:
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports] - the extra
    from vllm.sampling_params import StructuredOutputsParams  # pyright: ignore[reportMissingImports]

    sampling = question.sampling
    return SamplingParams(
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=question.top_k or 0,
        seed=question.seed,
        stop=list(sampling.stop),
        structured_outputs=StructuredOutputsParams(grammar=question.grammar) if question.grammar else None,
        skip_special_tokens=True,
    )


def _refusals() -> tuple[type[Exception], ...]:
    """Give what vLLM raises for a request that it does not take; ValueError before it had kinds of its own."""
    try:
        from vllm.exceptions import VLLMClientError  # pyright: ignore[reportMissingImports, reportUnknownVariableType]
    except ImportError:
        return (ValueError,)
    return (ValueError, VLLMClientError)  # pyright: ignore[reportUnknownVariableType]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
