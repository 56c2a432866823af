import hashlib
import itertools
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tagpr_data.embed_cache import EmbeddingCache
from tagpr_data.errors import InputError
from tagpr_data.retrieve import rank

WIDTH = 6


class Encoder:
    """Vectors made of the text's hash, and a record of what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked.append(list(texts))
        return np.stack([vector(text) for text in texts])


def vector(text):
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return np.frombuffer(digest[:WIDTH], np.uint8).astype(np.float32) / 7


def vectors(texts):
    return np.stack([vector(text) for text in texts])


def test_a_text_is_encoded_once_even_within_a_call_and_across_openings(tmp_path):
    encoder = Encoder()
    cache = EmbeddingCache(tmp_path / "v.bin", encoder, "toy")
    assert cache(["a", "b", "a"]).tolist() == vectors(["a", "b", "a"]).tolist()
    assert cache(["b", "\ud83d", ""]).tolist() == vectors(["b", "\ud83d", ""]).tolist()
    again = EmbeddingCache(tmp_path / "v.bin", encoder, "toy")
    assert again(["", "a", "c"]).tolist() == vectors(["", "a", "c"]).tolist()
    assert encoder.asked == [["a", "b"], ["\ud83d", ""], ["c"]]
    assert len(again) == 5


def test_the_file_is_as_documented(tmp_path):
    EmbeddingCache(tmp_path / "v.bin", vectors, "toy")(["a", "b"])
    content = (tmp_path / "v.bin").read_bytes()
    assert content[:256].rstrip() == b'{"tagpr_embeddings": 1, "encoder": "toy", "width": 6}'
    assert content[255:256] == b"\n" and len(content) == 256 + 2 * (16 + 4 * WIDTH)
    assert content[256:272] == hashlib.sha256(b"a").digest()[:16]
    assert np.frombuffer(content[272:296], "<f4").tolist() == vector("a").tolist()


def test_no_texts_give_no_vectors(tmp_path):
    cache = EmbeddingCache(tmp_path / "v.bin", vectors, "toy")
    assert len(cache([])) == 0
    cache(["a"])
    assert cache([]).shape == (0, WIDTH)


@pytest.mark.parametrize("cut", [1, 39, 40, 41, 80, 81, 300, 335])
def test_a_torn_end_is_cut_off_and_made_again(tmp_path, cut):
    path = tmp_path / "v.bin"
    EmbeddingCache(path, vectors, "toy")(["a", "b"])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut])
    encoder = Encoder()
    cache = EmbeddingCache(path, encoder, "toy")
    assert cache(["a", "b"]).tolist() == vectors(["a", "b"]).tolist()
    assert path.read_bytes() == whole
    assert list(itertools.chain(*encoder.asked)) == (["b"] if cut <= 40 else ["a", "b"])


def test_two_openings_of_one_file_share_it(tmp_path):
    one, two = (EmbeddingCache(tmp_path / "v.bin", vectors, "toy") for _ in range(2))
    one(["a", "b"])
    two(["b", "c"])
    one(["d"])
    assert one(["a", "c", "d"]).tolist() == vectors(["a", "c", "d"]).tolist()
    assert len(EmbeddingCache(tmp_path / "v.bin", vectors, "toy")) == 4


WRITER = """
import sys, hashlib, numpy as np
from pathlib import Path
from tagpr_data.embed_cache import EmbeddingCache
def vector(text):
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:6], np.uint8).astype(np.float32) / 7
cache = EmbeddingCache(Path(sys.argv[1]), lambda texts: np.stack([vector(text) for text in texts]), "toy")
for number in range(int(sys.argv[2]), 10**9):
    cache([f"text {number}", f"shared {number}"])
"""


def test_processes_killed_while_writing_leave_a_file_that_works(tmp_path):
    path = tmp_path / "v.bin"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), start]) for start in ("0", "50")]
    deadline = time.monotonic() + 60
    while (not path.exists() or path.stat().st_size < 40_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    for writer in writers:
        writer.kill()
        writer.wait()
    cache = EmbeddingCache(path, vectors, "toy")
    assert len(cache) > 300
    texts = [f"{kind} {number}" for kind in ("text", "shared") for number in range(200)] + ["new"]
    assert cache(texts).tolist() == vectors(texts).tolist()
    assert (path.stat().st_size - 256) % (16 + 4 * WIDTH) == 0


def test_another_encoder_is_refused_by_name(tmp_path):
    EmbeddingCache(tmp_path / "v.bin", vectors, "toy")(["a"])
    with pytest.raises(InputError, match=r"holds vectors of the encoder 'toy' .*not of 'other'"):
        EmbeddingCache(tmp_path / "v.bin", vectors, "other")


def test_an_encoder_whose_width_changed_is_refused(tmp_path):
    EmbeddingCache(tmp_path / "v.bin", vectors, "toy")(["a"])
    cache = EmbeddingCache(tmp_path / "v.bin", lambda texts: vectors(texts)[:, :3], "toy")
    with pytest.raises(InputError, match="holds vectors of 6 numbers, but toy now gives 3"):
        cache(["b"])


@pytest.mark.parametrize("content", [b"{}", b"[1]" * 100, b"\xff" * 400, b'{"tagpr_embeddings": 1}'.ljust(256)])
def test_a_file_of_something_else_is_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a file of cached vectors"):
        EmbeddingCache(path, vectors, "toy")
    assert path.read_bytes() == content


def test_a_folder_or_an_endless_name_is_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        EmbeddingCache(tmp_path, vectors, "toy")
    with pytest.raises(InputError, match="too long for the header"):
        EmbeddingCache(tmp_path / "v.bin", vectors, "x" * 300)


def test_a_vector_that_is_not_finite_is_not_kept(tmp_path):
    cache = EmbeddingCache(tmp_path / "v.bin", lambda texts: np.full((len(texts), 2), np.nan, np.float32), "toy")
    with pytest.raises(InputError, match="not finite"):
        cache(["a"])
    assert not (tmp_path / "v.bin").exists()


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "v.bin"
    EmbeddingCache(path, vectors, "toy")(["a"])
    whole = path.read_bytes()
    cache = EmbeddingCache(path, vectors, "toy")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, hard))  # the write stops inside the second record
    try:
        with pytest.raises(OSError, match="File too large"):
            cache(["b"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == whole
    assert cache(["b"]).tolist() == vectors(["b"]).tolist()


def test_a_retriever_takes_the_cache_as_its_encoder(tmp_path):
    encoder = Encoder()
    cache = EmbeddingCache(tmp_path / "v.bin", encoder, "toy")
    texts = ["one", "two", "three"]
    assert rank("dense", "query", texts, encode=cache) == rank("dense", "query", texts, encode=vectors)
    rank("hybrid", "query", texts, encode=cache)
    assert encoder.asked == [["one", "two", "three", "query"]]
