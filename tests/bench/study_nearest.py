"""How far models are the nearest-item rule: agreement with it, and what they get right where it is right and where not.

    python tests/bench/study_nearest.py results/personas/evaluation --task personas-choice

Reads a finished evaluation that has `knn` among its models; a row for each model and each setting without a control.
"""

import argparse
from pathlib import Path

import polars as pl

from tagpr_eval.cells import load_runs, make_groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+")
    parser.add_argument("--task", required=True)
    options = parser.parse_args()
    for group in make_groups(load_runs(options.run), is_joined=True):
        if group.task.name != options.task:
            continue
        cells = [cell for cell in group.cells if cell.control is None]
        rule = next((cell.frame for cell in cells if cell.rule == "knn"), None)
        if rule is None:
            parser.error(
                f"no knn among the models of {', '.join(map(str, options.run))}; evaluate them with --model knn"
            )
        nearest = rule.select("example_id", said="parsed_label", near=pl.col("parsed_value") == 1)
        print(f"{'model':32} {'setting':18} agrees  where it is right  where it is wrong")
        for cell in cells:
            both = cell.frame.join(nearest, on="example_id")
            agrees = both.select((pl.col("parsed_label") == pl.col("said")).fill_null(value=False).mean()).item()
            right, wrong = (both.filter(near=value)["parsed_value"].to_numpy() for value in (True, False))
            shares = f"{agrees:.3f}   {right.mean():.3f} ({len(right)})        {wrong.mean():.3f} ({len(wrong)})"
            print(f"{cell.name:32} {cell.retriever + ' k=' + str(cell.k):18} {shares}")


if __name__ == "__main__":
    main()
