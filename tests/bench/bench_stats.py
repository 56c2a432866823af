"""Statistics of a 24-cell grid of 2,500 examples: every interval and every paired difference, in seconds.

Run: OMP_NUM_THREADS=1 python tests/bench/bench_stats.py          Target: below 2 s.
Cells differ in skill, so that most differences are significant and get all 10,000 permutations.
Counted: drawing; strict and parsed; both metrics of the task; 24 intervals and 23 differences with
intervals each; p-values of the headline metric with Holm (what a report prints).
Beside it, one macro-F1 interval by a loop over scikit-learn, on 20 resamples and scaled to 1,000.
"""

import time

import numpy as np
from sklearn.metrics import f1_score

from tagpr_eval import stats

CELLS, ROWS, LABELS, RESAMPLES = 24, 2500, 15, 1000


def grid_seconds(users: int, has_second_p: bool = False) -> float:
    rng = np.random.default_rng(0)
    whose = np.arange(ROWS) % users
    gold = rng.integers(0, LABELS, ROWS)
    skill = np.linspace(0.3, 0.5, CELLS)[:, None]
    answers = np.where(rng.random((2, CELLS, ROWS)) < skill, gold, rng.integers(-1, LABELS, (2, CELLS, ROWS)))
    rows = np.arange(ROWS)
    start = time.perf_counter()
    draws = stats.draw(users, RESAMPLES)
    for mode in answers:
        hits = [stats.Observations(rows, whose, stats.mean_features((cell == gold) * 1.0)) for cell in mode]
        confusions = [stats.Observations(rows, whose, stats.f1_features(cell, gold, LABELS)) for cell in mode]
        for name, cells in (("accuracy", hits), ("f1", confusions)):
            grid = stats.Grid(stats.METRICS[name], cells, draws)
            grid.estimates()
            has_p = name == "accuracy" or has_second_p
            differences = grid.differences([(place, 0) for place in range(1, CELLS)], has_p)
            if has_p:
                stats.holm([found.p for found in differences])
    return time.perf_counter() - start


def loop_seconds(resamples: int = 20) -> float:
    rng = np.random.default_rng(0)
    gold, answers = rng.integers(0, LABELS, (2, ROWS))
    start = time.perf_counter()
    for _ in range(resamples):
        rows = rng.integers(0, ROWS, ROWS)
        f1_score(gold[rows], answers[rows], labels=range(LABELS), average="macro", zero_division=0)
    return (time.perf_counter() - start) / resamples * RESAMPLES


if __name__ == "__main__":
    for users in (2500, 250):
        best = min(grid_seconds(users) for _ in range(3))
        print(f"{CELLS} cells × {ROWS} examples, {users} users, {RESAMPLES} resamples: {best:.2f} s")
    best = min(grid_seconds(2500, has_second_p=True) for _ in range(2))
    print(f"the same with p-values of macro-F1 too, 2500 users: {best:.2f} s")
    print(f"one macro-F1 interval by a loop over scikit-learn: {loop_seconds():.2f} s")
