"""Where data comes from: a folder, LaMP's own files, the Hub (a stand-in of it on this machine)."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tagpr_data.data_source import find_corpus, find_dataset, find_pairs
from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_data.pairs import PairFolder


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


def test_a_data_set_folder_is_itself(song_folder):
    assert find_dataset(str(song_folder)) == song_folder


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


@pytest.fixture
def hub(root):
    """The stand-in of the Hub, without repositories."""
    spec = importlib.util.spec_from_file_location("hub_stand_in", root / "tests" / "data" / "hub_stand_in.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    with module.HubStandIn() as server:
        server.add = lambda name, files: (
            server.repos.update({name: module.Repo(private=False)})
            or (server.repos[name].branches.update(main=server.repos[name].commit(files, "data")))
        )
        yield server


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run(code, hub, home, *arguments, **changes):
    """In a process of its own, as the Hub's client reads its settings when it is imported."""
    environment = {**os.environ, **hub.environment(home), **changes}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


TRY = (
    "import sys\nfrom tagpr_data import data_source\nfrom tagpr_data.errors import InputError\n"
    "try:\n    print(getattr(data_source, sys.argv[1])(sys.argv[2]))\nexcept InputError as error:\n    print(error)\n"
)


def test_a_data_set_of_the_hub_is_fetched_once_and_then_found_offline(song_folder, hub, tmp_path):
    code = (
        "from tagpr_data.dataset import Dataset\nfrom tagpr_data.data_source import find_dataset\n"
        "found = find_dataset('someone/toy')\nassert find_dataset('someone/toy', offline=True) == found\n"
        "print(Dataset.load(found).manifest.content_hash)\n"
    )
    hub.add("someone/toy", content(song_folder))
    hub.add("someone/letters", {"dear.txt": b"diary"})
    assert run(code, hub, tmp_path / "home") == [Dataset.load(song_folder).manifest.content_hash]
    (missing,) = run(TRY, hub, tmp_path / "home", "find_dataset", "someone/other")
    assert "'someone/other' is neither a folder here nor a data set repository that can be got" in missing
    assert "no such data set repository, or the token (HF_TOKEN) may not see it" in missing
    (no_data,) = run(TRY, hub, tmp_path / "home", "find_dataset", "someone/letters")
    assert "someone/letters is no data set folder: it has no manifest.json" in no_data
    (no_revision,) = run(TRY, hub, tmp_path / "home", "find_dataset", "someone/toy@v9")
    assert "someone/toy has no revision 'v9'" in no_revision


def test_of_a_corpus_of_the_hub_traces_or_pairs_are_fetched_and_found_without_a_network(
    corpus_with_pairs, hub, tmp_path
):
    hub.add("someone/songs", content(corpus_with_pairs))
    hub.repos["someone/songs"].tags["v1"] = hub.repos["someone/songs"].branches["main"]
    home = tmp_path / "home"
    (corpus,) = run(TRY, hub, home, "find_corpus", "someone/songs@v1")
    assert {name for name in content(Path(corpus)) if "/" not in name} == {"manifest.json"}
    assert content(Path(corpus))["traces/train.parquet"] == (corpus_with_pairs / "traces/train.parquet").read_bytes()
    assert not any(name.startswith(("rejected/", "pairs/")) for name in content(Path(corpus)))
    (pairs,) = run(TRY, hub, home, "find_pairs", "someone/songs")
    assert PairFolder(Path(pairs)).manifest == PairFolder(corpus_with_pairs / "pairs").manifest
    assert run(TRY, hub, home, "find_corpus", "someone/songs@v1", HF_HUB_OFFLINE="1") == [corpus]
    assert run(TRY, hub, home, "find_corpus", "someone/songs@v1", HF_ENDPOINT="http://127.0.0.1:9") == [corpus]
    (unknown,) = run(TRY, hub, home, "find_corpus", "someone/else", HF_HUB_OFFLINE="1")
    assert "the Hub cannot be reached (or HF_HUB_OFFLINE is set) and it was not fetched before" in unknown


def test_pairs_are_found_in_their_folder_and_in_their_corpus(corpus_with_pairs, tmp_path):
    inner = corpus_with_pairs / "pairs"
    assert find_pairs(inner) == inner and find_pairs(corpus_with_pairs) == inner
    assert find_pairs(tmp_path) == tmp_path and find_corpus(tmp_path) == tmp_path  # its reader says what it lacks
    with pytest.raises(InputError, match=r"pairs .* does not exist: it is no folder here and no OWNER/NAME"):
        find_pairs(tmp_path / "nowhere")
