"""A model run by vLLM in this process, offline: for GPUs, the extra `vllm`.

All prompts of a call go to `LLM.chat` at once and vLLM batches them itself. Guarantee: prompts, sampling, seeds and the
grammar of constrained decoding (vLLM's structured outputs) are those of a served vLLM. Price: answers are handed out
in portions of 256 prompts, so a kill loses at most one portion; which prompts share a batch is vLLM's choice, so in
bf16 two runs may differ in a rounding.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tagpr_data.errors import InputError
from tagpr_data.records import FinishReason
from tagpr_data.tables import canonical_json, sha256_text
from tagpr_eval import hf
from tagpr_eval.config import ChatOptions, Decoding, LocalOptions
from tagpr_eval.models import Completion, Finished, Prompt, is_begun

_PORTION = 256
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
_AS_IT_IS = ChatOptions()


class VllmModel:
    """A whole model folder, or a repository id of the Hub; merge LoRA adapters first."""

    def __init__(self, place: str, sampling: Decoding, options: LocalOptions, chat: ChatOptions = _AS_IT_IS) -> None:
        self.folder: Path = hf.model_folder(place)
        if (self.folder / "adapter_config.json").is_file():
            raise InputError(f"{self.folder} is a LoRA adapter; merge it into its base for vllm:, or use hf:")
        self.sampling = sampling
        self.options = options
        self.chat = chat

    @property
    def identity(self) -> str:
        """Hash of the files' content, the chat options and dtype, and that vLLM computes."""
        parts = [hf.files_hash(self.folder), "vllm", self.chat.template, self.chat.thinking, self.options.dtype]
        return sha256_text(canonical_json(parts))

    def batches(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Portions of prompts in their order."""
        return [list(range(len(prompts)))[start : start + _PORTION] for start in range(0, len(prompts), _PORTION)]

    def generate(self, prompts: Sequence[Prompt], batches: Sequence[Sequence[int]], finished: Finished) -> None:
        """Answer portion by portion."""
        for batch in batches:
            for is_prefilled in (False, True):  # one call has one way to end its prompts
                wanted = [index for index in batch if is_begun(prompts[index].messages) is is_prefilled]
                if wanted:
                    self._answer(prompts, wanted, is_prefilled, finished)

    def _answer(self, prompts: Sequence[Prompt], wanted: list[int], is_prefilled: bool, finished: Finished) -> None:
        thinking = {} if self.chat.thinking == "auto" else {"enable_thinking": self.chat.thinking == "on"}
        found = self._llm.chat(
            [[message.model_dump(mode="json") for message in prompts[index].messages] for index in wanted],
            [self._parameters(prompts[index]) for index in wanted],
            use_tqdm=False,
            chat_template=self.chat.template,
            add_generation_prompt=not is_prefilled,
            continue_final_message=is_prefilled,
            chat_template_kwargs=thinking or None,
        )
        for index, output in zip(wanted, found, strict=True):
            written = output.outputs[0]
            reason = _FINISH.get(str(written.finish_reason), "error")
            finished(index, Completion(written.text, reason, len(output.prompt_token_ids), len(written.token_ids)))

    def _parameters(self, prompt: Prompt) -> Any:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports] - the extra
        from vllm.sampling_params import StructuredOutputsParams  # pyright: ignore[reportMissingImports]

        grammar = prompt.constraint.grammar("gbnf") if prompt.constraint else None
        return SamplingParams(
            max_tokens=self.sampling.max_new_tokens,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            top_k=self.sampling.top_k or 0,
            seed=prompt.seed,
            stop=list(self.sampling.stop),
            structured_outputs=StructuredOutputsParams(grammar=grammar) if grammar else None,
            skip_special_tokens=True,
        )

    @cached_property
    def _llm(self) -> Any:
        try:
            from vllm import LLM  # pyright: ignore[reportMissingImports] - the extra
        except ImportError:
            raise InputError(
                "models vllm:… need vLLM, a GPU library: pip install 'tagpr-eval[vllm]'; without one take hf:DIR_OR_ID"
            ) from None
        dtype = self.options.dtype
        try:
            return LLM(model=str(self.folder), dtype=dtype, seed=0, disable_log_stats=True)
        except (ValueError, OSError) as error:
            raise InputError(f"vLLM does not load {self.folder}: {(str(error).splitlines() or [''])[0]}") from None
