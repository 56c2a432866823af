"""Push to the Hub, a corpus here and models in tagpr_train: all files in one commit, so that a reader sees the old
content or the new one.

Guarantee: nothing leaves the machine without `push`; a corpus that is unchecked, changed since or whose card is stale
is refused; the same content pushed again is a no-op; after a death at any point the same command goes on (files that
arrived are not sent again, and readers see nothing before the commit). A commit by someone else in between is never
overwritten. The token is read by `huggingface_hub` itself and never shown. Price: every file is hashed.
"""

import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tagpr_data import card
from tagpr_data.corpus import MANIFEST, PAIRS, Corpus, open_corpus
from tagpr_data.errors import CheckFailed, InputError, shorten

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
logger = logging.getLogger(__name__)

REPORT = "data_docs/report.json"
OWNED = ("traces/*", "rejected/*", "pairs/*")
"""Which paths on the Hub belong to a corpus: files there that it does not have are deleted by the commit."""

WAITS_SECONDS = (1.0, 4.0, 15.0)
"""Pauses before the next attempts when the Hub is busy or unreachable."""


@dataclass(frozen=True)
class Upload:
    """One file to be on the Hub."""

    path: str
    """Its path there."""
    content: Path | bytes
    """Where its bytes lie, or the bytes themselves."""
    size: int
    """How many bytes."""
    sha256: str
    """Hash of its bytes."""
    git_sha1: str
    """Hash as git names the blob: what the Hub tells of small files."""


@dataclass(frozen=True)
class Package:
    """What one commit brings to the Hub."""

    repo_type: Literal["dataset", "model"]
    """What kind of repository it is for."""
    uploads: tuple[Upload, ...]
    """All its files, ordered by path."""
    owned: tuple[str, ...]
    """Patterns of paths on the Hub that belong to it: files there that it does not have are deleted by the commit."""
    message: str
    """The commit's message."""


@dataclass(frozen=True)
class Plan:
    """What a push would do."""

    uploads: tuple[Upload, ...]
    """All files of the package."""
    changed: tuple[str, ...]
    """Paths that are new or different on the Hub."""
    deleted: tuple[str, ...]
    """Paths on the Hub that the package no longer has."""
    head: str | None
    """The commit this plan was made against; None where the repository is not there yet."""


@dataclass(frozen=True)
class Target:
    """Where a package goes."""

    repo_id: str
    """OWNER/NAME of a repository."""
    revision: str = "main"
    """Branch to commit to; made from main where it does not exist."""
    tag: str | None = None
    """Name to give the commit."""
    public: bool = False
    """Whether a repository that is made now is public."""

    def __post_init__(self) -> None:
        if len(list(filter(None, self.repo_id.split("/")))) != 2:
            raise InputError(f"{self.repo_id!r} is not a repository name; it is OWNER/NAME")
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise InputError(f"{self.repo_id!r} is not a repository name (OWNER/NAME): {error}") from None


def collect(folder: Path) -> Package:
    """Open a corpus that is fit to be published and give its files.

    Raises CheckFailed when it was not validated, failed, changed since, or has a stale document.
    """
    corpus = open_corpus(folder)
    _check_validated(corpus)
    problems = card.stale(corpus)
    if problems:
        raise CheckFailed(
            f"{folder} has documents that do not fit its data:\n  " + "\n  ".join(problems)
            + f"\nwrite them anew with: tagpr-data card {folder}"
        )  # fmt: skip
    paths = [*(table.path for table in corpus.tables), MANIFEST, card.README, card.CROISSANT, REPORT]
    paths += [path for path in (f"{PAIRS}/{MANIFEST}", card.FACTS) if (folder / path).is_file()]
    uploads = tuple(upload(path, folder / path) for path in sorted(paths))
    return Package("dataset", uploads, OWNED, f"{corpus.manifest.name}: content {corpus.manifest.content_hash[:12]}")


def upload(path: str, content: Path | bytes) -> Upload:
    """Give the file to be at `path` on the Hub, hashed."""
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    plain, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as stream:
        while piece := stream.read(1 << 20):
            plain.update(piece)
            git.update(piece)
    return Upload(path, content, size, plain.hexdigest(), git.hexdigest())


