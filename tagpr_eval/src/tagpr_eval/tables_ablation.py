"""The ablation table: variants of one recipe over training seeds, each against the whole recipe.

A model is one variant with one seed and says so in its name, as `tagpr-train ablate` writes it: `VARIANT-seedN`; or it
has the same name in several run folders whose names end in `seedN`. All stand in one setting, that most of them ran.
Seeds are pooled as `contrasts` says: the mean over seeds of each one's score, intervals over users and seeds, variants
paired by seed and answer. With two or three seeds an interval is still too narrow; the seeds' own scores stand beside.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tagpr_data.errors import InputError
from tagpr_eval import contrasts, stats
from tagpr_eval.cells import Cell, Group, control_place
from tagpr_eval.report_stages import arrow
from tagpr_eval.typeset import Column, Row, Table, Value, without_empty_columns

WHOLE = "whole"
"""What `tagpr-train` calls the recipe with nothing taken away."""
INTRO = (
    "Each variant takes one thing away from the whole recipe and is trained anew with every seed. Score: the mean over "
    "seeds of each seed's score; parsed answers. Intervals (95 %) resample users and, of S seeds, S − 1 with "
    "replacement, so that the spread between seeds counts in full; with two or three seeds they are still too narrow, "
    "and the seeds' own scores say more; of one seed they know nothing of training anew. Δ: paired by seed and by "
    "answer, positive means better, also for errors; bold: p < 0.05 by such resamples, corrected by Holm over the "
    "differences of the table. How the paper pools runs is not public; this is ours."
)


Key = tuple[str, str, str]
"""Variant, prompt style and protocol: a row."""


@dataclass(frozen=True)
class Ablation:
    """The variants of one task."""

    group: Group
    """Its cells."""
    variants: Mapping[Key, Mapping[int, int]]
    """Row → training seed → place in `group.cells`; the whole recipe first."""
    others: Mapping[Key, Mapping[int, int]]
    """The same of what has no training seed, untrained models and rules: it stands beside every seed."""

    def runs(self) -> set[str]:
        """Give the names of the runs that its numbers come from."""
        places = [place for seeds in (*self.variants.values(), *self.others.values()) for place in seeds.values()]
        return {self.group.cells[place].run.name for place in places}

    def whole(self, key: Key) -> Mapping[int, int] | None:
        """Give the whole recipe's row that another is compared to, of its style if there is one; None for itself."""
        name = next(iter(self.variants))[0]
        found = {own: seeds for own, seeds in self.variants.items() if own[0] == name}
        if key in found:
            return None
        alike = [seeds for own, seeds in found.items() if key[2] in (own[2], _RULE)]
        return found.get((name, *key[1:]), next(iter(alike), None))


def make_ablations(
    groups: Sequence[Group], whole: str = WHOLE, retriever: str | None = None, k: int | None = None
) -> list[Ablation]:
    """Give the ablations that the models' names tell of, a task each; a group without `whole` has none.

    Raises InputError where a variant of one seed stands in two runs."""
    found = (_ablation(group, whole, retriever, k) for group in groups)
    return [one for one in found if one is not None]


def variants_of(group: Group) -> set[str]:
    """Give the variants that the models' names tell of."""
    return {told[0] for cell in group.cells if (told := _variant(cell)) is not None}


def without_variants(ablation: Ablation) -> Group:
    """Give the group without the models of the ablation, as one seed is no model of its own."""
    group = ablation.group
    cells = [cell for cell in group.cells if _variant(cell) is None]
    return Group(group.task, group.split, group.data_hash, cells)


