"""What answers prompts: the three kinds of language model behind one protocol, and how a model is named.

    hf:DIR_OR_ID       transformers, also a LoRA adapter folder          hf.py
    openai:NAME        any server with the OpenAI chat API               openai_chat.py
    vllm:DIR_OR_ID     vLLM in this process, for GPUs                    vllm_model.py
    majority, knn, …   baselines that need no model                      baselines.py

`NAME=hf:DIR` names the model NAME in every table.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tagpr_data.constrain import Constraint
from tagpr_data.errors import InputError, shorten
from tagpr_data.records import FinishReason, Message, Sampling
from tagpr_data.tables import sha256_text
from tagpr_eval.baselines import BASELINES
from tagpr_eval.config import EvaluationConfig, ServerOptions

Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote for one prompt."""

    text: str
    """Raw completion without the end token."""
    finish_reason: FinishReason
    """`length`: cut at `max_new_tokens`."""
    input_tokens: int | None = None
    """Prompt tokens, where counted."""
    output_tokens: int | None = None
    """Completion tokens, where counted."""
    label_logprobs: tuple[float, ...] | None = None
    """For a prompt with labels: log-probability in nats of each, and `text` is the likeliest."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt to be answered, with its own seed."""

    messages: Messages
    """The chat. A last turn of role `assistant` is the start of the answer: the completion is what follows it."""
    seed: int
    """Seed of the sampling; without effect when greedy."""
    labels: tuple[str, ...] = ()
    """Protocol log-likelihood: the texts to be scored instead of writing one. All prompts of a batch have the same."""
    constraint: Constraint | None = None
    """What the completion is kept to; None: nothing."""


Finished = Callable[[int, Completion], None]
"""Called with the position of a prompt as soon as its completion is there; may be called from any thread, one call
at a time."""


class Model(Protocol):
    """A language model."""

    @property
    def identity(self) -> str:
        """Hash of all that decides its answers besides prompt, sampling and seed: weights or address, template."""
        ...

    def batches(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Cut the positions of `prompts` into what is computed together. The plan depends on the prompts alone, so
        that a continued or sharded run computes the same batches and thereby the same bits."""
        ...

    def generate(self, prompts: Sequence[Prompt], batches: Sequence[Sequence[int]], finished: Finished) -> None:
        """Answer the prompts of these batches. An error ends the call; what was finished stays finished."""
        ...


@dataclass(frozen=True, slots=True)
class Spec:
    """A model as named on the command line."""

    name: str
    """Name in tables: the part before `=`, or the whole."""
    kind: str
    """`hf`, `openai`, `vllm` or `baseline`."""
    place: str
    """Folder, repository id, served name or baseline."""


def parse_spec(text: str) -> Spec:
    """Read `[name=]kind:place` or `[name=]baseline`; InputError lists what there is."""
    name, target = text, text
    if match := re.match(r"([^:=]+)=(.+)", text):
        name, target = match.groups()
    if target in BASELINES:
        return Spec(name, "baseline", target)
    kind, _, place = target.partition(":")
    if kind not in ("hf", "openai", "vllm") or not place:
        known = ", ".join(("hf:DIR_OR_ID", "openai:NAME", "vllm:DIR_OR_ID", *BASELINES))
        raise InputError(f"model {shorten(text)} is unknown; known: {known}, each also as NAME=…")
    return Spec(name, kind, place)


def open_model(spec: Spec, config: EvaluationConfig) -> Model:
    """Give the language model of a spec. Weights are read when the first prompt is answered, not here."""
    if spec.kind == "hf":
        from tagpr_eval.hf import HfModel

        return HfModel(spec.place, config.sampling, config.local, config.chat)
    if "log-likelihood" in config.protocols:
        raise InputError(
            f"model {spec.name}: protocol log-likelihood needs the probabilities of given texts, which the chat API "
            "of a server, and vllm: here, do not tell; use protocol generation, or the same model as hf:DIR_OR_ID"
        )
    if spec.kind == "vllm":
        from tagpr_eval.vllm_model import VllmModel

        return VllmModel(spec.place, config.sampling, config.local, config.chat)
    if config.chat.template is not None:
        raise InputError(
            f"model {spec.name}: a server puts prompts into its own chat template; start it with another one instead "
            "of asking with --chat-template-file"
        )
    from tagpr_eval.openai_chat import OpenAIModel

    return OpenAIModel(spec.place, config.sampling, _server_options(config))


def _server_options(config: EvaluationConfig) -> ServerOptions:
    """Give the server's options with what the chat API has no field of its own for; what `extra_body` says wins."""
    given = config.server.extra_body
    extra = ({} if config.sampling.top_k is None else {"top_k": config.sampling.top_k}) | given
    if config.chat.thinking != "auto":
        switch = {"enable_thinking": config.chat.thinking == "on"}
        extra["chat_template_kwargs"] = switch | given.get("chat_template_kwargs", {})
    return config.server.model_copy(update={"extra_body": extra})


def is_begun(messages: Messages) -> bool:
    """Whether the chat ends in the start of an answer, which the model is to continue."""
    return bool(messages) and messages[-1].role == "assistant"


def effective_seed(sampling: Sampling, seed: int) -> int:
    """Give the seed that matters: greedy answers depend on none, so that all seeds share them."""
    return seed if sampling.temperature > 0 else 0


def sample_seed(seed: int, sample: int) -> int:
    """Give the seed of the n-th answer (from 0) to a question; the first one's is `seed` itself, so that it is the
    answer of a run that asks once."""
    return int(sha256_text(f"{seed}/{sample}")[:8], 16) if sample else seed
