"""The report's part on training: run folders of tagpr_train in (`training`), tables, plots and findings out.

What RL learned is judged by the evaluation on the test examples; what stands here is how it went. A run of fewer than
`FEW_STEPS` steps is said to show the mechanics, not learning: the number is ours.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from tagpr_data.records import Rollout
from tagpr_eval import plots, stats
from tagpr_eval.cells import HASH_CHARACTERS
from tagpr_eval.training import Interval, PairGroup, RlResults, TrainingRun, rl_chains
from tagpr_eval.typeset import Column, Row, Table, Value, show

FEW_STEPS = 20
"""RL runs of fewer steps are no evidence of learning."""
INTRO = (
    "How each stage was trained. Losses are nats, per completion token (SFT) or per pair (PRMU). RL rewards are those "
    "of the completions it sampled: raw lies in [0, 1], weighted is what entered the reward behind the format gate, "
    "so the weighted ones add up to it. A group whose rewards are all equal teaches nothing; its share is told for the "
    "whole reward and for each component alone. Held-out answers are greedy, on examples that were not learned on. "
    f"In plots of more than {plots.MANY} steps the strong line is a moving mean over a tenth of them."
)
_COMPONENTS = {"answer": "answer", "tags": "tags", "personal": "personal (PRMU)", "overlong": "length penalty"}
PAIRS_INTRO = (
    "The share of held-out pairs whose preferred completion the reward model scores higher, 95 % intervals over users; "
    "chance is 0.5. It knows the user where the right one stands above all others."
)
_JUDGES = {
    "right": "right user",
    "swapped": "another user",
    "user_off": "user off",
    "length": "length only",
    "text": "prompt only",
}
_RUN = (
    Column("training", "Run"),
    Column("stage", "Stage"),
    Column("commit", "Commit", is_printed=False),
    Column("data", "Data", is_printed=False),
    Column("seed", "Seed", "count", is_printed=False),
)
_SHOWN_CHARACTERS = 600
_ALL = "all pairs"


def training_tables(runs: Sequence[TrainingRun]) -> tuple[Table, ...]:
    """Give the tables: what was run, what RL did and by which rewards, pair accuracies, some completions."""
    made = (_run_table(runs), held_out_table(runs), reward_table(runs), pair_table(runs), _completion_table(runs))
    return tuple(table for table in made if table.rows)


def training_plots(runs: Sequence[TrainingRun]) -> tuple[plots.Plot, ...]:
    """Give the plots: losses, pair accuracies, and of each chain of RL stages held-out answers, rewards and signals."""
    return (*_loss_plot(runs), *pair_plot(runs), *chain_plots(runs))


def chain_plots(runs: Sequence[TrainingRun]) -> list[plots.Plot]:
    """Give the plots of each chain of RL stages: held-out answers, rewards and signals."""
    return [plot for place, chain in enumerate(rl_chains(runs), start=1) for plot in _chain_plots(place, chain)]


def verdicts(runs: Sequence[TrainingRun]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Give heading, score and facts of each chain of RL stages, a sentence a fact."""
    for chain in rl_chains(runs):
        results = [run.results for run in chain if isinstance(run.results, RlResults)]
        score = f"{results[0].held_out_answer_first:.3f} → {results[-1].held_out_answer:.3f} held out"
        facts: list[str] = []
        for run, found in zip(chain, results, strict=True):
            change = show(_change(found), Column("", "", "difference"))
            facts.append(
                f"{run.name}: {found.steps} steps, {found.examples:,} completions, {found.seconds / 60:.1f} minutes; "
                f"change {change} on {found.held_out_examples} held-out examples."
            )
            facts += [f"{run.name}: {remark}." for remark in _remarks(found)]
        yield f"RL: {_title(chain)}", score, tuple(facts)


