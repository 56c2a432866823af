"""Untagged chains → tagged ones, by a teacher or a classifier, each chain annotated or in a ledger with one reason.

A teacher sees the numbered sentences of a chain and answers with numbers and tags alone, so that nothing it writes can
change a word of the chain; a reply that is anything else is asked for anew with another seed, and in the end a reason
in the ledger. A classifier (`step_classifier.py`) chooses the most likely tags with which the trace is valid.

Guarantee: without its tags every annotated chain is the chain, byte for byte, checked on each; annotated + rejected
are all chains that were given, unless a limit ended the run early (the manifest says so). Teacher's replies are
journalled as in `generate`, so after `kill -9` the same call goes on and asks for nothing twice; the same chains,
replies and tag set give the same bytes. Price: one question a chain, and memory of some 300 bytes a chain.

    OUTPUT/annotated.jsonl  rejected.jsonl  candidates.jsonl (where chains are attempts)  manifest.json (last)
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagpr_data import tags
from tagpr_data.budget import FREE, NO_LIMITS, Limits, Price
from tagpr_data.chain_attempts import ChainAttempts
from tagpr_data.chains import (
    MAX_CHARACTERS,
    REASONS,
    Fault,
    batch_from_rows,
    read_chains,
    sentences,
    tagged,
    take_apart,
)
from tagpr_data.chat_server import ChatServer
from tagpr_data.dataset import Dataset
from tagpr_data.engine import LOCAL, Engine, map_batches
from tagpr_data.errors import InputError, shorten
from tagpr_data.generate import CANDIDATES, Prompt, Tally, TeacherPlan, generate
from tagpr_data.journal import folder_lock
from tagpr_data.prompts import PromptOptions, prompt_hash
from tagpr_data.records import (
    AnnotatedChain,
    AnnotationManifest,
    Attempt,
    Candidate,
    ChainRow,
    DatasetManifest,
    FileEntry,
    Message,
    ProfileItem,
    Record,
    RejectedChain,
    Sampling,
    Task,
)
from tagpr_data.step_classifier import StepClassifier, best_labels
from tagpr_data.tables import (
    atomic_path,
    canonical_json,
    iter_records,
    sha256_file,
    sha256_text,
    table_writer,
    write_json,
)
from tagpr_data.tags import TagSet
from tagpr_data.teachers import Assignment, Reply

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
_WORK = ".work"
_TASK = Task(name="annotate", kind="generation", answer_form="one line per sentence", item_template="{text}")


class AnnotatingTeacher:
    """A model behind a server that labels sentences; it is asked the prompt as it is."""

    def __init__(self, server: ChatServer, model_revision: str = "unstated") -> None:
        self._server = server
        self.name = server.options.model
        extra = server.options.extra_body
        self.revision = model_revision + (f"+{sha256_text(canonical_json(extra))[:12]}" if extra else "")

    async def write(self, assignment: Assignment) -> Reply:
        """Give the reply; InputError or CheckFailed where there is none."""
        answer = await self._server.ask(assignment.messages, assignment.sampling, assignment.seed)
        return Reply(answer.text, answer.finish_reason, answer.input_tokens, answer.output_tokens)

    def stop(self) -> None:
        """Let what is on its way arrive and ask nothing more."""
        self._server.stop()

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()


def annotate_with_classifier(
    chains: Path, output: Path, classifier: StepClassifier, tagset: TagSet, engine: Engine = LOCAL,
    max_characters: int = MAX_CHARACTERS, dataset: Dataset | None = None,
) -> AnnotationManifest:  # fmt: skip
    """Annotate a file of chains with a classifier's tags and write the folder `output`. With the data set whose
    examples they answer (`AnsweringChain`) the annotated chains are candidates too."""
    check_target(output)
    with folder_lock(output):
        function = partial(annotated_batch, tagset=tagset, classifier=classifier, max_characters=max_characters)
        batches = read_chains(chains, answering=_answering(dataset, tagset))
        done = map_batches(batches, function, engine=engine.name, workers=engine.workers, address=engine.address)
        quality = classifier.quality.model_dump()
        name = ("classifier", classifier.revision)
        return _write(output, done, tagset, name, quality, {"max_characters": max_characters})


def annotate_with_teacher(
    chains: Path, output: Path, teacher: AnnotatingTeacher, tagset: TagSet, engine: Engine = LOCAL,
    max_characters: int = MAX_CHARACTERS, samplings: Sequence[Sampling] = (Sampling(),), seed: int = 0,
    concurrency: int = 8, limits: Limits = NO_LIMITS, price: Price = FREE,
    watch: Callable[[Tally], object] = lambda tally: None, dataset: Dataset | None = None,
) -> AnnotationManifest:  # fmt: skip
    """Annotate a file of chains with a teacher's tags and write the folder `output`; a chain whose reply cannot be used
    is asked about once per sampling. `dataset` as for the classifier. Raises InputError or CheckFailed when the teacher
    fails."""
    check_target(output)
    work = output / _WORK
    with folder_lock(output):
        with table_writer(work / "prompts.parquet", Prompt) as write:
            batches = read_chains(chains, answering=_answering(dataset, tagset))
            for prompt in _prompts(batches, tagset, max_characters):
                write(prompt)
        outcome = generate(
            work, work / "prompts.parquet", [TeacherPlan(teacher, tuple(samplings), concurrency, price)],
            chains_as_dataset(work), PromptOptions(), seed,
            partial(_judge, tagset=tagset, max_characters=max_characters),
            until_accepted=1, limits=limits, watch=watch,
        )  # fmt: skip
        verdicts = _verdicts(work / CANDIDATES, tagset)
        function = partial(annotated_batch, tagset=tagset, max_characters=max_characters)
        batches = read_chains(chains, answering=_answering(dataset, tagset))
        batches = _with_verdicts(batches, verdicts, tagset, max_characters)
        done = map_batches(batches, function, engine=engine.name, workers=engine.workers, address=engine.address)
        parameters = {
            "max_characters": max_characters,
            "samplings": [sampling.model_dump(mode="json") for sampling in samplings],
            "seed": seed,
            "partial": outcome.status != "complete",
        }
        return _write(output, done, tagset, (teacher.name, teacher.revision), None, parameters)


def annotated_batch(
    batch: "pa.RecordBatch", tagset: TagSet, max_characters: int = MAX_CHARACTERS,
    classifier: StepClassifier | None = None,
) -> "pa.RecordBatch":  # fmt: skip
    """Give a batch of chains (`chains.batch_from_rows`) with `tagged`, or `reason` and `detail`, filled in: the tags
    are those of the column `labels`, or the classifier's. A row that has a reason keeps it."""
    rows: list[dict[str, Any]] = []
    for row in batch.to_pylist():
        found = None if row["reason"] else _annotated(row, tagset, max_characters, classifier)
        if isinstance(found, Fault):
            row |= {"reason": found.reason, "detail": found.detail}
        elif found is not None:
            row["tagged"] = found.text
        rows.append(row)
    return batch_from_rows(rows)


