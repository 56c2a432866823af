"""SFT speed, side by side in one process on the same model, data and options.

    python tests/bench/bench_sft.py [--model FOLDER] [--steps 3] [--prompt 300] [--completion 100] [--batch 6]
    python tests/bench/bench_sft.py --cpu-time     # on a busy machine: CPU seconds of one thread instead

Compares seconds a step (forward, backward, optimiser) of: bare trl (`SFTTrainer`, float32 weights and bfloat16 weights,
completion-only loss), ours with the exact gradient, ours with the prompt read without gradient; and, from hidden states
to the loss and back, label positions only with full logits as transformers computes them.
Sides alternate, and the median is printed, so that other work on the machine hits all alike. Prints a table and exits 1
when a target is missed: ours at most bare trl's time; label positions at least 1.5 × faster than full logits.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", category=FutureWarning)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder [default: the embedded base model]")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=300)
    parser.add_argument("--completion", type=int, default=100)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of one thread: for busy machines")
    options = parser.parse_args()
    import torch
    import transformers

    if options.cpu_time:
        torch.set_num_threads(1)

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    from tagpr_train.base_model import embedded_folder

    folder = options.model or str(embedded_folder())
    tokens = options.batch * (options.prompt + options.completion)
    print(f"{tokens} tokens a step: {options.batch} × ({options.prompt} + {options.completion})", flush=True)
    losses = _compare(_loss_sides(folder, options), options, tokens)
    steps = _compare(_step_sides(folder, options), options, tokens)
    targets = {
        "label positions ÷ full logits, speed": (losses["full logits"] / losses["label positions"], 1.5),
        "ours, exact gradient ÷ bare trl, speed": (steps["trl, bfloat16"] / steps["ours, exact"], 1.0),
        "ours, prompt cached ÷ bare trl, speed": (steps["trl, bfloat16"] / steps["ours, prompt cached"], 1.0),
    }
    for name, (ratio, target) in targets.items():
        print(f"{name}: {ratio:.2f} × (target {target} ×) {'ok' if ratio >= target else 'MISSED'}")
    sys.exit(any(ratio < target for ratio, target in targets.values()))


def _compare(sides: dict[str, Any], options: argparse.Namespace, tokens: int) -> dict[str, float]:
    """Give the median seconds of each side, taken in turns after one round of warm-up."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.steps + 1):
        for name, side in sides.items():
            start = clock()
            side()
            if turn:
                seconds[name].append(clock() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:24} {median:7.2f} s {tokens / median:7.0f} tokens/s", flush=True)
    return medians


def _rows(model: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    chance = random.Random(0)
    size = model.config.vocab_size
    return [
        {
            "id": str(number),
            "prompt": [chance.randrange(100, size) for _ in range(options.prompt)],
            "completion": [chance.randrange(100, size) for _ in range(options.completion)],
            "weights": [1.0] * options.completion,
        }
        for number in range(options.batch)
    ]


def _loss_sides(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """From hidden states to the loss and back, every weight trained, in bfloat16; the layers below cost the same."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.loss.loss_utils import ForCausalLMLoss

    from tagpr_train import label_loss

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    size, width = model.config.vocab_size, model.config.hidden_size
    hidden = torch.randn(options.batch, options.prompt + options.completion, width, dtype=torch.bfloat16)
    hidden.requires_grad_()
    labels = torch.randint(size, hidden.shape[:2])
    labels[:, : options.prompt] = -100
    count = options.batch * options.completion

    def full() -> None:
        ForCausalLMLoss(model.lm_head(hidden), labels, size).backward()
        model.zero_grad()

    def label_positions() -> None:
        states = hidden[:, options.prompt - 1 : -1].reshape(count, width)
        wanted = labels[:, options.prompt :].reshape(count)
        (label_loss.weighted_nll(model, states, wanted, torch.ones(count)) / count).backward()
        model.zero_grad()

    return {"full logits": full, "label positions": label_positions}


def _step_sides(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """One optimiser step of a LoRA run, trainers' bookkeeping included."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from tagpr_train import label_loss, sft
    from tagpr_train.config import Sft
    from tagpr_train.dataset import Encoded, Tokens

    tokenizer = AutoTokenizer.from_pretrained(folder)
    place = Path(tempfile.mkdtemp(prefix="bench-sft-"))
    trainer_options = {"per_device_train_batch_size": options.batch, "max_steps": 1, "learning_rate": 1e-4}
    sides: dict[str, Any] = {}
    for name, dtype in (("trl, float32", torch.float32), ("trl, bfloat16", torch.bfloat16)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        rows = [
            {
                "input_ids": row["prompt"] + row["completion"],
                "labels": [-100] * options.prompt + row["completion"],
            }
            for row in _rows(model, options)
        ]
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear"))
        trainer = SFTTrainer(
            model=adapted,
            args=SFTConfig(
                output_dir=str(place / "trl"), use_cpu=not torch.cuda.is_available(), bf16=False, report_to="none",
                activation_checkpointing=False, disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False,
                **trainer_options,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        sides[name] = trainer.train
    for name, exact in (("ours, exact", True), ("ours, prompt cached", False)):
        config = Sft(
            corpus=place, output=place / name, prompt_gradient=exact,
            trainer=trainer_options | {"save_strategy": "no"},
        )  # fmt: skip
        config.output.mkdir()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        examples = [Tokens(**row) for row in _rows(model, options)]
        label_loss.install(model, prompt_gradient=exact)
        trainer = sft.SftTrainer(
            config, sft.trainer_arguments(config), sft.with_adapter(model, config, []), tokenizer,
            Encoded(examples), Encoded([]),
        )  # fmt: skip
        sides[name] = trainer.train
    return sides


if __name__ == "__main__":
    main()
