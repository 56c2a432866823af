"""Pushes to a Hub on loopback: whole or not at all, once, and with the cause when it does not work.

The client runs in processes of its own, as `huggingface_hub` reads its environment when it is imported.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from tagpr_data import card
from tagpr_data.corpus import open_corpus
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.publish import Target, collect
from tagpr_data.records import Trace
from tagpr_data.tables import read_records
from tagpr_data.validate import validate

_spec = spec_from_file_location("hub_stand_in", Path(__file__).with_name("hub_stand_in.py"))
assert _spec is not None and _spec.loader is not None
hub_stand_in = module_from_spec(_spec)
sys.modules["hub_stand_in"] = hub_stand_in  # dataclasses look their module up
_spec.loader.exec_module(hub_stand_in)

REPO = "curator/songs"
PATIENT = (
    "import sys; from pathlib import Path; from tagpr_data import publish; from tagpr_data.errors import run_cli\n"
    "def go():\n"
    "    target = publish.Target(sys.argv[2], *sys.argv[3:4])\n"
    "    corpus = publish.collect(Path(sys.argv[1]))\n"
    "    print(*publish.push(corpus, target, lambda line: print(line, file=sys.stderr), (0.05, 0.05)))\n"
    "run_cli(go)"
)
"""A push with short pauses between attempts."""


@pytest.fixture(scope="module")
def corpus(corpus_with_pairs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("publish") / "corpus"
    shutil.copytree(corpus_with_pairs, folder)
    return folder


@pytest.fixture
def hub() -> Iterator[Any]:
    with hub_stand_in.HubStandIn() as server:
        yield server


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(hub, tmp_path) -> Run:
    """Run Python code with arguments against the Hub; whatever happens, the token is never shown."""

    def run(code: str, *arguments: object, token: str = hub_stand_in.TOKEN) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **hub.environment(tmp_path / "home", token)}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert token not in done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def tagpr(run) -> Run:
    return lambda *arguments, **options: run("from tagpr_data.cli import main; main()", *arguments, **options)


def files(hub: Any, revision: str = "main") -> dict[str, bytes]:
    repo = hub.repos[REPO]
    return repo.files(repo.resolve(revision))


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(hub, tagpr, corpus):
    done = tagpr("push", corpus, REPO)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[-1]: line.split() for line in done.stdout.splitlines()}
    assert set(lines) == {
        "README.md", "croissant.json", "data_docs/report.json", "manifest.json", "pairs/manifest.json",
        *(table.path for table in open_corpus(corpus).tables),
    }  # fmt: skip
    entry = open_corpus(corpus).of("traces")[0]
    size = f"{(corpus / entry.path).stat().st_size:,}"
    assert lines[entry.path] == ["send", size, entry.entry.sha256, entry.path]
    assert "dry run" in done.stderr and "to be made, private" in done.stderr
    assert {method for method, _ in hub.requests} == {"GET"} and not hub.repos


@pytest.mark.slow
def test_without_a_hub_a_dry_run_still_lists_the_files(hub, tagpr, corpus):
    hub.faults = lambda method, path: 503
    done = tagpr("push", corpus, REPO)
    assert done.returncode == 0 and "what is there is not known" in done.stderr
    assert "traces/train.parquet" in done.stdout


@pytest.mark.slow
def test_round_trip_push_load_stream_and_read_and_a_second_push_is_a_no_op(hub, run, tagpr, corpus):
    done = tagpr("push", corpus, REPO, "--push", "--tag", "v1.0.0")
    assert done.returncode == 0, done.stderr
    repo = hub.repos[REPO]
    assert repo.private and len(repo.commits) == 2  # one for the repository, one for the corpus
    assert repo.tags == {"v1.0.0": repo.branches["main"]}
    for path, content in files(hub).items():
        if path != ".gitattributes":
            assert content == (corpus / path).read_bytes()

    before = len(hub.requests)
    again = tagpr("push", corpus, REPO, "--push", "--tag", "v1.0.0")
    assert again.returncode == 0 and "unchanged" in again.stdout
    assert {method for method, _ in hub.requests[before:]} == {"GET"} and len(repo.commits) == 2

    read = run(
        "import json, sys, fsspec, datasets, polars as pl\n"
        "from huggingface_hub import HfFileSystem\n"
        "repo = sys.argv[1]\n"
        "names = datasets.get_dataset_config_names(repo)\n"
        "full = {name: {k: v.num_rows for k, v in datasets.load_dataset(repo, name).items()} for name in names}\n"
        "rows = datasets.load_dataset(repo, 'traces', split='train', revision='v1.0.0')\n"
        "stream = [row['id'] for row in datasets.load_dataset(repo, 'traces', split='train', streaming=True)]\n"
        "with fsspec.open(f'hf://datasets/{repo}/rejected/train.parquet') as file:\n"
        "    reasons = pl.read_parquet(file)['reason'].to_list()\n"
        "print(json.dumps([full, rows[0], stream, reasons]))",
        REPO,
    )
    assert read.returncode == 0, read.stderr
    full, first, stream, reasons = json.loads(read.stdout)
    opened = open_corpus(corpus)
    wanted: dict[str, dict[str, int]] = {}
    for table in opened.tables:
        if table.entry.rows:
            wanted.setdefault(table.kind, {})[table.split] = table.entry.rows
    assert full == wanted
    traces = read_records(corpus / "traces/train.parquet", Trace)
    assert stream == [trace.id for trace in traces]
    assert Trace.model_validate(first) == traces[0]
    assert reasons and set(reasons) <= set(opened.manifest.rejected)


@pytest.mark.slow
def test_a_new_version_is_one_commit_that_also_drops_what_is_gone(hub, run, corpus, song_folder, tmp_path):
    assert run(PATIENT, corpus, REPO).returncode == 0
    hub.repos[REPO].files(hub.repos[REPO].branches["main"])["someone.txt"] = b"of another hand"
    smaller = tmp_path / "smaller"
    shutil.copytree(corpus, smaller)
    shutil.rmtree(smaller / "pairs")
    card.write_documents(open_corpus(smaller))
    validate(smaller, report=smaller / "data_docs")
    done = run(PATIENT, smaller, REPO)
    assert done.returncode == 0, done.stderr
    assert len(hub.repos[REPO].commits) == 3
    assert not [path for path in files(hub) if path.startswith("pairs/")]
    assert files(hub)["someone.txt"] == b"of another hand"
    assert hub.count("PUT", "/lfs-store/") == len({table.entry.sha256 for table in open_corpus(corpus).tables})


@pytest.mark.parametrize(
    ("status", "part", "says"),
    [
        (401, "/api/repos/create", "401.*log in with `hf auth login` or set HF_TOKEN"),
        (403, "/commit/main", "403.*may not write"),
        (409, "/commit/main", "409.*being changed by someone else"),
        (412, "/commit/main", "412.*someone else committed"),
        (503, "/commit/main", "503.*nothing of this push is visible"),
        (404, "/preupload/", "404.*not there, or the token may not see it"),
    ],
)
@pytest.mark.slow
def test_a_refusal_is_told_with_its_status_and_what_to_do(hub, run, corpus, status, part, says):
    hub.faults = lambda method, path: status if part in path and method == "POST" else None
    done = run(PATIENT, corpus, REPO)
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ") and REPO in error
    assert re.search(says, error), error
    assert "Traceback" not in done.stderr
    if REPO in hub.repos:
        assert set(files(hub)) == {".gitattributes"}
    hub.faults = lambda method, path: None
    assert run(PATIENT, corpus, REPO).returncode == 0
    assert "traces/train.parquet" in files(hub)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (503, "503 to PUT /lfs-store/.*nothing of this push is visible"),
        (403, "403 to PUT .*may not write"),
        ("cut", "could not be reached.*nothing is visible"),
    ],
)
@pytest.mark.slow
def test_a_file_that_cannot_be_sent_is_told_and_the_same_command_goes_on(hub, run, corpus, fault, says):
    # the client's own five retries of a PUT take half a minute
    impatient = (
        "import functools; from huggingface_hub import lfs\n"
        "lfs.http_backoff = functools.partial(lfs.http_backoff, max_retries=0)\n"
    )
    hub.faults = lambda method, path: fault if method == "PUT" else None
    done = run(impatient + PATIENT, corpus, REPO)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ") and re.search(says, error), error
    assert done.stderr.count("trying again") == (0 if fault == 403 else 2)
    assert set(files(hub)) == {".gitattributes"}
    first = iter([fault] if fault != 403 else [])
    hub.faults = lambda method, path: next(first, None) if method == "PUT" else None
    assert run(impatient + PATIENT, corpus, REPO).returncode == 0
    assert files(hub)["traces/train.parquet"] == (corpus / "traces/train.parquet").read_bytes()


@pytest.mark.parametrize("name", ["songs", "no/such/name", "/songs", "", "some one/songs", "one/songs..2"])
def test_a_name_that_is_none_is_refused_before_the_hub_is_asked(name):
    with pytest.raises(InputError, match="OWNER/NAME"):
        Target(name)


@pytest.mark.slow
def test_a_wrong_token_and_a_wrong_name_are_told(hub, run, corpus):
    done = run(PATIENT, corpus, REPO, token="hf_another_token_that_is_wrong")
    assert done.returncode == 2 and "error: " in done.stderr and "401" in done.stderr
    done = run(PATIENT, corpus, "no/such/name")
    assert done.returncode == 2 and "OWNER/NAME" in done.stderr


@pytest.mark.slow
def test_a_busy_hub_is_asked_again(hub, run, corpus):
    seen: list[str] = []

    def busy_twice(method: str, path: str) -> int | None:
        if "/commit/" in path and len(seen) < 2:
            seen.append(path)
            return 503
        return None

    hub.faults = busy_twice
    done = run(PATIENT, corpus, REPO)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trying again") == 2 and len(hub.repos[REPO].commits) == 2


@pytest.mark.slow
def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, run, corpus):
    lost: list[str] = []
    commit = hub_stand_in.Repo.commit

    def commit_then_fail(self: Any, content: dict[str, bytes], message: str) -> str:
        made = commit(self, content, message)
        if not lost and message != "initial commit":
            lost.append(made)
            self.branches["main"] = made
            raise ConnectionResetError("the answer is lost")
        return made

    hub_stand_in.Repo.commit = commit_then_fail
    try:
        done = run(PATIENT, corpus, REPO)
    finally:
        hub_stand_in.Repo.commit = commit
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [lost[0], "False"] and len(hub.repos[REPO].commits) == 2


def test_someone_elses_commit_in_between_is_not_overwritten(hub, run, corpus):
    def meddle(method: str, path: str) -> None:
        if "/preupload/" in path:
            repo = hub.repos[REPO]
            if len(repo.commits) == 1:
                repo.branches["main"] = repo.commit({**files(hub), "other.txt": b"x"}, "someone else")

    hub.faults = meddle
    done = run(PATIENT, corpus, REPO)
    assert done.returncode == 2 and "412" in done.stderr
    assert set(files(hub)) == {".gitattributes", "other.txt"}


@pytest.mark.slow
def test_after_a_death_in_the_middle_readers_see_nothing_and_the_push_goes_on(hub, tmp_path, run, corpus):
    arrived: list[str] = []

    def stop_at_the_third(method: str, path: str) -> str | None:
        if method == "PUT":
            arrived.append(path)
            return "hang" if len(arrived) > 2 else None
        return None

    hub.faults = stop_at_the_third
    environment = {**os.environ, **hub.environment(tmp_path / "home")}
    command = [sys.executable, "-c", PATIENT, str(corpus), REPO]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (len(arrived) < 3 or len(hub.lfs) < 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert set(files(hub)) == {".gitattributes"}
    there = set(hub.lfs)
    assert len(there) == 2
    hub.faults = lambda method, path: None
    hub.requests.clear()
    done = run(PATIENT, corpus, REPO)
    assert done.returncode == 0, done.stderr
    sent = {path.rpartition("/")[2] for method, path in hub.requests if method == "PUT"}
    assert not sent & there
    assert files(hub)["traces/train.parquet"] == (corpus / "traces/train.parquet").read_bytes()


@pytest.mark.slow
def test_a_branch_is_made_and_a_tag_is_not_moved(hub, tagpr, corpus):
    assert tagpr("push", corpus, REPO, "--push", "--tag", "v1", "--revision", "draft").returncode == 0
    assert set(files(hub)) == {".gitattributes"} and "manifest.json" in files(hub, "draft")
    done = tagpr("push", corpus, REPO, "--push", "--tag", "v1")
    assert done.returncode == 2 and "has a tag 'v1' already" in done.stderr


def test_what_is_unchecked_failed_changed_or_stale_is_refused_before_anything_is_sent(corpus, tmp_path):
    def broken(name: str) -> Path:
        shutil.copytree(corpus, tmp_path / name)
        return tmp_path / name

    unchecked = broken("unchecked")
    (unchecked / "data_docs/report.json").unlink()
    with pytest.raises(CheckFailed, match="was never validated"):
        collect(unchecked)
    failed = broken("failed")
    report = failed / "data_docs/report.json"
    report.write_text(report.read_text().replace('"passed"', '"failed"', 1))
    with pytest.raises(CheckFailed, match="checks did not pass"):
        collect(failed)
    other = broken("other")
    report = other / "data_docs/report.json"
    report.write_text(report.read_text().replace(open_corpus(corpus).manifest.content_hash, "0" * 64))
    with pytest.raises(CheckFailed, match="other content"):
        collect(other)
    changed = broken("changed")
    with (changed / "pairs/profiles.parquet").open("ab") as file:
        file.write(b" ")
    with pytest.raises(CheckFailed, match=r"pairs/profiles\.parquet is not the file"):
        collect(changed)
    stale = broken("stale")
    (stale / "README.md").write_text("# Songs\n")
    with pytest.raises(CheckFailed, match="tagpr-data card"):
        collect(stale)
