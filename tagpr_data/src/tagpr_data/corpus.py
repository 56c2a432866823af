"""A corpus folder, open for reading: its manifest, its tables, its preference pairs.

    traces/SPLIT.parquet  rejected/SPLIT.parquet  manifest.json
    pairs/                a whole pairs folder (`tagpr-data pairs --output CORPUS/pairs`), where there is one

Guarantee: with `verify`, every file is the one its manifest describes. Nothing is held in memory: tables are views in
DuckDB. Price: each file is hashed once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import CorpusManifest, FileEntry, PairsManifest, PreferencePair, ProfileItem, Rejected, Trace
from tagpr_data.tables import arrow_schema, read_json, sha256_file

if TYPE_CHECKING:
    import duckdb

Kind = Literal["traces", "rejected", "pairs", "profiles"]
RECORDS: dict[Kind, type[Trace] | type[Rejected] | type[PreferencePair] | type[ProfileItem]] = {
    "traces": Trace,
    "rejected": Rejected,
    "pairs": PreferencePair,
    "profiles": ProfileItem,
}
"""Tables of a corpus folder and the records in them; the last two only where it has pairs."""

MANIFEST = "manifest.json"
PAIRS = "pairs"


@dataclass(frozen=True)
class Table:
    """One Parquet file of a corpus."""

    kind: Kind
    """Which table it is a part of."""
    split: str
    """Its split; `items` for profiles."""
    path: str
    """Where it lies, from the corpus folder."""
    entry: FileEntry
    """Its rows and hash."""


@dataclass(frozen=True)
class Corpus:
    """An open corpus folder; `open_corpus` makes it."""

    folder: Path
    manifest: CorpusManifest
    pairs: PairsManifest | None
    tables: tuple[Table, ...]
    """All Parquet files, ordered by kind, then split as in `SPLIT_ORDER`."""

    def of(self, kind: Kind) -> list[Table]:
        """Give the files of one kind."""
        return [table for table in self.tables if table.kind == kind]

    def connect(self) -> "duckdb.DuckDBPyConnection":
        """Open DuckDB with one view per kind, with the column `split`; kinds without a file are empty."""
        import duckdb

        connection = duckdb.connect()
        connection.execute("SET memory_limit = '1GB'; SET enable_progress_bar = false")
        for kind in RECORDS:
            self.add_view(connection, kind, kind)
        return connection

    def add_view(self, connection: "duckdb.DuckDBPyConnection", kind: Kind, name: str) -> None:
        """Add a view of one kind, with the column `split`, to an open DuckDB."""
        parts = [
            f"SELECT {quoted(table.split)} AS split, * FROM read_parquet({quoted(str(self.folder / table.path))})"
            for table in self.of(kind)
        ]
        if kind == "pairs":  # its rows say their split themselves
            parts = [part.replace("*", "* EXCLUDE (split)", 1) for part in parts]
        if not parts:
            empty = arrow_schema(RECORDS[kind]).empty_table()
            connection.register(f"_empty_{name}", empty)
            columns = "*" if kind == "pairs" else "'none' AS split, *"
            parts = [f"SELECT {columns} FROM _empty_{name}"]
        import duckdb

        try:
            connection.execute(f'CREATE VIEW "{name}" AS {" UNION ALL BY NAME ".join(parts)}')
        except duckdb.Error as error:
            raise CheckFailed(
                f"{self.folder}: its {kind} cannot be read ({str(error).splitlines()[0]}); "
                f"`tagpr-data validate {self.folder}` says where"
            ) from None


SPLIT_ORDER = ("train", "validation", "test", "seen", "unseen", "items")


def open_corpus(folder: Path, verify: bool = True) -> Corpus:
    """Open a corpus folder. Raises InputError when it is incomplete or a Parquet file lies where none should,
    CheckFailed when, with `verify`, a file is not the one its manifest describes."""
    if not folder.is_dir():
        raise InputError(f"corpus folder {folder} does not exist")
    manifest = read_json(folder / MANIFEST, CorpusManifest)
    pairs_manifest = folder / PAIRS / MANIFEST
    pairs = read_json(pairs_manifest, PairsManifest) if pairs_manifest.is_file() else None
    tables = [_table(folder, path, entry) for path, entry in manifest.files.items()]
    if pairs is not None:
        tables += [_table(folder, f"{PAIRS}/{path}", entry) for path, entry in pairs.files.items()]
    tables.sort(key=lambda table: (list(RECORDS).index(table.kind), SPLIT_ORDER.index(table.split), table.path))
    for table in tables:
        path = folder / table.path
        if not path.is_file():
            raise InputError(f"corpus {folder} is not complete: {table.path} of its manifest is missing")
        if verify and sha256_file(path) != table.entry.sha256:
            raise CheckFailed(f"{path} is not the file that its manifest describes (its hash differs); build it again")
    return Corpus(folder, manifest, pairs, tuple(tables))


def quoted(text: str) -> str:
    """Give a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def _table(folder: Path, path: str, entry: FileEntry) -> Table:
    *above, name = path.split("/")
    kinds: dict[tuple[str, ...], Kind] = {
        ("traces",): "traces",
        ("rejected",): "rejected",
        ("pairs", "pairs"): "pairs",
        ("pairs",): "profiles",
    }
    split = "items" if name == "profiles.parquet" else name.removesuffix(".parquet")
    found = kinds.get(tuple(above))
    if found is None or split not in SPLIT_ORDER or (found == "profiles") != (split == "items"):
        raise InputError(
            f"{folder / MANIFEST} names the file {path!r}; a corpus has traces/, rejected/ and a pairs folder, "
            f"split into train, validation and test"
        )
    return Table(found, split, path, entry)
