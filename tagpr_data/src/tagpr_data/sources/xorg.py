"""The X server's git log as personal text: real people, dated, each with habits of wording and of naming parts.

It comes out of Debian's package `xserver-xorg-core`, whose documentation holds the log as plain text. Two tasks:
`xorg-component` (which of 15 parts does this user file the commit under) and `xorg-subject` (the subject line this
user would write). A commit is in one split for both tasks. Which parts, lengths, filters and rules of the split: ours.

Authors are merged by name and become u0001, u0002, … by their first commit; their names and all mail addresses are
taken out of the texts, trailers too. The texts are public, so whoever looks for them finds their authors: this keeps
names out of prompts, it is not anonymity.
"""

import gzip
import hashlib
import re
import shutil
import subprocess
import tempfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from tagpr_data.cache import cache_folder
from tagpr_data.construct import Event, Histories, SplitOptions, joint_histories
from tagpr_data.dataset import check_target, write_dataset
from tagpr_data.errors import InputError, shorten
from tagpr_data.records import DatasetManifest, Task
from tagpr_data.tables import atomic_path
from tagpr_data.words import shingles, words_of

PACKAGE = "xserver-xorg-core"
COMPONENTS = (
    "dix", "xfree86", "xquartz", "glamor", "xi", "xwayland", "hw/xwin", "xkb", "glx", "modesetting", "exa", "mi",
    "os", "input", "meson",
)  # fmt: skip
"""The 15 commonest prefixes of subject lines."""
COMPONENT_TASK = Task(
    name="xorg-component",
    kind="classification",
    labels=COMPONENTS,
    question=f"Under which component would this user file the commit below: {', '.join(COMPONENTS)}?",
    answer_form="the name of one component",
    item_template='"{title}" is filed under {label}',
)
SUBJECT_TASK = Task(
    name="xorg-subject",
    kind="generation",
    question="Which subject line would this user write for the following commit message?",
    answer_form="a subject line",
    item_template='"{title}": {text}',
)
MIN_BODY_WORDS = 12
"""A commit with a shorter body has no subject task: there is too little to summarise."""
MAX_SUBJECT_WORDS = 20
"""A longer first paragraph is not a subject line but a message without one."""

LEAST_GOLD_WORDS = 4
"""From so many words on, a subject that an earlier commit of the user repeats word for word is no question."""

