"""A file of text vectors, so that no text is encoded twice: over cells of a grid, runs, and profiles that share items.

    header    256 bytes: one line of JSON {"tagpr_embeddings": 1, "encoder": …, "width": D}, filled up with blanks
    records   16 bytes of the text's sha256, then D little-endian float32; nothing else, in the order they were made

Guarantee: a vector is what `encode` gave the first time its text was seen, so equal texts have equal vectors; a record
counts once it is whole, and a torn end (`kill -9`, full disk) is cut off by the next writer. Several processes may
share a file: they add records one after the other and at worst encode a text twice. Price: the vectors are mapped, not
loaded, but the keys of the whole file are held in memory (about 130 bytes each), and nothing is ever removed.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tagpr_data.errors import InputError, shorten
from tagpr_data.retrieve import Encode

_HEADER_BYTES = 256
_KEY_BYTES = 16
_TEXTS_A_WRITE = 1024


class EmbeddingCache:
    """An `Encode` around another: asks `encode` only for texts that the file at `path` does not hold.

    `encoder` names everything that decides a vector (model, revision, pooling, truncation). Raises InputError where
    the file was made by another encoder or is no such file.
    """

    def __init__(self, path: Path, encode: Encode, encoder: str) -> None:
        self.path = path
        self.encoder = encoder
        self._encode = encode
        self._rows: dict[bytes, int] = {}
        self._records: npt.NDArray[Any] | None = None
        self._header(0)  # a name too long for the header is refused before anything is encoded
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file for cached vectors")
        if path.exists():
            with path.open("rb") as file:
                self._load(file)

    def __len__(self) -> int:
        """Give the number of texts held."""
        return len(self._rows)

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Give the vectors of N texts: (N, D) float32; new ones are written, piece by piece, before this returns."""
        keys = [_key(text) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._rows}
        for start in range(0, len(missing), _TEXTS_A_WRITE):
            piece = list(missing)[start : start + _TEXTS_A_WRITE]
            self._add(piece, self._encode([missing[key] for key in piece]))
        if self._records is None:
            return np.zeros((0, 0), np.float32)
        rows = np.array([self._rows[key] for key in keys], np.intp)
        return np.asarray(self._records["vector"][rows])

    def _add(self, keys: list[bytes], vectors: npt.NDArray[np.float32]) -> None:
        if vectors.ndim != 2 or len(vectors) != len(keys):
            raise InputError(f"the encoder {self.encoder} gave vectors of shape {vectors.shape} for {len(keys)} texts")
        if not np.isfinite(vectors).all():
            raise InputError(f"the encoder {self.encoder} gave a vector that is not finite; nothing of it was kept")
        records = np.zeros(len(keys), _record(vectors.shape[1]))
        records["key"] = np.frombuffer(b"".join(keys), f"V{_KEY_BYTES}")
        records["vector"] = vectors
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b", buffering=0) as file, _locked(file):
            end = self._whole_end(file, vectors.shape[1])
            try:
                if end == 0:
                    _write(file, self._header(vectors.shape[1]))
                _write(file, records.tobytes())
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise
            self._load(file)

    def _whole_end(self, file: IO[bytes], width: int) -> int:
        """Cut a torn end off and give the size of what is whole; 0 means that even the header has to be written."""
        size = os.fstat(file.fileno()).st_size
        end = 0
        if size >= _HEADER_BYTES:
            found = self._read_width(file)
            if found != width:
                raise InputError(f"{self.path} holds vectors of {found} numbers, but {self.encoder} now gives {width}")
            end = size - (size - _HEADER_BYTES) % _record(width).itemsize
        os.ftruncate(file.fileno(), end)
        return end

    def _load(self, file: IO[bytes]) -> None:
        """Map all whole records and take up the keys that are new; the first record of a key stays the valid one."""
        size = os.fstat(file.fileno()).st_size
        if size < _HEADER_BYTES:
            file.seek(0)
            if not self._header(0).startswith(file.read(16)):
                raise InputError(f"{self.path} is not a file of cached vectors; give another name or remove it")
            return  # torn while it was being created
        record = _record(self._read_width(file))
        count = (size - _HEADER_BYTES) // record.itemsize
        if count == 0:
            return
        known = 0 if self._records is None else len(self._records)
        self._records = np.memmap(self.path, record, "r", _HEADER_BYTES, (count,))
        keys = self._records["key"][known:].tobytes()
        for row in range(known, count):
            at = (row - known) * _KEY_BYTES
            self._rows.setdefault(keys[at : at + _KEY_BYTES], row)

    def _read_width(self, file: IO[bytes]) -> int:
        file.seek(0)
        try:
            header = json.loads(file.read(_HEADER_BYTES))
            version, encoder, width = header["tagpr_embeddings"], header["encoder"], header["width"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{self.path} is not a file of cached vectors; give another name or remove it") from None
        if version != 1 or encoder != self.encoder:
            raise InputError(
                f"{self.path} holds vectors of the encoder {shorten(encoder)} (format {version}), not of "
                f"{self.encoder!r} (format 1); give another file"
            )
        return width

    def _header(self, width: int) -> bytes:
        header = json.dumps({"tagpr_embeddings": 1, "encoder": self.encoder, "width": width}).encode()
        if len(header) >= _HEADER_BYTES:
            raise InputError(f"the encoder's name {shorten(self.encoder)} is too long for the header of {self.path}")
        return header.ljust(_HEADER_BYTES - 1) + b"\n"


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_KEY_BYTES]


def _record(width: int) -> np.dtype[Any]:
    return np.dtype([("key", f"V{_KEY_BYTES}"), ("vector", "<f4", (width,))])


def _write(file: IO[bytes], content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


@contextmanager
def _locked(file: IO[bytes]) -> Generator[None, None, None]:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
