"""Where evaluation data comes from: a folder, LaMP's own files, the Hub (a stand-in of it on this machine)."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_eval.data_source import find_dataset


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_lamp(folder, split, first):
    folder.mkdir(exist_ok=True)
    items = [{"id": f"i{n}", "text": f"good book {n}", "score": str(n % 5 + 1)} for n in range(4)]
    questions = [
        {"id": str(first + n), "input": f"review: book {n}", "profile": items[: n + 1], "user_id": f"u{n}"}
        for n in range(3)
    ]
    (folder / f"{split}_questions.json").write_text(json.dumps(questions))
    golds = {"task": "LaMP_3", "golds": [{"id": row["id"], "output": "5"} for row in questions]}
    (folder / f"{split}_outputs.json").write_text(json.dumps(golds))


def test_a_data_set_folder_is_itself(toy_data):
    assert find_dataset(str(toy_data)) == toy_data


def test_lamps_own_files_become_one_data_set_with_all_splits(tmp_path):
    write_lamp(tmp_path / "files", "train", 100)
    write_lamp(tmp_path / "files", "dev", 200)
    found = find_dataset(str(tmp_path / "files"))
    dataset = Dataset.load(found)
    assert dataset.splits == ("train", "validation")
    assert [row.id for row in dataset.examples("validation")] == ["200", "201", "202"]
    assert [item.text for item in dataset.profile(dataset.examples("train")[2])] == [f"good book {n}" for n in range(3)]
    assert dataset.profiles["profile_id"].n_unique() == 3  # equal profiles of two splits are stored once
    before = (found / "manifest.json").stat().st_mtime_ns
    assert find_dataset(str(tmp_path / "files")) == found
    assert (found / "manifest.json").stat().st_mtime_ns == before
    write_lamp(tmp_path / "files", "test", 300)
    assert find_dataset(str(tmp_path / "files")) != found


def test_lamp_files_that_name_no_task_or_two_are_refused(tmp_path):
    write_lamp(tmp_path / "files", "dev", 200)
    (tmp_path / "files" / "dev_outputs.json").unlink()
    with pytest.raises(InputError, match=r"they name none\. Otherwise import"):
        find_dataset(str(tmp_path / "files"))


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(InputError, match="is no folder here and no OWNER/NAME"):
        find_dataset(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds neither manifest\.json"):
        find_dataset(str(tmp_path / "empty"))


def test_a_repository_of_the_hub_is_fetched_once_and_then_found_offline(toy_data, root, tmp_path):
    """In a process of its own, as the Hub's client reads its settings when it is imported."""
    spec = importlib.util.spec_from_file_location("hub_stand_in", root / "tests" / "data" / "hub_stand_in.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    code = (
        "import sys\nfrom tagpr_data.dataset import Dataset\nfrom tagpr_data.errors import InputError\n"
        "from tagpr_eval.data_source import find_dataset\n"
        "found = find_dataset('someone/toy')\nassert find_dataset('someone/toy', offline=True) == found\n"
        "print(Dataset.load(found).manifest.content_hash)\n"
        "try:\n    find_dataset('someone/other')\nexcept InputError as error:\n    print(error)\n"
        "try:\n    find_dataset('someone/letters')\nexcept InputError as error:\n    print(error)\n"
    )
    with module.HubStandIn() as hub:
        repo = module.Repo(private=False)
        files = {p.relative_to(toy_data).as_posix(): p.read_bytes() for p in toy_data.rglob("*") if p.is_file()}
        repo.branches["main"] = repo.commit(files, "data")
        letters = module.Repo(private=False)
        letters.branches["main"] = letters.commit({"dear.txt": b"diary"}, "letters")
        hub.repos |= {"someone/toy": repo, "someone/letters": letters}
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content, missing, no_data = done.stdout.splitlines()
    assert content == Dataset.load(toy_data).manifest.content_hash
    assert "'someone/other' is neither a folder here nor a data set repository that can be got" in missing
    assert "someone/letters is no data set folder: it has no manifest.json" in no_data
