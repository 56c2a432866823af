"""An RL step against bare trl on the same model, data and options: seconds and peak memory; and the price of a reward.

    OMP_NUM_THREADS=2 python tests/bench/bench_rl.py             # a random Llama of 14 M weights, 49k words, minutes
    OMP_NUM_THREADS=2 python tests/bench/bench_rl.py --full      # SmolLM2-135M, half an hour on two cores, 11 GB
    python tests/bench/bench_rl.py --rewards                     # milliseconds a completion, without a PRMU

Each side takes its steps in a process of its own, whose peak is VmHWM, one after the other: GSPO, 2 long prompts × 8
completions of as many tokens as given (a random model never ends one), full weights in float32, plain generate, the
same rewards. The first step is warm-up; the median of the others counts. Exits 1 when a target is missed: at least
1.5 × faster, at most two thirds of the memory, under 1 ms a reward.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", category=FutureWarning)
SPEED, MEMORY, REWARD_MS = 1.5, 2 / 3, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="SmolLM2-135M instead of a small random model")
    parser.add_argument("--steps", type=int, default=2, help="steps that count")
    parser.add_argument("--completion", type=int, default=64, help="tokens of each completion")
    parser.add_argument("--rewards", action="store_true", help="only the price of a reward")
    parser.add_argument("--side", choices=["trl", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--home", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(_side(options)))
        return
    missed = _rewards()
    if not options.rewards:
        missed |= _steps(options)
    sys.exit(missed)


def _steps(options: argparse.Namespace) -> bool:
    """Run both sides; whether a target was missed."""
    from tagpr_data.sources import personas

    with tempfile.TemporaryDirectory(prefix="bench-rl-") as home:
        personas.construct(Path(home) / "dataset", users=60, events=24)
        if not options.full:
            _write_model(Path(home) / "model")
        found: dict[str, dict[str, Any]] = {}
        for side in ("ours", "trl"):
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--home", home]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[side] = json.loads(output.splitlines()[-1])
            one = found[side]
            print(f"{side:5} {one['seconds']:8.2f} s a step {one['gib']:7.2f} GiB at most, "
                  f"prompts of {one['prompt']:.0f} tokens", flush=True)  # fmt: skip
    speed = found["trl"]["seconds"] / found["ours"]["seconds"]
    share = found["ours"]["gib"] / found["trl"]["gib"]
    print(f"ours ÷ bare trl, speed: {speed:.2f} × (target {SPEED} ×) {'ok' if speed >= SPEED else 'MISSED'}")
    print(f"ours ÷ bare trl, memory: {share:.2f} (target {MEMORY:.2f}) {'ok' if share <= MEMORY else 'MISSED'}")
    return speed < SPEED or share > MEMORY


def _write_model(folder: Path) -> None:
    """Write a random Llama with the vocabulary of SmolLM2, and its tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from tagpr_train.base_model import embedded_folder

    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=10,
        num_attention_heads=6, num_key_value_heads=3, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _side(options: argparse.Namespace) -> dict[str, Any]:
    """Take the steps of one side, and give seconds a step and the peak of this process."""
    import transformers
    from transformers import TrainerCallback, set_seed

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    from tagpr_data.dataset import Dataset
    from tagpr_data.tags import load_tagset
    from tagpr_train import rl, rl_prompts
    from tagpr_train.base_model import embedded_folder
    from tagpr_train.config import Rl
    from tagpr_train.dataset import prompt_tokens
    from tagpr_train.rl_judge import Judge

    home = Path(options.home)
    model = str(embedded_folder()) if options.full else str(home / "model")
    trainer_options = {
        "num_generations": 8, "per_device_train_batch_size": 16, "max_completion_length": options.completion,
        "mask_truncated_completions": False, "save_strategy": "no",
    }  # fmt: skip
    config = Rl(
        dataset=home / "dataset", output=home / options.side, model=model, tasks=("personas-choice",),
        k=16, steps=options.steps + 1, adapter="none", dtype="float32", redraws=0, hacking_stop=False,
        eval_examples=1, rewards={"personal": 0.0}, trainer=trainer_options,
    )  # fmt: skip
    config.output.mkdir()
    arguments = rl.trainer_arguments(config)
    set_seed(0)
    network, tokenizer = rl.load(config)
    data, tagset = Dataset.load(config.dataset), load_tagset()
    rows, _ = rl_prompts.questions(data, "train", 64, config, tagset, lambda _: True)
    held_out, _ = rl_prompts.questions(data, "validation", 1, config, tagset, lambda _: True)
    judge = Judge(config, tagset, options.completion)
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    if options.side == "ours":
        trainer: Any = rl.RlTrainer(config, arguments, network, tokenizer, rows, held_out, judge)
    else:
        from datasets import Dataset as Rows
        from trl.trainer.grpo_trainer import GRPOTrainer

        by_text = {row.messages[-1].content: row for row in rows}

        def component(name: str) -> Any:
            def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
                asked = [by_text[prompt[-1]["content"]] for prompt in prompts]
                texts = [completion[0]["content"] for completion in completions]
                return [row.gated(name) for row in judge(asked, texts, [options.completion] * len(texts))]

            reward.__name__ = name
            return reward

        arguments.reward_weights = [1.0, 0.3]
        trainer = GRPOTrainer(
            model=network, args=arguments, reward_funcs=[component("answer"), component("tags")],
            train_dataset=Rows.from_list(
                [{"prompt": [message.model_dump() for message in row.messages]} for row in rows]
            ),
            processing_class=tokenizer,
        )  # fmt: skip
    trainer.add_callback(Clock())
    trainer.train()
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    lengths = [len(prompt_tokens(tokenizer, row.messages)) for row in rows]
    return {"seconds": statistics.median(seconds), "gib": _peak_gib(), "prompt": statistics.mean(lengths)}


def _peak_gib() -> float:
    """Give this process' own peak; ru_maxrss would begin with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


def _rewards() -> bool:
    """Time the composite reward of traces of 60 to 1,000 words under a prompt of 300; whether it was missed."""
    from tagpr_data.records import ProfileItem, Task
    from tagpr_data.tags import load_tagset
    from tagpr_train.rewards import RewardWeights, composite

    tagset, weights = load_tagset(), RewardWeights()
    task = Task(name="title", kind="generation", answer_form="a title", item_template="{text}")
    items = [
        ProfileItem(profile_id="p", position=n, item_id=f"i{n}", text=f"thing {n} of the house " * 8, label="warm")
        for n in range(6)
    ]
    prompt = "\n".join(f"[P{n}] {item.text}" for n, item in enumerate(items, 1))
    missed = False
    for words in (60, 200, 1000):
        said = " ".join(f"word{n}" for n in range(words // 2))
        text = (
            f'<think>\n<examine_examples>[P1] says "thing 0 of the house". {said}</examine_examples>\n'
            f"<infer_preference>They like it. {said}</infer_preference>\n</think>\na red carpet on the stairs"
        )
        composite(task, text, "a red carpet", items, prompt, tagset, weights)
        times: list[float] = []
        for _ in range(50):
            start = time.process_time()
            composite(task, text, "a red carpet", items, prompt, tagset, weights)
            times.append(time.process_time() - start)
        median = statistics.median(times) * 1000
        missed |= median >= REWARD_MS
        print(f"reward of {words} words: {median:.2f} ms of processor time a completion (target {REWARD_MS:.0f} ms)")
    return missed


if __name__ == "__main__":
    main()
