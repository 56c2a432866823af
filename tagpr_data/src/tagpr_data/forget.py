"""Forget a user: a new corpus without them, and a certificate that nothing of them is left.

What goes: every row of the user in traces, rejected and pairs; every pair in which another user is compared with them;
their profile; every row made from such a row (`parents`), and rows made from those. Where the detail of another user's
rejected row names such a row, as the one it was a duplicate of, the id in it is replaced. The card and Croissant are
written anew.

The proof is a search through the finished folder, every Parquet file decompressed, for every id that led to the user:
user, profiles, examples, rows, prompts. No id may be a value of the fields that hold ids of its kind. Ids that are
telling (no bare number, no one or two letters) may not be a value of any field, those of user and profiles may not
stand as a word in any text or file, and those of 8 bytes or more may not occur in the bytes at all. Nor may what only
they wrote stand in another user's row, as in a question which of two texts is whose: `own_texts.py` says what that is.
The certificate holds the search and the user's hash, not the user.

Memory grows with what led to the user, not with the corpus: tables are streamed, files searched in pieces. Price: every
row is looked at several times, in Python once.

Not covered: what a corpus cannot know for theirs (a text that stands in none of their own rows, but in the question to
somebody else), the data set the corpus came from, working files (`.work/`) and copies already published.
"""

import gzip
import html
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tagpr_data import card, merge, own_texts
from tagpr_data.corpus import Corpus, Kind, open_corpus
from tagpr_data.errors import CheckFailed, InputError, shorten
from tagpr_data.records import CorpusManifest
from tagpr_data.tables import sha256_file, sha256_text, write_text

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

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
_PIECE_BYTES = 1 << 22
_ROW_ID = re.compile(r"\b[0-9a-f]{64}\b")
SEARCHED_ROWS = 1_000
"""Rows in memory at once while a table is searched."""


