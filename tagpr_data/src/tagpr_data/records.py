"""The records all files are made of. START HERE.

Every file this project writes holds one of these records per row (Parquet, JSON lines) or as a whole (JSON).
Records are frozen, refuse unknown keys, and document each field in place; `schemas/` is generated from them
(`tagpr-data schemas`). How they become bytes: `tables.py`. Which text a step may hold: `tags.py`.

    data set folder   examples/SPLIT.parquet  Example
                      profiles.parquet        ProfileItem
                      manifest.json           DatasetManifest   (written last)
    corpus folder     traces/SPLIT.parquet    Trace
                      rejected/SPLIT.parquet  Rejected
                      manifest.json           CorpusManifest    (written last)
    pairs folder      pairs/SPLIT.parquet     PreferencePair
                      profiles.parquet        ProfileItem
                      manifest.json           PairsManifest     (written last)
    annotation        annotated.jsonl         AnnotatedChain
                      rejected.jsonl          RejectedChain
                      candidates.jsonl        Candidate         (where the chains were attempts)
                      manifest.json           AnnotationManifest (written last)
    run folder        predictions.parquet     Prediction
                      samples.parquet         SampledAnswer     (where each question is answered several times)
                      run.json                RunManifest
      + faithfulness/   interventions.parquet   Intervention
                      faithfulness.json       Faithfulness
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT_VERSION = 1
"""Version of the folder layouts and of every record below; a breaking change raises it."""

Split = Literal["train", "validation", "test"]
TaskKind = Literal["classification", "rating", "generation"]
Protocol = Literal["generation", "log-likelihood"]
"""How an answer is got from a model: it writes one, or that label of the task is taken whose text is likeliest to
follow the prompt. Numbers of the two are not compared."""
FinishReason = Literal["stop", "length", "error", "refused"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """Base of all records: frozen, no unknown keys, field docstrings become schema descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Message(Record):
    """One turn of a chat prompt."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str
    """What is said, before any chat template is applied."""


class Task(Record):
    """What is asked of the model, in one form for LaMP-1…7 and self-constructed tasks. Table: `tasks.py`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name as printed everywhere, for example `LaMP-3` or `xorg-component`."""
    kind: TaskKind
    """`classification` (accuracy, macro-F1 over `labels`), `rating` (MAE, RMSE) or `generation` (ROUGE-1, ROUGE-L)."""
    labels: tuple[str, ...] | None = None
    """All allowed answers in official order; None for generation. Ratings list theirs, lowest first."""
    question: str = ""
    """Instruction put before the input in chat prompts; empty where the input already carries it (LaMP)."""
    answer_form: str
    """What the answer must look like, as a noun phrase for the chat prompt: `one of the labels`, `a subject line`."""
    item_template: str
    """How one profile item reads in chat prompts; the fields {title}, {text} and {label} are filled in."""


class ProfileItem(Record):
    """One past item of a user. Items of a profile are ordered by `position`, oldest first where dates are known."""

    profile_id: str
    """Which profile it belongs to; several examples may share one."""
    position: int = Field(ge=0)
    """Place in the profile, from 0, without gaps."""
    item_id: str
    """Id of the item as the source gives it, unique in its profile."""
    date: str | None = None
    """ISO date (`2015`, `2015-03`, `2015-03-07`) or date-time with zone; None where the source has none."""
    title: str | None = None
    """Title, headline or subject; None where the task's items have none."""
    text: str
    """The item's body: abstract, article, description, review, mail, tweet or commit message."""
    label: str | None = None
    """Tag, category, score or component; None where the task's items have none."""


class Example(Record):
    """One benchmark row: an input of one user, to be answered from the user's profile."""

    id: str
    """Unique within the data set."""
    task: str
    """Name of the task; defined in the manifest of the data set."""
    user_id: str
    """Pseudonymous user. LaMP's user-based split names no users; there it equals `profile_id`."""
    profile_id: str
    """The profile in `profiles.parquet`."""
    profile_size: int = Field(ge=0)
    """The first `profile_size` items of that profile are this example's profile: a time split of one history
    is stored once, however many examples look back into it."""
    input: str
    """The question as the model reads it."""
    output: str | None = None
    """The gold answer; None where it is withheld (LaMP test)."""
    date: str | None = None
    """When the input was written; later than every item of the profile in a time split."""


