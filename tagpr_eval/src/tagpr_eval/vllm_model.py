"""A model run by vLLM in this process: `tagpr_data.vllm_chat` as a model of the evaluation, the extra `vllm`.

Guarantee and price are that module's. Answers are handed out in portions of 256 prompts, so a kill loses at most one
portion.
"""

from collections.abc import Sequence
from pathlib import Path

from tagpr_data.chat_server import Answer
from tagpr_data.model_files import files_hash
from tagpr_data.tables import canonical_json, sha256_text
from tagpr_data.vllm_chat import Question, VllmChat
from tagpr_eval.config import ChatOptions, Decoding, LocalOptions
from tagpr_eval.models import Completion, Finished, Prompt

_PORTION = 256
_AS_IT_IS = ChatOptions()


class VllmModel:
    """A whole model folder, or a repository id of the Hub; merge LoRA adapters first."""

    def __init__(self, place: str, sampling: Decoding, options: LocalOptions, chat: ChatOptions = _AS_IT_IS) -> None:
        self._chat = VllmChat(place, options.dtype, chat.template, chat.thinking)
        self.folder: Path = self._chat.folder
        self.sampling = sampling
        self.options = options
        self.chat = chat

    @property
    def identity(self) -> str:
        """Hash of the files' content, the chat options and dtype, and that vLLM computes."""
        parts = [files_hash(self.folder), "vllm", self.chat.template, self.chat.thinking, self.options.dtype]
        return sha256_text(canonical_json(parts))

    def batches(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Portions of prompts in their order."""
        return [list(range(len(prompts)))[start : start + _PORTION] for start in range(0, len(prompts), _PORTION)]

    def generate(self, prompts: Sequence[Prompt], batches: Sequence[Sequence[int]], finished: Finished) -> None:
        """Answer portion by portion. InputError where vLLM refuses a prompt; the others of its portion are finished."""
        for batch in batches:
            refusal = None
            answers = self._chat.answer([self._question(prompts[index]) for index in batch])
            for index, said in zip(batch, answers, strict=True):
                if isinstance(said, Answer):
                    finished(index, Completion(said.text, said.finish_reason, said.input_tokens, said.output_tokens))
                else:
                    refusal = refusal or said
            if refusal is not None:
                raise refusal

    def _question(self, prompt: Prompt) -> Question:
        grammar = prompt.constraint.grammar("gbnf") if prompt.constraint else None
        return Question(prompt.messages, self.sampling, prompt.seed, self.sampling.top_k, grammar)