@dataclass(frozen=True)
class Identity:
    """All ids that lead to a user, by kind."""

    ids: dict[IdKind, frozenset[str]]
    texts: frozenset[str] = frozenset()
    """Texts that only they wrote, searched for in running text as well."""

    @property
    def telling(self) -> frozenset[str]:
        """Ids that mean nothing else: `110` may be a count, `u0042` may not."""
        return frozenset(name for ids in self.ids.values() for name in ids if _is_telling(name))

    @property
    def words(self) -> frozenset[str]:
        """Telling ids of user and profiles, and texts of theirs: what is searched for in running text."""
        names = self.ids.get("user", frozenset[str]()) | self.ids.get("profile", frozenset[str]())
        return self.telling & names | self.texts

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

    Raises InputError when the corpus has no such user, CheckFailed when other users' rows name them or hold what only
    they wrote (with `drop_mentions` those rows go too); nothing is written then.
    """
    with corpus.connect() as rows:
        identity, gone = _gone(rows, user)
        if not any(gone.values()) and not _occurs(corpus, user):
            known = rows.execute("SELECT DISTINCT user_id FROM traces ORDER BY user_id LIMIT 5").fetchall()
            users = ", ".join(name for (name,) in known) or "none"
            raise InputError(f"{corpus.folder} has no user {user!r}; it has, for example, {users}")
    written = own_texts.written(corpus, gone, SEARCHED_ROWS)
    theirs = own_texts.only_theirs(corpus, gone, written, SEARCHED_ROWS)
    identity = Identity({**identity.ids, "user": frozenset({user, *known_as})}, theirs)
    removed = {f"{table.kind}/{table.split}": table.entry.rows for table in corpus.tables}
    facts_path = corpus.folder / card.FACTS
    facts = facts_path.read_text(encoding="utf-8") if facts_path.is_file() else None
    searched: list[dict[str, Any]] = []
    base = _without_history(corpus.manifest)
    names = identity.words if drop_mentions else frozenset[str]()

    def proven(folder: Path) -> None:
        searched.extend(_proven(folder, identity))
        for table in open_corpus(folder, verify=False).tables:
            removed[f"{table.kind}/{table.split}"] -= table.entry.rows

    manifest = merge.write_corpus(
        output, merge.of(corpus), base, corpus.pairs, facts, keep=partial(_left, gone=gone, names=names), then=proven
    )
    certificate = {
        "what": "tagpr-data forget: no id of this user, and no text that only they wrote, was found in the corpus",
        "format_version": 1,
        "user_sha256": sha256_text(user),
        "from_content_hash": corpus.manifest.content_hash,
        "to_content_hash": manifest.content_hash,
        "removed_rows": dict(sorted(removed.items())),
        "ids": {kind: len(ids) for kind, ids in identity.ids.items()},
        "ids_searched_in_every_field": len(identity.telling),
        "ids_searched_as_words": len(identity.words - identity.texts),
        "ids_searched_in_bytes": len(identity.long),
        "texts_searched_in_other_rows": len(written),
        "texts_found_there_that_only_they_wrote": len(theirs),
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
        try:
            places, size = (_search_table if path.suffix == ".parquet" else _search_text)(path, name, identity)
        except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:  # pyarrow's errors are ValueErrors
            raise InputError(
                f"{path} cannot be searched, as it is not whole ({str(error).splitlines()[0]}); remove or replace it"
            ) from None
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


def _gone(rows: "duckdb.DuckDBPyConnection", user: str) -> tuple[Identity, dict[Kind, set[str]]]:
    """Give the user's ids, and the keys of the rows to remove by kind (ids; profile ids for profiles)."""

    def ask(query: str) -> set[str]:
        return {value for (value,) in rows.execute(query, {"user": user}).fetchall()}

    rows.execute(
        "CREATE VIEW attempts AS SELECT id, user_id, example_id, prompt_hash, parents FROM traces "
        "UNION ALL SELECT id, user_id, example_id, prompt_hash, parents FROM rejected"
    )
    rows.execute(
        "CREATE VIEW shown AS SELECT user_id, profile_id FROM pairs "
        "UNION ALL SELECT other_user_id, other_profile_id FROM pairs"
    )
    rows.execute(
        "CREATE VIEW asked AS SELECT user_id, example_id FROM attempts UNION ALL SELECT user_id, example_id FROM pairs"
    )
    # prompts without any item are shared by users; so may examples be, where a source reuses ids
    alone = "SELECT {0} FROM {1} WHERE {0} IN (SELECT {0} FROM {1} WHERE user_id = $user) GROUP BY {0} HAVING {2}"
    only = "bool_and(user_id IS NOT DISTINCT FROM $user)"
    own = _with_children(rows, ask("SELECT id FROM attempts WHERE user_id = $user"))
    pairs = ask("SELECT id FROM pairs WHERE user_id = $user OR other_user_id = $user")
    profiles = ask(alone.format("profile_id", "shown", only))
    ids: dict[IdKind, frozenset[str]] = {
        "user": frozenset({user}),
        "profile": frozenset(profiles),
        "example": frozenset(ask(alone.format("example_id", "asked", only))),
        "row": frozenset(own | pairs),
        "prompt": frozenset(ask(alone.format("prompt_hash", "attempts", only))),
    }
    return Identity(ids), {"traces": own, "rejected": own, "pairs": pairs, "profiles": profiles}


def _with_children(rows: "duckdb.DuckDBPyConnection", ids: set[str]) -> set[str]:
    """Add the rows made from these, and those made from them."""
    result, news = set(ids), ids
    while news:
        found = rows.execute(
            "SELECT DISTINCT id FROM attempts WHERE list_has_any(parents, $ids::VARCHAR[])", {"ids": sorted(news)}
        ).fetchall()
        news = {id_ for (id_,) in found} - result
        result |= news
    return result