class FileEntry(Record):
    """One file of a folder, so that a reader can prove it complete and unchanged."""

    rows: int = Field(ge=0)
    """Number of rows."""
    sha256: Sha256
    """Hash of the file's bytes."""


class DatasetManifest(Record):
    """Describes a data set folder; written last, so its presence means the folder is complete. Holds no time of
    day and no machine name: the same input gives the same bytes."""

    format_version: Literal[1] = FORMAT_VERSION
    """Version of the folder layout."""
    kind: Literal["dataset"] = "dataset"
    """Tells a data set from a corpus."""
    name: str
    """Short name, for example `xorg`."""
    source: str
    """Where the records come from, for people."""
    licence: str
    """Terms of the texts."""
    tasks: tuple[Task, ...]
    """Definition of each task that an example names."""
    files: dict[str, FileEntry]
    """Every Parquet file by its path in the folder."""
    content_hash: Sha256
    """Hash over tasks and files: identifies the content, whatever the folder is called."""
    users: int = Field(ge=0)
    """Distinct users over all splits."""
    parameters: dict[str, Any]
    """Settings it was constructed with."""
    skipped: dict[str, int]
    """Source rows left out, by reason."""


AuditCheck = Literal[
    "gold-in-profile", "near-gold-in-profile", "near-duplicate-across-splits", "user-in-several-splits",
    "item-after-query", "duplicate-items", "empty-profile", "label-skew",
]  # fmt: skip


class AuditRow(Record):
    """What one question of an audit found in one split and task of a data set."""

    check: AuditCheck
    """What was looked for; `audit.QUESTIONS` says it in words."""
    split: Split
    """The split."""
    task: str
    """Name of the task."""
    found: int = Field(ge=0)
    """How many of the rows looked at are concerned; for `label-skew`, those with the commonest label."""
    rows: int = Field(ge=0)
    """How many were looked at: examples; users for `user-in-several-splits`; profiles for `duplicate-items`."""
    share: float = Field(ge=0, le=1)
    """`found` / `rows`; 0 where none was looked at."""
    ids: tuple[str, ...]
    """The first of them in order, at most 10: ids of what `rows` counts; none for `label-skew`."""
    detail: str
    """What was found, for people; empty where nothing was."""


class Audit(Record):
    """What an audit of a data set found, as `audit.json`. Holds no time of day and no machine name."""

    format_version: Literal[1] = FORMAT_VERSION
    """Version of the layout."""
    kind: Literal["audit"] = "audit"
    """Tells it from other files."""
    dataset: str
    """Name of the data set."""
    dataset_hash: Sha256
    """Its `content_hash`."""
    examples: dict[Split, int]
    """Number of examples by split."""
    parameters: dict[str, Any]
    """Settings of the audit: thresholds, words per shingle."""
    rows: tuple[AuditRow, ...]
    """One per check, split and task, in that order."""


class Sampling(Record):
    """How text was sampled from a model; part of every row's lineage."""

    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Longest completion in tokens."""
    stop: tuple[str, ...] = ()
    """Extra stop strings."""


class Step(Record):
    """One step of a trace."""

    tag: str
    """Tag name, from the tag set named in the manifest."""
    text: str
    """The step's words, exactly as written."""
    cites: tuple[int, ...] = ()
    """Numbers n of the items `[Pn]` the text names, in order of first mention."""


