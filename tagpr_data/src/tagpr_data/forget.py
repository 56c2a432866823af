"""Forget a user: a new corpus without them, and a certificate that nothing of them is left.

What goes: every row of the user in traces, rejected and pairs; every pair in which another user is compared with them;
their profile; every row made from such a row (`parents`), and rows made from those. The card and Croissant are written
anew.

The proof is a search through the finished folder, every Parquet file decompressed, for every id that led to the user:
user, profiles, examples, rows, prompts. No id may be a value of the fields that hold ids of its kind. Ids that are
telling (no bare number, no one or two letters) may not be a value of any field, those of user and profiles may not
stand as a word in any text or file, and those of 8 bytes or more may not occur in the bytes at all. The certificate
holds the search and the user's hash, not the user.

Not covered: the data set the corpus came from, working files (`.work/`) and copies already published.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tagpr_data import card, merge
from tagpr_data.corpus import Corpus, Kind, open_corpus
from tagpr_data.errors import CheckFailed, InputError, shorten
from tagpr_data.records import CorpusManifest
from tagpr_data.tables import sha256_file, sha256_text, write_text

if TYPE_CHECKING:
    import polars as pl

IdKind = Literal["user", "profile", "example", "row", "prompt"]
ID_FIELDS: dict[IdKind, tuple[str, ...]] = {
    "user": ("user_id", "other_user_id"),
    "profile": ("profile_id", "other_profile_id"),
    "example": ("example_id",),
    "row": ("id", "parents"),
    "prompt": ("prompt_hash",),
}
"""Which fields hold ids of each kind."""

_SEARCHED_BYTES = 8  # shorter ids occur in compressed noise and inside words


@dataclass(frozen=True)
class Identity:
    """All ids that lead to a user, by kind."""

    ids: dict[IdKind, frozenset[str]]

    @property
    def telling(self) -> frozenset[str]:
        """Ids that mean nothing else: `110` may be a count, `u0042` may not."""
        return frozenset(name for ids in self.ids.values() for name in ids if _is_telling(name))

    @property
    def words(self) -> frozenset[str]:
        """Telling ids of user and profiles, searched for in running text."""
        return self.telling & (self.ids.get("user", frozenset()) | self.ids.get("profile", frozenset()))

    @property
    def long(self) -> list[bytes]:
        """Telling ids that are searched for in bytes."""
        every = (name.encode("utf-8", "surrogatepass") for name in self.telling)
        return sorted(name for name in every if len(name) >= _SEARCHED_BYTES)


@dataclass(frozen=True)
class Found:
    """A place where an id was found."""

    file: str
    where: str
    """Row and field, or line."""
    value: str


def forget(
    corpus: Corpus, user: str, output: Path, drop_mentions: bool = False, known_as: Iterable[str] = ()
) -> tuple[CorpusManifest, str]:
    """Write a corpus without `user` to `output`; give its manifest and the certificate as JSON. `known_as` are further
    names of theirs, which must not be left either: what a pseudonym stands for.

    Raises InputError when the corpus has no such user, CheckFailed when other users' texts name them (with
    `drop_mentions` those rows go too); nothing is written then.
    """
    frames = merge.read_frames(corpus)
    identity, gone = _gone(frames, user)
    identity = Identity({**identity.ids, "user": frozenset({user, *known_as})})
    if not any(gone.values()) and not _occurs(frames, user):
        users = sorted({name for (kind, _), frame in frames.items() if kind == "traces" for name in frame["user_id"]})
        raise InputError(f"{corpus.folder} has no user {user!r}; it has, for example, {', '.join(users[:5]) or 'none'}")
    kept = {place: frame.filter(~_is_gone(frame, place[0], gone)) for place, frame in frames.items()}
    if drop_mentions:
        kept = {place: _without_mentions(frame, identity.words) for place, frame in kept.items()}
    removed = {
        f"{kind}/{split}": frames[kind, split].height - frame.height for (kind, split), frame in sorted(kept.items())
    }
    facts_path = corpus.folder / card.FACTS
    facts = facts_path.read_text(encoding="utf-8") if facts_path.is_file() else None
    searched: list[dict[str, Any]] = []
    base = _without_history(corpus.manifest)
    manifest = merge.write_corpus(
        output, kept, base, corpus.pairs, facts, then=lambda folder: searched.extend(_proven(folder, identity))
    )
    certificate = {
        "what": "tagpr-data forget: no id of this user was found in any file of the corpus",
        "format_version": 1,
        "user_sha256": sha256_text(user),
        "from_content_hash": corpus.manifest.content_hash,
        "to_content_hash": manifest.content_hash,
        "removed_rows": removed,
        "ids": {kind: len(ids) for kind, ids in identity.ids.items()},
        "ids_searched_in_every_field": len(identity.telling),
        "ids_searched_as_words": len(identity.words),
        "ids_searched_in_bytes": len(identity.long),
        "files": searched,
    }
    return manifest, json.dumps(certificate, indent=2, ensure_ascii=False) + "\n"


def search(folder: Path, identity: Identity) -> tuple[list[Found], list[dict[str, Any]]]:
    """Search every file of a folder for a user. Give what was found (the first places of each file) and, for each
    file, its hash and how many bytes were looked through, decompressed."""
    found: list[Found] = []
    searched: list[dict[str, Any]] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        places, size = (
            _search_table(path, name, identity) if path.suffix == ".parquet" else _search_text(path, name, identity)
        )
        found += places
        searched.append({"path": name, "sha256": sha256_file(path), "bytes_searched": size, "found": len(places)})
    return found, searched


def check_gone(folder: Path, user: str, known_as: Iterable[str] = ()) -> int:
    """Search a finished corpus for a user's names alone; give the number of files searched. Raises CheckFailed with the
    places where it stands."""
    open_corpus(folder)
    found, searched = search(folder, Identity({"user": frozenset({user, *known_as})}))
    _refuse(found, f"{folder} still names the user")
    return len(searched)


def _gone(frames: merge.Frames, user: str) -> tuple[Identity, dict[Kind, set[str]]]:
    """Give the user's ids, and the keys of the rows to remove by kind (ids; profile ids for profiles)."""
    import polars as pl

    gone: dict[Kind, set[str]] = {"traces": set(), "rejected": set(), "pairs": set(), "profiles": set()}
    examples: set[str] = set()
    prompts: set[str] = set()
    others_examples: set[str] = set()
    others_prompts: set[str] = set()
    others_profiles: set[str] = set()
    for (kind, _), frame in frames.items():
        if kind in ("traces", "rejected"):
            own, others = frame.filter(pl.col("user_id") == user), frame.filter(pl.col("user_id") != user)
            gone[kind].update(own["id"])
            examples.update(own["example_id"])
            prompts.update(own["prompt_hash"])
            others_examples.update(others["example_id"])
            others_prompts.update(others["prompt_hash"])
        elif kind == "pairs":
            asked = frame.filter(pl.col("user_id") == user)
            compared = frame.filter(pl.col("other_user_id") == user)
            gone["pairs"].update(asked["id"], compared["id"])
            gone["profiles"].update(asked["profile_id"], compared["other_profile_id"])
            examples.update(asked["example_id"])
            others_examples.update(frame.filter(pl.col("user_id") != user)["example_id"])
            others_profiles.update(frame.filter(pl.col("user_id") != user)["profile_id"])
            others_profiles.update(frame.filter(pl.col("other_user_id") != user)["other_profile_id"])
    profiles = gone["profiles"] = gone["profiles"] - others_profiles
    rows = _with_children(frames, gone["traces"] | gone["rejected"])
    for kind in ("traces", "rejected"):
        gone[kind] = rows
    # prompts without any item are shared by users; so may examples be, where a source reuses ids
    ids: dict[IdKind, frozenset[str]] = {
        "user": frozenset({user}),
        "profile": frozenset(profiles),
        "example": frozenset(examples - others_examples),
        "row": frozenset(rows | gone["pairs"]),
        "prompt": frozenset(prompts - others_prompts),
    }
    return Identity(ids), gone


