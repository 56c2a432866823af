"""The scripted teacher's policies without the gold answer against the nearest item, on the labels of a data set.

    python tests/bench/bench_policies.py runs/xorg/dataset --task xorg-component

Prints accuracy by split, and the paired difference to the nearest item with a 95 % interval over users. Test stays out.
"""

import argparse
import asyncio
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tagpr_data.dataset import Dataset
from tagpr_data.generate import Profiles, derived_seed, retrieval_text
from tagpr_data.prompts import PromptOptions, visible_input, visible_item
from tagpr_data.records import Sampling
from tagpr_data.retrieve import rank
from tagpr_data.tags import load_tagset, parse
from tagpr_data.teachers import Assignment, ScriptedTeacher
from tagpr_data.weighing import LabelWords


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--k", type=int, default=4)
    options = parser.parse_args()
    dataset, tagset = Dataset.load(options.dataset), load_tagset()
    task, prompt = dataset.task(options.task), PromptOptions(item_words=22, input_words=50)
    words = {task.name: LabelWords.count(dataset, task.name)}
    teachers = [ScriptedTeacher(hindsight=False), ScriptedTeacher(hindsight=False, policy="weighed", words=words)]
    for split in ("train", "validation"):
        users: list[str] = []
        hits: dict[str, list[int]] = defaultdict(list)
        profiles = Profiles(dataset)
        for example in dataset.examples(split):
            if example.task != task.name:
                continue
            items = profiles.items(example)
            order = rank("bm25", example.input, [retrieval_text(item) for item in items])[: options.k]
            shown = tuple(visible_item(task, items[position], prompt) for position in order)
            query = visible_input(example.input, prompt)
            users.append(example.user_id)
            hits["a shown item has the gold"].append(any(item.label == example.output for item in shown))
            hits["nearest item"].append(bool(shown) and shown[0].label == example.output)
            for teacher in teachers:
                assignment = Assignment(task, query, shown, (), None, Sampling(), derived_seed(0, example.id))
                answer = parse(asyncio.run(teacher.write(assignment)).text, tagset).answer
                hits[teacher.policy].append(answer == example.output)
        print(f"{split}: {len(users)} questions of {len(set(users))} users")
        for name, found in hits.items():
            over = [a - b for a, b in zip(found, hits["nearest item"], strict=True)]
            print(f"  {name:28} {np.mean(found):.3f}   over nearest {np.mean(over):+.3f} {interval(over, users)}")


def interval(values: Sequence[float], users: Sequence[str], draws: int = 4000) -> str:
    """Give the 95 % interval of a mean, whole users drawn with replacement."""
    names = sorted(set(users))
    sums = np.array([sum(v for v, user in zip(values, users, strict=True) if user == name) for name in names])
    sizes = np.array([list(users).count(name) for name in names])
    drawn = np.random.default_rng(0).integers(0, len(names), (draws, len(names)))
    low, high = np.quantile(sums[drawn].sum(1) / sizes[drawn].sum(1), [0.025, 0.975])
    return f"[{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    main()
