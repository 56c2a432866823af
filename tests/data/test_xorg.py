"""sources/xorg.py on a small log in our own words; the real package is read by the test marked `network`."""

import gzip
import re
import shutil
import subprocess
from collections import Counter

import polars as pl
import pytest
from typer.testing import CliRunner

from tagpr_data.audit import audit
from tagpr_data.cli import app
from tagpr_data.construct import SplitOptions
from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_data.sources import xorg

LONG = "The cursor jumped to the corner whenever a second screen was plugged in while it moved."


def commit(number, author="Ada Stone <ada@example.org>", subject=None, body=LONG, merge=False, date=None):
    date = date or f"Mon Jan {1 + number // 24} {number % 24:02}:10:00 2007 +0100"
    lines = [subject or f"mi: repair thing {number}", "", *body.splitlines()]
    return "\n".join(
        [
            f"commit {number:040x}",
            *(["Merge: 1234567 89abcde"] if merge else []),
            f"Author: {author}",
            f"Date:   {date}",
            "",
            *(f"    {line}" for line in lines),
            "",
            "",
        ]
    )


def log(*commits):
    return "".join(commits[::-1]).encode()  # newest first, as git prints it


@pytest.fixture
def log_file(tmp_path):
    path = tmp_path / "log.txt"
    ada = [commit(n) for n in range(12)]
    bo = [
        commit(n, "Bo  Reed <bo@example.org>", f"{'XQuartz' if n % 2 else 'glamor'}: change {n}") for n in range(12, 24)
    ]
    path.write_bytes(log(*ada, *bo))
    return path


def events(*commits):
    parsed, skipped = xorg.parse_log(log(*commits))
    component, subject = xorg.events_from_commits(parsed, skipped)
    return component, subject, skipped


def test_a_commit_is_read_field_by_field():
    (parsed,), skipped = xorg.parse_log(log(commit(3, subject="Xi: do it", body="Line one.\n  indented\n\nLast.")))
    assert parsed == xorg.Commit(
        "Ada Stone", "Mon Jan 1 03:10:00 2007 +0100", False, "Xi: do it", "Line one.\n  indented\n\nLast."
    )
    assert not skipped


def test_a_wrapped_subject_is_joined_and_a_message_without_subject_counted():
    component, _, skipped = events(
        commit(1, subject="mi: a subject\n    that wraps"), commit(2, subject="mi: " + "word " * 25)
    )
    assert [event.title for event in component] == ["a subject that wraps"]
    assert skipped["first paragraph over 20 words"] == 1


def test_dates_keep_their_zone_and_do_not_depend_on_the_language():
    assert xorg.parse_date("Tue Feb 7 10:30:37 2023 +1000").isoformat() == "2023-02-07T10:30:37+10:00"
    assert xorg.parse_date("Tue Feb 7 10:30:37 2023 -0730").isoformat() == "2023-02-07T10:30:37-07:30"
    assert xorg.parse_date("Di Feb 30 10:30:37 2023 +1000") is None
    assert xorg.parse_date("2023-02-07") is None
    component, _, _ = events(commit(1, date="Tue Feb 7 10:30:37 2023 +1000"))
    assert component[0].date == "2023-02-07T00:30:37+00:00"


def test_the_component_input_does_not_begin_with_its_answer():
    component, subject, _ = events(commit(1, subject="XKB: xkb: Drop a lock"))
    assert (component[0].output, component[0].title) == ("xkb", "Drop a lock")
    assert component[0].input == f"Drop a lock\n\n{LONG}"
    assert subject[0].output == "XKB: xkb: Drop a lock"
    assert subject[0].input == LONG


def test_a_component_item_without_body_shows_its_subject():
    component, subject, skipped = events(commit(1, subject="os: Tidy up", body=""))
    assert (component[0].text, component[0].input) == ("Tidy up", "Tidy up")
    assert not subject
    assert skipped["xorg-subject: body under 12 words"] == 1


@pytest.mark.parametrize(
    ("subject", "label"),
    [("hw/xwin: a", "hw/xwin"), ("Xwayland: a", "xwayland"), ("randr: a", None), ("mid: a", None), ("mi a", None)],
)
def test_only_the_15_prefixes_are_labels(subject, label):
    assert xorg.split_prefix(subject)[0] == label


