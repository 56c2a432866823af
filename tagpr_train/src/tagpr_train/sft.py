"""Supervised fine-tuning on a corpus of traces: a run folder with an adapter (or weights) and a tokenizer.

trl's SFTTrainer runs the loop; `loop.Durable` replaces what a small machine needs otherwise, and `SftTrainer` takes the
loss at label positions only (`label_loss`).
The paper's hyper-parameters are not public; every setting is ours.

Guarantee: the same config, corpus, versions and machine give the same weights bit for bit on a CPU, and a run that was
interrupted and resumed gives what an uninterrupted one gives; both without `max_minutes`, which follows the clock.
"""

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from tagpr_data.data_source import find_corpus
from tagpr_data.errors import InputError
from tagpr_data.records import RunManifest
from tagpr_data.tags import TagSet
from tagpr_train import dataset, label_loss, loop, model_card, pretrained, ranks, runs, tag_tokens
from tagpr_train.config import SFT_BATCH_SIZE, Rl, Sft
from tagpr_train.loop import Durable, Report, Weights, newest_checkpoint, stopping_on_signals

logger = logging.getLogger(__name__)


def train(config: Sft, *, resume: bool = False, report: Report | None = None) -> RunManifest:
    """Train as `config` says into `config.output`; give the run's manifest.

    Its status is `running` when SIGTERM or SIGINT stopped it: the folder then holds a checkpoint, and `resume` goes on.
    A complete run is given back as it is when `resume` is set. `report` gets every line of metrics.jsonl.
    """
    arguments = trainer_arguments(config)
    place = find_corpus(config.corpus)
    corpus = dataset.read_manifest(place)
    tagset = dataset.corpus_tagset(corpus, config.tagset)
    with runs.held(config.output):
        manifest = runs.open_run(config.output, "sft", config, {corpus.name: corpus.content_hash}, config.seed, resume)
        if manifest.status == "complete":
            return runs.same_models(
                config.output, manifest, lambda: pretrained.content_hashes(config.model, here_only=True)
            )
        if config.threads:
            torch.set_num_threads(config.threads)
        set_seed(config.seed)
        model, tokenizer = load(config)
        manifest = runs.same_models(
            config.output, manifest, lambda: pretrained.content_hashes(config.model, config.revision)
        )
        row_ids = _add_marks(model, tokenizer, tagset, config) if config.single_token_tags else []
        train_set, validation_set = (
            _examples(config, place, corpus, split, model, tokenizer, tagset) for split in ("train", "validation")
        )
        _check_not_empty(train_set, config)
        label_loss.install(
            model.get_base_model() if is_adapted(model) else model, prompt_gradient=config.prompt_gradient
        )
        model = with_adapter(model, config, row_ids)
        trainer = SftTrainer(config, arguments, model, tokenizer, train_set, validation_set, report)
        check_sharding(trainer, model, merge=config.merge)
        with stopping_on_signals(trainer):
            trainer.train(resume_from_checkpoint=newest_checkpoint(config.output))
        if trainer.stopped_by is not None:
            return manifest
        results = trainer.results() | {
            "counts": train_set.counts,
            "trainable_rows": len(row_ids),
            "licence": corpus.licence,
        }

        weights = trainer.gathered()

        def finish() -> RunManifest:
            with runs.atomic_folder(config.output / "model") as folder:
                save(trainer.network, tokenizer, folder, merge=config.merge, weights=weights)
            finished = runs.finish_run(config.output, manifest, "complete", results)
            model_card.write(config.output)
            shutil.rmtree(config.output / "checkpoints", ignore_errors=True)
            return finished

        return ranks.first_does(finish)


def trainer_arguments(config: Sft) -> SFTConfig:
    """Give trl's settings; InputError on an option trl does not know or a value it refuses."""
    return loop.trainer_arguments(SFTConfig, config, SFT_BATCH_SIZE, {"dataset_kwargs": {"skip_prepare_dataset": True}})


