"""LaMP-6 from a copy of Avocado. The tree is made up in the collection's form; the collection itself is not at hand."""

import json
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tagpr_data.cli import app
from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_data.lamp.avocado import fill, find_mails, read_mail
from tagpr_data.lamp.files import read_outputs, read_questions


def mail(subject: str, body: str) -> bytes:
    head = f"From: a@avocado.test\nTo: b@avocado.test\nDate: Mon, 5 Mar 2001 10:00:00 -0800\nSubject: {subject}\n\n"
    return (head + body).encode()


MAILS = {
    "001-000001-EM.txt": mail("Lunch on Friday?", "\n\nAre you free?\nBest,\nA\n\n"),
    "001-000002-EM.txt": mail("=?utf-8?q?R=C3=A9sum=C3=A9?=", "Please find it attached, für alle."),
    "002-000001-EM.txt": mail("Build is red", "It is.\n"),
}


@pytest.fixture
def avocado(tmp_path: Path) -> Path:
    """Made up: one custodian's mails in a zip file, another's loose."""
    folder = tmp_path / "avocado-1.0.2/data/text"
    (folder / "002").mkdir(parents=True)
    with zipfile.ZipFile(folder / "001.zip", "w") as archive:
        for name in list(MAILS)[:2]:
            archive.writestr(f"001/{name}", MAILS[name])
        archive.writestr("../../escape.txt", mail("outside", "x"))
    (folder / "002/002-000001-EM.txt").write_bytes(MAILS["002-000001-EM.txt"])
    return folder


def question(key: str = "60", asked: str = "001-000001-EM.txt", *past: str) -> dict[str, object]:
    names = past or ("001-000002-EM.txt", "002-000001-EM.txt")
    profile = [{"id": f"{key}{n}", "text": name, "date": "2001-03-04"} for n, name in enumerate(names)]
    return {"id": key, "user_id": "147", "input": asked, "profile": profile}


def published(folder: Path, *rows: object, split: str = "train") -> Path:
    path = folder / f"{split}_questions.json"
    path.write_text(json.dumps(list(rows)))
    return path


def test_names_of_mails_become_their_subjects_and_bodies(avocado, tmp_path):
    path = published(tmp_path, question(), question("61", "002-000001-EM.txt", "001-000001-EM.txt"))
    (written,) = fill([path], avocado, tmp_path / "out")
    first, second = read_questions(written.questions, "LaMP-6")
    assert first.input == "Generate a subject for the following email: Are you free?\nBest,\nA"
    assert first.user_id == "147"
    assert first.profile == (
        {"id": "600", "text": "Please find it attached, für alle.", "date": "2001-03-04", "title": "Résumé"},
        {"id": "601", "text": "It is.", "date": "2001-03-04", "title": "Build is red"},
    )
    assert second.profile[0]["title"] == "Lunch on Friday?"
    assert read_outputs(written.outputs) == ("LaMP-6", {"60": "Lunch on Friday?", "61": "Build is red"})


def test_filled_files_are_imported_as_a_data_set(avocado, tmp_path):
    path = published(tmp_path, question())
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["import", "lamp6", str(path), "--avocado", str(avocado), "--output", str(out)], catch_exceptions=False
    )
    assert done.exit_code == 0 and "1 questions" in done.stdout
    done = CliRunner().invoke(
        app,
        [
            *(
                "import",
                "lamp",
                "--task",
                "LaMP-6",
                "--questions",
                str(out / "train_questions.json"),
                "--split",
                "train",
            ),
            *("--outputs", str(out / "train_outputs.json"), "--output", str(tmp_path / "lamp6")),
        ],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    opened = Dataset.load(tmp_path / "lamp6")
    (example,) = opened.examples("train")
    assert example.output == "Lunch on Friday?"
    assert [item.title for item in opened.profile(example)] == ["Résumé", "Build is red"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (question("60", "009-000009-EM.txt"), r"row 0 \(id '60'\), input: the mail '009-000009-EM.txt' is not in"),
        (question("60", "001-000001-EM.txt", "nine.txt"), r"profile item 0: the mail 'nine.txt' is not in .*4 mails"),
        (question("60", "Generate a subject for the following email: x"), "has this file been filled already"),
        ({"id": "1", "input": "001-000001-EM.txt"}, 'must be {"id": …, "input": …, "profile"'),
        ([1], 'must be {"id": …'),
        ({**question(), "profile": ["001-000001-EM.txt"]}, "profile item 0 is .*must hold id and text"),
    ],
)
def test_a_mail_or_row_that_cannot_serve_is_named_and_nothing_is_written(avocado, tmp_path, row, message):
    good = published(tmp_path, question())
    bad = published(tmp_path, row, split="dev")
    with pytest.raises(InputError, match=message):
        fill([good, bad], avocado, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_collection_is_refused(avocado, tmp_path):
    path = published(tmp_path, question())
    with pytest.raises(InputError, match="is no folder"):
        fill([path], tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no mail"):
        fill([path], tmp_path / "empty", tmp_path / "out")
    (avocado / "003.zip").write_bytes(b"PK broken")
    with pytest.raises(InputError, match=r"003\.zip is not a whole zip file"):
        fill([path], avocado, tmp_path / "out")
    (avocado / "003.zip").unlink()
    (avocado / "002/002-000001-EM.txt").write_text("no header at all")
    with pytest.raises(InputError, match="is no mail"):
        fill([path], avocado, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_mails_are_read_as_the_parsers_own_reader_of_files_reads_them(tmp_path):
    import mailparser

    for number, body in enumerate([b"a\r\n\r\nb\r\n", b"caf\xe9 \xc3\xa9", b"\n  indented\n", b"", b"x" * 200_000]):
        path = tmp_path / f"{number}.txt"
        path.write_bytes(mail("Re: it", "").replace(b"\n", b"\r\n" if number == 0 else b"\n") + body)
        known = mailparser.parse_from_file(str(path))
        assert read_mail((path, None)) == (known.subject, known.body.strip())


def test_zip_files_are_read_and_never_unpacked(avocado, tmp_path):
    places = find_mails(avocado)
    assert read_mail(places["escape.txt"]).subject == "outside"
    assert not list(tmp_path.rglob("escape.txt"))


def test_a_folder_as_downloaded_is_imported_with_all_its_splits(avocado, tmp_path):
    paths = [published(tmp_path, question("1")), published(tmp_path, question("2"), split="dev")]
    fill(paths, avocado, tmp_path / "LaMP_6/train")
    (tmp_path / "LaMP_6/dev").mkdir()
    for name in ("dev_questions.json", "dev_outputs.json"):
        (tmp_path / "LaMP_6/train" / name).rename(tmp_path / "LaMP_6/dev" / name)
    command = ["import", "lamp", str(tmp_path / "LaMP_6"), "--task", "LaMP-6", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0 and "2 examples" in done.stdout
    opened = Dataset.load(tmp_path / "out")
    assert {split: [row.id for row in opened.examples(split)] for split in opened.splits} == {
        "train": ["1"],
        "validation": ["2"],
    }
    with pytest.raises(InputError, match="has no question file"):
        CliRunner().invoke(app, ["import", "lamp", str(avocado), *command[3:]], catch_exceptions=False)
    with pytest.raises(InputError, match="either the folder DIR"):
        CliRunner().invoke(app, ["import", "lamp", *command[3:]], catch_exceptions=False)