_OTHERWISE = "without it, `tagpr-data construct personas` makes a synthetic data set"
_COMMIT = re.compile(rb"^commit [0-9a-f]{40}\b.*\n", re.MULTILINE)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATE = re.compile(r"\w{3} (\w{3}) +(\d{1,2}) (\d\d):(\d\d):(\d\d) (\d{4}) ([+-])(\d\d)(\d\d)")
_TRAILER = re.compile(
    r"\s*(?:[A-Za-z]+(?:-[A-Za-z]+)*-(?:by|from|in|id|to)|cc|fix(?:es)?|closes|bug|bugzilla|bug-?link|bug-debian|author|date"
    r"|from|subject|link|gitlab|patchwork|references?|related|part-of|thanks|x-\S+|mime-version|content-\S+)\s*:\s.*"
    r"|\s*\(cherry[- ]picked from .*",
    re.IGNORECASE,
)
_BARE_ADDRESS = re.compile(r"\W*(?:\w+\W+){0,4}(?:https?|ftp)://\S+\W*")
_MAIL = re.compile(r"<?[\w.+-]+@[\w-]+(?:\.[\w-]+)+>?")
_PREFIX = re.compile(r"([A-Za-z0-9][\w./+-]*): *(?=\S)")


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit of the log, as it stands there."""

    author: str
    date: str
    """As git prints it: `Tue Feb 7 10:30:37 2023 +1000`."""
    is_merge: bool
    subject: str
    """The first paragraph on one line."""
    body: str
    """The rest, its lines kept."""


def construct(
    folder: Path,
    *,
    file: Path | None = None,
    cache: Path | None = None,
    options: SplitOptions | None = None,
    report: Callable[[str], None] = lambda _line: None,
) -> DatasetManifest:
    """Write the data set; the log comes from `file` (text, .gz or .deb) or else from the package mirror, once.

    `report` gets a line per phase. Raises InputError when the log cannot be had, is damaged or is not a git log.
    """
    options = options or SplitOptions()
    check_target(folder, "xorg")
    text = read_log(file if file is not None else fetch_log(cache or cache_folder() / "xorg", report))
    commits, skipped = parse_log(text)
    report(f"read {len(commits)} commits")
    result = Histories(skipped=skipped)
    component_events, subject_events = events_from_commits(commits, result.skipped)
    asked = ((COMPONENT_TASK, component_events), (SUBJECT_TASK, subject_events))
    result.add(joint_histories(asked, options))
    if not any(result.examples.values()):
        raise InputError(
            f"{file or PACKAGE}: no user has {options.min_history} usable commits; "
            "lower --min-history or use a longer log"
        )
    parameters: dict[str, Any] = {
        **options.model_dump(mode="json"),
        "commits": len(commits),
        "log_sha256": hashlib.sha256(text).hexdigest(),
        "min_body_words": MIN_BODY_WORDS,
        "max_subject_words": MAX_SUBJECT_WORDS,
    }
    return write_dataset(
        folder,
        name="xorg",
        source=f"git log of the X.Org X server as found in Debian's package {PACKAGE}",
        licence="MIT (X.Org), see the copyright file of the package; for local use, names removed",
        tasks=(COMPONENT_TASK, SUBJECT_TASK),
        examples=result.examples,
        items=result.items,
        parameters=parameters,
        skipped=dict(sorted(result.skipped.items())),
    )


def fetch_log(cache: Path, report: Callable[[str], None] = lambda _line: None) -> Path:
    """Give the log's path in `cache`, fetching the package with apt when it is not there yet.

    Neither root nor a change of the machine's package lists is needed: apt gets folders of its own in `cache`.
    """
    path = cache / "changelog.gz"
    if path.is_file():
        return path
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise InputError(f"apt-get and dpkg-deb are needed to fetch {PACKAGE}; give the log as --file, or {_OTHERWISE}")
    lists, archives = (cache / "apt" / "lists").resolve(), (cache / "apt" / "cache").resolve()
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    (archives / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    apt = ["apt-get", "-q", "-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={archives}"]
    apt += ["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30"]
    with tempfile.TemporaryDirectory(dir=cache) as place:
        report(f"fetching {PACKAGE} with apt-get")
        _run([*apt, "update"], place)
        _run([*apt, "download", PACKAGE], place)
        packages = list(Path(place).glob("*.deb"))
        if not packages:
            raise InputError(f"apt-get download left no package; give the log as --file, or {_OTHERWISE}")
        with atomic_path(path) as temporary:
            temporary.write_bytes(_log_of_package(packages[0]))
    shutil.rmtree(cache / "apt", ignore_errors=True)
    return path


def read_log(path: Path) -> bytes:
    """Give the text of a log file, unpacked when it is gzip or a Debian package; InputError when damaged."""
    if not path.is_file():
        raise InputError(f"log {path} does not exist; it may be git-log text, .gz of it, or a .deb of {PACKAGE}")
    content = path.read_bytes()
    if content.startswith(b"!<arch>"):
        content = _log_of_package(path)
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path} is a damaged or cut gzip file ({error}); fetch it again") from None
    if not _COMMIT.search(content):
        start = content[:60].decode("utf-8", "replace")
        raise InputError(f"{path} is not a git log: no line `commit <40 hex digits>`; it begins {shorten(start)}")
    return content


def parse_log(text: bytes) -> tuple[list[Commit], Counter[str]]:
    """Give the commits of a plain `git log`, newest first as there, and what was left out, by reason."""
    commits: list[Commit] = []
    skipped: Counter[str] = Counter()
    for block in _COMMIT.split(text)[1:]:
        try:
            head, _, message = block.decode("utf-8").partition("\n\n")
        except UnicodeDecodeError:
            skipped["not UTF-8"] += 1
            continue
        fields: dict[str, str] = {}
        for line in head.splitlines():
            key, _, value = line.partition(":")
            fields[key] = value
        author = " ".join(re.sub(r"<[^>]*>\s*$", "", fields.get("Author", "")).split())
        paragraphs = "\n".join(line.removeprefix("    ") for line in message.splitlines()).strip()
        subject, _, body = re.sub(r"\n[ \t]+(?=\n)", "\n", paragraphs).partition("\n\n")
        if not author or not subject:
            skipped["no author" if subject else "no message"] += 1
            continue
        commits.append(
            Commit(author, fields.get("Date", "").strip(), "Merge" in fields, " ".join(subject.split()), body.strip())
        )
    return commits, skipped


def parse_date(text: str) -> datetime | None:
    """Read git's default date format with its zone, whatever the machine's language; None when it is something else."""
    match = _DATE.fullmatch(text)
    if match is None or match[1] not in _MONTHS:
        return None
    offset = timedelta(hours=int(match[8]), minutes=int(match[9])) * (-1 if match[7] == "-" else 1)
    day, hour, minute, second, year = (int(match[group]) for group in (2, 3, 4, 5, 6))
    try:
        return datetime(year, _MONTHS.index(match[1]) + 1, day, hour, minute, second, tzinfo=timezone(offset))
    except (ValueError, OverflowError):
        return None


def clean_body(body: str) -> str:
    """Take trailers, lines that are only an address, and mail addresses out of a commit message's body."""
    lines = [line.rstrip() for line in body.splitlines()]
    kept = [line for line in lines if not _TRAILER.fullmatch(line) and not _BARE_ADDRESS.fullmatch(line)]
    text = _MAIL.sub("", "\n".join(kept))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def events_from_commits(commits: Sequence[Commit], skipped: Counter[str]) -> tuple[list[Event], list[Event]]:
    """Give the events of the component task and of the subject task; counts into `skipped` what is left out."""
    component: list[Event] = []
    subject: list[Event] = []
    for event in _clean_events(commits, skipped):
        title, body = event.input, event.text
        label, rest = split_prefix(title)
        if label is None:
            skipped["xorg-component: prefix not among the 15"] += 1
        else:
            component.append(
                replace(
                    event, input=f"{rest}\n\n{body}".strip(), output=label, title=rest, text=body or rest, label=label
                )
            )
        if len(body.split()) < MIN_BODY_WORDS:
            skipped[f"xorg-subject: body under {MIN_BODY_WORDS} words"] += 1
        else:
            subject.append(replace(event, input=body, output=title, title=title, text=body, label=label))
    return component, _without_known_subjects(subject, skipped)