def test_merges_reverts_repetitions_and_unreadable_rows_are_counted():
    component, _, skipped = events(
        commit(1),
        commit(2, subject="mi: Repair thing 1"),  # again, in other case
        commit(3, merge=True),
        commit(4, subject="Merge branch of somebody"),
        commit(5, subject='Revert "mi: repair"'),
        commit(6, date="yesterday"),
        commit(7, author=" <nobody@example.org>"),
    )
    assert len(component) == 1
    assert skipped == {
        "same subject by the same user": 1, "merge": 2, "revert": 1, "date unreadable": 1, "no author": 1,
    }  # fmt: skip


def test_a_commit_that_is_not_utf8_is_counted():
    text = log(commit(1), commit(2, author="Jose <j@example.org>")).replace(b"Jose", b"Jos\xe9")
    parsed, skipped = xorg.parse_log(text)
    assert len(parsed) == 1
    assert skipped == {"not UTF-8": 1}


def test_trailers_mails_and_bare_addresses_leave_the_body():
    body = "\n".join(
        [
            "Keep this: it matters <ada@example.org>.",
            "See https://example.org/page for the reason.",
            "https://bugs.example.org/show?id=7",
            "X.Org bug#12 <https://bugs.example.org/7>",
            "Signed-off-by: Ada Stone <ada@example.org>",
            "  Reported-and-tested-by: Bo",
            "Cc: list@example.org",
            "Fixes: 0123abcd",
            "git-svn-id: svn://example.org@5 uuid",
            "(cherry picked from commit 0123abcd)",
        ]
    )
    assert xorg.clean_body(body) == "Keep this: it matters .\nSee https://example.org/page for the reason."


def test_authors_are_merged_by_name_numbered_by_first_date_and_kept_out_of_texts():
    component, _, _ = events(
        commit(1, "Bo Reed <bo@example.org>"),
        commit(2, "Ada Stone <ada@home.example.org>", body=f"{LONG} Found by Bo Reed and by Will."),
        commit(3, "ADA  stone <ada@work.example.org>"),
    )
    assert [event.user_id for event in component] == ["u0001", "u0002", "u0002"]
    assert component[1].text == f"{LONG} Found by someone and by Will."


def test_a_subject_that_an_earlier_commit_of_the_user_holds_is_not_asked():
    _, subject, skipped = events(
        commit(1, subject="mi: Fix the cursor in the corner"),
        commit(2, "Bo Reed <b@example.org>", "mi: fix the cursor in the corner"),  # another user's does not count
        commit(3, subject="mi: fix the cursor: in the corner!"),
        commit(4, subject="os: Drop it", body=LONG + "\nSee also 'xkb: say hello to keys'."),
        commit(5, subject="xkb: say hello to keys"),
        commit(6, subject="os: Drop"),  # two words stand anywhere
        commit(7, subject="mi: Fix the cursor in the corners"),
    )
    assert [event.output for event in subject if not event.is_askable] == [
        "mi: fix the cursor: in the corner!", "xkb: say hello to keys",
    ]  # fmt: skip
    assert skipped == {"xorg-subject: subject stands in an earlier commit of the user": 2}


def test_a_commit_is_in_one_split_for_both_tasks(tmp_path):
    path = tmp_path / "log.txt"
    commits = [
        commit(n, subject=f"{'mi' if n < 30 else 'randr'}: {n}", body=f"{LONG} {n} " + "word " * n) for n in range(40)
    ]
    path.write_bytes(log(*commits))  # the last ten are no component questions
    xorg.construct(tmp_path / "out", file=path)
    opened = Dataset.load(tmp_path / "out")
    commits_of = {
        split: {example.id.split("/")[-1] for example in opened.examples(split)}
        for split in ("train", "validation", "test")
    }
    assert commits_of["test"] == {"c00029", "c00030", "c00039", "c00040"}
    assert commits_of["validation"] == {"c00027", "c00028", "c00037", "c00038"}
    assert not commits_of["train"] & (commits_of["test"] | commits_of["validation"])
    assert not [row for row in audit(opened).rows if row.check == "near-duplicate-across-splits" and row.found]