def _run_table(runs: Sequence[TrainingRun]) -> Table:
    columns = (
        *_RUN,
        Column("start", "Started from"),
        Column("steps", "Steps", "count"),
        Column("examples", "Examples", "count", hint="SFT: examples; PRMU: pairs; RL: completions"),
        Column("tokens", "Tokens", "count"),
        Column("minutes", "Minutes", "number", 1),
        Column("speed", "Tokens/s", "number", 0),
        Column("memory", "GiB", "number", 1, hint="most memory held"),
        Column("loss", "Loss", "number", hint="mean of the last ten logged steps"),
        Column("held_out_loss", "Held-out loss", "number"),
        Column("ended", "Ended"),
    )
    rows: list[Row] = []
    for run in runs:
        found = run.results
        ended = "; ".join(_remarks(found)) if isinstance(found, RlResults) else ""
        values = (
            run.start, found.steps, found.examples, found.tokens, found.seconds / 60, found.tokens_per_second,
            found.peak_memory_gib, found.train_loss_last_10, found.validation_loss, ended or "after its last step",
        )  # fmt: skip
        rows.append(Row((*_run_values(run), *values)))
    return Table("training", "Training runs", columns, tuple(rows), _note(runs))


def held_out_table(runs: Sequence[TrainingRun]) -> Table:
    """Give, for each RL stage, its held-out answers with their change, and what it had to learn from."""
    columns = (
        *_RUN,
        Column("steps", "Steps", "count"),
        Column("completions", "Completions", "count"),
        Column("first", "Held-out answers, start", "number"),
        Column("last", "end", "number"),
        Column("change", "Δ end − start", "difference", hint="paired, 95 % interval over users"),
        Column("best", "best", "number"),
        Column("n", "n", "count"),
        Column("sampled_first", "Sampled answers, first", "number"),
        Column("sampled_last", "last", "number"),
        Column("zero_variance", "Groups without variance", "number", 2, hint="mean over all steps"),
        Column("redrawn", "Redrawn", "count", hint="groups drawn and dropped for lack of variance"),
        Column("gate", "Gate open, last", "number", 2),
        Column("kl", "KL, last", "number", 4),
        Column("remarks", "What it shows"),
    )
    rows: list[Row] = []
    for run in runs:
        found = run.results
        if not isinstance(found, RlResults):
            continue
        redrawn = [value for _, value in run.series("redrawn")]
        zero_variance = [value for _, value in run.series("zero_variance")]
        rows.append(
            Row(
                (
                    *_run_values(run), found.steps, found.examples, found.held_out_answer_first, found.held_out_answer,
                    _change(found), found.held_out_best, found.held_out_examples, *_ends(run, "answer_raw"),
                    _mean(zero_variance), round(sum(redrawn)) if redrawn else None, _ends(run, "gate_open")[1],
                    _ends(run, "kl")[1], "; ".join(_remarks(found)) or None,
                )
            )
        )  # fmt: skip
    return Table("training-rl", "Reinforcement learning", columns, tuple(rows), f"{_TENTHS} {_note(runs, 'rl')}")


def reward_table(runs: Sequence[TrainingRun]) -> Table:
    """Give every component of each RL stage's reward at its start and at its end."""
    columns = (
        *_RUN,
        Column("component", "Component"),
        Column("weight", "Weight", "number", 2),
        *(
            Column(f"{form}_{when}", f"{title}, {when}", "number")
            for form, title in (("raw", "Raw"), ("weighted", "Weighted"), ("zero_variance", "Without variance"))
            for when in ("first", "last")
        ),
    )
    rows: list[Row] = []
    for run in runs:
        for component, title in _components(run).items():
            forms = (_ends(run, f"{component}_{form}") for form in ("raw", "weighted", "zero_variance"))
            figures = [value for ends in forms for value in ends]
            rows.append(Row((*_run_values(run), title, _weight(run, component), *figures)))
    return Table("training-rewards", "Reward components", columns, tuple(rows), f"{_TENTHS} {_note(runs, 'rl')}")