def ablation_table(ablation: Ablation) -> Table:
    """Give the variants, a row each, then untrained models and rules."""
    group, every = ablation.group, {**ablation.variants, **ablation.others}
    metric, second = group.metrics
    seeds = sorted({seed for places in ablation.variants.values() for seed in places})
    columns = _columns(metric, second, seeds, next(iter(every))[0])
    differences = {
        (key, name): found
        for key, places in every.items()
        for name, others in (
            ("whole", ablation.whole(key)),
            ("no_profile", _controls(group, places, "none")),
            ("wrong_user", _controls(group, places, "wrong-user")),
        )
        if (found := _difference(group, places, others or {})) is not None
    }
    corrected = dict(zip(differences, stats.holm([one.p for one in differences.values()]), strict=True))
    rows: list[Row] = []
    for key, places in every.items():
        cell = group.cells[next(iter(places.values()))]
        score, by_seed = _mean(group, places, metric)
        values: dict[str, Value] = {
            "variant": key[0], "style": key[1], "protocol": key[2], "retriever": cell.retriever, "k": cell.k,
            "split": group.split, "data": group.data_hash, metric: score, second: _mean(group, places, second)[0],
            "valid": _share(group, places, "is_valid_trace"), "n": score.n, "users": score.users,
            "grounded": _share(group, places, "grounded_claims", "claims"),
            **{name: differences.get((key, name)) for name in _COMPARED},
            **{f"p_holm_{name}": corrected.get((key, name)) for name in _COMPARED},
        }  # fmt: skip
        if key in ablation.variants:
            values |= {"seeds": len(places), **{f"seed_{seed}": value for seed, value in by_seed.items()}}
        bold = {name for name in _COMPARED if corrected.get((key, name), 1.0) < 0.05}
        strong = frozenset(place for place, column in enumerate(columns) if column.name in bold)
        role = "baseline" if cell.is_baseline else ""
        rows.append(Row(tuple(values.get(column.name) for column in columns), role, strong))
    note = (
        f"{group.source}; {_setting(ablation)}; training seeds {', '.join(map(str, seeds))}; n answers of each seed; "
        f"{len(differences)} differences.{_seeds_note(ablation.variants, len(seeds))}"
    )
    return without_empty_columns(
        Table(f"ablation-{group.task.name}-{group.data_hash}", group.task.name, columns, tuple(rows), note)
    )


_RULE = "rule"
_COMPARED = ("whole", "no_profile", "wrong_user")


def _columns(metric: str, second: str, seeds: Sequence[int], whole: str) -> tuple[Column, ...]:
    return (
        Column("variant", "Variant"),
        Column("style", "Style"),
        Column("protocol", "Protocol", is_printed=False),
        Column("retriever", "Retriever", is_printed=False),
        Column("k", "k", "count", is_printed=False),
        Column("split", "Split", is_printed=False),
        Column("data", "Data", is_printed=False),
        Column(metric, f"{metric} {arrow(metric)}", "estimate"),
        *(Column(f"seed_{seed}", f"seed {seed}", "number") for seed in seeds),
        Column(second, f"{second} {arrow(second)}", "estimate"),
        Column("whole", f"Δ {whole}", "difference"),
        Column("no_profile", "Δ no profile", "difference"),
        Column("wrong_user", "Δ wrong user", "difference"),
        Column("valid", "Valid", "estimate"),
        Column("grounded", "Claims that hold", "estimate"),
        Column("seeds", "Seeds", "count"),
        Column("n", "n", "count"),
        Column("users", "Users", "count"),
        *(Column(f"p_holm_{name}", "", "p", is_printed=False) for name in _COMPARED),
    )


