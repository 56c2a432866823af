"""Settings of an evaluation. One grid says all: models × tasks × retrievers × k × styles × seeds × protocols on one
data set.

`tagpr-eval run` fills it from its options, `tagpr-eval ablate` from a TOML file. Importing this loads no torch.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from tagpr_data.config import Config
from tagpr_data.constrain import ServerKind
from tagpr_data.errors import InputError
from tagpr_data.prompts import PromptOptions, Style
from tagpr_data.records import Protocol, Sampling, Split
from tagpr_data.tables import explain

Seed = Annotated[int, Field(ge=0)]
Thinking = Literal["auto", "on", "off"]
Constrain = Literal["no", "tags", "labels"]


class Decoding(Sampling):
    """How models write."""

    top_k: int | None = Field(default=None, ge=1)
    """Draw from so many likeliest tokens only; None from all. Before `top_p`; without effect when greedy."""
    constrain: Constrain = "no"
    """What completions are kept to while they are written. `tags`: traces to the tag grammar, citing only items of the
    prompt. `labels`: also answers to the task's labels, where it has some, with style direct too."""


class ChatOptions(Config):
    """What is put around a prompt. All of it is part of the identity of every answer."""

    system_prompt: str | None = None
    """Text before the style's own instruction in the system turn, a blank line between; that instruction stays, as it
    says which form the answer has. `system_prompt_file` reads it from a file instead."""
    thinking: Thinking = "auto"
    """on, off: what chat templates that know `enable_thinking` are told, also those of servers; auto: nothing."""
    template: str | None = None
    """Jinja chat template instead of the model's own (`hf:` models). `template_file` reads it from a file instead."""

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, values: Any) -> Any:
        """Put the text of files in place of their names: the settings of a run hold what it was asked with."""
        if not isinstance(values, dict):
            return values
        read: dict[str, Any] = dict(values)  # pyright: ignore[reportUnknownArgumentType] - pydantic gives what it got
        for name in ("system_prompt", "template"):
            if (path := read.pop(f"{name}_file", None)) is None:
                continue
            if read.get(name) is not None:
                raise ValueError(f"{name} and {name}_file are both given; which one is meant?")
            try:
                read[name] = Path(path).read_text(encoding="utf-8").strip("\n" if name == "system_prompt" else "")
            except (OSError, UnicodeDecodeError, TypeError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise ValueError(f"{name}_file {str(path)!r} cannot be read: {reason}") from None
        return read


class ServerOptions(Config):
    """How an OpenAI-compatible server is asked."""

    base_url: str | tuple[str, ...] | None = None
    """Address up to and without `/chat/completions`, for example `http://127.0.0.1:8000/v1`; or several, of servers
    of the same model."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; unset means no key is sent."""
    concurrency: int = Field(default=16, ge=1)
    """Most requests in flight to one address; 429 and 503 halve them for a while."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """Longest wait for one answer."""
    retries: int = Field(default=6, ge=0)
    """Further tries after 429, 5xx, a time-out, a broken answer or a refused connection."""
    backoff_seconds: float = Field(default=1.0, gt=0)
    """Wait before the first retry; doubles each time, at most a minute, unless the server says `Retry-After`."""
    extra_body: dict[str, Any] = Field(default={})
    """Further fields of every request, such as `top_k` or `chat_template_kwargs`; part of the model's identity."""
    constrain: ServerKind = "none"
    """How the server takes a grammar (`vllm`, `llama-cpp`); needed where `sampling.constrain` asks for one."""


class LocalOptions(Config):
    """How a model is run in this process."""

    batch_size: int = Field(default=64, ge=1)
    """Prompts computed together at most. Part of the identity: in bf16 another batch may round differently."""
    batch_tokens: int = Field(default=40_000, ge=1)
    """Room for tokens, read and to be written, in one batch at most: bounds the memory of long prompts."""
    device: str | None = None
    """torch device; None takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bf16 on a GPU and on CPUs that multiply in bf16, else float32."""


class ModelOptions(Config):
    """What one model is asked in place of what all are asked; None leaves it at that."""

    styles: Annotated[tuple[Style, ...], Field(min_length=1)] | None = None
    """Prompt styles."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest completion."""
    tagset: str | None = None
    """Tag set its traces are judged by and kept to: a model that was taught another one."""


class EvaluationConfig(Config):
    """One evaluation: every combination is a cell."""

    dataset: str
    """Data set folder, folder of LaMP's own files, or OWNER/NAME of the Hub (`tagpr_data.data_source`)."""
    split: Split = "test"
    """Split to answer."""
    models: tuple[str, ...] = Field(min_length=1)
    """`hf:DIR_OR_ID`, `openai:NAME` or a baseline; `name=hf:DIR` gives it a name for tables."""
    tasks: tuple[str, ...] = ()
    """Tasks of the data set; none means all."""
    retrievers: tuple[str, ...] = ("bm25",)
    """Names in `retrieve.RETRIEVERS`, and the controls `none` and `wrong-user`."""
    encoder: str = "minilm"
    """Text encoder of the retrievers dense and hybrid (`encoders.py`)."""
    k: tuple[Annotated[int, Field(ge=0)], ...] = (4,)
    """Items per prompt; 0 is the control `none`."""
    styles: tuple[Style, ...] = ("direct",)
    """Prompt styles."""
    seeds: tuple[Seed, ...] = (0,)
    """Seeds of random retrieval, of the choice of wrong users and of sampling."""
    examples: Annotated[int, Field(ge=1)] | None = None
    """Examples per task, a fixed draw that grows with the number; None takes all."""
    item_words: int | None = Field(default=None, ge=1)
    """Cut each field of an item after so many words."""
    input_words: int | None = Field(default=None, ge=1)
    """Cut the input after so many words."""
    tagset: str | None = None
    """Tag-set file, or name of a shipped set; None is tagpr-9."""
    protocols: tuple[Protocol, ...] = ("generation",)
    """How an answer is got (`records.Protocol`). `log-likelihood`: `hf:` models, tasks with labels, style direct."""
    sampling: Decoding = Decoding()
    """How models write."""
    samples: int = Field(default=1, ge=1)
    """Answers of each model to each question; more than one need a temperature above 0. The first is the prediction,
    all are in `samples.parquet`, where `best-of` chooses among them."""
    chat: ChatOptions = ChatOptions()
    """What is put around a prompt."""
    local: LocalOptions = LocalOptions()
    """For `hf:` models."""
    server: ServerOptions = ServerOptions()
    """For `openai:` models."""
    per_model: dict[str, ModelOptions] = Field(default={})
    """What single models are asked instead, by name: a model that was not taught to reason is asked in another style
    than one that was."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name in ("models", "tasks", "retrievers", "k", "styles", "seeds", "protocols"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names something twice: {', '.join(map(str, values))}")
            if not values and name != "tasks":
                raise ValueError(f"{name} is empty")
        return self

    @model_validator(mode="after")
    def _samples_that_differ(self) -> Self:
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(f"samples = {self.samples} at temperature 0 are {self.samples} times the same: raise it")
        if self.samples > 1 and "log-likelihood" in self.protocols:
            raise ValueError(
                f"samples = {self.samples}: protocol log-likelihood gives one answer; ask it in another run"
            )
        return self

    @model_validator(mode="after")
    def _something_to_constrain(self) -> Self:
        if self.sampling.constrain == "tags" and not {"trace", "trace-explained"} & set(self.all_styles()):
            styles = ", ".join(self.all_styles())
            raise ValueError(f"constrain tags is for traces, but style {styles} asks for none: add style trace")
        return self

    @model_validator(mode="after")
    def _per_model_names(self) -> Self:
        names = [model_name(text) for text in self.models]
        if strangers := [name for name in self.per_model if name not in names]:
            raise ValueError(f"per_model names {strangers[0]!r}, which is none of the models: {', '.join(names)}")
        for name, own in self.per_model.items():
            if own.tagset is not None and "trace-explained" in (own.styles or self.styles):
                raise ValueError(
                    f"per_model.{name}.tagset: prompts of style trace-explained list one tag set for all models; ask "
                    "this model in a run of its own, with tagset"
                )
        return self

    def for_model(self, name: str) -> "EvaluationConfig":
        """Give the settings one model is asked with."""
        own = self.per_model.get(name, ModelOptions())
        sampling = self.sampling
        if own.max_new_tokens is not None:
            sampling = sampling.model_copy(update={"max_new_tokens": own.max_new_tokens})
        own_set = {} if own.tagset is None else {"tagset": own.tagset}
        return self.model_copy(
            update={"styles": own.styles or self.styles, "sampling": sampling, "per_model": {}, **own_set}
        )

    def all_styles(self) -> tuple[Style, ...]:
        """Give the styles that some model is asked in."""
        by_model = [self.for_model(model_name(text)).styles for text in self.models]
        return tuple(dict.fromkeys(style for styles in by_model for style in styles))

    def prompt_options(self, style: Style) -> PromptOptions:
        """Give the prompt options of one style."""
        return PromptOptions(style=style, item_words=self.item_words, input_words=self.input_words)


def model_name(text: str) -> str:
    """Give the name of a model written `NAME=hf:…`, or the whole where it has none."""
    named = re.match(r"([^:=]+)=.", text)
    return named[1] if named else text


def from_options(options: Mapping[str, Any]) -> EvaluationConfig:
    """Give the settings of command-line options, an option that is None or empty being left at its default;
    InputError names each wrong one."""
    given = {name: value for name, value in options.items() if value is not None and value != []}
    try:
        return EvaluationConfig.model_validate(given)
    except ValidationError as error:
        raise InputError(f"wrong option: {explain(error)}") from None


def read_shard(text: str) -> tuple[int, int]:
    """Read `I/N` with 1 ≤ I ≤ N."""
    if (match := re.fullmatch(r"([1-9][0-9]*)/([1-9][0-9]*)", text)) and int(match[1]) <= int(match[2]):
        return int(match[1]), int(match[2])
    raise InputError(f"--shard {text!r} is not I/N with 1 ≤ I ≤ N, such as 2/4")
