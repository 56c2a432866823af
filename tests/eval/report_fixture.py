"""A small evaluation, written to disk as a run writes it: three tasks, two models, rules, controls, hostile text.

Simulated: "tuned" reads the profile, "base" guesses; both are rules with a seed."""

import random

from tagpr_data.dataset import Dataset, write_dataset
from tagpr_data.records import Example, Prediction, ProfileItem, RunManifest, Task
from tagpr_data.tables import frame_from_records, sha256_text, write_json, write_table

LABELS = ("dix", "glamor", "os", "xkb")
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<!--<script> ${1+1} {{ 7*7 }} \u2028 \u202e $x^2$ | `code` [link](javascript:alert(1))"
)
TASKS = (
    Task(
        name="component", kind="classification", labels=LABELS, question="Which component?",
        answer_form="one of the labels", item_template='{label}: "{text}"',
    ),
    Task(name="stars", kind="rating", labels=("1", "2", "3", "4", "5"), answer_form="1 to 5",
        item_template='{label}: "{text}"'),
    Task(name="subject", kind="generation", answer_form="a subject line", item_template='"{title}": {text}'),
)  # fmt: skip
_WORDS = (
    "fix", "leak", "in", "server", "input", "glyph", "cache", "event", "mask", "resize", "crash", "test", "build",
    "driver", "cursor", "screen",
)  # fmt: skip


def make_dataset(folder, users=12, each=4):
    """Users with a favourite label; examples share their user's profile."""
    rng = random.Random(1)
    items, examples = [], []
    for user in range(users):
        favourite, size = LABELS[user % 4], [0, 2, 5, 9, 20][user % 5]
        for position in range(size):
            label = favourite if rng.random() < 0.8 else rng.choice(LABELS)
            items.append(
                ProfileItem(
                    profile_id=f"p{user}", position=position, item_id=f"u{user}-i{position}",
                    date=f"20{10 + position // 12:02d}-{position % 12 + 1:02d}-01", label=label,
                    title=" ".join(rng.sample(_WORDS, 4)), text=" ".join(rng.sample(_WORDS, 9)),
                )
            )  # fmt: skip
        for task in TASKS:
            for number in range(each):
                gold = {
                    "component": favourite if rng.random() < 0.8 else rng.choice(LABELS),
                    "stars": str(1 + user % 5),
                    "subject": " ".join(rng.sample(_WORDS, 5)),
                }[task.name]
                hostile = HOSTILE if user == number == 0 else ""
                examples.append(
                    Example(
                        id=f"{task.name}-{user}-{number}", task=task.name, user_id=f"user{user}", profile_id=f"p{user}",
                        profile_size=size, input=" ".join(rng.sample(_WORDS, 8)) + hostile, output=gold,
                        date=f"2020-0{number + 1}-01",
                    )
                )  # fmt: skip
    write_dataset(
        folder, name="toy", source="made up", licence="CC0-1.0", tasks=TASKS, examples={"test": examples}, items=items,
        parameters={}, skipped={},
    )  # fmt: skip
    return Dataset.load(folder)


def make_run(
    folder,
    dataset,
    models=("base", "tuned"),
    ks=(1, 4),
    retrievers=("bm25", "random"),
    name="first",
    tasks=("component", "stars", "subject"),
):
    """A run folder with every cell of the models, the controls, and the rules."""
    cells = [(model, "none", 0) for model in models]
    cells += [(model, retriever, k) for model in models for retriever in (*retrievers, "wrong-user") for k in ks]
    cells += [
        ("majority", "full", 0),
        ("own-majority", "full", 0),
        ("own-majority", "wrong-user", 0),
        ("oracle", "full", 0),
    ]
    rows = [
        _prediction(dataset, example, *cell)
        for cell in cells
        for example in dataset.examples("test")
        if example.task in tasks
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    keys = ["model", "task", "retriever", "k", "style", "seed", "example_id"]
    write_table(folder / "predictions.parquet", frame_from_records(rows, Prediction), Prediction, keys)
    write_json(
        folder / "run.json",
        RunManifest(
            kind="evaluation", status="complete", seed=0, git_revision="0123abc",
            config={"dataset": str(dataset.folder), "split": "test", "models": list(models)},
            data={"toy": dataset.manifest.content_hash}, versions={"python": "3.11", "platform": "a machine"},
            results={"command": f"tagpr-eval run {name}", "seconds": 12.5},
        ),
    )  # fmt: skip
    return folder


def _prediction(dataset, example, model, retriever, k):
    rng = random.Random(f"{model} {retriever} {k} {example.id}")
    profile, profile_id = dataset.profile(example), example.profile_id
    if retriever == "wrong-user":
        other = next(
            row
            for row in dataset.examples("test")
            if row.user_id == f"user{(int(example.user_id[4:]) + 1) % dataset.manifest.users}"
        )
        profile, profile_id = dataset.profile(other), other.profile_id
    items = profile[:k]
    is_rule = retriever == "full" or model == "own-majority"
    text = _rule(model, example, profile) if is_rule else _completion(model, example, items, rng)
    return Prediction(
        model=model, task=example.task, retriever=retriever, k=k, style="direct" if is_rule else "trace", seed=0,
        example_id=example.id, user_id=example.user_id, profile_size=example.profile_size,
        profile_id=profile_id, item_ids=tuple(item.item_id for item in items), prompt_hash=sha256_text(example.id),
        text=text, finish_reason="length" if "<think>" in text and "</think>" not in text else "stop",
        gold=example.output,
    )  # fmt: skip


def _rule(model, example, profile):
    if model == "oracle":
        return example.output
    if model == "own-majority" and profile:
        return (
            profile[-1].label
            if example.task == "component"
            else (profile[-1].title or "")
            if example.task == "subject"
            else "3"
        )
    return {"component": LABELS[0], "stars": "3", "subject": "fix crash"}[example.task]


def _completion(model, example, items, rng):
    labels = [item.label for item in items]
    guess = max(LABELS, key=labels.count) if labels and model == "tuned" else rng.choice(LABELS)
    if example.task == "component":
        answer = guess
    elif example.task == "subject":
        answer = " ".join(example.output.split()[: 3 if model == "tuned" else 2])
    elif model == "tuned" and items:
        answer = str(min(5, max(1, int(example.output) + rng.choice((-1, 0, 1)))))
    else:
        answer = "4 stars"
    if example.id.endswith("-0-0"):
        answer += HOSTILE
    if model == "base" and rng.random() < 0.2:
        return "<think>\n<infer_preference>I go on and on"
    cite = f'[P1] is filed under "{items[0].label}".' if items else "nothing here."
    steps = f"<examine_examples>{cite}</examine_examples>\n" if items else ""
    return (
        f"<think>\n{steps}<infer_preference>This user likes {guess}.</infer_preference>\n"
        f"<draft_answer>{answer.split()[0]}</draft_answer>\n</think>\n{answer}"
    )