def _with_children(frames: merge.Frames, rows: set[str]) -> set[str]:
    """Add the rows made from `rows`, and those made from them."""
    parents = {
        row: set(above)
        for (kind, _), frame in frames.items()
        if kind in ("traces", "rejected")
        for row, above in frame.select("id", "parents").iter_rows()
        if above
    }
    result = set(rows)
    while children := {row for row, above in parents.items() if row not in result and above & result}:
        result |= children
    return result


def _is_gone(frame: "pl.DataFrame", kind: Kind, gone: dict[Kind, set[str]]) -> "pl.Series":
    return frame["profile_id" if kind == "profiles" else "id"].is_in(list(gone[kind]))


def _occurs(frames: merge.Frames, user: str) -> bool:
    return any(_without_mentions(frame, (user,)).height < frame.height for frame in frames.values())


def _without_mentions(frame: "pl.DataFrame", names: Iterable[str]) -> "pl.DataFrame":
    """Drop rows in which a name stands as a word in any text."""
    import polars as pl

    words = _words(names)
    named = [any(words.search(text) for text in _texts(row)) for row in frame.iter_rows()]
    return frame.filter(~pl.Series(named, dtype=pl.Boolean))


def _without_history(manifest: CorpusManifest) -> CorpusManifest:
    """Count in the parameters that users were forgotten; not who."""
    count = manifest.parameters.get("forgotten_users", 0)
    return manifest.model_copy(update={"parameters": {**manifest.parameters, "forgotten_users": count + 1}})


