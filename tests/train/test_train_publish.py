"""Trained models on a Hub on loopback: pushed whole or not at all, and loaded from there by the lines of their cards.

The client runs in processes of its own, as `huggingface_hub` reads its environment when it is imported.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tagpr_data.records import ProfileItem, RunManifest
from tagpr_data.tables import write_json, write_text
from tagpr_train import model_card, sft
from tagpr_train.config import Prmu, Sft
from tagpr_train.prmu import PRMU

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")]

PUSH = (
    "import sys; from pathlib import Path; from tagpr_data import publish as hub; from tagpr_train import publish\n"
    "from tagpr_data.errors import run_cli\n"
    "def go():\n"
    "    for run, repo in zip(sys.argv[1::2], sys.argv[2::2]):\n"
    "        target = hub.Target(repo, tag='v1')\n"
    "        package = publish.collect(Path(run), repo)\n"
    "        print(*hub.push(package, target, lambda line: print(line, file=sys.stderr), (0.05, 0.05)))\n"
    "run_cli(go)"
)
"""Pushes with short pauses between attempts."""


def _stand_in(root: Path) -> Any:
    spec = spec_from_file_location("hub_stand_in", root / "tests/data/hub_stand_in.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["hub_stand_in"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hub(root: Path) -> Iterator[Any]:
    with _stand_in(root).HubStandIn() as server:
        yield server


@pytest.fixture
def run(hub: Any, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python code with arguments against the Hub; whatever happens, the token is never shown."""

    def run(code: str, *arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1", **changes}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert environment["HF_TOKEN"] not in done.stdout + done.stderr
        return done

    return run


def files(hub: Any, repo: str) -> dict[str, bytes]:
    found = hub.repos[repo]
    return found.files(found.branches["main"])


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SFT run with a LoRA adapter and added tag tokens, on a model that is on the Hub as someone/base."""
    folder = tmp_path_factory.mktemp("adapter") / "run"
    options = {"max_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 2}
    sft.train(Sft(corpus=corpus, model=str(tiny_model), output=folder, dtype="float32", threads=1, trainer=options))
    write_text(folder / "card.toml", 'base_model = "someone/base"\nlicence = "apache-2.0"\n')
    model_card.write(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an SFT run, written by hand, whose model is whole."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(tiny_model, folder / "model")
    return _finished(folder, Sft(corpus=Path("/data/colours"), output=folder, adapter="none"))


@pytest.fixture(scope="module")
def prmu(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a PRMU run, written by hand."""
    folder = tmp_path_factory.mktemp("prmu") / "run"
    torch.manual_seed(0)
    item = ProfileItem(profile_id="p", position=0, item_id="1", text="red lamp", label="warm")
    backbone, tokenizer = AutoModel.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    model = PRMU.from_backbone(backbone, tokenizer, {"ann": [item]}, max_tokens=200)
    model.save_pretrained(folder / "prmu")
    write_text(folder / "prmu_eval.md", "| users | n |\n|---|---|\n| seen | 7 |\n")
    write_text(folder / "prmu_eval.json", json.dumps({"splits": {}}))
    return _finished(folder, Prmu(pairs=Path("/data/pairs"), output=folder, model=str(tiny_model)))


def _finished(folder: Path, config: Sft | Prmu) -> Path:
    manifest = RunManifest(
        kind="prmu" if isinstance(config, Prmu) else "sft", status="complete", config=config.model_dump(mode="json"),
        data={"colours": "c" * 64}, seed=0, versions={}, results={"steps": 1, "licence": "ours"},
    )  # fmt: skip
    write_json(folder / "run.json", manifest)
    write_text(folder / "metrics.jsonl", '{"step": 1, "loss": 1.0}\n')
    model_card.write(folder)
    return folder


LOAD = """
import json, sys, torch
from pathlib import Path
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
from huggingface_hub import hf_hub_download
from tagpr_train.pretrained import load
from tagpr_train.prmu import PRMU

adapter, whole, prmu = map(Path, sys.argv[1:])

def logits(model, last=260):
    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([[5, 6, 7, last]])).logits

local, tokenizer = load(str(adapter / "model"))
plain = AutoPeftModelForCausalLM.from_pretrained("curator/adapter")
ours, _ = load("curator/adapter", revision="v1")
assert torch.equal(logits(local), logits(plain)) and torch.equal(logits(local), logits(ours))
assert len(AutoTokenizer.from_pretrained("curator/adapter")) == len(tokenizer) > 260
model = AutoModelForCausalLM.from_pretrained("curator/whole")
assert torch.equal(logits(model, 8), logits(AutoModelForCausalLM.from_pretrained(whole / "model"), 8))
theirs, own = PRMU.from_pretrained("curator/prmu@v1"), PRMU.from_pretrained(prmu / "prmu")
assert theirs.score("ann", "which?", "red") == own.score("ann", "which?", "red") != own.score([], "which?", "red")
for repo in ("adapter", "whole", "prmu"):
    card = Path(hf_hub_download(f"curator/{repo}", "README.md")).read_text()
    code = card.split("```python\\n")[1].split("```")[0]
    assert f'"curator/{repo}"' in code and len(code.splitlines()) <= 4
    exec(code, {})
print("loaded")
"""


def test_adapter_model_and_prmu_are_pushed_and_load_from_the_hub(
    hub: Any, run: Any, adapter: Path, whole: Path, prmu: Path, tiny_model: Path, root: Path
) -> None:
    base = hub.repos["someone/base"] = _stand_in(root).Repo(private=False, kind="models")
    base.branches["main"] = base.commit({p.name: p.read_bytes() for p in tiny_model.iterdir()}, "base")
    runs = {"curator/adapter": adapter, "curator/whole": whole, "curator/prmu": prmu}
    both = [word for repo, folder in runs.items() for word in (folder, repo)]
    done = run(PUSH, *both)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["True"] * 3
    for repo in runs:
        assert hub.repos[repo].private and hub.repos[repo].kind == "models" and len(hub.repos[repo].commits) == 2
        assert hub.repos[repo].tags == {"v1": hub.repos[repo].branches["main"]}
        for path, content in files(hub, repo).items():
            if not path.endswith("tokenizer.json"):
                assert b"/tmp/" not in content and b"/data/" not in content, path
    config = json.loads(files(hub, "curator/adapter")["adapter_config.json"])
    assert config["base_model_name_or_path"] == "someone/base"
    assert {"training/config.toml", "training/run.json", "training/metrics.jsonl"} <= files(hub, "curator/whole").keys()
    assert {"prmu_eval.json", "users.json"} <= files(hub, "curator/prmu").keys()
    seen = len(hub.requests)
    again = run(PUSH, *both)
    assert [line.split()[1] for line in again.stdout.splitlines()] == ["False"] * 3
    assert {method for method, _ in hub.requests[seen:]} == {"GET"}
    loaded = run(LOAD, adapter, whole, prmu)
    assert loaded.returncode == 0 and "loaded" in loaded.stdout, loaded.stderr


def test_the_command_shows_what_it_would_send_and_refuses_a_stale_card(
    hub: Any, run: Any, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    code = "from tagpr_train.cli import main; main()"
    done = run(code, "push", tmp_path / "run", "curator/whole")
    assert done.returncode == 0, done.stderr
    assert "to be made, private" in done.stderr and "send with --push" in done.stderr and not hub.repos
    assert {line.split()[-1] for line in done.stdout.splitlines()} >= {"README.md", "model.safetensors"}
    write_text(tmp_path / "run/card.toml", 'title = "Another"\n')
    done = run(code, "push", tmp_path / "run", "curator/whole", "--push")
    assert done.returncode == 1 and "tagpr-train card" in done.stderr and not hub.repos
    assert run(code, "card", tmp_path / "run", "--check").returncode == 1
    assert run(code, "card", tmp_path / "run").returncode == 0
    done = run(code, "push", tmp_path / "run", "curator/whole", "--push")
    assert done.returncode == 0 and "pushed as commit" in done.stdout
    assert b"# Another" in files(hub, "curator/whole")["README.md"]


def test_a_smaller_model_takes_the_place_of_a_larger_one(hub: Any, run: Any, whole: Path, prmu: Path) -> None:
    assert run(PUSH, prmu, "curator/it").returncode == 0
    repo = hub.repos["curator/it"]
    repo.files(repo.branches["main"])["notes.txt"] = b"of another hand"
    repo.tags.clear()
    done = run(PUSH, whole, "curator/it")
    assert done.returncode == 0, done.stderr
    assert not {"users.json", "prmu_eval.json"} & files(hub, "curator/it").keys()
    assert files(hub, "curator/it")["notes.txt"] == b"of another hand"


@pytest.mark.parametrize(
    ("status", "part", "says"),
    [
        (401, "/api/repos/create", "401.*log in with `hf auth login` or set HF_TOKEN"),
        (409, "/commit/main", "409.*being changed by someone else"),
        (503, "/commit/main", "503.*nothing of this push is visible"),
    ],
)
def test_a_refusal_is_told_and_nothing_is_half_published(
    hub: Any, run: Any, whole: Path, status: int, part: str, says: str
) -> None:
    hub.faults = lambda method, path: status if part in path and method == "POST" else None
    done = run(PUSH, whole, "curator/whole")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(says, done.stderr.splitlines()[-1]), done.stderr
    assert set(files(hub, "curator/whole") if hub.repos else {".gitattributes"}) == {".gitattributes"}
    hub.faults = lambda method, path: None
    assert run(PUSH, whole, "curator/whole").returncode == 0
    assert "model.safetensors" in files(hub, "curator/whole")


def test_after_a_death_in_the_middle_readers_see_nothing_and_the_push_goes_on(
    hub: Any, run: Any, whole: Path, tmp_path: Path
) -> None:
    hub.faults = lambda method, path: "hang" if "/commit/" in path else None
    environment = {**os.environ, **hub.environment(tmp_path / "home")}
    command = [sys.executable, "-c", PUSH, str(whole), "curator/whole"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not hub.count("POST", "/commit/") and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert set(files(hub, "curator/whole")) == {".gitattributes"} and len(hub.lfs) == 1
    hub.faults = lambda method, path: None
    hub.requests.clear()
    done = run(PUSH, whole, "curator/whole")
    assert done.returncode == 0, done.stderr
    assert not hub.count("PUT", "/lfs-store/")  # the weights had arrived
    assert "model.safetensors" in files(hub, "curator/whole")
