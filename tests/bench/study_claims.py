"""Of what traces claim, how much holds by kind of claim, and how often do they say what nothing checks? A study for the
README, no test.

    python tests/bench/study_claims.py results/xorg/all results/xorg/best-of --task xorg-component

That a cited item exists and is earlier than the question hardly ever fails. A label is one read off (step
examine_examples), one of another step, or a quoted one (`shares "x" with the input and is "glx"`); words are the other
quotes. `no key word` counts the sentences that say so of an item, which no claim covers, and how many of them are true
by the scripted teacher's own measure. All answers of a model with the user's own items, whatever k and retriever.
"""

import argparse
import re
from collections import Counter
from pathlib import Path

from tagpr_data.phrases import shared_words
from tagpr_data.prompts import PromptOptions, visible_item
from tagpr_data.tags import ground, parse
from tagpr_eval.cells import load_runs, own_tagsets, tagset_of
from tagpr_eval.grid import WRONG_USER
from tagpr_eval.sample_scores import gather_evidence

KINDS = ("exists, earlier", "label read off", "label elsewhere", "label quoted", "words", "no key word")
_NONE_SHARED = re.compile(r"\[P(\d+)\] is \"[^\"]*\" but shares no key word with the input")


def main() -> None:
    """Print one line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="finished evaluations, with their data set")
    parser.add_argument("--task", required=True)
    options = parser.parse_args()
    print(f"{'model':34}" + "".join(f"{kind:>18}" for kind in (*KINDS, "labels and words")))
    for run in load_runs(options.runs):
        if run.dataset is None:
            parser.error(f"{run.name}: its data set is not here, so that no claim can be looked up")
        evidence, task = gather_evidence(run.dataset, run.predictions), run.dataset.task(options.task)
        shared, own = tagset_of([run.manifest]), own_tagsets(run.manifest)
        cut = {key: run.manifest.config.get(key) for key in ("item_words", "input_words")}
        prompt = PromptOptions.model_validate(cut)
        made: dict[str, Counter[str]] = {}
        held: dict[str, Counter[str]] = {}
        for row in run.predictions.iter_rows(named=True):
            is_asked = row["task"] == task.name and row["style"].startswith("trace")
            if not is_asked or row["retriever"] == WRONG_USER or not row["item_ids"]:
                continue
            items = evidence.prompt_items(row["profile_id"], row["item_ids"]) or ()
            example = evidence.examples[row["example_id"]]
            said, true = made.setdefault(row["model"], Counter()), held.setdefault(row["model"], Counter())
            steps = parse(row["text"], own.get(row["model"], shared), k=len(items)).steps
            for claim in ground(steps, items, example.date):
                kind = "exists, earlier"
                if claim.kind == "label":
                    kind = "label read off" if steps[claim.step].tag == "examine_examples" else "label elsewhere"
                elif claim.kind == "quote":
                    is_label = claim.text.strip('"“” .,') in (task.labels or ())
                    kind = "label quoted" if is_label else "words"
                said[kind] += 1
                true[kind] += claim.holds
            query = " ".join(example.input.split()[: prompt.input_words])
            words = shared_words(query, [visible_item(task, item, prompt) for item in items])
            for number in (int(found[1]) for step in steps for found in _NONE_SHARED.finditer(step.text)):
                said["no key word"] += 1
                true["no key word"] += number <= len(items) and not words[number - 1]
        for model, count in made.items():
            pairs = [(held[model][kind], count[kind]) for kind in KINDS]
            pairs.append((sum(good for good, _ in pairs[1:5]), sum(total for _, total in pairs[1:5])))
            print(f"{model:34}" + "".join(f"{f'{good} of {total}':>18}" for good, total in pairs))


if __name__ == "__main__":
    main()
