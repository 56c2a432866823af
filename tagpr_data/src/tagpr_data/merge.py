"""New corpora made of finished ones: `merge` two, or `forget` one user (see `forget.py`), row by row unchanged.

Guarantee: rows keep their ids and bytes of text; equal rows come once; a conflict (one id with two contents, or kept
here and rejected there) is refused with the ids; the result passes the same table checks as any corpus, or nothing is
written. Price: the rows are in memory once.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagpr_data import select
from tagpr_data.card import FACTS
from tagpr_data.corpus import MANIFEST, PAIRS, Corpus, Kind
from tagpr_data.dataset import atomic_folder
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import (
    CorpusManifest,
    FileEntry,
    PairsManifest,
    PreferencePair,
    ProfileItem,
    Rejected,
    Task,
    Trace,
)
from tagpr_data.tables import content_hash, read_table, sha256_text, write_json, write_table, write_text

if TYPE_CHECKING:
    import polars as pl

Frames = dict[tuple[Kind, str], "pl.DataFrame"]
"""The tables of a corpus by kind and split."""

_MODELS: dict[Kind, tuple[Any, list[str]]] = {
    "traces": (Trace, ["id"]),
    "rejected": (Rejected, ["id"]),
    "pairs": (PreferencePair, ["id"]),
    "profiles": (ProfileItem, ["profile_id", "position"]),
}


def merge(a: Corpus, b: Corpus, output: Path, name: str | None = None, licence: str | None = None) -> CorpusManifest:
    """Write the corpus of all rows of A and B to `output`. Raises InputError where they do not fit together (tag set,
    tasks, licence, a teacher's revision, data set of pairs), CheckFailed where rows contradict each other."""
    one, other = a.manifest, b.manifest
    _check_alike(one, other, licence)
    frames = _joined(read_frames(a), read_frames(b))
    _check_fates(frames)
    pairs = _merged_pairs(a.pairs, b.pairs, frames)
    same_data = one.dataset_hash == other.dataset_hash
    thresholds = [manifest.parameters.get("min_score") for manifest in (one, other)]
    best_of = [manifest.parameters.get("best_of") for manifest in (one, other)]
    parameters: dict[str, Any] = {
        "merged": [
            {"name": part.name, "content_hash": part.content_hash, "parameters": part.parameters}
            for part in (one, other)
        ],
        "disjoint_users": _are_disjoint(frames),
    }
    if all(isinstance(part, dict) for part in thresholds):
        kinds = sorted(set(thresholds[0] or {}) & set(thresholds[1] or {}))
        parameters["min_score"] = {kind: min(part[kind] for part in thresholds if part) for kind in kinds}
    if all(isinstance(part, int) for part in best_of):
        parameters["best_of"] = sum(part for part in best_of if part)
    base = one.model_copy(
        update={
            "name": name or (one.name if one.name == other.name else f"{one.name}-{other.name}"),
            "licence": licence or one.licence,
            "dataset": one.dataset if same_data else f"{one.dataset}+{other.dataset}",
            "dataset_hash": one.dataset_hash if same_data else sha256_text(f"{one.dataset_hash}+{other.dataset_hash}"),
            "tasks": tuple({task.name: task for task in (*one.tasks, *other.tasks)}.values()),
            "teachers": dict(sorted({**one.teachers, **other.teachers}.items())),
            "parameters": parameters,
        }
    )
    return write_corpus(output, frames, base, pairs)


def read_frames(corpus: Corpus) -> Frames:
    """Read all tables of a corpus."""
    return {
        (table.kind, table.split): read_table(corpus.folder / table.path, _MODELS[table.kind][0])
        for table in corpus.tables
    }


def write_corpus(
    folder: Path,
    frames: Frames,
    base: CorpusManifest,
    pairs: PairsManifest | None,
    facts: str | None = None,
    then: Callable[[Path], object] = lambda folder: None,
) -> CorpusManifest:
    """Write tables as a new corpus folder with documents; all that follows from rows is counted anew, the rest is taken
    from `base` (and `pairs`). `facts` is the text of its `card.toml`; `then` looks at the folder before it gets its
    name, and may raise. Raises InputError when the folder is not free, CheckFailed when the result does not pass
    the table checks; nothing is left then."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already; give a name that is free")
    with atomic_folder(folder) as temporary:
        files = _write(temporary, frames, ("traces", "rejected"))
        manifest = _describe(frames, files, base)
        write_json(temporary / MANIFEST, manifest)
        if pairs is not None:
            inner = _write(temporary, frames, ("pairs", "profiles"))
            inner = {path.removeprefix(f"{PAIRS}/"): entry for path, entry in inner.items()}
            write_json(temporary / PAIRS / MANIFEST, _describe_pairs(frames, inner, pairs, manifest))
        if facts is not None:
            write_text(temporary / FACTS, facts)
        _finish(temporary)
        then(temporary)
    return manifest


def _finish(folder: Path) -> None:
    """Check a folder that is about to get its name, and write its documents."""
    from tagpr_data import card
    from tagpr_data.corpus import open_corpus
    from tagpr_data.validate import check_tables

    corpus = open_corpus(folder)
    card.write_documents(corpus)
    failed = [result for result in check_tables(folder, corpus.manifest) if result.status != "passed"]
    if failed:
        lines = [f"{result.name}: {result.question} {'; '.join(result.rows[:3]) or result.error}" for result in failed]
        raise CheckFailed("the result would not be valid, so nothing was written:\n  " + "\n  ".join(lines))


def _write(folder: Path, frames: Frames, kinds: tuple[Kind, ...]) -> dict[str, FileEntry]:
    files: dict[str, FileEntry] = {}
    for kind, split in sorted(frames):
        if kind in kinds:
            model, key = _MODELS[kind]
            path = {"profiles": f"{PAIRS}/profiles.parquet", "pairs": f"{PAIRS}/pairs/{split}.parquet"}.get(
                kind, f"{kind}/{split}.parquet"
            )
            files[path] = write_table(folder / path, frames[kind, split], model, key)
    return files


def _describe(frames: Frames, files: dict[str, FileEntry], base: CorpusManifest) -> CorpusManifest:
    kept, refused = _all(frames, "traces"), _all(frames, "rejected")
    reasons: dict[str, int] = dict(refused["reason"].value_counts().iter_rows())
    order = [*select.REASONS, *sorted(reasons.keys() - select.REASONS.keys())]
    kept_by_task: dict[str, int] = dict(kept["task"].value_counts().iter_rows())
    refused_by_task: dict[str, int] = dict(refused["task"].value_counts().iter_rows())
    attempts = {
        task: kept_by_task.get(task, 0) + refused_by_task.get(task, 0)
        for task in sorted({*kept_by_task, *refused_by_task})
    }
    named = {*kept["teacher"], *refused["teacher"]}
    return base.model_copy(
        update={
            "teachers": {name: revision for name, revision in base.teachers.items() if name in named},
            "files": files,
            "content_hash": content_hash(base.tasks, files, [base.tagset_hash]),
            "candidates": kept.height + refused.height,
            "kept": kept.height,
            "rejected": {reason: reasons[reason] for reason in order if reason in reasons},
            "acceptance": {task: kept_by_task.get(task, 0) / count for task, count in attempts.items()},
            "claims": int(kept["claims"].sum()),
            "grounded_claims": int(kept["grounded_claims"].sum()),
        }
    )


def _describe_pairs(
    frames: Frames, files: dict[str, FileEntry], base: PairsManifest, corpus: CorpusManifest
) -> PairsManifest:
    by_split = {split: frame for (kind, split), frame in frames.items() if kind == "pairs"}
    splits = [split for split in base.pairs if split in by_split] + sorted(by_split.keys() - base.pairs.keys())
    kinds = {split: dict(by_split[split]["kind"].value_counts().iter_rows()) for split in splits}
    return base.model_copy(
        update={
            "files": files,
            "content_hash": content_hash(base.tasks, files),
            "corpus_hash": corpus.content_hash if base.corpus_hash else None,
            "pairs": {split: dict(sorted(kinds[split].items())) for split in splits},
            "users": {split: by_split[split]["user_id"].n_unique() for split in splits},
        }
    )


def _all(frames: Frames, kind: Kind) -> "pl.DataFrame":
    import polars as pl

    from tagpr_data.tables import frame_from_records

    return pl.concat([frame_from_records([], _MODELS[kind][0]), *(f for (k, _), f in frames.items() if k == kind)])


def _check_alike(one: CorpusManifest, other: CorpusManifest, licence: str | None) -> None:
    if one.tagset_hash != other.tagset_hash:
        raise InputError(
            f"{one.name} is written in the tag set {one.tagset} ({one.tagset_hash[:12]}…), {other.name} in "
            f"{other.tagset} ({other.tagset_hash[:12]}…); corpora of one tag set can be merged"
        )
    tasks: dict[str, Task] = {task.name: task for task in one.tasks}
    unlike = [task.name for task in other.tasks if task.name in tasks and tasks[task.name] != task]
    if unlike:
        raise InputError(f"{one.name} and {other.name} define the task {unlike[0]!r} differently; rename one of them")
    if one.licence != other.licence and licence is None:
        raise InputError(f"the licences differ: {one.licence!r} and {other.licence!r}; say with --licence what holds")
    for name in one.teachers.keys() & other.teachers.keys():
        if one.teachers[name] != other.teachers[name]:
            raise InputError(
                f"teacher {name!r} is at revision {one.teachers[name]!r} in {one.name} and {other.teachers[name]!r} in "
                f"{other.name}; a corpus names one revision of each teacher"
            )


def _joined(one: Frames, other: Frames) -> Frames:
    import polars as pl

    result: Frames = {}
    for place in sorted({*one, *other}):
        frames = [frames[place] for frames in (one, other) if place in frames]
        joined = pl.concat(frames)
        if len(frames) == 2:
            joined = _unique(joined, place[0])
        result[place] = joined
    return result


def _unique(frame: "pl.DataFrame", kind: Kind) -> "pl.DataFrame":
    """Take equal rows once; CheckFailed where one key has two contents."""
    key = _MODELS[kind][1]
    twice = frame.filter(frame.select(key).is_duplicated())
    if twice.is_empty():
        return frame
    once: dict[tuple[Any, ...], dict[str, Any]] = {}
    unlike: list[str] = []
    for row in twice.iter_rows(named=True):
        place = tuple(row[name] for name in key)
        known = once.setdefault(place, row)
        if known != row:
            fields = [name for name in row if row[name] != known[name]]
            unlike.append(f"{'/'.join(map(str, place))} ({', '.join(fields)})")
    if unlike:
        raise CheckFailed(f"{len(unlike)} rows of {kind} have one id and two contents: {'; '.join(sorted(unlike)[:5])}")
    return frame.unique(key, keep="first", maintain_order=True)


def _check_fates(frames: Frames) -> None:
    kept, refused = _all(frames, "traces").select("id"), _all(frames, "rejected").select("id")
    both = kept.join(refused, on="id", how="semi")["id"].sort()
    if both.len():
        raise CheckFailed(f"{both.len()} attempts are kept in one, rejected in the other: {', '.join(both[:5])}")


def _merged_pairs(one: PairsManifest | None, other: PairsManifest | None, frames: Frames) -> PairsManifest | None:
    """Give what the pairs manifests say together; what follows from rows is counted later."""
    if one is None or other is None:
        return one or other
    if one.dataset_hash != other.dataset_hash:
        raise InputError(
            f"the preference pairs are about different data sets ({one.name} and {other.name}); remove one pairs "
            f"folder, merge, and make pairs of the result anew"
        )
    users = {split: set(frame["user_id"]) for (kind, split), frame in frames.items() if kind == "pairs"}
    known = set().union(*(found for split, found in users.items() if split != "unseen"))
    leaked = sorted(users.get("unseen", set()) & known)
    if leaked:
        raise CheckFailed(
            f"{len(leaked)} users of the unseen preference pairs of one corpus are trained on in the other: "
            f"{', '.join(leaked[:5])}"
        )
    reasons = [*one.skipped, *(reason for reason in other.skipped if reason not in one.skipped)]
    return one.model_copy(
        update={
            "tasks": tuple({task.name: task for task in (*one.tasks, *other.tasks)}.values()),
            "skipped": {reason: one.skipped.get(reason, 0) + other.skipped.get(reason, 0) for reason in reasons},
            "parameters": {"merged": [one.parameters, other.parameters]},
        }
    )


def _are_disjoint(frames: Mapping[tuple[Kind, str], "pl.DataFrame"]) -> bool:
    users: dict[str, set[str]] = {}
    for (kind, split), frame in frames.items():
        if kind in ("traces", "rejected"):
            users.setdefault(split, set()).update(frame["user_id"])
    return sum(map(len, users.values())) == len(set().union(*users.values()))
