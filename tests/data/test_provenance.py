"""Provenance: versions as pip knows them, commits as git knows them."""

import subprocess
from importlib.metadata import version

from tagpr_data.provenance import git_revision, hardware, versions


def test_versions_are_those_installed_and_a_missing_package_is_left_out():
    found = versions(["polars", "no-such-package"])
    assert set(found) == {"python", "platform", "hardware", "polars"}
    assert found["polars"] == version("polars")


def test_hardware_is_what_the_system_tells_and_nothing_where_it_tells_nothing(tmp_path):
    cores = hardware(tmp_path)
    assert cores.split()[1:] in (["CPU", "core"], ["CPU", "cores"])
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: A  Chip @ 2 GHz\nprocessor\t: 1\nmodel name\t: B\n"
    )
    (tmp_path / "meminfo").write_text("MemTotal:       25165824 kB\nMemFree: 1 kB\n")
    for card in ("0", "1"):
        (tmp_path / "driver/nvidia/gpus" / card).mkdir(parents=True)
        (tmp_path / "driver/nvidia/gpus" / card / "information").write_text("Model: \t\t NVIDIA X1\nIRQ: 4\n")
    assert hardware(tmp_path) == f"{cores} (A Chip @ 2 GHz), 24 GiB, 2 × NVIDIA X1"


def test_the_revision_is_the_commit_and_says_when_files_changed(tmp_path):
    def git(*arguments):
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    assert git_revision(tmp_path) is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "first", "--no-verify")
    commit = git("rev-parse", "HEAD")
    assert git_revision(tmp_path) == commit
    (tmp_path / "new").write_text("not tracked")
    assert git_revision(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert git_revision(tmp_path) == f"{commit}+dirty"