class Attempt(Record):
    """What one teacher made of one example, with all that is needed to make it again. Base of the rows below."""

    id: Sha256
    """Hash of prompt, teacher, revision, sampling, seed and attempt: the row's identity."""
    example_id: str
    """The example answered."""
    task: str
    """Its task."""
    user_id: str
    """Its user."""
    retriever: str
    """Which retriever chose the items."""
    k: int = Field(ge=0)
    """Items asked for; `item_ids` may be fewer when the profile is shorter."""
    item_ids: tuple[str, ...]
    """Items in the prompt, `[P1]` first."""
    messages: tuple[Message, ...]
    """The prompt."""
    prompt_hash: Sha256
    """`prompts.prompt_hash(messages)`."""
    teacher: str
    """Name of the teacher."""
    teacher_revision: str
    """Version, commit or file hash of the teacher."""
    sampling: Sampling
    """How it was sampled."""
    seed: int
    """Seed of this attempt."""
    attempt: int = Field(ge=0)
    """0 for the first attempt on this prompt."""
    parents: tuple[str, ...] = ()
    """Ids of rows this one was made from (annotation, repair)."""
    text: str
    """The raw completion, never changed."""
    finish_reason: FinishReason
    """Why the teacher stopped."""
    input_tokens: int | None = None
    """Prompt tokens the teacher counted; None where it counts none."""
    output_tokens: int | None = None
    """Completion tokens the teacher counted; None where it counts none."""
    gold: str | None = None
    """The example's gold answer."""


class Candidate(Attempt):
    """A teacher's attempt before selection."""


class Trace(Attempt):
    """An attempt that was kept: valid in the grammar, good enough by the task metric."""

    steps: tuple[Step, ...]
    """Tagged steps in order."""
    answer: str
    """Text after the think block, stripped."""
    score: float = Field(ge=0, le=1)
    """The task metric for this one answer, as a reward in [0, 1] (`lamp.metrics.reward`)."""
    claims: int = Field(ge=0)
    """Checkable claims about cited items (`tags.ground`)."""
    grounded_claims: int = Field(ge=0)
    """How many of them hold."""
    personal_data: tuple[str, ...] = ()
    """Kinds of personal data found in prompt, gold and completion (`personal_data.KINDS`), where it was looked for;
    with masking, what stood there before."""


class Rejected(Attempt):
    """An attempt that was not kept, and the one reason why."""

    reason: str
    """Code of the first rule it broke; all codes: `select.REASONS`."""
    detail: str
    """What was found, for people."""


class CorpusManifest(Record):
    """Describes a corpus folder; written last. Holds no time of day and no machine name."""

    format_version: Literal[1] = FORMAT_VERSION
    """Version of the folder layout."""
    kind: Literal["corpus"] = "corpus"
    """Tells a corpus from a data set."""
    name: str
    """Short name."""
    grammar_version: Literal[1] = 1
    """Version of the tag grammar (`tags.py`)."""
    tagset: str
    """Name of the tag set."""
    tagset_hash: Sha256
    """Hash of the tag-set file's content."""
    dataset: str
    """Name of the data set the examples come from."""
    dataset_hash: Sha256
    """Its `content_hash`."""
    licence: str
    """Terms of the texts."""
    tasks: tuple[Task, ...]
    """Tasks the traces answer."""
    teachers: dict[str, str]
    """Teacher name → revision."""
    files: dict[str, FileEntry]
    """Every Parquet file by its path in the folder."""
    content_hash: Sha256
    """Hash over tasks, tag set and files."""
    candidates: int = Field(ge=0)
    """Attempts made; equals kept + rejected, which `validate` checks."""
    kept: int = Field(ge=0)
    """Rows in traces/."""
    rejected: dict[str, int]
    """Rows in rejected/, by reason."""
    acceptance: dict[str, float]
    """Share of attempts kept, by task."""
    claims: int = Field(ge=0)
    """Checkable claims in all traces."""
    grounded_claims: int = Field(ge=0)
    """How many hold; the quotient is the groundedness rate."""
    parameters: dict[str, Any]
    """Settings it was built with."""


