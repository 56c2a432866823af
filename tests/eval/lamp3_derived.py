"""LaMP-3 files of the three derived users of `../shared/lamp`, with a train split beside the dev questions.

    .venv/bin/python tests/eval/lamp3_derived.py runs/lamp3

The dev questions are those of the folder: the last ten reviews of each user, each with the 80 items before it. The
train questions are made here in the same way from the ten reviews before them. For tests and trials on this machine
only: the texts are LaMP's and are not redistributed.
"""

import json
import shutil
import sys
from pathlib import Path

SHARED = Path(__file__).resolve().parents[3] / "shared" / "lamp" / "LaMP_3_time_derived"


def write_files(folder: Path, shared: Path = SHARED) -> Path:
    """Write train_ and dev_ questions and outputs into `folder`; give it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("dev_questions.json", "dev_outputs.json"):
        shutil.copyfile(shared / name, folder / name)
    start = json.loads((shared / "dev_questions.json").read_text())[0]["input"].partition("review: ")[0] + "review: "
    questions, golds = [], []
    for user in json.loads((shared / "user_profiles.json").read_text()):
        items = user["profile_chronological"]
        for place in range(len(items) - 20, len(items) - 10):
            profile = [{key: str(item[key]) for key in ("id", "text", "score")} for item in items[place - 80 : place]]
            identity = f"train-{user['user_id']}-{place}"
            questions.append(
                {"id": identity, "user_id": user["user_id"], "input": start + items[place]["text"], "profile": profile}
            )
            golds.append({"id": identity, "output": str(items[place]["score"])})
    (folder / "train_questions.json").write_text(json.dumps(questions))
    (folder / "train_outputs.json").write_text(json.dumps({"task": "LaMP_3", "golds": golds}))
    return folder


if __name__ == "__main__":
    print(write_files(Path(sys.argv[1])))
