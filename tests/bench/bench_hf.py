"""What a run costs beside the bare transformers backend: the same model, prompts and batch size, in one process.

    .venv/bin/python tests/bench/bench_hf.py [--model tiny|smollm2-135m-instruct|DIR ...] [--examples 32] [--rounds 3]

bare       `model.generate` of transformers over chat prompts, sorted by length, padded on the left, greedy; in each
           round with all cores and with one thread, the faster counts
generate   `HfModel.generate` over the same prompts: what a run calls
run        all of `tagpr-eval run`: retrieval, prompts, answers through lighteval's Pipeline, every sample on disk at
           once, scores, predictions. Loading weights and importing lighteval (once a process) are left out on all
           sides; the import is printed.

Every answer has exactly the longest length on all sides: in bf16 another padding may end one earlier.

Claim: run takes at most 5 % longer than bare (median of the rounds, which are interleaved). The tiny model has no
claim: its tokens are nearly free, so its row shows what a run costs in seconds. Exit code 1 when the claim fails.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "eval"))
from conftest import write_data, write_model

from tagpr_eval import harness
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.hf import HfModel
from tagpr_eval.models import Prompt
from tagpr_eval.run import evaluate

CLAIM = 1.05
CORES = len(os.sched_getaffinity(0))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="default: tiny and smollm2-135m-instruct")
    parser.add_argument("--examples", type=int, default=32, help="per task; two tasks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    harness._import_lighteval()
    imported = time.perf_counter() - started
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder) / "data", users=12, each=-(-options.examples // 12))
        for name in options.model or ("tiny", "smollm2-135m-instruct"):
            results[name] = compare(
                model_folder(name, Path(folder)), data, Path(folder) / f"run-{len(results)}", options
            )
    if options.json:
        print(json.dumps(results))
    else:
        print(f"import of lighteval {imported:.1f} s, once; {CORES} cores, load {os.getloadavg()[0]:.1f}; batches of "
              f"{options.batch_size}, at most {options.max_new_tokens} new tokens")  # fmt: skip
        for name, sides in results.items():
            print(f"{Path(name).name}: {sides['prompts']} prompts, {sides['tokens']} tokens written")
            for side in ("bare", "generate", "run"):
                ratios = [mine / bare for mine, bare in zip(sides[side], sides["bare"], strict=True)]
                print(f"  {side:<9}{median(sides[side]):8.2f} s   {median(ratios):6.2f} of bare "
                      f"({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip
            beside = median(run - own for run, own in zip(sides["run"], sides["generate"], strict=True))
            print(f"  beside the answers a run spends {beside:.2f} s")
    slow = [name for name, sides in results.items() if name != "tiny" and
            median(mine / bare for mine, bare in zip(sides["run"], sides["bare"], strict=True)) > CLAIM]  # fmt: skip
    if slow:
        sys.exit(f"more than {CLAIM - 1:.0%} over the bare backend: {', '.join(slow)}")


def model_folder(name: str, folder: Path) -> Path:
    """A tiny random model, the embedded one, or a folder."""
    if name == "tiny":
        return write_model(folder / "tiny")
    if Path(name).is_dir():
        return Path(name)
    from tagpr_train.base_model import resolve

    return Path(resolve(name))


def compare(folder: Path, data: Path, runs: Path, options) -> dict[str, object]:
    """Time the three sides in turn, `rounds` times after one to warm up."""
    config = EvaluationConfig(
        dataset=str(data), models=(f"m=hf:{folder}",), k=(8,), examples=options.examples,
        sampling={"max_new_tokens": options.max_new_tokens}, local={"batch_size": options.batch_size},
    )  # fmt: skip
    model = HfModel(str(folder), config.sampling, config.local)
    model._end_ids = frozenset()
    asked: list[Prompt] = []

    def remember(prompts, batches, finished):
        asked[:] = prompts
        HfModel.generate(model, prompts, batches, finished)

    model.generate = remember
    times: dict[str, list[float]] = {"bare": [], "generate": [], "run": []}
    written = {}
    sides = {
        "run": lambda number: evaluate(config, runs / str(number), make_model=lambda spec, config: model),
        "generate": lambda _: ours(model, asked),
        "bare": lambda _: bare(model, asked, options, CORES),
        "bare, one thread": lambda _: bare(model, asked, options, 1),
    }
    for number in range(options.rounds + 1):
        taken = {}
        for side, call in sides.items():  # the run first: it makes the prompts
            model._encoded.clear()
            started = time.perf_counter()
            written[side] = call(number)
            taken[side] = time.perf_counter() - started
        taken["bare"] = min(taken["bare"], taken.pop("bare, one thread"))
        if number:
            for side, seconds in taken.items():
                times[side].append(seconds)
    if not written["bare"] == written["generate"] == len(asked) * options.max_new_tokens:
        sys.exit(f"the sides wrote different amounts, so their times say nothing: {written['bare']} "
                 f"and {written['generate']} tokens")  # fmt: skip
    return {**times, "prompts": len(asked), "tokens": written["generate"]}


def ours(model: HfModel, asked: list[Prompt]) -> int:
    """Our generation alone; the tokens written."""
    tokens: list[int] = []
    HfModel.generate(model, asked, model.batches(asked), lambda _, one: tokens.append(one.output_tokens))
    return sum(tokens)


def bare(model: HfModel, asked: list[Prompt], options, threads: int) -> int:
    """transformers alone; the tokens written."""
    tokenizer, network = model._tokenizer, model._model
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    written = 0
    turns = [[message.model_dump() for message in prompt.messages] for prompt in asked]
    texts = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in turns]
    texts.sort(key=len, reverse=True)
    pad = tokenizer.pad_token_id
    tokenizer.padding_side = "left"
    for start in range(0, len(texts), options.batch_size):
        batch = tokenizer(
            texts[start : start + options.batch_size], add_special_tokens=False, padding=True, return_tensors="pt"
        )
        with torch.inference_mode():
            out = network.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False,
                max_new_tokens=options.max_new_tokens, min_new_tokens=options.max_new_tokens, pad_token_id=pad,
            )  # fmt: skip
        fresh = out[:, batch["input_ids"].shape[1] :]
        tokenizer.batch_decode(fresh)
        written += fresh.numel()
    torch.set_num_threads(before)
    return written


if __name__ == "__main__":
    main()