def _proven(folder: Path, identity: Identity) -> list[dict[str, Any]]:
    found, searched = search(folder, identity)
    _refuse(found, "other rows name the user, so nothing was written; --drop-mentions removes these rows too")
    return searched


def _refuse(found: Sequence[Found], problem: str) -> None:
    if found:
        places = "\n  ".join(f"{place.file}, {place.where}: {place.value}" for place in found[:10])
        more = f"\n  and {len(found) - 10} more" if len(found) > 10 else ""
        raise CheckFailed(f"{problem}:\n  {places}{more}")


def _search_table(path: Path, name: str, identity: Identity) -> tuple[list[Found], int]:
    import pyarrow.parquet as pq

    words, values, long = _words(identity.words), identity.telling, identity.long
    own = {field: ids for kind, ids in identity.ids.items() for field in ID_FIELDS[kind]}
    found: list[Found] = []
    size, number = 0, 0
    for batch in pq.ParquetFile(path).iter_batches(10_000):
        for row in batch.to_pylist():
            for field, text in _named_texts(row):
                if text in own.get(field, ()) or text in values or words.search(text):
                    found.append(Found(name, f"row {row.get('id', number)}, {field}", shorten(text)))
            number += 1
        content = _uncompressed(batch)
        size += len(content)
        found += [
            Found(name, f"bytes of rows {number - batch.num_rows} to {number - 1}", value)
            for value in _in_bytes(content, long)
        ]
    raw = path.read_bytes()  # the footer holds least and greatest values
    found += [Found(name, "bytes of the file", value) for value in _in_bytes(raw, long)]
    return found, size + len(raw)


def _search_text(path: Path, name: str, identity: Identity) -> tuple[list[Found], int]:
    content = path.read_bytes()
    words = _words(identity.words)
    lines = content.decode("utf-8", "replace").splitlines()
    found = [Found(name, f"line {number}", shorten(line)) for number, line in enumerate(lines, 1) if words.search(line)]
    found += [Found(name, "bytes of the file", value) for value in _in_bytes(content, identity.long)]
    return found, len(content)


def _is_telling(name: str) -> bool:
    return len(name) >= (_SEARCHED_BYTES if name.isdigit() else 3)


def _words(names: Iterable[str]) -> re.Pattern[str]:
    """Match any of the names as a word of its own; without names, nothing."""
    return re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in sorted(names)) or r"(?!)")


def _in_bytes(content: bytes, ids: Iterable[bytes]) -> list[str]:
    return [shorten(name.decode("utf-8", "replace")) for name in ids if name in content]


def _uncompressed(batch: Any) -> bytes:
    """Give a batch as plain Arrow bytes, where each column's values lie one after the other."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=None)) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _named_texts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for field, value in row.items():
        for text in _texts(value):
            yield field, text


def _texts(value: Any) -> Iterator[str]:
    """Give every text inside a value, however nested."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)


def write_certificate(path: Path, text: str) -> None:
    """Write the certificate beside the corpus."""
    write_text(path, text)
