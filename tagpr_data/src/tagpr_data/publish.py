"""Push a corpus to the Hub: all files in one commit, so that a reader sees the old corpus or the new one.

Guarantee: nothing leaves the machine without `push`; a corpus that is unchecked, changed since or whose card is stale
is refused; the same content pushed again is a no-op; after a death at any point the same command goes on (files that
arrived are not sent again, and readers see nothing before the commit). A commit by someone else in between is never
overwritten. The token is read by `huggingface_hub` itself and never shown. Price: every file is hashed.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tagpr_data import card
from tagpr_data.corpus import MANIFEST, PAIRS, Corpus, open_corpus
from tagpr_data.errors import CheckFailed, InputError, shorten
from tagpr_data.tables import sha256_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
logger = logging.getLogger(__name__)

REPORT = "data_docs/report.json"
OWNED = ("traces/", "rejected/", "pairs/")
"""Folders on the Hub that belong to the corpus: files in them that it does not have are deleted by the commit."""

WAITS_SECONDS = (1.0, 4.0, 15.0)
"""Pauses before the next attempts when the Hub is busy or unreachable."""


@dataclass(frozen=True)
class Upload:
    """One file to be on the Hub."""

    path: str
    """Its path there and in the corpus folder."""
    size: int
    """Bytes."""
    sha256: str
    """Hash of its bytes."""
    git_sha1: str
    """Hash as git names the blob: what the Hub tells of small files."""


@dataclass(frozen=True)
class Plan:
    """What a push would do."""

    uploads: tuple[Upload, ...]
    """All files of the corpus."""
    changed: tuple[str, ...]
    """Paths that are new or different on the Hub."""
    deleted: tuple[str, ...]
    """Paths on the Hub that the corpus no longer has."""
    head: str | None
    """The commit this plan was made against; None where the repository is not there yet."""


@dataclass(frozen=True)
class Target:
    """Where a corpus goes."""

    repo_id: str
    """OWNER/NAME of a data set repository."""
    revision: str = "main"
    """Branch to commit to; made from main where it does not exist."""
    tag: str | None = None
    """Name to give the commit."""
    public: bool = False
    """Whether a repository that is made now is public."""

    def __post_init__(self) -> None:
        if len(list(filter(None, self.repo_id.split("/")))) != 2:
            raise InputError(f"{self.repo_id!r} is not a repository name; it is OWNER/NAME")


def collect(folder: Path) -> tuple[Corpus, tuple[Upload, ...]]:
    """Open a corpus that is fit to be published and give its files, ordered by path.

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
    return corpus, tuple(_upload(folder, path) for path in sorted(paths))


def plan(api: "HfApi", target: Target, uploads: Sequence[Upload]) -> Plan:
    """Compare the files with what is on the Hub. Reads only."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        try:
            info = api.repo_info(target.repo_id, repo_type="dataset", revision=target.revision)
        except RevisionNotFoundError:
            info = api.repo_info(target.repo_id, repo_type="dataset")
    except RepositoryNotFoundError:
        return Plan(tuple(uploads), tuple(upload.path for upload in uploads), (), None)
    tree = api.list_repo_tree(target.repo_id, repo_type="dataset", revision=info.sha, recursive=True)
    found = {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in tree if isinstance(entry, RepoFile)
    }
    changed = [upload.path for upload in uploads if found.get(upload.path) not in (upload.sha256, upload.git_sha1)]
    wanted = {upload.path for upload in uploads}
    deleted = sorted(path for path in found if path.startswith(OWNED) and path not in wanted)
    return Plan(tuple(uploads), tuple(changed), tuple(deleted), info.sha)


def push(
    folder: Path,
    target: Target,
    say: Callable[[str], object] = logger.info,
    waits_seconds: Sequence[float] = WAITS_SECONDS,
) -> tuple[str, bool]:
    """Bring a corpus to the Hub in one commit; give the commit and whether it was made now.

    Raises CheckFailed for a corpus that is not fit, InputError for a Hub that refuses: with the status and what to do.
    """
    from huggingface_hub import HfApi

    corpus, uploads = collect(folder)
    api = HfApi()
    return _patiently(lambda: _push_once(api, corpus, target, uploads, say), target, say, waits_seconds)


def preview(folder: Path, target: Target) -> tuple[Plan, str | None]:
    """Give what a push would do, and why the Hub could not be asked (then all files count as new), if it could not."""
    from huggingface_hub import HfApi

    _, uploads = collect(folder)
    try:
        return _patiently(lambda: plan(HfApi(), target, uploads), target, lambda line: None, ()), None
    except InputError as error:
        return Plan(uploads, tuple(upload.path for upload in uploads), (), None), str(error)


def _push_once(
    api: "HfApi", corpus: Corpus, target: Target, uploads: Sequence[Upload], say: Callable[[str], object]
) -> tuple[str, bool]:
    """One whole attempt. It begins by looking, so an earlier attempt whose answer was lost is not repeated."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    found = plan(api, target, uploads)
    if found.head is None:
        api.create_repo(target.repo_id, repo_type="dataset", private=not target.public, exist_ok=True)
        found = plan(api, target, uploads)
    if target.revision != "main":
        api.create_branch(target.repo_id, branch=target.revision, repo_type="dataset", exist_ok=True)
    head, is_new = found.head, bool(found.changed or found.deleted)
    if is_new:
        say(f"sending {len(found.changed)} files, deleting {len(found.deleted)}")
        operations = [
            *(CommitOperationAdd(path, str(corpus.folder / path)) for path in found.changed),
            *(CommitOperationDelete(path) for path in found.deleted),
        ]
        head = api.create_commit(
            target.repo_id,
            operations,
            repo_type="dataset",
            revision=target.revision,
            parent_commit=found.head,
            commit_message=f"{corpus.manifest.name}: content {corpus.manifest.content_hash[:12]}",
        ).oid
    assert head is not None
    if target.tag:
        _tag(api, target, head)
    return head, is_new


def _tag(api: "HfApi", target: Target, head: str) -> None:
    assert target.tag is not None
    tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(target.repo_id, repo_type="dataset").tags}
    if tags.get(target.tag, head) != head:
        raise InputError(
            f"{target.repo_id} has a tag {target.tag!r} already, on commit {tags[target.tag][:12]}, and tags are not "
            f"moved; the corpus is there as commit {head[:12]}; give it another --tag"
        )
    if target.tag not in tags:
        api.create_tag(target.repo_id, tag=target.tag, revision=head, repo_type="dataset")


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


def _upload(folder: Path, path: str) -> Upload:
    file = folder / path
    size = file.stat().st_size
    git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            git.update(piece)
    return Upload(path, size, sha256_file(file), git.hexdigest())
