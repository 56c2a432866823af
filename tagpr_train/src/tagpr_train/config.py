"""Settings of the training stages, one model per stage. Checked before anything heavy is imported.

trl's own options are not mirrored: what stands under `[trainer]` is handed to trl, and trl knows what is allowed
there. The few options that would contradict ours are refused by name.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tagpr_data.config import Config

OWN_OPTIONS = {
    "output_dir": "`output`",
    "seed": "`seed`",
    "data_seed": "`seed`",
    "max_length": "`max_tokens`",
    "packing": "batches are grouped by length instead",
    "eval_packing": "batches are grouped by length instead",
    "padding_free": "batches are grouped by length instead",
    "group_by_length": "batches are always grouped by length",
    "train_sampling_strategy": "batches are always grouped by length",
    "model_init_kwargs": "`model` and `dtype`",
    "dataset_kwargs": "the corpus is tokenised here",
    "eval_strategy": "`eval_every_steps`",
    "resume_from_checkpoint": "the flag --resume",
    "bf16": "`dtype`",
    "fp16": "`dtype`",
    "trust_remote_code": "code of models is never run",
    "push_to_hub": "publishing is a command of its own",
    "assistant_only_loss": "the loss is on the completion only",
    "completion_only_loss": "the loss is on the completion only",
}
"""trl options that may not stand under `[trainer]`, and what to use instead."""

CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
"""trl's option to trade time for memory, by its newer and its older name."""


class Lora(Config):
    """A low-rank adapter on linear layers."""

    r: int = Field(default=16, ge=1)
    """Rank."""
    alpha: float = Field(default=32, gt=0)
    """Scale; the update is multiplied by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which layers: peft's `all-linear` (all but the head) or names."""


class Sft(Config):
    """Supervised fine-tuning on the traces of a corpus."""

    corpus: Path
    """Corpus folder."""
    output: Path
    """Run folder; refused when it holds another run."""
    model: str = "smollm2-135m-instruct"
    """Base model: the embedded one by this name, a folder, or a Hub id."""
    revision: str | None = None
    """Commit of the model on the Hub; None takes the newest."""
    tasks: tuple[str, ...] | None = None
    """Train on these tasks of the corpus only; None takes all."""
    tagset: Path | None = None
    """Tag-set file of the corpus; None is the shipped one."""
    target: Literal["trace", "answer"] = "trace"
    """`trace`: think block and answer. `answer`: the answer alone, under the direct prompt (the comparison run)."""

    adapter: Literal["lora", "none"] = "lora"
    """`lora` trains a small adapter, `none` every weight."""
    lora: Lora = Lora()
    """The adapter's shape."""
    single_token_tags: bool = True
    """Add each tag mark as one token, started at the mean of its pieces; about 40 tokens less per trace. Under LoRA
    only these rows of the embedding are trained."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the weights. The optimiser works on float32 masters in both cases."""
    prompt_gradient: bool = True
    """False: the prompt is read without gradient into a cache, and only the completion is trained through. Nearly
    twice as fast on long prompts, but an approximation: no gradient reaches the keys and values of the prompt."""
    answer_weight: float = Field(default=1.0, gt=0)
    """Weight of the answer's tokens in the loss; those of the think block have 1."""
    max_tokens: int | None = Field(default=None, ge=16)
    """Longest prompt + completion; None is the model's context. A longer prompt loses its middle, and is counted; a
    completion that leaves no room for 16 tokens of prompt is left out, and is counted."""

    max_minutes: float | None = Field(default=None, gt=0)
    """Time budget of the training steps: training stops cleanly before it is spent, and the learning rate decays to
    that moment instead of to the last step. Such a run depends on the machine's speed."""
    warmup_steps: int = Field(default=8, ge=0)
    """Steps of linear warm-up."""
    hold: float = Field(default=0.3, ge=0, le=1)
    """Share of the run (of its steps or its minutes, whichever is further) at the full rate; then linear decay to 0.
    Ignored where `trainer.lr_scheduler_type` asks for one of trl's schedules."""
    eval_every_steps: int | None = Field(default=None, ge=1)
    """Measure the validation loss every so many steps; at the end it is always measured."""
    eval_examples: int = Field(default=64, ge=0)
    """At most so many validation traces, spread over the split; 0 leaves the validation loss out."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; None leaves it to torch."""
    merge: bool = False
    """Save the merged weights in `model/` instead of the adapter: larger, loadable without peft."""
    seed: int = 0
    """Seed of everything random."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Options of `trl.SFTConfig` as they are named there."""

    @model_validator(mode="after")
    def _no_contradiction(self) -> "Sft":
        for name, instead in OWN_OPTIONS.items():
            if name in self.trainer:
                raise ValueError(f"trainer.{name} is not set here: {instead}")
        if self.max_minutes is not None and "lr_scheduler_type" in self.trainer:
            raise ValueError("trainer.lr_scheduler_type does not know of max_minutes; use warmup_steps and hold")
        for name in CHECKPOINTING:
            if not self.prompt_gradient and self.trainer.get(name):
                raise ValueError(f"trainer.{name} needs prompt_gradient = true")
        return self