def split_prefix(subject: str) -> tuple[str | None, str]:
    """Give component and rest of a subject line, `Xi: fix it` → (`xi`, `fix it`); (None, all) without a known one.
    A prefix said twice goes twice, so that the rest does not begin with its own answer."""
    match = _PREFIX.match(subject)
    label = match[1].lower() if match else None
    if match is None or label not in COMPONENTS:
        return None, subject
    rest = subject[match.end() :]
    while (again := _PREFIX.match(rest)) and again[1].lower() == label:
        rest = rest[again.end() :]
    return label, rest


def _without_known_subjects(events: Sequence[Event], skipped: Counter[str]) -> list[Event]:
    """Mark as not askable each event whose subject stands word for word in an earlier subject or body of its user:
    the profile would hold the answer. Events oldest first; case and punctuation do not count."""
    texts: dict[str, list[str]] = {}
    runs: dict[str, set[str]] = {}
    marked: list[Event] = []
    for event in events:
        earlier, known = texts.setdefault(event.user_id, []), runs.setdefault(event.user_id, set())
        gold = words_of(event.output)
        whole = f" {' '.join(gold)} "
        is_known = (
            len(gold) >= LEAST_GOLD_WORDS
            and " ".join(gold[:LEAST_GOLD_WORDS]) in known  # a look-up that spares most of the reading below
            and any(whole in text for text in earlier)
        )
        if is_known:
            skipped["xorg-subject: subject stands in an earlier commit of the user"] += 1
        marked.append(replace(event, is_askable=not is_known))
        for part in (event.output, event.text):
            words = words_of(part)
            earlier.append(f" {' '.join(words)} ")
            known.update(shingles(words, LEAST_GOLD_WORDS))
    return marked