class ChainRow(Record):
    """One untagged chain as it is given; rows of an attempt's columns (`Attempt`) are read as chains too."""

    id: str
    """As the file gives it, unique in it."""
    question: str | None = None
    """What was asked; helps a teacher."""
    text: str
    """The chain."""
    answer: str | None = None
    """The answer, where the text has no think markers."""
    k: int | None = None
    """Items in the prompt, where it is known: citations are then checked against it."""


class AnsweringChain(ChainRow):
    """One untagged chain that answers an example of a data set: what `annotate --dataset` makes candidates of."""

    example_id: str
    """The example it answers."""
    item_ids: tuple[str, ...] = ()
    """Items of the example's profile that it calls `[P1]`, `[P2]`, …, in that order."""
    teacher: str = "unstated"
    """Who wrote it."""
    teacher_revision: str = "unstated"
    """Version of who wrote it."""


class AnnotatedChain(Record):
    """A chain with tags."""

    id: str
    """The chain's id."""
    question: str | None
    """What was asked."""
    text: str
    """The tagged chain: in the grammar, where the chain has an answer."""
    steps: tuple[Step, ...]
    """Its steps."""
    answer: str | None
    """Its answer; None where it has none."""
    k: int | None
    """Items in the prompt, where it is known."""
    annotator: str
    """Teacher or classifier that chose the tags."""
    annotator_revision: str
    """Its version."""


class RejectedChain(Record):
    """A chain that could not be tagged, and the one reason why; a row of the ledger."""

    id: str
    """The chain's id."""
    text: str
    """The chain, unchanged."""
    reason: str
    """Code: `chains.REASONS`."""
    detail: str
    """What was found, for people."""


class AnnotationManifest(Record):
    """Describes a folder of annotated chains; written last. Holds no time of day and no machine name."""

    format_version: Literal[1] = FORMAT_VERSION
    """Version of the folder layout."""
    kind: Literal["annotation"] = "annotation"
    """Tells it from other folders."""
    tagset: str
    """Name of the tag set."""
    tagset_hash: Sha256
    """Hash of the tag-set file's content."""
    annotator: str
    """Teacher or classifier that chose the tags."""
    annotator_revision: str
    """Its version."""
    files: dict[str, FileEntry]
    """Every file by its name, with rows and hash."""
    annotated: int = Field(ge=0)
    """Rows in annotated.jsonl; with `rejected` all chains that were given."""
    rejected: dict[str, int]
    """Rows in rejected.jsonl, by reason."""
    steps: dict[str, int]
    """Steps by tag."""
    classifier: dict[str, Any] | None = None
    """Held-out figures of the classifier (`step_classifier.Quality`); None where a teacher chose."""
    parameters: dict[str, Any]
    """Settings it was made with."""


PairSplit = Literal["train", "seen", "unseen"]
PairKind = Literal["metric", "user", "gold"]


class PreferencePair(Record):
    """Two completions of one prompt, the first better for this user. The prompt shows no past item: who asks is told
    apart from it (`profile_id`, `profile_size`), so that swapping the user changes nothing but the user."""

    id: Sha256
    """Hash of example, kind, completions and other user."""
    split: PairSplit
    """`seen` holds other examples of the users in `train`; users in `unseen` are in no other split."""
    kind: PairKind
    """`metric`: two attempts of a teacher, the first better by the task metric. `user`: right for this user against
    right for another. `gold`: the gold answer against another answer."""
    task: str
    """Name of the task."""
    example_id: str
    """The example asked."""
    user_id: str
    """Whose preference it is."""
    profile_id: str
    """The user's profile in `profiles.parquet`."""
    profile_size: int = Field(ge=0)
    """The first so many items of it were known when the example was asked."""
    other_user_id: str
    """Another user of the same split: the one `rejected` is right for (kind `user`) or whose text it is (kind `gold`,
    open questions), else any. For swap tests, and so that it goes when that user is forgotten."""
    other_profile_id: str
    """That user's profile."""
    other_profile_size: int = Field(ge=0)
    """The first so many items of it."""
    prompt: tuple[Message, ...]
    """What was asked, without any past item."""
    chosen: str
    """The better completion."""
    rejected: str
    """The worse completion."""
    chosen_score: float = Field(ge=0, le=1)
    """Task metric of `chosen` against the gold answer (`lamp.metrics.reward`)."""
    rejected_score: float = Field(ge=0, le=1)
    """Task metric of `rejected`."""
    margin: float = Field(ge=0, le=1)
    """How much better: the difference of the two."""
    rejected_from: Literal["corpus", "sampled", "rule", "same-input", "profile"]
    """Where `rejected` comes from: a rejected attempt; a sampled answer; the other user's known rule (synthetic
    people); the other user's gold answer to the same input; a rule-based guess from the other user's profile."""


