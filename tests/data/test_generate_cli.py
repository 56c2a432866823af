"""`tagpr-data generate` and `build` as a user runs them, against a local stand-in of a chat server: storms, kills,
limits, and every fault a teacher's answer can have."""

import json
import os
import random
import signal
import subprocess
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tagpr_data.budget import Forecast, Interval, Usage
from tagpr_data.cli import app
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.generate import _MOST_REFUSED_AT_START, Tally  # pyright: ignore[reportPrivateUsage]
from tagpr_data.generate_cli import forecast_lines
from tagpr_data.progress import duration, standing
from tagpr_data.records import Candidate, CorpusManifest, Rejected, Trace
from tagpr_data.tables import read_json, read_records

COMMAND = str(Path(sysconfig.get_path("scripts")) / "tagpr-data")
GOOD = "<think>\n<analyze_query>A song.</analyze_query>\n<infer_preference>Likes it.</infer_preference>\n</think>\n{}"
Behave = Callable[[int, dict[str, Any]], tuple[int, bytes] | str]


def completion(text: str, reason: str = "stop") -> tuple[int, bytes]:
    value = {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }
    return 200, json.dumps(value).encode()


class SimulatedServer:
    """A chat server that answers as `behave(number of the request, body)` says: status and body, `half` for a body that
    breaks off, `hang` for none. `answered` counts whole answers by prompt and seed. It can die and come back."""

    def __init__(self, behave: Behave) -> None:
        self.behave = behave
        self.requests: list[dict[str, Any]] = []
        self.answered: Counter[tuple[str, int]] = Counter()
        self._at_work = 0
        self._lock = threading.Lock()
        self._port = 0
        self.start()

    def start(self) -> None:
        simulated = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with simulated._lock:
                    simulated.requests.append(body)
                    number = len(simulated.requests)
                    simulated._at_work += 1
                try:
                    answer = simulated.behave(number, body)
                    self.close_connection = True
                    self._send(answer, body)
                except (BrokenPipeError, ConnectionResetError):
                    return
                finally:
                    with simulated._lock:
                        simulated._at_work -= 1

            def _send(self, answer: tuple[int, bytes] | str, body: dict[str, Any]) -> None:
                if answer == "hang":
                    time.sleep(0.7)
                    return
                status, content = answer if isinstance(answer, tuple) else completion("half of it")
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if answer == "half":
                    self.wfile.write(content[: len(content) // 2])
                    return
                if b'"finish_reason"' in content:
                    with simulated._lock:
                        simulated.answered[body["messages"][-1]["content"], body["seed"]] += 1
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def finish(self) -> None:
        """Die as `close` does, and wait until what was being answered is: `answered` stands still from then on."""
        self.close()
        deadline = time.monotonic() + 60
        while self._at_work:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def serve() -> Iterator[Callable[[Behave], SimulatedServer]]:
    servers: list[SimulatedServer] = []

    def start(behave: Behave) -> SimulatedServer:
        servers.append(SimulatedServer(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def teacher(url: str, name: str = "model", **settings: object) -> str:
    lines = {
        "type": "openai", "base_url": url, "model": name, "backoff_seconds": 0.01, "timeout_seconds": 0.4,
        "concurrency": 4, "retries": 30, **settings,
    }  # fmt: skip
    return "[[teacher]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())


def config(place: Path, song_folder: Path, teachers: str, **settings: object) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    lines = {
        "name": "songs", "dataset": str(song_folder), "output": str(place / "corpus"), **settings
    }  # fmt: skip
    path = place / "songs.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()) + teachers)
    return path


def by_prompt(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
    """Answers that depend on prompt and seed alone: some right, some wrong, some without reasoning."""
    draw = random.Random(body["seed"]).random()
    asked = body["messages"][-1]["content"]
    label = next((label for label in ("rock", "jazz", "folk") if label in asked), "rock")
    return completion("I cannot help with that." if draw < 0.2 else GOOD.format(label))


def misbehave(number: int, body: dict[str, Any]) -> tuple[int, bytes] | str:
    """The same answers, but every second request meets a fault, and at first the server asks for patience."""
    faults: dict[int, tuple[int, bytes] | str] = {
        1: (429, b"slow down"), 3: (500, b"oops"), 5: "half", 7: (503, b""), 9: (200, b'{"choices": []}'), 11: "hang",
    }  # fmt: skip
    if number <= 5:
        return 429, b"slow down"
    time.sleep(0.01)
    return faults.get(number % 12) or by_prompt(number, body)


def corpus_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parts[-2] in ("traces", "rejected")
    }


def journalled(folder: Path) -> list[str]:
    """Ids in the journal, a torn last line left out."""
    path = folder / "corpus/.work/candidates.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["id"] for line in lines if line.endswith(b"\n")]


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [COMMAND, *map(str, arguments)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], folder: Path, rows: int) -> None:
    deadline = time.monotonic() + 90
    while len(journalled(folder)) < rows:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.003)


@pytest.mark.slow
def test_kill_9_at_random_points_on_a_bad_server_gives_the_same_rows_and_pays_each_answer_once(
    serve, song_folder, tmp_path
):
    good = serve(by_prompt)
    whole = config(tmp_path / "whole", song_folder, teacher(good.url), attempts=3)
    assert CliRunner().invoke(app, ["build", str(whole)]).exit_code == 0
    assert len(good.requests) == 72

    bad = serve(misbehave)
    # a client whose patience ends on a loaded machine pays twice, which is its own fault: here `hang` breaks off
    path = config(tmp_path / "killed", song_folder, teacher(bad.url, timeout_seconds=60.0), attempts=3)
    kept: set[str] = set()
    for rows in sorted(random.Random(time.time_ns()).sample(range(1, 60), 3)):
        process = start("generate", path)
        wait_for(process, tmp_path / "killed", rows)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert kept <= set(journalled(tmp_path / "killed"))
        kept = set(journalled(tmp_path / "killed"))
    bad.finish()  # dead while the next command starts, and back soon after
    threading.Timer(2.0, bad.start).start()
    before = bad.answered.copy()
    process = start("generate", path, "--set", "teacher.concurrency=4")
    process.communicate()
    assert process.returncode == 2  # there are several teachers in the file, so `teacher` is no section
    process = start("generate", path)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    rows = read_records(tmp_path / "killed/corpus/.work/candidates.parquet", Candidate)
    assert len(rows) == 72 and len(journalled(tmp_path / "killed")) == len(set(journalled(tmp_path / "killed"))) == 72
    # what was in the journal at the last kill was not asked again
    assert sum((bad.answered - before).values()) == 72 - len(kept)
    assert CliRunner().invoke(app, ["build", str(path)]).exit_code == 0
    assert corpus_files(tmp_path / "killed/corpus") == corpus_files(tmp_path / "whole/corpus")
    assert len(bad.requests) > 72


def test_ctrl_c_takes_in_what_is_on_its_way_and_the_second_command_is_refused_meanwhile(serve, song_folder, tmp_path):
    go_on = threading.Event()

    def slow(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
        if number > 8:
            go_on.wait(timeout=60)
        return by_prompt(number, body)

    server = serve(slow)
    path = config(tmp_path, song_folder, teacher(server.url, timeout_seconds=90.0), attempts=3)
    process = start("generate", path)
    wait_for(process, tmp_path, 4)
    second = start("generate", path)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 2 and f"in use by process {process.pid}" in said and "Traceback" not in said
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "answers on their way are taken in" not in process.stderr.readline():
        assert process.poll() is None
    go_on.set()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in said and "Traceback" not in said
    assert len(journalled(tmp_path)) == len(server.requests) == 12
    result = CliRunner().invoke(app, ["generate", str(path)])
    assert result.exit_code == 0 and "complete: 72 of 72 answers" in result.stdout
    assert max(server.answered.values()) == 1 and len(server.requests) == 72


def test_the_exit_code_tells_the_whole_from_a_part_and_from_a_failure(serve, song_folder, tmp_path):
    good, bad = serve(by_prompt), serve(lambda number, body: (401, b"who are you"))
    path = config(tmp_path / "good", song_folder, teacher(good.url))
    refused = config(tmp_path / "bad", song_folder, teacher(bad.url))
    for code, command in (
        (1, ["generate", path, "--max-samples", 5]),
        (0, ["generate", path, "--pilot-only", "--pilot", 0.1]),
        (0, ["generate", path]),
        (2, ["generate", refused]),
    ):
        process = start(*command)
        said = process.communicate(timeout=120)
        assert process.returncode == code, (command, said)
        assert "Traceback" not in said[1]


def test_a_budget_ends_in_a_partial_corpus_that_says_so_and_goes_on_when_raised(serve, song_folder, tmp_path):
    server = serve(by_prompt)
    path = config(tmp_path, song_folder, teacher(server.url, "m"))
    prices = tmp_path / "prices.toml"
    prices.write_text("[m]\ninput = 10\noutput = 100\n")  # 2 thousandths an answer
    limited = ["build", str(path), "--prices", str(prices), "--max-cost", "0.02", "--set", "sampling.max_new_tokens=9"]
    result = CliRunner().invoke(app, limited)
    assert isinstance(result.exception, CheckFailed), result.output
    assert "corpus is partial: 10 of 24 answers, then a limit was reached" in str(result.exception)
    assert "PARTIAL, a limit was reached: 14 still missing" in result.stderr and len(server.requests) == 10
    manifest = read_json(tmp_path / "corpus/manifest.json", CorpusManifest)
    assert manifest.candidates == 10 and manifest.parameters["partial"] == {"candidates": 10, "planned": 24}
    card = (tmp_path / "corpus/README.md").read_text()
    assert "**Partial**: generation stopped at a limit with 10 of 24 attempts made." in card
    assert CliRunner().invoke(app, ["validate", str(tmp_path / "corpus")]).exit_code == 0
    result = CliRunner().invoke(app, [*limited[:-4], "--max-cost", "0.048", *limited[-2:]])
    assert result.exit_code == 0 and len(server.requests) == 24
    manifest = read_json(tmp_path / "corpus/manifest.json", CorpusManifest)
    assert manifest.candidates == 24 and "partial" not in manifest.parameters
    # all attempts count towards what a kept trace cost
    kept = {task: round(share * 12) for task, share in manifest.acceptance.items()}
    card = (tmp_path / "corpus/README.md").read_text()
    for task, number in kept.items():
        cost = f"{12 * 0.002 / number:.6g}" if number else "–"
        assert any(f"| {task} | m | {number} |" in line and f"| {cost} |" in line for line in card.splitlines())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-cost", "1"], "--max-cost needs --prices"),
        (["--max-cost", "1", "--prices", "PRICES"], "needs a price of the model 'model'; the price file has: other"),
        (["--pilot-only", "--pilot", "0"], "--pilot-only needs a pilot"),
        (["--prices", "nowhere.toml"], r"price file nowhere.toml does not exist"),
        (["--set", "attempts=0"], "attempts: "),
        (["--set", 'teacher={type = "openai", base_url = "http://h/v1", model = "m", temperatures = [-1]}'], "temper"),
        (["--set", "teacher=[]"], "teacher"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_asked(serve, song_folder, tmp_path, options, message):
    server = serve(by_prompt)
    prices = tmp_path / "prices.toml"
    prices.write_text("[other]\ninput = 1\noutput = 1\n")
    path = config(tmp_path / "c", song_folder, teacher(server.url))
    process = start("generate", path, *(str(prices) if option == "PRICES" else option for option in options))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2 and message in said and "Traceback" not in said
    assert server.requests == []


def test_the_pilot_is_shown_first_and_nothing_more_is_asked_when_only_it_is_wanted(serve, song_folder, tmp_path):
    server = serve(by_prompt)
    path = config(tmp_path, song_folder, teacher(server.url), k=2)
    result = CliRunner().invoke(app, ["generate", str(path), "--pilot-only"])
    assert result.exit_code == 0, result.output
    asked = len(server.requests)
    assert 0 < asked < 24 and f"PILOT only: {asked} of 24 answers" in result.stdout
    assert f"pilot     {asked} prompts" in result.stderr and "forecast  24 answers (24 to 24)" in result.stderr
    assert "2,640 tokens" in result.stderr.replace("2640", "2,640")
    report = json.loads((tmp_path / "corpus/.work/generation.json").read_text())
    assert report["status"] == "pilot" and report["answers"] == asked


def test_several_teachers_climb_their_ladders_until_one_is_accepted(serve, song_folder, tmp_path):
    def by_model(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
        if body["model"] == "small" and body["temperature"] < 0.5:
            return completion("no idea")
        return by_prompt(number, body)

    server, twin = serve(by_model), serve(by_model)
    teachers = teacher(server.url, "small", temperatures=[0.0, 0.6, 1.0]) + teacher([server.url, twin.url], "large")
    path = config(tmp_path, song_folder, teachers, until_accepted=True)
    result = CliRunner().invoke(app, ["build", str(path)])
    assert result.exit_code == 0, result.output
    asked = Counter((body["model"], body["temperature"]) for body in (*server.requests, *twin.requests))
    assert asked["small", 0.0] == asked["small", 0.6] == 24 > asked["small", 1.0] >= asked["large", 0.0] > 0
    assert twin.requests and server.requests
    manifest = read_json(tmp_path / "corpus/manifest.json", CorpusManifest)
    assert manifest.teachers.keys() == {"small", "large"} and manifest.candidates == asked.total()
    assert [row["temperatures"] for row in manifest.parameters["teacher"]] == [[0.0, 0.6, 1.0], []]
    assert "127.0.0.1" not in (tmp_path / "corpus/manifest.json").read_text()
    assert "[[teacher]]" in (tmp_path / "corpus/README.md").read_text()


STEP = "<analyze_query>A song.</analyze_query>\n"
FAULTS: dict[str, tuple[tuple[int, bytes], str, str]] = {
    "unknown tags": (completion(GOOD.replace("analyze_query", "ponder").format("rock")), "grammar", "unknown-tag"),
    "prose before the think block": (completion("Sure!\n" + GOOD.format("rock")), "grammar", "text-before-think"),
    "nested tags": (
        completion(GOOD.replace("A song.", "<verify_answer>x</verify_answer>").format("rock")), "grammar", "nest"
    ),
    "1 MB of text": (completion(GOOD.replace("A song.", "la " * 350_000).format("rock")), "too-long", "characters"),
    "1 MB without a tag": (completion("la " * 350_000), "grammar", ""),
    "a refusal": (completion("I'm sorry, but I cannot help with that."), "grammar", ""),
    "another language": (
        completion(
            GOOD.replace("A song.", "Ein Lied über die Straße, das dieser Mensch sicher sehr gern gehört hat.")
            .replace("Likes it.", "Dieser Mensch mag laute Musik und hört sie am liebsten abends zu Hause.")
            .format("rock")
        ),
        "foreign-language", "",
    ),
    "empty": (completion(""), "grammar", ""),
    "half a surrogate": (
        (200, completion(GOOD.replace("A song.", "A @ song.").format("verse"))[1].replace(b"@", b"\\ud83d")),
        "low-score", "",
    ),
    "bytes that are no UTF-8": (
        (200, completion(GOOD.replace("A song.", "A @ song.").format("verse"))[1].replace(b"@", b"\xff\xfe")),
        "low-score", "",
    ),
    "never-ending": (completion(f"<think>\n{STEP * 200}", "length"), "cut-off", "length"),
}  # fmt: skip


def test_each_fault_of_a_teacher_stands_in_the_ledger_with_its_reason_and_the_numbers_add_up(
    serve, song_folder, tmp_path
):
    names = list(FAULTS)
    sent: dict[tuple[str, int], str] = {}

    def faulty(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
        key = body["messages"][-1]["content"], body["seed"]
        name = sent.setdefault(key, names[len(sent)] if len(sent) < len(names) else "")
        return FAULTS[name][0] if name else by_prompt(number, body)

    server = serve(faulty)
    teachers = teacher(server.url, timeout_seconds=20.0, concurrency=1)
    path = config(tmp_path, song_folder, teachers, tasks=["genre"], attempts=2)
    path.write_text(path.read_text() + '[selection]\nlanguage = "en"\n')
    result = CliRunner().invoke(app, ["build", str(path)])
    assert result.exit_code == 0, result.output
    rejected = [
        row for file in (tmp_path / "corpus/rejected").glob("*.parquet") for row in read_records(file, Rejected)
    ]
    kept = [row for file in (tmp_path / "corpus/traces").glob("*.parquet") for row in read_records(file, Trace)]
    assert len(kept) + len(rejected) == len(server.requests) == 24
    manifest = read_json(tmp_path / "corpus/manifest.json", CorpusManifest)
    assert manifest.kept + sum(manifest.rejected.values()) == manifest.candidates == 24
    by_seed = {row.seed: row for row in rejected}
    for (_, seed), name in sent.items():
        if name:
            _, reason, detail = FAULTS[name]
            assert by_seed[seed].reason == reason and detail in by_seed[seed].detail, (name, by_seed[seed].detail)
    report = json.loads((tmp_path / "corpus/.work/generation.json").read_text())
    assert report["answers"] == report["accepted"] + sum(report["rejected"].values()) == 24


def test_how_a_generation_stands_is_one_line():
    tally = Tally(planned=100, spared=10)
    tally.used["m", "genre"] = Usage(answers=30, accepted=20, input_tokens=3000, output_tokens=600, cost=0.5)
    tally.rejected.update({"grammar": 7, "low-score": 3})
    tally.new = Usage(answers=15, output_tokens=300)
    assert standing(tally, 30.0) == (
        "30 of 90 answers, 20 accepted; rejected: 7 grammar, 3 low-score; 10 tokens written/s; cost 0.5; 2 min left"
    )
    assert standing(Tally(planned=5), 0.0) == "0 of 5 answers, 0 accepted"
    assert [duration(seconds) for seconds in (41, 720, 12_000)] == ["41 s", "12 min", "3 h 20 min"]


def test_a_forecast_is_told_with_its_bounds():
    forecast = Forecast(20, Interval(100, 90, 110), Interval(5e4, 4e4, 6e4), Interval(1.5, 1.2, 1.8), None, 0.25)
    first, second = forecast_lines(forecast)
    assert first == "pilot     20 prompts, 25 % of their answers accepted"
    assert "1.5 cost (1.2 to 1.8); time not known" in second


# Prompts that a server refuses.

TOO_LONG = b'{"error": "this model has a context of 8 tokens"}'


def ledger(folder: Path) -> list[Rejected]:
    return [row for path in (folder / "corpus/rejected").glob("*.parquet") for row in read_records(path, Rejected)]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_that_is_always_refused_is_asked_once_and_stands_in_the_ledger(status, serve, song_folder, tmp_path):
    hard: set[str] = set()

    def behave(number, body):
        prompt = body["messages"][-1]["content"]
        if number in (1, 5):  # also the very first question
            hard.add(prompt)
        return (status, TOO_LONG) if prompt in hard else by_prompt(number, body)

    server = serve(behave)
    path = config(tmp_path, song_folder, teacher(server.url, concurrency=1), attempts=2)
    result = CliRunner().invoke(app, ["build", str(path)])
    assert result.exit_code == 0, result.output
    assert "refused-by-server, the first: " in result.stderr and "a context of 8 tokens" in result.stderr
    assert len(server.requests) == 48
    refused = [row for row in ledger(tmp_path) if row.reason == "refused-by-server"]
    assert len(refused) == 4  # two prompts, two attempts each
    assert {(row.text, row.finish_reason, row.input_tokens, row.output_tokens) for row in refused} == {
        ("", "refused", 0, 0)
    }
    manifest = read_json(tmp_path / "corpus/manifest.json", CorpusManifest)
    assert manifest.rejected["refused-by-server"] == 4
    assert manifest.candidates == 48 == manifest.kept + sum(manifest.rejected.values())
    again = CliRunner().invoke(app, ["generate", str(path)])
    assert again.exit_code == 0 and len(server.requests) == 48
    assert "4 refused-by-server" in again.stdout
    checked = CliRunner().invoke(app, ["validate", str(tmp_path / "corpus"), "--dataset", str(song_folder)])
    assert checked.exit_code == 0, checked.output


def test_a_run_of_which_nothing_but_refusals_come_stops_and_keeps_none_of_them(serve, song_folder, tmp_path):
    server = serve(lambda number, body: (400, b"unknown field"))
    path = config(tmp_path, song_folder, teacher(server.url, concurrency=1), attempts=2)
    result = CliRunner().invoke(app, ["generate", str(path)])
    assert isinstance(result.exception, InputError)
    assert "the first 20 questions were all refused" in str(result.exception)
    assert "unknown field" in str(result.exception)
    assert len(server.requests) == _MOST_REFUSED_AT_START and journalled(tmp_path) == []
    server.behave = by_prompt  # mended: all is asked anew
    assert CliRunner().invoke(app, ["generate", str(path)]).exit_code == 0
    rows = read_records(tmp_path / "corpus/.work/candidates.parquet", Candidate)
    assert len(rows) == 48 and all(row.finish_reason == "stop" for row in rows)


def test_a_short_run_of_which_all_is_refused_stops_too(serve, song_folder, tmp_path):
    server = serve(lambda number, body: (422, b"no"))
    path = config(tmp_path, song_folder, teacher(server.url), per_user=1, tasks=["genre"])
    result = CliRunner().invoke(app, ["generate", str(path)])
    assert isinstance(result.exception, InputError) and "all 6 questions were refused" in str(result.exception)
    assert journalled(tmp_path) == []


def test_a_teacher_that_gets_only_hard_prompts_may_have_them_all_refused(serve, song_folder, tmp_path):
    first = serve(lambda number, body: by_prompt(number, body) if number > 3 else completion("no trace"))
    second = serve(lambda number, body: (413, TOO_LONG))
    teachers = teacher(first.url, "easy", concurrency=1) + teacher(second.url, "hard", concurrency=1)
    path = config(tmp_path, song_folder, teachers, until_accepted=True)
    result = CliRunner().invoke(app, ["generate", str(path)])
    assert result.exit_code == 0, result.output
    assert 3 <= len(second.requests) < _MOST_REFUSED_AT_START
    assert f"{len(second.requests)} refused-by-server" in result.stdout


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_at_once(status, serve, song_folder, tmp_path):
    server = serve(lambda number, body: (status, b"who are you"))
    path = config(tmp_path, song_folder, teacher(server.url, concurrency=1))
    result = CliRunner().invoke(app, ["generate", str(path)])
    assert isinstance(result.exception, InputError) and f"status {status}" in str(result.exception)
    assert len(server.requests) == 1


def test_refusals_count_against_a_limit_of_samples(serve, song_folder, tmp_path):
    server = serve(lambda number, body: (400, TOO_LONG) if number <= 4 else by_prompt(number, body))
    path = config(tmp_path, song_folder, teacher(server.url, concurrency=1))
    result = CliRunner().invoke(app, ["generate", str(path), "--max-samples", "6", "--pilot", "0"])
    assert isinstance(result.exception, CheckFailed), result.output
    assert len(server.requests) == 6 == len(journalled(tmp_path))