def _clean_events(commits: Sequence[Commit], skipped: Counter[str]) -> Iterator[Event]:
    """Oldest first, users and ids by number, `input` = subject, `text` = body, both without names."""
    dated: list[tuple[datetime, Commit]] = []
    for commit in commits:
        date = parse_date(commit.date)
        if date is None:
            skipped["date unreadable"] += 1
        else:
            dated.append((date, commit))
    dated.sort(key=lambda pair: (pair[0], pair[1].author, pair[1].subject, pair[1].body))
    users: dict[str, str] = {}
    for _, commit in dated:
        users.setdefault(_same_person(commit.author), f"u{len(users) + 1:04}")
    nameless = _name_remover({commit.author for commit in commits})
    seen: set[tuple[str, str]] = set()
    for number, (date, commit) in enumerate(dated, start=1):
        user = users[_same_person(commit.author)]
        title = nameless(_MAIL.sub("", commit.subject)).strip()
        if commit.is_merge or re.match(r"merge\b", title, re.IGNORECASE):
            skipped["merge"] += 1
        elif re.match(r"revert\b", title, re.IGNORECASE):
            skipped["revert"] += 1
        elif len(title.split()) > MAX_SUBJECT_WORDS:
            skipped[f"first paragraph over {MAX_SUBJECT_WORDS} words"] += 1
        elif (user, title.casefold()) in seen:
            skipped["same subject by the same user"] += 1
        else:
            seen.add((user, title.casefold()))
            moment = date.astimezone(UTC)
            yield Event(
                user_id=user,
                event_id=f"c{number:05}",
                moment=moment.timestamp(),
                date=moment.isoformat(),
                input=title,
                output="",
                text=nameless(clean_body(commit.body)),
            )


def _same_person(author: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", author).casefold().split())


def _name_remover(authors: Collection[str]) -> Callable[[str], str]:
    """Give a function that writes `someone` for every author's name of two words or more; a single word may be an
    ordinary one. Texts without any author's first word are passed by: the long pattern is slow."""
    names = sorted({author for author in authors if " " in author}, key=lambda name: (-len(name), name))
    pattern = re.compile(r"\b(?:" + "|".join(re.escape(name) for name in names) + r")\b", re.IGNORECASE)
    first_words = {re.findall(r"\w+", name.casefold())[0] for name in names}

    def remove(text: str) -> str:
        if first_words.isdisjoint(re.findall(r"\w+", text.casefold())):
            return text
        return pattern.sub("someone", text)

    return remove


def _log_of_package(package: Path) -> bytes:
    """Unpack a .deb into a folder of its own and give its upstream change log, still packed."""
    if shutil.which("dpkg-deb") is None:
        raise InputError(f"dpkg-deb is needed to unpack {package}; unpack its changelog.gz yourself for --file")
    with tempfile.TemporaryDirectory() as place:
        _run(["dpkg-deb", "-x", str(package.resolve()), place], place)
        logs = sorted(Path(place).glob("usr/share/doc/*/changelog.gz"))
        if not logs:
            raise InputError(f"{package} holds no usr/share/doc/*/changelog.gz; is it {PACKAGE} of Debian?")
        return logs[0].read_bytes()


def _run(command: Sequence[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        what = " ".join([command[0], command[-2] if command[-2:-1] == ["download"] else "", command[-1]])
        raise InputError(
            f"`{' '.join(what.split())}` failed ({shorten(said, 300)}); give the log as --file, or {_OTHERWISE}"
        )