def _ablation(group: Group, whole: str, retriever: str | None, k: int | None) -> Ablation | None:
    named = [(place, cell, *told) for place, cell in enumerate(group.cells) if (told := _variant(cell)) is not None]
    named = [one for one in named if one[1].control is None]
    settings = list(dict.fromkeys((cell.retriever, cell.k) for _, cell, *_ in named))
    settings = [one for one in settings if retriever in (None, one[0]) and k in (None, one[1])]
    ran = {one: {tuple(own) for _, cell, *own in named if (cell.retriever, cell.k) == one} for one in settings}
    best = max(settings, key=lambda one: (len(ran[one]), one[1], -settings.index(one)), default=None)
    if best is None:
        return None
    variants: dict[Key, dict[int, int]] = {}
    for place, cell, variant, seed in sorted(named, key=lambda one: one[2] != whole):
        if (cell.retriever, cell.k) == best:
            seeds = variants.setdefault((variant, cell.style, cell.protocol), {})
            if seed in seeds:
                runs = f"{group.cells[seeds[seed]].run.name} and {cell.run.name}"
                raise InputError(f"{variant} of seed {seed} stands in two runs, {runs}; give one of them")
            seeds[seed] = place
    if next(iter(variants))[0] != whole or sum(map(len, variants.values())) < 2:
        return None
    others = {
        (cell.model, cell.style, _RULE if cell.is_baseline else cell.protocol): dict.fromkeys(
            next(iter(variants.values())), place
        )
        for place, cell in enumerate(group.cells)
        if _variant(cell) is None
        and cell.control is None
        and (cell.reads_whole_profile or (cell.retriever, cell.k) == best)
    }
    return Ablation(group, variants, others)


def _variant(cell: Cell) -> tuple[str, int] | None:
    """Variant and training seed of a model; None for rules and models of another kind."""
    if cell.is_baseline:
        return None
    if found := re.fullmatch(r"(.+)-seed(\d+)", cell.name):
        return found[1], int(found[2])
    seed = cell.run.training_seed
    return None if seed is None else (cell.name, seed)


def _setting(ablation: Ablation) -> str:
    cell = ablation.group.cells[next(iter(next(iter(ablation.variants.values())).values()))]
    return f"{cell.retriever}, k = {cell.k}"


def _seeds_note(variants: Mapping[Key, Mapping[int, int]], every: int) -> str:
    """Which rows lack a seed, and which have but one."""
    names = {key: key[0] for key in variants}
    for key, name in names.items():  # a variant of two styles has two rows
        if list(names.values()).count(name) > 1:
            names[key] = ", ".join(key[:2])
    told = {key: f"{names[key]} ({', '.join(map(str, seeds))})" for key, seeds in variants.items()}
    fewer = [told[key] for key, seeds in variants.items() if len(seeds) < every]
    alone = [told[key] for key, seeds in variants.items() if len(seeds) == 1]
    note = f" Not of every seed, and compared on the seeds that both have: {'; '.join(fewer)}." if fewer else ""
    if alone:
        note += f" Of one seed, so that interval and p are over users alone: {'; '.join(alone)}."
    return note


def _mean(group: Group, places: Mapping[int, int], metric: str) -> tuple[stats.Estimate, dict[int, float]]:
    """The mean over seeds, and each seed's score."""
    rows = group.grid(metric, "parsed").cells
    found, values = contrasts.seed_mean(stats.METRICS[metric], [rows[one] for one in places.values()], group.draws)
    return found, dict(zip(places, values, strict=True))


def _difference(group: Group, places: Mapping[int, int], others: Mapping[int, int]) -> stats.Difference | None:
    """Paired on the seeds that both have; None where they share none."""
    metric = group.metrics[0]
    rows = group.grid(metric, "parsed").cells
    seeds = [seed for seed in places if seed in others]
    first, second = ([rows[side[seed]] for seed in seeds] for side in (places, others))
    return contrasts.seed_difference(stats.METRICS[metric], first, second, group.draws) if seeds else None


def _controls(group: Group, places: Mapping[int, int], kind: str) -> dict[int, int]:
    found = {seed: control_place(group.cells, place, kind) for seed, place in places.items()}
    return {seed: place for seed, place in found.items() if place is not None}


def _share(group: Group, places: Mapping[int, int], parts: str, wholes: str | None = None) -> stats.Estimate | None:
    rows = group.share_rows([group.cells[place] for place in places.values()], parts, wholes)
    if not all(len(one.rows) for one in rows):
        return None
    return contrasts.seed_mean(stats.METRICS["accuracy"], rows, group.draws)[0]
