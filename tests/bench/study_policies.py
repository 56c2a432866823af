"""Rules that read no more than the prompt, against the nearest item: how far could a trace that spells one out get?

    python tests/bench/study_policies.py runs/xorg/dataset --task xorg-component
    python tests/bench/study_policies.py runs/xorg/dataset --task xorg-subject
    python tests/bench/study_policies.py runs/personas/dataset --task personas-choice --k 8

Labels: the scripted teacher's policies without the gold answer, the newest item shown, and the item that ends as the
input does (of synthetic people: the one of the same mood). Texts: lines made of the items' prefixes ("glamor: ") and
the first words of the message. Prints accuracy or ROUGE-1 by split, and the paired difference to the nearest item with
a 95 % interval over users.
"""

import argparse
import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tagpr_data.dataset import Dataset
from tagpr_data.generate import Profiles, derived_seed, retrieval_text
from tagpr_data.lamp.metrics import rouge
from tagpr_data.prompts import PromptOptions, visible_input, visible_item
from tagpr_data.records import Example, ProfileItem, Sampling, Task
from tagpr_data.retrieve import rank
from tagpr_data.tags import load_tagset, parse
from tagpr_data.teachers import Assignment, ScriptedTeacher
from tagpr_data.weighing import LabelWords

Scores = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--split", action="append", help="Default: train and validation, so that test stays out.")
    options = parser.parse_args()
    dataset = Dataset.load(options.dataset)
    task, prompt = dataset.task(options.task), PromptOptions(item_words=22, input_words=50)
    score = _lines(task) if task.kind == "generation" else _labels(task, LabelWords.count(dataset, task.name))
    for split in options.split or ("train", "validation"):
        users: list[str] = []
        found: dict[str, list[float]] = defaultdict(list)
        profiles = Profiles(dataset)
        for example in dataset.examples(split):
            if example.task != task.name or example.output is None or not (items := profiles.items(example)):
                continue
            order = rank("bm25", example.input, [retrieval_text(item) for item in items])[: options.k]
            shown = [visible_item(task, items[position], prompt) for position in order]
            users.append(example.user_id)
            for name, value in score(example, visible_input(example.input, prompt), shown).items():
                found[name].append(value)
        if not users:
            continue
        print(f"{split}: {len(users)} questions of {len(set(users))} users")
        for name, values in found.items():
            nearest = found["right prefix: nearest item" if name.startswith("right prefix") else "nearest item"]
            over = [a - b for a, b in zip(values, nearest, strict=True)]
            print(f"  {name:44} {np.mean(values):.3f}   over nearest {np.mean(over):+.3f} {interval(over, users)}")


def _labels(task: Task, words: LabelWords) -> Callable[[Example, str, Sequence[ProfileItem]], Scores]:
    tagset = load_tagset()
    teachers = [
        ScriptedTeacher(hindsight=False),
        ScriptedTeacher(hindsight=False, policy="weighed", words={task.name: words}),
    ]

    def score(example: Example, query: str, shown: Sequence[ProfileItem]) -> Scores:
        labels = [item.label for item in shown]
        same_end = [item.label for item in shown if item.text.split()[-1:] == query.split()[-1:]]
        said = {
            "a shown item has the gold": example.output if example.output in labels else None,
            "nearest item": labels[0],
            "newest item of those shown": _newest(shown).label,
            "first that ends as the input, else nearest": (same_end + labels)[0],
        }
        for teacher in teachers:
            assignment = Assignment(task, query, tuple(shown), (), None, Sampling(), derived_seed(0, example.id))
            said[teacher.policy] = parse(asyncio.run(teacher.write(assignment)).text, tagset).answer
        return {name: float(label == example.output) for name, label in said.items()}

    return score


def _lines(task: Task) -> Callable[[Example, str, Sequence[ProfileItem]], Scores]:
    tagset, teacher = load_tagset(), ScriptedTeacher(hindsight=False)

    def score(example: Example, query: str, shown: Sequence[ProfileItem]) -> Scores:
        gold, lines = example.output or "", [item.title or item.text for item in shown]
        prefixes = [prefix_of(line) for line in lines]
        named = [prefix for prefix in prefixes if prefix]
        newest_line = _newest(shown).title or _newest(shown).text
        near, newest = (named or [""])[0], prefix_of(newest_line)
        commonest = max(Counter(prefixes).items(), key=lambda pair: (pair[1], -prefixes.index(pair[0])))[0]
        first = re.split(r"(?<=[.!?])\s", query.strip(), maxsplit=1)[0].rstrip(".!?… ").split()
        assignment = Assignment(task, query, tuple(shown), (), None, Sampling(), derived_seed(0, example.id))
        written = {
            "nearest item": lines[0],
            "newest item of those shown": newest_line,
            "the message's first 10 words": " ".join(first[:10]),
            "nearest prefix + first 8 words": near + " ".join(first[:8]),
            "nearest prefix + first 10 words": near + " ".join(first[:10]),
            "newest prefix + first 10 words": newest + " ".join(first[:10]),
            "true prefix + first 8 words (reads the gold)": prefix_of(gold) + " ".join(first[:8]),
            "true prefix alone (reads the gold)": prefix_of(gold),
            "votes": parse(asyncio.run(teacher.write(assignment)).text, tagset).answer or "",
        }
        right = {
            "right prefix: nearest item": prefixes[0],
            "right prefix: nearest that has one": near,
            "right prefix: commonest": commonest,
            "right prefix: newest item": newest,
        }
        scores = {name: rouge(line, gold)[0] for name, line in written.items()}
        scores |= {name: float(prefix == prefix_of(gold)) for name, prefix in right.items()}
        return scores | {"right prefix: any of those shown": float(prefix_of(gold) in prefixes)}

    return score


def _newest(shown: Sequence[ProfileItem]) -> ProfileItem:
    return max(shown, key=lambda item: item.date or "")


def prefix_of(line: str) -> str:
    """Give the part of a subject line up to its first colon, with colon and space ("glamor/xv: "), or nothing."""
    match = re.match(r"[\w./+-]+(?:, ?[\w./+-]+)*: ", line)
    return match[0] if match else ""


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