def load(config: Sft | Rl) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load what is trained on, and its tokenizer; safetensors only, no remote code. An adapter goes on being trained,
    or with `adapter = "none"` is merged into its base."""
    trains, dtype = config.adapter == "lora", getattr(torch, config.dtype)
    model, tokenizer = pretrained.load(config.model, revision=config.revision, dtype=dtype, is_trainable=trains)
    if is_adapted(model) and not trains:
        model = model.merge_and_unload().requires_grad_(True)
    end = dataset.end_of_turn(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)  # generation stops where the trained turn ends
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer


def is_adapted(model: Any) -> bool:
    """Tell whether a model is an adapter on its base."""
    return hasattr(model, "peft_config")


def with_adapter(model: PreTrainedModel, config: Sft | Rl, row_ids: list[int]) -> Any:
    """Wrap the model in a LoRA adapter that also trains the rows of the added tokens; as it is without one, or where it
    is one already."""
    if config.adapter == "none" or is_adapted(model):
        return model
    from peft import LoraConfig, get_peft_model

    targets = config.lora.target_modules
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.r,
        lora_alpha=config.lora.alpha,  # pyright: ignore[reportArgumentType] - a float works; peft says int
        lora_dropout=config.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        trainable_token_indices=tag_tokens.trainable_rows(model, row_ids) or None,
    )
    try:
        return get_peft_model(model, lora, autocast_adapter_dtype=False)
    except ValueError as error:
        raise InputError(f"lora.target_modules = {targets!r} does not fit the model: {error}") from None


def save(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, *, merge: bool, weights: Weights = None) -> None:
    """Write what an evaluation loads: the adapter, or with `merge` (and without an adapter) whole weights, and the
    tokenizer. For an adapter the base model must first be widened to `len(tokenizer)` where that is larger. `weights`
    as in `write_weights`; they are not merged."""
    if merge and is_adapted(model):
        model = model.merge_and_unload()
    write_weights(model, folder, weights)
    tokenizer.save_pretrained(folder)


def check_sharding(trainer: Durable, model: Any, *, merge: bool) -> None:
    """Raise InputError for an adapter that cannot be trained on sharded weights, where they are."""
    if not is_adapted(model):
        return
    if merge:
        trainer.refuse_sharded("merge = true")
    if trainer.is_fsdp_enabled and any(shape.trainable_token_indices for shape in model.peft_config.values()):
        trainer.refuse_sharded('an adapter with rows of the embedding (single_token_tags with adapter = "lora")')


def load_adapter(model: Any, folder: Path) -> bool:
    """Take over the adapter that `write_weights` wrote, in its own type (transformers' way would make it float32);
    False where the folder holds whole weights."""
    adapter = folder / "adapter_model.safetensors"
    if not adapter.is_file():
        return False
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(adapter))
    return True


class SftTrainer(Durable, SFTTrainer):
    """trl's trainer in our loop, with the loss at label positions."""

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        config: Sft,
        arguments: SFTConfig,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        train_set: dataset.Encoded,
        validation_set: dataset.Encoded,
        report: Report | None = None,
    ) -> None:
        self.validation_examples = validation_set.examples
        super().__init__(
            config,
            [len(example) for example in train_set.examples],
            report,
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list([dataclasses.asdict(example) for example in train_set.examples]),
            processing_class=tokenizer,
            data_collator=dataset.Collator(tokenizer.pad_token_id),  # pyright: ignore[reportArgumentType]
        )

    def results(self) -> dict[str, Any]:
        """Give the run's headline numbers; measures the validation loss. Losses are nats per completion token."""
        losses = [line["loss"] for line in self.state.log_history if "loss" in line]
        return {
            "steps": self.state.global_step,
            "train_loss_last_10": sum(losses[-10:]) / max(1, len(losses[-10:])),
            "validation_loss": self.validation_loss(),
            "validation_examples": len(self.validation_examples),
            **self.clock.totals(),
        }

    @torch.no_grad()
    def validation_loss(self) -> float | None:
        """Give the mean loss per completion token, unweighted, over the validation examples; None without any."""
        if not self.validation_examples:
            return None
        was_training = self.network.training
        self.network.eval()
        total, tokens = 0.0, 0
        examples = sorted(self.validation_examples, key=len)
        size = self.args.per_device_train_batch_size * 2
        own = examples[ranks.index() :: ranks.count()]
        for start in range(0, len(examples[:: ranks.count()]), size):  # as many passes on every rank
            rows = [dataclasses.asdict(example) for example in own[start : start + size] or examples[:1]]
            batch = self._prepare_inputs(self.data_collator(rows))
            batch["weights"] = (batch["labels"] != dataset.IGNORED).float() * (start < len(own))
            total += self._summed_loss(self.network, batch).item()
            tokens += int(batch["weights"].sum().item())
        self.network.train(was_training)
        total, tokens = ranks.summed(total, tokens)
        return total / tokens

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Give Σ weight · −log p / Σ weight, the lower sum over all batches of the step on all ranks."""
        assert not return_outputs, "there are no logits to return"
        weight = inputs["weights"].sum() if num_items_in_batch is None else num_items_in_batch
        loss = self._summed_loss(model, inputs) / weight
        return loss * self.accelerator.num_processes if num_items_in_batch is not None else loss

    def save_weights(self, folder: Path, weights: Weights = None) -> None:
        """Write the adapter, or the weights where there is none."""
        write_weights(self.network, folder, weights)

    def mute(self, inputs: Any) -> None:
        """Make a batch count for nothing in the loss."""
        inputs["weights"].zero_()

    def count(self, inputs: Any) -> tuple[int, int]:
        """Give how many examples and tokens a batch holds; none where it only stands in."""
        if not inputs["weights"].any():
            return 0, 0
        return len(inputs["ids"]), int(inputs["prefix_mask"].sum() + inputs["attention_mask"].sum())

    def _summed_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        return model(**{name: value for name, value in inputs.items() if name != "ids"})

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        return loop.weight_of_step(batch_samples)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_sharded() or not load_adapter(self.network, Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)


def _examples(
    config: Sft,
    place: Path,
    corpus: Any,
    split: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tagset: TagSet,
) -> dataset.Encoded:
    traces = dataset.read_traces(place, corpus, split, config.tasks)
    if split == "validation":
        traces = _spread(traces, config.eval_examples)
    own = model.config.get_text_config().max_position_embeddings
    encoded = dataset.encode(
        traces,
        tokenizer,
        tagset,
        context=min(config.max_tokens or own, own),
        target=config.target,
        answer_weight=config.answer_weight,
    )
    for reason, count in encoded.counts.items():
        if count:
            logger.warning("%s: %d of %d traces: %s", split, count, len(traces), reason)
    return encoded


def _spread(rows: Sequence[Any], count: int) -> list[Any]:
    """Give `count` rows at even distances."""
    if count >= len(rows):
        return list(rows)
    return [rows[index * len(rows) // count] for index in range(count)]


def _check_not_empty(train_set: dataset.Encoded, config: Sft) -> None:
    if not train_set.examples:
        why = f"; {train_set.counts}" if any(train_set.counts.values()) else ""
        raise InputError(f"{config.corpus} holds no trace to train on (tasks: {config.tasks or 'all'}){why}")


def _add_marks(model: Any, tokenizer: Any, tagset: TagSet, config: Sft) -> list[int]:
    if is_adapted(model) and (lacking := tag_tokens.lacking(tokenizer, tagset)):
        raise InputError(
            f"the adapter {config.model!r} was trained without {', '.join(lacking[:3])}{' …' * (len(lacking) > 3)} as "
            'single tokens and has no rows for them; set single_token_tags = false, or adapter = "none" to train all '
            "weights, the adapter merged into its base"
        )
    return tag_tokens.add_marks(model, tokenizer, tagset)


def write_weights(model: Any, folder: Path, weights: Weights = None) -> None:
    """Write the adapter, or the weights where there is none: the model's own, or `weights` by name (`Durable.gathered`)
    where it holds a part of them only."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_adapted(model):
        # the trained rows are in the adapter already
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)
        model.get_base_model().generation_config.save_pretrained(folder)
    else:
        model.save_pretrained(folder, state_dict=weights)
