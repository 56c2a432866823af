"""Of what traces claim, how much holds by kind of claim? That a cited item exists and is earlier than the question
hardly ever fails; what it is labelled and which words stand in it does. A study for the README, no test.

    python tests/bench/study_claims.py results/xorg/all results/xorg/best-of --task xorg-component

Cells with items of the user's own only, over all answers of a model; kinds as `tags.ground` has them.
"""

import argparse
from collections import Counter
from pathlib import Path

from tagpr_data.tags import ground, parse
from tagpr_eval.cells import load_runs, own_tagsets, tagset_of
from tagpr_eval.grid import WRONG_USER
from tagpr_eval.sample_scores import gather_evidence

KINDS = ("exists", "before", "label", "quote")


def main() -> None:
    """Print one line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="finished evaluations, with their data set")
    parser.add_argument("--task", required=True)
    options = parser.parse_args()
    print(f"{'model':32}" + "".join(f"{kind:>16}" for kind in (*KINDS, "label or quote")))
    for run in load_runs(options.runs):
        if run.dataset is None:
            parser.error(f"{run.folder}: its data set is not here, so that no claim can be looked up")
        evidence = gather_evidence(run.dataset, run.predictions)
        shared, own = tagset_of([run.manifest]), own_tagsets(run.manifest)
        made: dict[str, Counter[str]] = {}
        held: dict[str, Counter[str]] = {}
        for row in run.predictions.iter_rows(named=True):
            is_asked = row["task"] == options.task and row["style"].startswith("trace")
            if not is_asked or row["retriever"] == WRONG_USER or not row["item_ids"]:
                continue
            items = evidence.prompt_items(row["profile_id"], row["item_ids"]) or ()
            steps = parse(row["text"], own.get(row["model"], shared), k=len(items)).steps
            for claim in ground(steps, items, evidence.examples[row["example_id"]].date):
                made.setdefault(row["model"], Counter())[claim.kind] += 1
                held.setdefault(row["model"], Counter())[claim.kind] += claim.holds
        for model, count in made.items():
            pairs = [(held[model][kind], count[kind]) for kind in KINDS]
            pairs.append((pairs[2][0] + pairs[3][0], pairs[2][1] + pairs[3][1]))
            print(f"{model:32}" + "".join(f"{f'{good} of {total}':>16}" for good, total in pairs))


if __name__ == "__main__":
    main()