def test_the_data_set_holds_both_tasks_and_no_name(tmp_path, log_file):
    manifest = xorg.construct(tmp_path / "out", file=log_file)
    opened = Dataset.load(tmp_path / "out")
    assert [task.name for task in opened.manifest.tasks] == ["xorg-component", "xorg-subject"]
    assert (manifest.users, manifest.parameters["commits"]) == (2, 24)
    test = opened.examples("test")
    assert Counter(example.task for example in test) == {"xorg-component": 4, "xorg-subject": 4}
    last = next(example for example in test if example.id == "xorg-component/u0002/c00024")
    assert (last.output, last.profile_size) == ("xquartz", 11)
    assert [item.label for item in opened.profile(last)][:2] == ["glamor", "xquartz"]
    for file in (tmp_path / "out").rglob("*.parquet"):
        assert not re.search("Ada|Stone|Reed|@", str(pl.read_parquet(file).to_dict(as_series=False)))


def test_text_gz_and_package_give_the_same_bytes_twice(tmp_path, log_file):
    packed = tmp_path / "log.gz"
    packed.write_bytes(gzip.compress(log_file.read_bytes()))
    files = [log_file, packed, log_file]
    if shutil.which("dpkg-deb"):
        tree = tmp_path / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(
            "Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
        )
        (tree / "usr/share/doc/toy").mkdir(parents=True)
        shutil.copy(packed, tree / "usr/share/doc/toy/changelog.gz")
        subprocess.run(["dpkg-deb", "-b", tree, tmp_path / "toy.deb"], check=True, capture_output=True)
        files.append(tmp_path / "toy.deb")
    hashes = {xorg.construct(tmp_path / "out", file=file).content_hash for file in files}
    assert len(hashes) == 1


def test_a_cached_log_is_not_fetched_again(tmp_path, log_file, monkeypatch):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "changelog.gz").write_bytes(gzip.compress(log_file.read_bytes()))
    monkeypatch.setenv("PATH", "")
    assert xorg.construct(tmp_path / "out", cache=tmp_path / "cache").users == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"x" * 9_999)[:-9], "damaged or cut gzip"),
        (gzip.compress(b"nothing of the kind"), "not a git log"),
        (b"<html>moved</html>", "not a git log.*<html>"),
        (b"", "not a git log"),
        (b"!<arch>\nbroken", "dpkg-deb"),
        (log(commit(1), commit(2)), "no user has 10 usable commits"),
    ],
)
def test_a_bad_log_is_refused_and_nothing_is_left(tmp_path, content, message):
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        xorg.construct(tmp_path / "out", file=path)
    assert not (tmp_path / "out").exists()


def test_without_apt_the_message_names_the_other_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"--file.*construct personas"):
        xorg.construct(tmp_path / "out", cache=tmp_path / "cache")


def test_without_network_the_message_names_the_other_ways(tmp_path, monkeypatch):
    """apt-get itself exits with 100 and a line `E: …` when no server answers."""
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    (tmp_path / "dpkg-deb").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"Unable to locate.*construct personas"):
        xorg.construct(tmp_path / "out", cache=tmp_path / "cache")
    assert not (tmp_path / "cache" / "changelog.gz").exists()


def test_the_command_says_what_came_out_and_where(tmp_path, log_file):
    done = CliRunner().invoke(
        app, ["construct", "xorg", "--output", str(tmp_path / "out"), "--file", str(log_file), "--held-out", "1"]
    )
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        f"{tmp_path / 'out'}: xorg with xorg-component, xorg-subject; 2 users; "
        "examples: test 4, train 20, validation 4\n"
    )
    assert "read 24 commits" in done.stderr


@pytest.mark.network
def test_the_real_log_gives_what_was_measured_on_it(tmp_path):
    manifest = xorg.construct(tmp_path / "out", cache=tmp_path / "cache", options=SplitOptions())
    assert 17_500 < manifest.parameters["commits"] < 18_500
    assert 60 < manifest.users < 100
    opened = Dataset.load(tmp_path / "out")
    leaks = ("gold-in-profile", "near-duplicate-across-splits")
    assert not [row for row in audit(opened).rows if row.check in leaks and row.found]
    train = [example for example in opened.examples("train") if example.task == "xorg-component"]
    assert {example.output for example in train} == set(xorg.COMPONENTS)
    hits: Counter[str] = Counter()
    test = [example for example in opened.examples("test") if example.task == "xorg-component"]
    for own, other in zip(test, [*test[2:], *test[:2]], strict=True):
        for name, whose in (("own", own), ("wrong", other)):
            labels = Counter(item.label for item in opened.profile(whose))
            hits[name] += labels.most_common(1)[0][0] == own.output
    assert hits["own"] / len(test) > 0.4  # 0.52 to 0.56 in the trial
    assert hits["wrong"] / len(test) < 0.2