def pair_table(runs: Sequence[TrainingRun], has_tasks: bool = True) -> Table:
    """Give the pair accuracies of reward models by users seen or not and kind of pair, with their controls; also by
    task, unless `has_tasks` is off."""
    columns = (
        *_RUN,
        Column("users", "Users"),
        Column("group", "Pairs"),
        *(Column(name, title.capitalize(), "estimate") for name, title in _JUDGES.items()),
        Column("right_minus_swapped", "Δ right − another user", "difference"),
        Column("right_minus_length", "Δ right − length", "difference", is_printed=False),
        Column("right_minus_text", "Δ right − prompt", "difference", is_printed=False),
        Column("calibration", "Calibration error", "number", hint="mean distance of confidence and accuracy"),
        Column("n", "n", "count"),
        Column("people", "Users", "count"),
    )
    rows = [
        Row(
            (
                *_run_values(run), split, group,
                *(_estimate(getattr(found, name), found) for name in _JUDGES),
                *(_estimate(found.right_minus[name], found) for name in ("swapped", "length", "text")),
                _calibration_error(run, split) if group == _ALL else None, found.pairs, found.users,
            )
        )
        for run, split, group, found in _pair_groups(runs)
        if has_tasks or not group.startswith("task")
    ]  # fmt: skip
    parts = [
        "Share of held-out pairs whose preferred completion scores higher; chance is 0.5. Another user: the same pairs "
        "scored for someone else. Length only and prompt only: judges that never see the user."
    ]
    for run in runs:
        if run.evaluation is not None:
            errors = ", ".join(f"{_calibration_error(run, split):.3f} ({split})" for split in run.evaluation.splits)
            verdict = "passed" if run.results.gate_passed else "NOT passed"
            conditions = "".join(f" {reason}." for reason in run.results.gate)
            parts.append(f"{run.name}: calibration error {errors}. Gate for RL {verdict}.{conditions}")
    return Table("training-pairs", "Pair accuracy of the reward model", columns, tuple(rows), " ".join(parts))


def _completion_table(runs: Sequence[TrainingRun]) -> Table:
    columns = (
        *_RUN,
        Column("step", "Step", "count"),
        Column("task", "Task", is_printed=False),
        Column("example", "Example", is_printed=False),
        Column("reasoning", "Reasoning as read"),
        Column("answer", "Answer"),
        Column("gold", "Gold"),
        Column("answer_reward", "Answer", "number", 2),
        Column("tags_reward", "Tags", "number", 2),
        Column("personal_reward", "Personal", "number", 2),
        Column("reward", "Reward", "number", 2),
        Column("normalised", "In its group", "number", 2, hint="less the group's mean, over its standard deviation"),
        Column("violations", "Broken rules"),
        Column("text", "Completion", is_printed=False),
    )
    rows = [
        Row(
            (
                *_run_values(run), one.step, one.task, one.example_id, _reasoning(one), one.answer or None, one.gold,
                one.answer_reward, one.tags_reward, one.personal_reward, one.reward, one.normalised,
                ", ".join(dict.fromkeys(one.violations)) or None, one.text,
            )
        )
        for run in runs
        for completions in (run.first_completions(), run.last_completions())
        for one in _lowest_middle_highest(completions)
    ]  # fmt: skip
    note = (
        "Of the first and of the last step that sampled: the completion of the lowest, the middle and the highest "
        "reward. Components are raw; the reward is 0 where the think block is not closed or no answer follows."
    )
    return Table("training-completions", "Completions", columns, tuple(rows), note)


def _loss_plot(runs: Sequence[TrainingRun]) -> list[plots.Plot]:
    panels: dict[str, list[plots.Track]] = {}
    for run in runs:
        if isinstance(run.results, RlResults):
            continue
        held_out = run.series("validation_loss")
        if run.results.validation_loss is not None and (not held_out or held_out[-1][0] < run.results.steps):
            held_out.append((run.results.steps, run.results.validation_loss))
        panels[run.name] = [
            _track("training", run.series("loss")),
            _track("held out", held_out),
        ]
    panels = {name: [line for line in lines if line.values] for name, lines in panels.items()}
    caption = f"Loss over optimiser steps. {_note(runs, 'sft', 'prmu')}"
    draw = lambda: plots.tracks(panels, "optimiser step")  # noqa: E731 - drawn when asked for
    return [plots.Plot("training-loss", "Loss", caption, draw)] if panels else []


def pair_plot(runs: Sequence[TrainingRun]) -> list[plots.Plot]:
    """Give them as a plot; none where no run has any."""
    is_one = len({run.name for run, *_ in _pair_groups(runs)}) == 1
    rows = [
        (
            f"{'' if is_one else f'{run.name} · '}{split} users, {group}",
            {title: _estimate(getattr(found, name), found) for name, title in _JUDGES.items()},
        )
        for run, split, group, found in _pair_groups(runs)
        if not group.startswith("task")
    ]
    caption = (
        "Share of held-out pairs whose preferred completion scores higher, 95 % intervals over users; dashed: chance. "
        f"It knows the user where the first stands right of all others. {_note(runs, 'prmu')}"
    )
    draw = lambda: plots.dots(rows, "pair accuracy", 0.5)  # noqa: E731
    return [plots.Plot("training-pairs", "Pair accuracy of the reward model", caption, draw)] if rows else []


