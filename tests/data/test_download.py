"""Downloads against a server on loopback that can cut, lie and move."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tagpr_data.errors import InputError
from tagpr_data.lamp import download as module
from tagpr_data.lamp.download import BASE_URL, LampFile, download, lamp_files

QUESTION = "What is the score of the following review on a scale of 1 to 5? review: fine {}"


def questions(rows: int) -> bytes:
    item = {"id": "1", "text": "good " * 40, "score": "5"}
    return json.dumps([{"id": str(n), "input": QUESTION.format(n), "profile": [item]} for n in range(rows)]).encode()


PATH = "LaMP_3/train/train_questions.json"
FILE = LampFile("LaMP-3", PATH, True)


class Site:
    """Files by path; `act` may handle a request itself and then gives True."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.etag = '"one"'
        self.ranges: list[str | None] = []
        self.act: Callable[[Any, bytes], bool] = lambda handler, content: False
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                return

            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                site.ranges.append(asked)
                content = site.files.get(self.path.lstrip("/"))
                if content is None:
                    return self.reply(404, b"no")
                if site.act(self, content):
                    return None
                if asked and self.headers.get("If-Range") == site.etag:
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                    if start >= len(content):
                        return self.reply(416, b"")
                    return self.reply(206, content[start:])
                return self.reply(200, content)

            def reply(
                self, status: int, content: bytes, kind: str = "application/json", length: int | None = None
            ) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("ETag", site.etag)
                self.send_header("Content-Length", str(len(content) if length is None else length))
                self.end_headers()
                self.wfile.write(content)
                if length is not None:
                    self.close_connection = True

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    made.files[PATH] = questions(300)
    threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def get(site: Site, folder: Path, file: LampFile = FILE, **options: Any) -> bool:
    return download(file, folder, site.url, waits_seconds=(0.0,), **options)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_addresses_are_those_of_the_benchmark():
    def paths(*arguments: Any) -> list[str]:
        return [file.path for file in lamp_files(*arguments)]

    assert paths(["LaMP-3"], ["dev"], "user") == ["LaMP_3/dev/dev_questions.json", "LaMP_3/dev/dev_outputs.json"]
    assert paths(["LaMP_2"], ["train"], "time")[0] == "time/LaMP_2/new/train/train_questions.json"
    assert paths(["LaMP-2-old"], ["test"], "user") == ["LaMP_2/test/test_questions.json"]
    assert BASE_URL.startswith("https://") and BASE_URL.endswith("/downloads/LaMP")
    with pytest.raises(InputError, match="known"):
        paths(["LaMP-8"], ["dev"], "user")


def test_a_file_comes_whole_and_only_once(site, tmp_path):
    seen: list[tuple[int, int | None]] = []
    assert get(site, tmp_path, on_bytes=lambda have, total: seen.append((have, total)))
    assert (tmp_path / PATH).read_bytes() == site.files[PATH]
    assert seen[-1] == (len(site.files[PATH]), len(site.files[PATH]))
    assert not get(site, tmp_path)
    assert site.ranges == [None]
    assert left(tmp_path) == {"train_questions.json"}


def cut_after(count: int) -> Callable[[Any, bytes], bool]:
    """Send `count` bytes less than announced and close, once."""
    done: list[bool] = []

    def act(handler: Any, content: bytes) -> bool:
        if done:
            return False
        done.append(True)
        handler.reply(200, content[:count], length=len(content))
        return True

    return act


def test_a_cut_connection_is_resumed_where_it_broke(site, tmp_path):
    site.act = cut_after(40_000)
    assert get(site, tmp_path)
    assert site.ranges == [None, "bytes=40000-"]
    assert (tmp_path / PATH).read_bytes() == site.files[PATH]


def test_bytes_that_came_are_kept_for_the_next_command(site, tmp_path):
    site.act = cut_after(40_000)
    with pytest.raises(InputError, match="40,000 bytes are kept"):
        download(FILE, tmp_path, site.url, waits_seconds=())
    assert not (tmp_path / PATH).exists()
    assert get(site, tmp_path)
    assert site.ranges[-1] == "bytes=40000-"


