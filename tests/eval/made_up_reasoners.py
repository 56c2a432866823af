"""Made-up models that write the same traces and answer from different things; their names say from what.

FromTrace    the last step that says what the user keeps to, else the first quoted label, else the first label
FromQuestion the words of the question, whatever items and trace say
FromItems    the commonest label of all items in the prompt (of equal ones the first), whatever the trace says
"""

import random
import re
from collections import Counter

from tagpr_data.dataset import write_dataset
from tagpr_data.records import Example, ProfileItem, Task
from tagpr_data.tables import sha256_text
from tagpr_eval.models import Completion

LABELS = ("amber", "black", "coral", "denim", "ebony", "flame", "green", "hazel")
TASK = Task(
    name="shade", kind="classification", labels=LABELS, question="Which shade?", answer_form="one shade",
    item_template='"{title}" is filed under {label}',
)  # fmt: skip
STEPS = 4


def write_data(folder, users=24, each=2):
    """Users with a favourite shade and six items; the gold answer is the favourite."""
    rng = random.Random(7)
    items, examples = [], []
    for user in range(users):
        favourite = LABELS[user % len(LABELS)]
        for n in range(6):
            label = favourite if rng.random() < 0.8 else rng.choice(LABELS)
            items.append(
                ProfileItem(
                    profile_id=f"p{user}", position=n, item_id=f"u{user}i{n}", label=label, text="",
                    title=f"thing {n} of {user}", date=f"2020-01-{n + 1:02d}",
                )
            )  # fmt: skip
        examples += [
            Example(
                id=f"e{user}-{n}", task="shade", user_id=f"u{user}", profile_id=f"p{user}", profile_size=6,
                input=f"a new thing {n} for {user}", output=favourite, date="2021-01-01",
            )
            for n in range(each)
        ]  # fmt: skip
    write_dataset(
        folder, name="shades", source="made up", licence="CC0-1.0", tasks=[TASK], items=items, parameters={},
        examples={"test": examples}, skipped={},
    )  # fmt: skip
    return folder


def labels_shown(messages):
    return re.findall(r"\[P\d+\] .* is filed under (\w+)", messages[1].content)


def trace(messages):
    """A valid trace that cites [P1] and [P2] and goes by [P1]."""
    shown = labels_shown(messages)
    if len(shown) < 2:
        return (
            "<think>\n<infer_preference>Nothing tells.</infer_preference>\n"
            "<draft_answer>A guess.</draft_answer>\n</think>\n"
        )
    return (
        f'<think>\n<examine_examples>[P1] is "{shown[0]}", [P2] is "{shown[1]}".</examine_examples>\n'
        "<identify_patterns>[P1] and [P2] say it.</identify_patterns>\n"
        f"<infer_preference>This user keeps to {shown[0]}.</infer_preference>\n"
        "<analyze_query>The input names a new thing.</analyze_query>\n</think>\n"
    )


class Reasoner:
    """Writes a trace and an answer, or only the answer where the trace is given."""

    calls = 0

    @property
    def identity(self):
        return sha256_text(type(self).__name__)

    def batches(self, prompts):
        return [[index] for index in range(len(prompts))]

    def generate(self, prompts, batches, finished):
        for batch in batches:
            for index in batch:
                self.calls += 1
                finished(index, Completion(self.write(prompts[index].messages), "stop", 10, 5))

    def write(self, messages):
        if messages[-1].role == "assistant":
            return self.answer(messages, messages[-1].content)
        written = trace(messages)
        return written + self.answer(messages, written)

    def answer(self, messages, written):
        raise NotImplementedError


class FromTrace(Reasoner):
    def answer(self, messages, written):
        found = re.findall(r"keeps to (\w+)\.", written)[-1:] or re.findall(r'is "(\w+)"', written)[:1]
        return found[0] if found else LABELS[0]


class FromQuestion(Reasoner):
    def answer(self, messages, written):
        question = messages[1].content.rpartition("\n\n")[2]
        return LABELS[int(sha256_text(question), 16) % len(LABELS)]


class FromItems(Reasoner):
    def answer(self, messages, written):
        shown = labels_shown(messages)
        return Counter(shown).most_common(1)[0][0] if shown else LABELS[0]


REASONERS = {"trace": FromTrace, "question": FromQuestion, "items": FromItems}