def label_prompt(row: ChainRow, pieces: Sequence[str], tagset: TagSet) -> tuple[Message, ...]:
    """Give the question to a teacher: which tag for which sentence."""
    known = "\n".join(f"{tag.name}: {tag.meaning}{_RULES[tag.cites]}" for tag in tagset.tags)
    system = (
        "You label the sentences of someone's reasoning about a person. Every sentence gets one tag, by what it does. "
        f"The tags, and what a sentence with each should do:\n{known}\n"
        "Neighbouring sentences with the same tag are one step; "
        f"there must be {tagset.min_steps} to {tagset.max_steps} steps"
        + (f", one of them {' or '.join(tagset.required_any)}" if tagset.required_any else "")
        + ".\nAnswer with one line per sentence and nothing else: its number, a colon, its tag."
    )
    lines = "\n".join(f"{number}: {json.dumps(piece, ensure_ascii=False)}" for number, piece in enumerate(pieces, 1))
    asked = f"The question was:\n{row.question}\n\n" if row.question else ""
    user = f"{asked}{_SENTENCES}{lines}".replace("<|", "< |")  # control tokens of chat templates
    return Message(role="system", content=system), Message(role="user", content=user)


_SENTENCES = "The sentences:\n"
_RULES = {
    "required": " (only steps that name an item as [P1])",
    "pattern": " (only steps that name two items or more)",
    "optional": "",
    "no": " (never in a step that names an item as [P1])",
}