def _left(kind: Kind, batch: "pa.RecordBatch", gone: dict[Kind, set[str]], names: frozenset[str]) -> "pa.RecordBatch":
    """Give the rows of a batch that stay: neither gone nor, where `names` are given, with one of them in any text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    keys = batch["profile_id" if kind == "profiles" else "id"]
    batch = batch.filter(pc.invert(pc.is_in(keys, pa.array(sorted(gone[kind]), pa.string()))))
    if kind == "rejected":
        details = [
            _ROW_ID.sub(lambda id_: "one since removed" if id_[0] in gone[kind] else id_[0], str(detail))
            for detail in batch["detail"].to_pylist()
        ]
        place = batch.schema.get_field_index("detail")
        batch = batch.set_column(place, batch.schema.field(place), pa.array(details, pa.string()))
    if not names:
        return batch
    words = _words(names)
    return batch.filter(pa.array([not _names(row, words) for row in batch.to_pylist()], pa.bool_()))


def _occurs(corpus: Corpus, user: str) -> bool:
    """Whether the user stands as a word in any text."""
    import pyarrow.parquet as pq

    words = _words((user,))
    for table in corpus.tables:
        with pq.ParquetFile(corpus.folder / table.path) as file:
            if any(_names(row, words) for batch in file.iter_batches(SEARCHED_ROWS) for row in batch.to_pylist()):
                return True
    return False


def _names(row: dict[str, Any], words: re.Pattern[str]) -> bool:
    return any(words.search(text) for text in _texts(row))


def _without_history(manifest: CorpusManifest) -> CorpusManifest:
    """Count in the parameters that users were forgotten; not who."""
    count = manifest.parameters.get("forgotten_users", 0)
    return manifest.model_copy(update={"parameters": {**manifest.parameters, "forgotten_users": count + 1}})


def _proven(folder: Path, identity: Identity) -> list[dict[str, Any]]:
    found, searched = search(folder, identity)
    _refuse(
        found,
        "other rows name the user or hold what only they wrote, so nothing was written; --drop-mentions removes these "
        "rows too",
    )
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
    for batch in pq.ParquetFile(path).iter_batches(SEARCHED_ROWS):
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
    # the footer holds least and greatest values
    found += [Found(name, "bytes of the file", value) for value in _in_file(path, long)]
    return found, size + path.stat().st_size


def _search_text(path: Path, name: str, identity: Identity) -> tuple[list[Found], int]:
    words = _words(spelling for word in identity.words for spelling in _spellings(word))
    with _opened(path) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8", errors="replace")
        found = [
            Found(name, f"line {number}", shorten(line.rstrip("\n")))
            for number, line in enumerate(lines, 1)
            if words.search(line)
        ]
    found += [Found(name, "bytes of the file", value) for value in _in_file(path, identity.long)]
    return found, path.stat().st_size


def _spellings(word: str) -> set[str]:
    """Give a word as plain text, JSON and HTML write it."""
    return {word, json.dumps(word)[1:-1], json.dumps(word, ensure_ascii=False)[1:-1], html.escape(word)}


def _opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """Open a file for reading, decompressed where it is gzip's."""
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_packed else path.open("rb")


def _is_telling(name: str) -> bool:
    return len(name) >= (_SEARCHED_BYTES if name.isdigit() else 3)


def _words(names: Iterable[str]) -> re.Pattern[str]:
    """Match any of the names as a word of its own; without names, nothing."""
    return re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in sorted(names)) or r"(?!)")


def _in_bytes(content: bytes, ids: Iterable[bytes]) -> list[str]:
    return [shorten(name.decode("utf-8", "replace")) for name in ids if name in content]


def _in_file(path: Path, ids: Sequence[bytes]) -> list[str]:
    """Give the ids that occur in the bytes of a file, which is read in pieces that overlap."""
    overlap = max(map(len, ids), default=1) - 1
    left, found, before = set(ids), set[bytes](), b""
    with _opened(path) as file:
        while piece := file.read(_PIECE_BYTES):
            content = before + piece
            found |= {id_ for id_ in left if id_ in content}
            left -= found
            before = content[-overlap:] if overlap else b""
    return [shorten(id_.decode("utf-8", "replace")) for id_ in sorted(found)]


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
