"""LaMP-6 from your own copy of the Avocado collection: the published files name mails, the texts come from the copy.

Avocado (LDC2015T03) is licensed apart, so LaMP-6 is published as file names (`147-000874-EM.txt`) in place of texts. As
the benchmark's own script does, each mail is read as UTF-8 and parsed by mail-parser 3.15.0: the gold is its subject,
its text the body without white space at the ends. The input becomes the task's wording and the body, an item's title
the subject.

Guarantee: what is written is read by `import lamp` and every other reader of LaMP files; a mail that is missing, or is
no mail, is an InputError with file, row and name, and nothing is written then. Zip files of the collection are read
where they lie, never unpacked. Ours: mails may lie loose or in zip files, at any depth; every question file is written
as a list. Price: one mail at a time is parsed (about a millisecond), 50,000 are remembered.

Tested on a small made-up tree of that form; the collection itself was not at hand.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from tagpr_data.errors import InputError, shorten
from tagpr_data.lamp.files import LampQuestion, read_rows, write_outputs, write_questions

WORDING = "Generate a subject for the following email: "
LARGEST_MAIL_BYTES = 50_000_000


class Mail(NamedTuple):
    """What LaMP-6 takes of a mail."""

    subject: str
    body: str


Place = tuple[Path, str | None]
"""A file, and the member of it where it is a zip file."""


class Written(NamedTuple):
    """What `fill` wrote for one question file."""

    questions: Path
    outputs: Path
    rows: int


def fill(question_files: Sequence[Path], avocado: Path, folder: Path) -> list[Written]:
    """Write question and output files with the mails' texts into `folder`, under the names of the question files
    (`train_questions.json` also gives `train_outputs.json`). Raises InputError before anything is written when a
    mail is missing."""
    for path in question_files:
        if "questions" not in path.name:
            raise InputError(f"{path}: the name of a question file holds 'questions', as train_questions.json")
    places = find_mails(avocado)
    for path in question_files:
        for _, name, where in _named(path):
            if name not in places:
                raise InputError(f"{where}: the mail {name!r} is not in {avocado} ({len(places):,} mails were found)")

    @lru_cache(maxsize=50_000)
    def read(name: str) -> Mail:
        return read_mail(places[name])

    return [_fill(path, read, folder) for path in question_files]


def find_mails(avocado: Path) -> dict[str, Place]:
    """Give where each mail (`….txt`) lies, by file name, loose or in a zip file below a folder. InputError when there
    is none."""
    if not avocado.is_dir():
        raise InputError(
            f"{avocado} is no folder; give the folder of the collection, for example avocado-1.0.2/data/text"
        )
    places: dict[str, Place] = {}
    for path in sorted(avocado.rglob("*")):
        if path.suffix == ".txt":
            places[path.name] = (path, None)
        elif path.suffix == ".zip":
            with _archive(path) as archive:
                members = [name for name in archive.namelist() if name.endswith(".txt")]
            places |= {member.rpartition("/")[2]: (path, member) for member in members}
    if not places:
        raise InputError(f"{avocado} holds no mail: no .txt file, loose or in a zip file")
    return places


def read_mail(place: Place) -> Mail:
    """Parse one mail as the benchmark's script does."""
    try:
        import mailparser  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise InputError("LaMP-6 needs the package mail-parser: pip install 'tagpr-data[avocado]'") from None

    path, member = place
    where = path if member is None else f"{path}:{member}"
    if member is None:
        content = path.read_bytes()
    else:
        with _archive(path) as archive:
            size = archive.getinfo(member).file_size
            if size > LARGEST_MAIL_BYTES:
                raise InputError(f"{where} has {size:,} bytes; a mail has at most {LARGEST_MAIL_BYTES:,}")
            content = archive.read(member)
    text = content.decode("utf-8", "ignore").replace("\r\n", "\n").replace("\r", "\n")  # as its parse_from_file reads
    parsed: Any = mailparser.parse_from_string(text)
    if not parsed.headers:
        raise InputError(f"{where} is no mail: it begins with {shorten(content[:40])}, not with header lines")
    return Mail(str(parsed.subject or ""), str(parsed.body).strip())


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is not a whole zip file: {error}") from None


def _fill(path: Path, read: Callable[[str], Mail], folder: Path) -> Written:
    golds: dict[str, str] = {}

    def questions() -> Iterator[LampQuestion]:
        for index, row in enumerate(read_rows(path)):
            where = f"{path}, row {index}"
            fields = _object(row, where)
            asked = read(str(fields["input"]).strip())
            golds[str(fields["id"])] = asked.subject
            profile: list[dict[str, str]] = []
            for item in cast(list[dict[str, Any]], fields["profile"]):
                mail = read(str(item["text"]).strip())
                kept = {key: str(value) for key, value in item.items()}
                profile.append({**kept, "text": mail.body, "title": mail.subject})
            user = fields.get("user_id")
            yield LampQuestion(
                str(fields["id"]), WORDING + asked.body, tuple(profile), None if user is None else str(user)
            )

    target = folder / path.name
    outputs = folder / path.name.replace("questions", "outputs")
    write_questions(target, questions())
    write_outputs(outputs, "LaMP-6", golds)
    return Written(target, outputs, len(golds))


def _named(path: Path) -> Iterator[tuple[str, str, str]]:
    """Give (id of the row, name of a mail, where it is named) for all mails a question file needs."""
    for index, row in enumerate(read_rows(path)):
        where = f"{path}, row {index}"
        fields = _object(row, where)
        key = str(fields["id"])
        yield key, _mail_name(fields["input"], f"{where} (id {key!r}), input"), f"{where} (id {key!r}), input"
        for place, item in enumerate(cast(list[Any], fields["profile"])):
            at = f"{where} (id {key!r}), profile item {place}"
            if not isinstance(item, dict) or "text" not in item or "id" not in item:
                raise InputError(f"{at} is {shorten(item)}; it must hold id and text, the name of a mail")
            yield key, _mail_name(cast(dict[str, Any], item)["text"], at), at


def _object(row: Any, where: str) -> dict[str, Any]:
    fields = cast(dict[str, Any], row) if isinstance(row, dict) else {}
    missing = [name for name in ("id", "input", "profile") if name not in fields]
    if missing or not isinstance(fields["profile"], list):
        raise InputError(f'{where} is {shorten(row)}; it must be {{"id": …, "input": …, "profile": […]}}')
    return fields


def _mail_name(value: Any, where: str) -> str:
    name = value.strip() if isinstance(value, str) else ""
    if not name.endswith(".txt") or "\n" in name:
        raise InputError(
            f"{where} is {shorten(value)}; in LaMP-6 as published it is the name of a mail, as '147-000874-EM.txt' "
            "(has this file been filled already?)"
        )
    return name
