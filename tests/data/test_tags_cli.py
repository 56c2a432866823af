import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tagpr_data.cli import main

VALID = "<think>\n<infer_preference>[P4]</infer_preference>\n<verify_answer>ok</verify_answer>\n</think>\nglamor"
BROKEN = "<think>\n<infer_preference>likes</infer_preference>\nso\n<verify_answer>ok</verify_answer>\n</think>\n"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `tagpr-data` in this process; gives the exit code."""
    monkeypatch.setattr(sys, "argv", ["tagpr-data", *map(str, arguments)])
    with pytest.raises(SystemExit) as error:
        main()
    return int(error.value.code or 0)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_valid_texts_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    file = write(tmp_path / "f.jsonl", {"id": "a", "text": VALID}, {"id": 7, "text": VALID, "k": 4, "more": 1})
    assert run(monkeypatch, "tags", "check", file) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "all 2 texts are valid" in err


def test_violations_are_listed_with_place_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = write(tmp_path / "f.jsonl", {"id": "a", "text": VALID, "k": 3}, {"id": "b\n\ud800", "text": BROKEN})
    assert run(monkeypatch, "tags", "check", file) == 1
    out, err = capsys.readouterr()
    rows = [line.split("\t")[:4] for line in out.splitlines()]
    assert rows == [
        ["1", "a", str(VALID.index("[P4]")), "bad-citation"],
        ["2", "b\\n\\ud800", str(BROKEN.index("so\n")), "stray-text"],
        ["2", "b\\n\\ud800", str(len(BROKEN) - 1), "empty-answer"],
    ]
    assert "2 of 2 texts break the grammar of tagpr-9" in err
    assert "Traceback" not in err


def test_json_holds_counts_and_violations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = write(tmp_path / "f.jsonl", {"id": "a", "text": VALID}, {"id": "b", "text": BROKEN}, {"id": "c", "text": ""})
    assert run(monkeypatch, "tags", "check", file, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["texts"], report["valid"], report["invalid"], report["tagset"]) == (3, 1, 2, "tagpr-9")
    assert report["counts"] == {"empty-answer": 1, "no-think": 1, "stray-text": 1}
    assert [(v["line"], v["id"], v["code"]) for v in report["violations"]] == [
        (2, "b", "stray-text"),
        (2, "b", "empty-answer"),
        (3, "c", "no-think"),
    ]
    assert all(v["message"] and v["position"] >= 0 for v in report["violations"])


def test_another_tag_set_is_another_grammar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    tagset = tmp_path / "one.toml"
    tagset.write_text('name = "one"\nmax_steps = 1\ntags = [{name = "see", meaning = "look", cites = "no"}]\n')
    file = write(tmp_path / "f.jsonl", {"id": "a", "text": "<think><see>it</see></think>yes"})
    assert run(monkeypatch, "tags", "check", file, "--tagset", tagset) == 0
    assert run(monkeypatch, "tags", "check", file) == 1
    assert "unknown-tag" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "line 2: not JSON"),
        (b'{"id": "a", "text"', "line 2: not JSON"),
        (b"\xff\xfe", "line 2: not JSON in UTF-8"),
        (b"[" * 100_000, "line 2: not JSON"),
        (b"[1]", "line 2: a JSON object"),
        (b'{"text": "x"}', 'line 2: "id" is missing'),
        (b'{"id": null, "text": "x"}', 'line 2: "id" is None'),
        (b'{"id": "a"}', 'line 2: "text" is missing'),
        (b'{"id": "a", "text": 3}', 'line 2: "text" is 3'),
        (b'{"id": "a", "text": "x", "k": -1}', 'line 2: "k" is -1'),
        (b'{"id": "a", "text": "x", "k": true}', 'line 2: "k" is True'),
        (b'{"id": "a", "text": "x", "k": 2.5}', 'line 2: "k" is 2.5'),
    ],
)
def test_an_unreadable_line_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    message: str,
):
    file = tmp_path / "f.jsonl"
    file.write_bytes(json.dumps({"id": "a", "text": VALID}).encode() + b"\n" + content if content else b"")
    assert run(monkeypatch, "tags", "check", file) == 2
    err = capsys.readouterr().err
    assert message in err
    assert str(file) in err
    assert "Traceback" not in err


def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert run(monkeypatch, "tags", "check", tmp_path / "none.jsonl") == 2
    assert run(monkeypatch, "tags", "check", tmp_path) == 2
    assert capsys.readouterr().err.count("does not exist") == 2


def test_surrogates_and_controls_do_not_break_a_plain_terminal(tmp_path: Path):
    file = write(tmp_path / "f.jsonl", {"id": "é\x1b[31m\ud800", "text": "\ud800 é ＜think＞"})
    command = [sys.executable, "-c", "from tagpr_data.cli import main; main()"]
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run([*command, "tags", "check", str(file)], capture_output=True, check=False, env=environment)
    assert done.returncode == 1
    assert b"\x1b" not in done.stdout
    assert b"no-think" in done.stdout