class PairsManifest(Record):
    """Describes a folder of preference pairs; written last. Holds no time of day and no machine name."""

    format_version: Literal[1] = FORMAT_VERSION
    """Version of the folder layout."""
    kind: Literal["pairs"] = "pairs"
    """Tells it from other folders."""
    name: str
    """Name of the data set the pairs are about."""
    dataset_hash: Sha256
    """Its `content_hash`."""
    corpus_hash: Sha256 | None = None
    """`content_hash` of the corpus that gave completions; None where only gold answers were used."""
    licence: str
    """Terms of the texts."""
    tasks: tuple[Task, ...]
    """Tasks the pairs are of."""
    files: dict[str, FileEntry]
    """Every Parquet file by its path in the folder."""
    content_hash: Sha256
    """Hash over tasks and files."""
    pairs: dict[str, dict[str, int]]
    """Rows by split and kind."""
    users: dict[str, int]
    """Users by split."""
    skipped: dict[str, int]
    """What gave no pair, by reason."""
    parameters: dict[str, Any]
    """Settings the pairs were made with."""


class Prediction(Record):
    """One answer of one model in one cell of an evaluation."""

    model: str
    """Model as named on the command line."""
    task: str
    """Task name."""
    retriever: str
    """Retriever, or the control `none` or `wrong-user`."""
    k: int = Field(ge=0)
    """Items asked for."""
    style: str
    """Prompt style (`prompts.STYLES`)."""
    seed: int
    """Seed of retrieval and sampling."""
    example_id: str
    """The example answered."""
    user_id: str
    """Its user: the cluster of the statistics."""
    profile_size: int = Field(ge=0)
    """Length of the user's whole profile, for slices."""
    profile_id: str
    """Whose items the cell shows: the user's own profile, or the one lent by the control `wrong-user`."""
    item_ids: tuple[str, ...]
    """Items of it in the prompt, `[P1]` first."""
    prompt_hash: Sha256
    """Which prompt; equal prompts are answered once."""
    protocol: Protocol = "generation"
    """How the answer was got."""
    text: str
    """Raw completion; in protocol log-likelihood the likeliest label."""
    finish_reason: FinishReason
    """`length` means it was cut."""
    input_tokens: int | None = None
    """Prompt tokens."""
    output_tokens: int | None = None
    """Completion tokens."""
    label_logprobs: tuple[float, ...] | None = None
    """Protocol log-likelihood: of each label of the task, in their order, the log-probability in nats (natural
    logarithm) that it follows the prompt, summed over its tokens."""
    gold: str | None = None
    """Gold answer."""


class SampledAnswer(Prediction):
    """One of several answers of one model to one question; a row of `samples.parquet`."""

    sample: int = Field(ge=0)
    """Which one, in the order drawn; 0 is the one in `predictions.parquet`."""


class CompletionScore(Record):
    """What a PRMU thinks of one completion for one person; a line of `scores.jsonl` beside best-of answers."""

    key: Sha256
    """Hash of what was scored: example, whose items, what of them was known, and the completion."""
    score: float
    """In nats; higher is better."""