def plan(api: "HfApi", target: Target, package: Package) -> Plan:
    """Compare the files with what is on the Hub. Reads only."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    uploads, kind = package.uploads, package.repo_type
    try:
        try:
            info = api.repo_info(target.repo_id, repo_type=kind, revision=target.revision)
        except RevisionNotFoundError:
            info = api.repo_info(target.repo_id, repo_type=kind)
    except RepositoryNotFoundError:
        return Plan(uploads, tuple(upload.path for upload in uploads), (), None)
    tree = api.list_repo_tree(target.repo_id, repo_type=kind, revision=info.sha, recursive=True)
    found = {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in tree if isinstance(entry, RepoFile)
    }
    changed = [upload.path for upload in uploads if found.get(upload.path) not in (upload.sha256, upload.git_sha1)]
    wanted = {upload.path for upload in uploads}
    deleted = sorted(
        path for path in found if path not in wanted and any(fnmatchcase(path, pattern) for pattern in package.owned)
    )
    return Plan(uploads, tuple(changed), tuple(deleted), info.sha)


def push(
    package: Package,
    target: Target,
    say: Callable[[str], object] = logger.info,
    waits_seconds: Sequence[float] = WAITS_SECONDS,
) -> tuple[str, bool]:
    """Bring a package to the Hub in one commit; give the commit and whether it was made now.

    Raises InputError for a Hub that refuses: with the status and what to do.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    return _patiently(lambda: _push_once(api, package, target, say), target, say, waits_seconds)


def preview(package: Package, target: Target) -> tuple[Plan, str | None]:
    """Give what a push would do, and why the Hub could not be asked (then all files count as new), if it could not."""
    from huggingface_hub import HfApi

    try:
        return _patiently(lambda: plan(HfApi(), target, package), target, lambda line: None, ()), None
    except InputError as error:
        return Plan(package.uploads, tuple(upload.path for upload in package.uploads), (), None), str(error)


def run(
    package: Package,
    target: Target,
    send: bool,
    show: Callable[[str], object],
    say: Callable[[str], object],
) -> None:
    """Do what a `push` command does: push, or without `send` only show what would be sent. Results go to `show`,
    progress to `say`."""
    place = f"{target.repo_id}@{target.revision}"
    if send:
        commit, is_new = push(package, target, say)
        tag = f", tag {target.tag}" if target.tag else ""
        show(f"{place}: {'pushed as' if is_new else 'unchanged, is'} commit {commit}{tag}")
        return
    found, unknown = preview(package, target)
    for file in found.uploads:
        mark = "send" if file.path in found.changed else "same"
        show(f"{mark}  {file.size:>12,}  {file.sha256}  {file.path}")
    for path in found.deleted:
        show(f"drop  {'':>12}  {'':<64}  {path}")
    total = sum(file.size for file in found.uploads if file.path in found.changed)
    if unknown:
        say(f"what is there is not known: {unknown}")
    new = "" if found.head else f" (to be made, {'public' if target.public else 'private'})"
    say(f"dry run: {len(found.changed)} files, {total:,} bytes to {place}{new}; send with --push")