def _chain_plots(place: int, chain: Sequence[TrainingRun]) -> list[plots.Plot]:
    title, ends = _title(chain), [(float(start + run.results.steps), run.name) for run, start in _placed(chain)]
    about = " ".join(f"{run.name}: {remark}." for run in chain for remark in _remarks(run.results))
    about = " ".join(part for part in (about, _note(chain)) if part)
    shown = (
        (
            "held-out",
            "held-out answers",
            "Greedy answers to the held-out examples. Bars: the stage's start (grey) plus the 95 % interval of the "
            "paired change since then; a bar clear of grey is a change. Dotted: answers of the sampled completions.",
            _held_out_panels(chain),
        ),
        (
            "rewards",
            "reward components",
            "Means of the completions sampled at each step: raw, and dotted weighted, as it entered the reward.",
            _reward_panels(chain),
        ),
        (
            "signals",
            "what there was to learn from",
            "Groups without variance teach nothing. The gate is open where the think block is closed and an answer "
            "follows; only then there is a reward.",
            _signal_panels(chain),
        ),
    )
    return [
        plots.Plot(
            f"training-{name}-{place}",
            f"{title}: {what}",
            f"{caption} {about}",
            lambda panels=panels: plots.tracks(panels, "optimiser step, stages joined", ends),
        )
        for name, what, caption, panels in shown
        if panels
    ]


def _held_out_panels(chain: Sequence[TrainingRun]) -> dict[str, list[plots.Track]]:
    answers: list[plots.Track] = []
    for run, start in _placed(chain):
        held_out = run.series("held_out_answer")
        if not held_out:
            continue
        first = held_out[0][1]
        low, high = ([value for _, value in run.series(f"held_out_change_{end}")] for end in ("low", "high"))
        intervals = tuple((first + a, first + b) for a, b in zip(low, high, strict=True))
        answers += [
            plots.Track("at the stage's start", (start, start + run.results.steps), (first, first), kind="level"),
            _track("held out, greedy", held_out, start, intervals if len(intervals) == len(held_out) else ()),
            _track("sampled", run.series("answer_raw"), start, kind="dotted"),
        ]
    others = _tracks(
        chain,
        {"held_out_tags": "tags", "held_out_personal": "personal (PRMU)", "held_out_valid": "valid trace"},
    )
    return _filled({"answers": answers, "tags, PRMU and validity, held out": others})


def _reward_panels(chain: Sequence[TrainingRun]) -> dict[str, list[plots.Track]]:
    panels = {
        title: [
            *_tracks(chain, {f"{name}_raw": "raw"}),
            *_tracks(chain, {f"{name}_weighted": "weighted"}, "dotted"),
        ]
        for name, title in _COMPONENTS.items()
    }
    return _filled(panels | {"whole reward": _tracks(chain, {"reward": "weighted"}, "dotted")})


def _signal_panels(chain: Sequence[TrainingRun]) -> dict[str, list[plots.Track]]:
    components = {f"{name}_zero_variance": title for name, title in _COMPONENTS.items()}
    return _filled(
        {
            "share of groups without variance": _tracks(chain, {"zero_variance": "whole reward"} | components),
            "format": _tracks(chain, {"gate_open": "gate open", "valid": "valid trace"}),
            "KL to the start": _tracks(chain, {"kl": "KL"}),
        }
    )


def _tracks(
    chain: Sequence[TrainingRun], names: Mapping[str, str], kind: plots.TrackKind = "curve"
) -> list[plots.Track]:
    """The series of those names, a track for each stage."""
    return [
        _track(title, run.series(name), start, kind=kind)
        for name, title in names.items()
        for run, start in _placed(chain)
        if run.series(name)
    ]


def _track(
    name: str,
    series: Sequence[tuple[int, float]],
    start: int = 0,
    intervals: tuple[tuple[float, float], ...] = (),
    kind: plots.TrackKind = "curve",
) -> plots.Track:
    steps, values = tuple(float(start + step) for step, _ in series), tuple(value for _, value in series)
    return plots.Track(name, steps, values, intervals, kind)


def _filled(panels: Mapping[str, list[plots.Track]]) -> dict[str, list[plots.Track]]:
    kept = {name: [line for line in lines if line.values] for name, lines in panels.items()}
    return {name: lines for name, lines in kept.items() if lines}