def test_a_file_published_anew_is_not_glued_to_the_old_half(site, tmp_path):
    site.act = cut_after(40_000)
    with pytest.raises(InputError):
        download(FILE, tmp_path, site.url, waits_seconds=())
    site.files[PATH], site.etag = questions(500), '"two"'
    assert get(site, tmp_path)
    assert (tmp_path / PATH).read_bytes() == site.files[PATH]


def test_a_part_longer_than_the_file_is_begun_again(site, tmp_path):
    part = tmp_path / (PATH + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"[" * 10_000_000)
    Path(f"{part}.json").write_text(json.dumps({"url": f"{site.url}/{PATH}", "mark": site.etag}))
    assert get(site, tmp_path)
    assert (tmp_path / PATH).read_bytes() == site.files[PATH]


@pytest.mark.parametrize(
    ("content", "kind", "problem"),
    [
        (b"<!DOCTYPE html><html>not here</html>", "text/html", "came as HTML with status 200"),
        (b"<!DOCTYPE html><html>not here</html>", "application/json", "begins with '<!DOCTYPE"),
        (questions(9)[:-1], "application/json", "it is cut off"),
        (b"", "application/json", "begins with ''"),
        (
            b'[{"id": "1", "input": "x", "profile": [{"id": "1", "title": "t"}]}]',
            "application/json",
            "not the file of LaMP-3",
        ),
    ],
)
def test_what_is_not_the_file_is_refused_and_not_kept(site, tmp_path, content, kind, problem):
    def act(handler: Any, _: bytes) -> bool:
        handler.reply(200, content, kind)
        return True

    site.act = act
    with pytest.raises(InputError, match=problem) as raised:
        get(site, tmp_path)
    assert f"{site.url}/{PATH}" in str(raised.value)
    assert left(tmp_path) == set()


def test_an_unknown_address_is_named(site, tmp_path):
    with pytest.raises(InputError, match=r"LaMP_7/train/train_questions\.json: status 404"):
        get(site, tmp_path, LampFile("LaMP-7", "LaMP_7/train/train_questions.json", True))


def test_a_busy_server_is_asked_again(site, tmp_path):
    answers = [503, 500]

    def act(handler: Any, _: bytes) -> bool:
        if answers:
            handler.reply(answers.pop(), b"busy")
            return True
        return False

    site.act = act
    assert download(FILE, tmp_path, site.url, waits_seconds=(0.0, 0.0))


def test_a_known_size_is_compared(site, tmp_path, monkeypatch):
    monkeypatch.setitem(module.SIZES, PATH, 5)
    with pytest.raises(InputError, match="published were 5"):
        get(site, tmp_path)
    assert get(site, tmp_path, any_size=True)


def test_the_command_goes_on_after_kill_9(site, tmp_path):
    started = threading.Event()

    def act(handler: Any, content: bytes) -> bool:
        if started.is_set():
            return False
        handler.send_response(200)
        handler.send_header("ETag", site.etag)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:30_000])
        started.set()
        time.sleep(5)
        return True

    site.act = act
    site.files[PATH.replace("questions", "outputs")] = b'{"task": "LaMP_3", "golds": [{"id": "0", "output": "5"}]}'
    main = "from tagpr_data.cli import main; main()"
    options = ["download", "lamp", "--tasks", "LaMP-3", "--splits", "train", "--by", "user", "--base-url", site.url]
    command = [sys.executable, "-c", main, *options, "--output", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    part = tmp_path / (PATH + ".part")
    assert started.wait(30)
    deadline = time.monotonic() + 10
    while (not part.exists() or part.stat().st_size < 30_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / PATH).exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "bytes=30000-" in site.ranges
    assert (tmp_path / PATH).read_bytes() == site.files[PATH]
    assert left(tmp_path) == {"train_questions.json", "train_outputs.json"}