class Sample(Record):
    """What a model wrote for one prompt; a line of `samples.jsonl` in an evaluation's run folder."""

    key: Sha256
    """Hash of model identity, prompt, sampling, chat options, seed and labels: equal requests are made once."""
    text: str
    """Raw completion; in protocol log-likelihood the likeliest label."""
    finish_reason: FinishReason
    """`length` means it was cut."""
    input_tokens: int | None = None
    """Prompt tokens, where counted."""
    output_tokens: int | None = None
    """Completion tokens, where counted."""
    label_logprobs: tuple[float, ...] | None = None
    """Protocol log-likelihood: log-probability in nats of each label."""


class RunManifest(Record):
    """What a run was and how to repeat it; rewritten with status `complete` at its end."""

    format_version: Literal[1] = FORMAT_VERSION
    """Version of the folder layout."""
    kind: Literal["sft", "prmu", "rl", "evaluation"]
    """Which command made it."""
    status: Literal["running", "complete", "partial"]
    """`partial`: stopped on purpose before the end, by a budget."""
    config: dict[str, Any]
    """The resolved configuration."""
    data: dict[str, str]
    """Content hash of each data set or corpus read, by name."""
    models: dict[str, str] = {}
    """Content hash of each model that training read, by its part: `model` it started from, `base_model` of that one
    where it is an adapter, `prmu` that rewarded; `config` has their names. {} in an evaluation."""
    seed: int
    """Seed everything was derived from."""
    versions: dict[str, str]
    """Package versions, Python, platform."""
    git_revision: str | None = None
    """Commit of the checkout, `+dirty` when it had changes; None outside a checkout."""
    results: dict[str, Any] = {}
    """Headline numbers, filled at the end."""


InterventionAction = Literal[
    "regenerate", "relabel", "rewrite", "remove", "repeat", "delete", "replace", "transplant", "cut"
]
"""What was done to a prompt or a trace; `tagpr_eval.faithfulness` says each in words."""


class Intervention(Record):
    """One change to what a model read or had thought, and what became of its answer; a row of
    `interventions.parquet`."""

    model: str
    """Model as named in the run."""
    task: str
    """Task name."""
    retriever: str
    """Retriever of the answer that was looked into."""
    k: int = Field(ge=0)
    """Its k."""
    style: str
    """Its prompt style."""
    seed: int
    """Its seed."""
    example_id: str
    """The example answered."""
    user_id: str
    """Its user: the cluster of the statistics."""
    steps: int = Field(ge=0)
    """Steps of the recorded trace."""
    action: InterventionAction
    """What was done; `regenerate` and `repeat` change nothing, the others are compared to them."""
    target: Literal["cited", "uncited"] | None = None
    """Which items were changed; None where the trace was."""
    tag: str | None = None
    """Items: those that steps of this tag cite, None for all steps. Trace: the tag of the step."""
    step: int | None = None
    """delete, replace: number of the step, from 1. cut: how many steps were left."""
    items: tuple[int, ...] = ()
    """Numbers n of the changed items `[Pn]`, as the recorded prompt counts them."""
    expected: str | None = None
    """The label an answer that follows the change would give; None where there is none."""
    donor_example_id: str | None = None
    """The other user's example a step, a trace or words were taken from."""
    prompt_hash: Sha256
    """What was asked, the start of the answer included."""
    text: str
    """Raw completion; for a change of the trace, what came after the closed think block."""
    answer: str | None
    """The answer found in it (`answers.parsed`); None where there was none."""
    base_answer: str
    """The answer without the change."""
    is_changed: bool
    """Whether the answer is another one, or none."""
    is_following: bool | None
    """Whether it went where the change pointed; None where the change points nowhere."""
    score: float | None = Field(ge=0, le=1)
    """Worth of the answer (`lamp.metrics.reward`); None without gold."""