def _push_once(api: "HfApi", package: Package, target: Target, say: Callable[[str], object]) -> tuple[str, bool]:
    """One whole attempt. It begins by looking, so an earlier attempt whose answer was lost is not repeated."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    kind = package.repo_type
    found = plan(api, target, package)
    if found.head is None:
        api.create_repo(target.repo_id, repo_type=kind, private=not target.public, exist_ok=True)
        found = plan(api, target, package)
    if target.revision != "main":
        api.create_branch(target.repo_id, branch=target.revision, repo_type=kind, exist_ok=True)
    head, is_new = found.head, bool(found.changed or found.deleted)
    if is_new:
        say(f"sending {len(found.changed)} files, deleting {len(found.deleted)}")
        files = {file.path: file.content for file in package.uploads}
        operations = [
            *(CommitOperationAdd(path, _as_content(files[path])) for path in found.changed),
            *(CommitOperationDelete(path) for path in found.deleted),
        ]
        head = api.create_commit(
            target.repo_id,
            operations,
            repo_type=kind,
            revision=target.revision,
            parent_commit=found.head,
            commit_message=package.message,
        ).oid
    assert head is not None
    if target.tag:
        _tag(api, target, head, kind)
    return head, is_new


def _as_content(content: Path | bytes) -> str | bytes:
    return str(content) if isinstance(content, Path) else content


def _tag(api: "HfApi", target: Target, head: str, kind: str) -> None:
    assert target.tag is not None
    tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(target.repo_id, repo_type=kind).tags}
    if tags.get(target.tag, head) != head:
        raise InputError(
            f"{target.repo_id} has a tag {target.tag!r} already, on commit {tags[target.tag][:12]}, and tags are not "
            f"moved; what was pushed is there as commit {head[:12]}; give it another --tag"
        )
    if target.tag not in tags:
        api.create_tag(target.repo_id, tag=target.tag, revision=head, repo_type=kind)


def _patiently(
    attempt: Callable[[], T], target: Target, say: Callable[[str], object], waits_seconds: Sequence[float]
) -> T:
    """Make attempts until one succeeds or fails for good; what may pass is tried again after each wait."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] - of whichever HTTP client the hub's version uses
        LocalTokenNotFoundError,
    )

    for wait in (*waits_seconds, None):
        try:
            return _unwrapped(attempt)
        except LocalTokenNotFoundError:
            raise InputError(_HELP[401].format(target.repo_id)) from None
        except HFValidationError as error:
            raise InputError(f"{target.repo_id!r} is not a repository name (OWNER/NAME): {error}") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            problem = f"the Hub answered {status} to {error.response.request.method} {error.response.request.url.path}"
            if wait is None or status not in _PASSING:
                said = f"; it says: {shorten(error.server_message, 200)}" if error.server_message else ""
                raise InputError(f"{problem}: {_help(status).format(target.repo_id)}{said}") from None
        except (HTTPError, ConnectionError) as error:
            problem = f"the Hub could not be reached ({type(error).__name__}: {shorten(str(error))})"
            if wait is None:
                raise InputError(f"{problem}; nothing is visible to readers; the same command goes on") from None
        say(f"{problem}; trying again in {wait:g} s")
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _unwrapped(attempt: Callable[[], T]) -> T:
    """Make an attempt; what broke the upload of a file is raised itself, not the RuntimeError that hides it."""
    try:
        return attempt()
    except RuntimeError as error:
        raise (error.__cause__ or error) from None


_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_HELP = {
    401: "no valid token for {}; log in with `hf auth login` or set HF_TOKEN to a token with write access",
    403: "the token may not write to {}; it needs write access there",
    404: "{} or the revision is not there, or the token may not see it",
    409: "{} is being changed by someone else, or the name is taken; the same command tries again",
    412: "someone else committed to {} meanwhile, so nothing was written; look at their commit, then push again",
    413: "a file is too large for {}",
}


def _help(status: int) -> str:
    if status in _PASSING:
        return "it is busy or out of order; nothing of this push is visible to readers of {}; the same command goes on"
    return _HELP.get(status, "it refused the push to {}")


def _check_validated(corpus: Corpus) -> None:
    """The validation report must be of this content, without a failed check, and the manifest must still add up."""
    from tagpr_data.validate import check_tables

    again = f"run: tagpr-data validate {corpus.folder}"
    try:
        report: dict[str, Any] = json.loads((corpus.folder / REPORT).read_text(encoding="utf-8"))
        checks = {check["name"]: check["status"] for check in report["checks"]}
        is_of_this = report["content_hash"] == corpus.manifest.content_hash
    except FileNotFoundError:
        raise CheckFailed(f"{corpus.folder} was never validated (no {REPORT}); {again}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckFailed(f"{corpus.folder / REPORT} is not a validation report ({error!r}); {again}") from None
    bad = sorted(name for name, status in checks.items() if status in ("failed", "crashed"))
    bad += sorted(
        f"{result.name} (now)" for result in check_tables(corpus.folder, corpus.manifest) if result.status != "passed"
    )
    if bad or not is_of_this:
        why = f"checks did not pass: {', '.join(bad)}" if bad else "its report is about other content"
        raise CheckFailed(f"{corpus.folder} is not fit to be published, {why}; {again}")
