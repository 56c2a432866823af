"""Provenance: versions as pip knows them, commits as git knows them."""

import subprocess
from importlib.metadata import version

from tagpr_data.provenance import git_revision, versions


def test_versions_are_those_installed_and_a_missing_package_is_left_out():
    found = versions(["polars", "no-such-package"])
    assert set(found) == {"python", "platform", "polars"}
    assert found["polars"] == version("polars")


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