def _placed(chain: Sequence[TrainingRun]) -> list[tuple[TrainingRun, int]]:
    """Each stage with the steps taken before it."""
    starts = [sum(run.results.steps for run in chain[:place]) for place in range(len(chain))]
    return list(zip(chain, starts, strict=True))


def _pair_groups(runs: Sequence[TrainingRun]) -> list[tuple[TrainingRun, str, str, PairGroup]]:
    return [
        (run, split, _ALL if group == "all" else group, found)
        for run in runs
        if run.evaluation is not None
        for split, pairs in run.evaluation.splits.items()
        for group, found in pairs.groups.items()
    ]


def _calibration_error(run: TrainingRun, split: str) -> float | None:
    """Over all pairs of the split."""
    splits = {} if run.evaluation is None else {str(name): one for name, one in run.evaluation.splits.items()}
    return splits[split].calibration.expected_calibration_error if split in splits else None


def _remarks(found: object) -> list[str]:
    """What a reader must know of an RL stage before its numbers."""
    if not isinstance(found, RlResults):
        return []
    few = f"{found.steps} step{'s' if found.steps > 1 else ''}: shows the mechanics, not learning"
    remarks = [few] if found.steps < FEW_STEPS else []
    return remarks + ([f"STOPPED, {found.stopped}"] if found.stopped else [])


def _components(run: TrainingRun) -> dict[str, str]:
    """The components that its metrics tell of."""
    return {name: title for name, title in _COMPONENTS.items() if run.series(f"{name}_raw")}


def _weight(run: TrainingRun, component: str) -> float | None:
    """Weight of a component in its reward, from its settings."""
    config = run.manifest.config
    if component == "overlong":
        return config.get("overlong_weight")
    if component != "answer" and config.get("stage") == "exploratory":
        return 0.0
    return config.get("rewards", {}).get(component)


_TENTHS = "First and last: means over the first and the last tenth of the steps."


def _ends(run: TrainingRun, name: str) -> tuple[float | None, float | None]:
    """Mean of a series over the first and over the last tenth of its steps, at least one."""
    values = [value for _, value in run.series(name)]
    tenth = max(1, len(values) // 10)
    return _mean(values[:tenth]), _mean(values[-tenth:])


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _change(found: RlResults) -> stats.Estimate:
    change = found.held_out_change
    return stats.Estimate(change.mean, change.low, change.high, found.held_out_examples, users=0)  # not told


def _estimate(value: Interval, group: PairGroup) -> stats.Estimate:
    return stats.Estimate(value.estimate, value.low, value.high, group.pairs, group.users)


def _lowest_middle_highest(completions: Sequence[Rollout]) -> list[Rollout]:
    ranked = sorted(completions, key=lambda one: (one.reward, one.row))
    places = sorted({0, (len(ranked) - 1) // 2, len(ranked) - 1}) if ranked else []
    return [ranked[place] for place in places]


def _reasoning(one: Rollout) -> str:
    """Its steps as they were read; the raw completion where none could be."""
    text = " ".join(f"‹{step.tag}› {step.text}" for step in one.steps) or one.text
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"


def _run_values(run: TrainingRun) -> tuple[Value, ...]:
    found = run.results
    stage = f"rl, {found.stage}" if isinstance(found, RlResults) else run.manifest.kind
    return run.name, stage, run.manifest.git_revision, _data(run), run.manifest.seed


def _data(run: TrainingRun) -> str:
    return ", ".join(f"{name} {value[:HASH_CHARACTERS]}" for name, value in run.manifest.data.items())


def _title(chain: Sequence[TrainingRun]) -> str:
    return " → ".join(run.name for run in chain)


def _note(runs: Sequence[TrainingRun], *kinds: str) -> str:
    """Where the numbers come from; runs on the same data and code together."""
    sources: dict[str, list[str]] = {}
    for run in runs:
        if not kinds or run.manifest.kind in kinds:
            commit = (run.manifest.git_revision or "–")[:HASH_CHARACTERS]
            prmu = run.manifest.models.get("prmu")
            rewarded = f", PRMU {prmu[:HASH_CHARACTERS]}" if prmu else ""
            source = f"data {_data(run)}, commit {commit}, seed {run.manifest.seed}{rewarded}"
            sources.setdefault(source, []).append(run.name)
    return "; ".join(f"{', '.join(names)}: {source}" for source, names in sources.items()) + "."