def read_labels(reply: str, count: int, tagset: TagSet) -> list[str] | Fault:
    """Read a teacher's reply: the tag of each of `count` sentences, or what is wrong with it. A closed think block
    before it and a code fence around it are passed over."""
    begin, marker, rest = reply.partition("</think>")
    body = rest if marker and begin.lstrip().startswith("<think>") else reply
    labels: dict[int, str] = {}
    for line in body.splitlines():
        if not line.strip() or line.strip().startswith("```"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            return Fault("unreadable-reply", f"the line {shorten(line)} is not of the form `3: tag`")
        number, tag = int(found["number"]), found["tag"]
        if tag not in tagset.by_name:
            return Fault("unknown-tag", f"{shorten(tag)} for sentence {number}; known: {', '.join(tagset.names)}")
        if not 1 <= number <= count:
            return Fault("unknown-sentence", f"sentence {number}; there are 1 to {count}")
        if number in labels:
            return Fault("repeated-sentence", f"sentence {number} has two labels")
        labels[number] = tag
    missing = [number for number in range(1, count + 1) if number not in labels]
    if missing:
        return Fault("missing-sentence", f"no label for sentence {missing[0]} and {len(missing) - 1} others")
    return [labels[number] for number in range(1, count + 1)]


_LINE = re.compile(r"\s*(?:[-*]\s+)?(?P<number>[0-9]{1,6})\s*[:.)|]\s*[<`*]{0,2}(?P<tag>[^\W\d][\w-]*)[>`*]{0,2}\s*")


def _annotated(
    row: Mapping[str, Any], tagset: TagSet, max_characters: int, classifier: StepClassifier | None
) -> tags.Parsed | Fault | None:
    """Give the tagged chain; None where nobody has said its tags yet."""
    chain = take_apart(_chain_row(row), tagset, max_characters)
    if isinstance(chain, Fault):
        return chain
    if classifier is None:
        return None if row["labels"] is None else tagged(chain, row["labels"], tagset, row["k"])
    pieces = sentences(chain.body)
    shares = classifier.log_shares(pieces)
    likeliest = [classifier.labels[index] for index in shares.argmax(axis=1)]
    found = tagged(chain, likeliest, tagset, row["k"])
    if isinstance(found, Fault) and found.reason == "grammar":  # the usual case is quicker without the search
        valid = best_labels(shares, pieces, tagset, row["k"])
        return found if valid is None else tagged(chain, valid, tagset, row["k"])
    return found


def _chain_row(row: Mapping[str, Any]) -> ChainRow:
    return ChainRow(**{name: row[name] for name in ChainRow.model_fields})


def _answering(dataset: Dataset | None, tagset: TagSet) -> ChainAttempts | None:
    """Give what makes attempts of chains, anew for each pass over them."""
    return ChainAttempts(dataset, tagset) if dataset is not None else None


def _prompts(batches: "Iterable[pa.RecordBatch]", tagset: TagSet, max_characters: int) -> Iterator[Prompt]:
    """Give the questions about the chains that can be annotated; equal ones once."""
    taken: set[bytes] = set()
    for batch in batches:
        for value in batch.to_pylist():
            row = _chain_row(value)
            chain = take_apart(row, tagset, max_characters)
            if value["reason"] or isinstance(chain, Fault):
                continue
            messages = label_prompt(row, sentences(chain.body), tagset)
            identity = prompt_hash(messages)
            if bytes.fromhex(identity) in taken:
                continue
            taken.add(bytes.fromhex(identity))
            # a prompt carries the chain to the judge: as input, with the answer as gold
            yield Prompt(
                example_id=row.id, split="train", task=_TASK.name, user_id="", profile_id="", profile_size=0,
                input=row.text, date=None, retriever="none" if row.k is None else "shown", k=row.k or 0, item_ids=(),
                messages=messages, prompt_hash=identity, gold=row.answer,
            )  # fmt: skip


def _judge(
    candidate: Candidate, prompt: Prompt, items: Sequence[ProfileItem], tagset: TagSet, max_characters: int
) -> str | None:
    """Give why a reply cannot be used, or None: what `generate` needs to know whether to ask again."""
    k = None if prompt.retriever == "none" else prompt.k
    row = ChainRow(id=prompt.example_id, text=prompt.input, answer=prompt.gold, k=k)
    chain = take_apart(row, tagset, max_characters)
    assert not isinstance(chain, Fault), "only chains that can be annotated are asked about"
    labels = _labels_of(candidate, len(sentences(chain.body)), tagset)
    found = labels if isinstance(labels, Fault) else tagged(chain, labels, tagset, k)
    return found.reason if isinstance(found, Fault) else None


def _labels_of(candidate: Candidate, count: int, tagset: TagSet) -> list[str] | Fault:
    if candidate.finish_reason == "refused":
        return Fault("refused-by-server", "status 400, 413 or 422; there is no reply")
    if candidate.finish_reason != "stop":
        return Fault("cut-off", f"finish reason {candidate.finish_reason}")
    return read_labels(candidate.text, count, tagset)


def _verdicts(candidates: Path, tagset: TagSet) -> dict[bytes, list[str] | Fault]:
    """Give the labels of each prompt, or why there are none, by its last reply: the accepted one, if any was."""
    verdicts: dict[bytes, list[str] | Fault] = {}
    for row in iter_records(candidates, Candidate):
        count = row.messages[-1].content.rpartition(_SENTENCES)[2].count("\n") + 1
        verdicts[bytes.fromhex(row.prompt_hash)] = _labels_of(row, count, tagset)
    return verdicts


def _with_verdicts(
    batches: "Iterable[pa.RecordBatch]",
    verdicts: Mapping[bytes, list[str] | Fault],
    tagset: TagSet,
    max_characters: int,
) -> "Iterator[pa.RecordBatch]":
    """Add the labels that the teacher gave, or why its reply cannot be used; both stay null where it was not asked."""
    for batch in batches:
        rows: list[dict[str, Any]] = []
        for value in batch.to_pylist():
            row = _chain_row(value)
            chain = take_apart(row, tagset, max_characters)
            if not (value["reason"] or isinstance(chain, Fault)):
                pieces = sentences(chain.body)
                labels = verdicts.get(bytes.fromhex(prompt_hash(label_prompt(row, pieces, tagset))))
                if isinstance(labels, Fault):
                    value |= {"reason": labels.reason, "detail": labels.detail}
                else:
                    value["labels"] = labels
            rows.append(value)
        yield batch_from_rows(rows)


def _write(
    output: Path, batches: "Iterable[pa.RecordBatch]", tagset: TagSet, annotator: tuple[str, str],
    classifier: dict[str, Any] | None, parameters: dict[str, Any],
) -> AnnotationManifest:  # fmt: skip
    """Write the files of the folder from finished batches, the manifest last."""
    name, revision = annotator
    (output / MANIFEST).unlink(missing_ok=True)
    files = {kind: output / f"{kind}.jsonl" for kind in ("annotated", "rejected", "candidates")}
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    with (
        atomic_path(files["annotated"]) as annotated_path,
        atomic_path(files["rejected"]) as rejected_path,
        atomic_path(files["candidates"]) as candidates_path,
        annotated_path.open("w", encoding="utf-8", newline="\n") as annotated_file,
        rejected_path.open("w", encoding="utf-8", newline="\n") as rejected_file,
        candidates_path.open("w", encoding="utf-8", newline="\n") as candidates_file,
    ):

        def add(file: Any, kind: str, record: Record) -> None:
            file.write(record.model_dump_json() + "\n")
            counts[kind] += 1

        for batch in batches:
            for row in batch.to_pylist():
                if row["reason"]:
                    reasons[row["reason"]] += 1
                    add(rejected_file, "rejected", RejectedChain(**_picked(row, RejectedChain)))
                elif row["tagged"]:
                    parsed = tags.parse(row["tagged"], tagset, row["k"])
                    steps.update(step.tag for step in parsed.steps)
                    record = AnnotatedChain(
                        id=row["id"], question=row["question"], text=parsed.text, steps=parsed.steps,
                        answer=parsed.answer or None, k=row["k"], annotator=name, annotator_revision=revision,
                    )  # fmt: skip
                    add(annotated_file, "annotated", record)
                    if row["row"] is not None:
                        attempt = Attempt.model_validate_json(row["row"])
                        tagged_one = _candidate(attempt, row["id"], parsed.text, name, revision)
                        add(candidates_file, "candidates", tagged_one)
    if not counts["candidates"]:
        files.pop("candidates").unlink()
    manifest = AnnotationManifest(
        tagset=tagset.name,
        tagset_hash=tagset.hash,
        annotator=name,
        annotator_revision=revision,
        files={path.name: FileEntry(rows=counts[kind], sha256=sha256_file(path)) for kind, path in files.items()},
        annotated=counts["annotated"],
        rejected={reason: reasons[reason] for reason in REASONS if reasons[reason]},
        steps={tag: steps[tag] for tag in tagset.names},
        classifier=classifier,
        parameters=parameters,
    )
    write_json(output / MANIFEST, manifest)
    return manifest


def _picked(row: Mapping[str, Any], model: type[Record]) -> dict[str, Any]:
    return {name: row[name] for name in model.model_fields}


def _candidate(attempt: Attempt, chain: str, text: str, annotator: str, revision: str) -> Candidate:
    """Give the attempt with tags, as one of its teacher and the annotator together, with the chain's row as parent."""
    changed = {
        "id": sha256_text(canonical_json([attempt.id, annotator, revision, text])),
        "teacher": f"{attempt.teacher}+{annotator}",
        "teacher_revision": f"{attempt.teacher_revision}+{revision}",
        "parents": (chain,),
        "text": text,
    }
    return Candidate.model_validate(dict(attempt) | changed)


def chains_as_dataset(folder: Path) -> Dataset:
    """Give what `generate` asks about a task; no example of it is ever read."""
    manifest = DatasetManifest(
        name="chains", source="chains", licence="", tasks=(_TASK,), files={}, content_hash="0" * 64, users=0,
        parameters={}, skipped={},
    )  # fmt: skip
    return Dataset(folder, manifest)


def check_target(output: Path) -> None:
    """Raise InputError unless the folder is absent, empty, or one that was written here before."""
    if output.is_file():
        raise InputError(f"{output} is a file; a folder is written, give a name that is free")
    found = {path.name for path in output.iterdir()} if output.is_dir() else set[str]()
    if found and _WORK not in found and "annotated.jsonl" not in found and found != {".lock"}:
        raise InputError(f"{output} holds something else (found {min(found)!r}); give a folder that is free")