class FaithfulnessMeasure(Record):
    """One share or mean over the interventions of one cell, with its 95 % interval, clustered by user."""

    model: str
    """Model."""
    task: str
    """Task."""
    retriever: str
    """Retriever."""
    k: int = Field(ge=0)
    """Items asked for."""
    style: str
    """Prompt style."""
    action: InterventionAction | Literal["ground"]
    """What was done; `ground`: nothing, the recorded claims were looked up."""
    target: Literal["cited", "uncited", "difference"] | None = None
    """Changed items; `difference`: cited minus uncited, on the answers that have both."""
    measure: Literal["reproduced", "changed", "follows", "unreadable", "equal", "score", "early", "gain", "holds"]
    """What is measured."""
    tag: str | None = None
    """Tag; None for all together."""
    step: int | None = None
    """Steps left, for the curve."""
    value: float
    """On all rows."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end."""
    n: int = Field(ge=1)
    """Rows: answers, steps, or (ground) steps with claims."""
    users: int = Field(ge=1)
    """Users among them."""


class FaithfulnessCell(Record):
    """What became of the answers of one cell; nothing is left out without a reason."""

    model: str
    """Model."""
    task: str
    """Task."""
    retriever: str
    """Retriever."""
    k: int = Field(ge=0)
    """Items asked for."""
    style: str
    """Prompt style."""
    drawn: int = Field(ge=0)
    """Recorded answers drawn; seeds together."""
    examined: int = Field(ge=0)
    """Those that could be intervened on."""
    skipped: dict[str, int]
    """The others, by reason."""
    not_made: dict[str, int]
    """Interventions that were impossible on examined answers, by reason."""


class Faithfulness(Record):
    """Whether answers follow the reasoning, as `faithfulness.json`; rewritten with status `complete` at its end."""

    format_version: Literal[1] = FORMAT_VERSION
    """Version of the folder layout."""
    kind: Literal["faithfulness"] = "faithfulness"
    """Tells it from other files."""
    status: Literal["running", "complete", "partial"]
    """`partial`: stopped on purpose before the end, by a budget."""
    settings: dict[str, Any]
    """Models, cells, examples and seed."""
    predictions_sha256: Sha256
    """The run's predictions.parquet that was looked into."""
    data: dict[str, str]
    """Content hash of the data set, by name."""
    models: dict[str, str]
    """Identity of each model asked, by name."""
    run_models: dict[str, str]
    """Identity the run recorded for it; another one means that another model, machine or address was asked."""
    versions: dict[str, str]
    """Package versions, Python, platform."""
    git_revision: str | None = None
    """Commit of the checkout, `+dirty` when it had changes; None outside a checkout."""
    cells: tuple[FaithfulnessCell, ...] = ()
    """What was looked into, filled at the end."""
    measures: tuple[FaithfulnessMeasure, ...] = ()
    """What was found, filled at the end."""


class Rollout(Record):
    """One completion sampled in reinforcement learning, as it was read and rewarded."""

    step: int
    """Optimiser steps taken before it was sampled."""
    row: int
    """Its place in the generation batch; groups stand together."""
    example_id: str
    """The example that was asked."""
    task: str
    """Its task."""
    user_id: str
    """Its user."""
    text: str
    """The completion."""
    tokens: int
    """Its length, the end token included."""
    steps: tuple[Step, ...]
    """The tagged steps that could be read."""
    violations: tuple[str, ...]
    """Codes of broken rules of the tag grammar."""
    answer: str
    """The answer after the think block; empty where there is none."""
    gold: str
    """The reference output."""
    gate_open: bool
    """Whether the think block is closed and an answer follows; else the reward is 0."""
    answer_reward: float
    """Task metric in [0, 1]."""
    tags_reward: float
    """Tag component in [0, 1]."""
    personal_reward: float | None
    """PRMU component in [0, 1]; None without a PRMU."""
    overlong: float
    """Share of the soft zone before the longest length that is used up, in [0, 1]."""
    reward: float
    """Weighted sum behind the gate, less the penalty for length."""
    normalised: float
    """The reward less its group's mean, over the group's standard deviation; 0 in a group without variance."""
    redrawn: int
    """How many groups were drawn and dropped in its place for lack of variance."""
