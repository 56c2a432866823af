import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from tagpr_data import generate, select, validate
from tagpr_data.build import CorpusConfig, build, choose_examples, code_files
from tagpr_data.card import stale
from tagpr_data.cli import app
from tagpr_data.config import load
from tagpr_data.corpus import open_corpus
from tagpr_data.dataset import Dataset
from tagpr_data.engine import Engine
from tagpr_data.errors import InputError
from tagpr_data.pairs import PairOptions, write_pairs
from tagpr_data.records import CorpusManifest, Rejected, Trace
from tagpr_data.sources import personas
from tagpr_data.tables import read_json, read_records


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of the corpus itself: no working files."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(name): (folder / name).read_bytes() for name in names if name.parts[0][0] != "."}


def changed(config: CorpusConfig, **changes: object) -> CorpusConfig:
    return CorpusConfig.model_validate({**config.model_dump(), **changes})


def stages(config: CorpusConfig) -> dict[str, bool]:
    """Build and tell for each stage whether it ran."""
    lines: list[str] = []
    build(config, say=lines.append)
    return {line.split()[0]: "(unchanged)" not in line for line in lines if not line.startswith("cost")}


def test_the_same_input_gives_the_same_bytes_in_two_folders(song_config, tmp_path):
    build(song_config)
    build(changed(song_config, output=tmp_path / "other"))
    first = files_of(song_config.output)
    assert set(first) == {
        "manifest.json", "README.md", "croissant.json",
        "traces/train.parquet", "traces/validation.parquet",
        "rejected/train.parquet", "rejected/validation.parquet",
        "data_docs/index.html", "data_docs/report.json",
    }  # fmt: skip
    assert first == files_of(tmp_path / "other")


def test_a_split_without_an_example_is_built_as_one(tmp_path):
    personas.construct(tmp_path / "three", users=3)  # nobody is left for validation
    assert Dataset.load(tmp_path / "three").manifest.files["examples/validation.parquet"].rows == 0
    chosen = choose_examples(
        CorpusConfig(name="three", dataset=tmp_path / "three", output=tmp_path / "c", limits={"train": 5}, per_user=9),
        Dataset.load(tmp_path / "three"),
    )
    assert {split: rows.height for split, rows in chosen.items()} == {"train": 10, "validation": 0}


def test_a_corpus_holds_every_candidate_and_says_so(song_config):
    manifest = build(changed(song_config, attempts=3))
    kept = [
        row
        for split in ("train", "validation")
        for row in read_records(song_config.output / f"traces/{split}.parquet", Trace)
    ]
    refused = [
        row
        for split in ("train", "validation")
        for row in read_records(song_config.output / f"rejected/{split}.parquet", Rejected)
    ]
    # 3 users × 4 songs × 2 tasks × 3 attempts
    assert manifest.candidates == len(kept) + len(refused) == 72
    assert manifest.kept == len(kept) == 24
    assert manifest.claims == manifest.grounded_claims == sum(row.claims for row in kept) > 0
    assert sum(manifest.rejected.values()) == 48 and set(manifest.rejected) <= {"duplicate", "not-best"}
    assert read_json(song_config.output / "manifest.json", CorpusManifest) == manifest


def test_unchanged_stages_are_skipped_and_a_changed_one_runs_with_all_after_it(song_config):
    everything = {"prompts": True, "generate": True, "select": True, "documents": True, "validate": True}
    assert stages(song_config) == everything
    assert stages(song_config) == dict.fromkeys(everything, False)
    stricter = changed(song_config, selection={"max_characters": 3000})
    assert stages(stricter) == everything | {"prompts": False, "generate": False}
    more = changed(stricter, attempts=2)
    assert stages(more) == everything | {"prompts": False}
    # the rules decide what is asked only where attempts wait for one another
    patient = changed(more, until_accepted=True)
    assert stages(patient) == everything | {"prompts": False}
    assert stages(changed(patient, selection={"max_characters": 2999})) == everything | {"prompts": False}
    assert stages(changed(more, task_limits={"genre": 3})) == everything
    assert stages(changed(stricter, k=2)) == everything


@pytest.mark.parametrize(
    ("module", "inside_functions"),
    [
        (generate, {"retrieve", "introsort"}),
        (select, {"judge", "contamination", "files", "convert", "words"}),
        (validate, {"row_checks", "judge", "generate", "card", "croissant", "stats", "corpus"}),
    ],
)
def test_a_stage_depends_on_all_code_it_runs(module, inside_functions):
    found = code_files(module)
    # what a fresh interpreter loads, and what functions import by and by
    script = (
        f"import sys, {module.__name__}\n"
        "print(*(m.__file__ for n, m in list(sys.modules.items()) if n.startswith('tagpr_data.')), sep='\\n')"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert len(loaded) > 5 and {Path(name) for name in loaded} <= set(found) | {
        path for path in map(Path, loaded) if path.name == "__init__.py"
    }
    assert inside_functions <= {path.stem for path in found}
    assert "browse" not in {path.stem for path in found}


def test_a_damaged_file_of_the_corpus_is_made_again(song_config):
    build(song_config)
    before = files_of(song_config.output)
    (song_config.output / "traces/train.parquet").write_bytes(b"damaged")
    assert stages(song_config)["select"]
    assert files_of(song_config.output) == before


def test_a_build_torn_before_its_manifest_ends_the_same(song_config):
    build(song_config)
    before = files_of(song_config.output)
    (song_config.output / "manifest.json").unlink()
    shutil.rmtree(song_config.output / "traces")
    build(song_config)
    assert files_of(song_config.output) == before


def test_a_teacher_without_hindsight_is_rejected_where_it_errs(song_config):
    manifest = build(changed(song_config, teacher={"type": "scripted", "hindsight": False}, tasks=["genre"]))
    assert manifest.teachers.keys() == {"scripted"}
    # the songs that a user files against the habit cannot be told from the others
    assert manifest.rejected == {"low-score": manifest.candidates - manifest.kept}
    assert 0 < manifest.acceptance["genre"] < 1


def test_limits_are_per_split_task_and_user_and_a_larger_limit_keeps_the_smaller_choice(songs, song_config):
    few = choose_examples(changed(song_config, limits={"train": 2}), songs)
    more = choose_examples(changed(song_config, limits={"train": 4}), songs)
    assert [(few["train"]["task"] == task).sum() for task in ("genre", "title")] == [2, 2]
    assert set(few["train"]["id"]) < set(more["train"]["id"])
    single = choose_examples(changed(song_config, per_user=1, tasks=["genre"]), songs)
    assert sorted(single["train"]["user_id"]) == ["ann", "bob", "cyd"]


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(song_config):
    song_config.output.mkdir()
    (song_config.output / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"not empty and holds no corpus.*thesis\.tex"):
        build(song_config)
    assert [path.name for path in song_config.output.iterdir()] == ["thesis.tex"]


def test_another_corpus_is_not_overwritten(song_config):
    build(song_config)
    with pytest.raises(InputError, match=r"holds the corpus 'songs'"):
        build(changed(song_config, name="hymns"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["verse"]}, "task 'verse' is unknown"),
        ({"splits": ["test"]}, "has no example of any task in test"),
        ({"dataset": Path("nowhere")}, "nowhere does not exist"),
        ({"retriever": "magic"}, "magic"),
    ],
)
def test_a_config_that_does_not_fit_the_data_is_refused(song_config, changes, message):
    with pytest.raises(InputError, match=message):
        build(changed(song_config, **changes))


def test_shipped_configs_load(root):
    paths = sorted((root / "tagpr_data" / "configs").glob("*.toml"))
    assert {"xorg.toml", "personas.toml"} <= {path.name for path in paths}
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if "dataset =" in text:
            load(CorpusConfig, path)
            assert text.startswith("# ") and f"tagpr-data build tagpr_data/configs/{path.name}" in text


def test_build_and_validate_as_commands(song_config, song_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "songs.toml"
    config.write_text(f'name = "songs"\ndataset = "{song_folder}"\noutput = "corpus"\n')
    built = CliRunner().invoke(app, ["build", str(config), "--set", "k=2"])
    assert built.exit_code == 0 and built.stdout == "corpus\n"
    assert read_json(Path("corpus/manifest.json"), CorpusManifest).parameters["k"] == 2
    assert CliRunner().invoke(app, ["validate", "corpus"]).exit_code == 0


def test_workers_make_no_difference_to_the_bytes_and_a_wrong_engine_is_refused_before_anything_is_asked(
    song_config, song_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "songs.toml").write_text(f'name = "songs"\ndataset = "{song_folder}"\noutput = "corpus"\nk = 3\n')
    for wrong, message in (
        (["--address", "auto"], "address 'auto' belongs to engine ray"),
        (["--engine", "ray"], "needs the address of a running cluster"),
    ):
        refused = CliRunner().invoke(app, ["build", "songs.toml", *wrong])
        assert isinstance(refused.exception, InputError) and message in str(refused.exception)
        assert not Path("corpus").exists()
    built = CliRunner().invoke(app, ["build", "songs.toml", "--workers", "2"])
    assert built.exit_code == 0, built.output
    build(song_config)
    assert files_of(tmp_path / "corpus") == files_of(song_config.output)


@pytest.mark.slow
def test_a_build_on_a_ray_cluster_gives_the_bytes_of_a_local_one(song_config, tmp_path):
    from ray.cluster_utils import Cluster

    node: dict[str, object] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        build(changed(song_config, output=tmp_path / "there"), engine=Engine("ray", address=cluster.address))
    finally:
        cluster.shutdown()
    build(song_config)
    assert files_of(tmp_path / "there") == files_of(song_config.output)


@pytest.mark.slow
def test_every_claim_of_a_corpus_from_real_text_holds(tmp_path):
    log = Path.home() / ".cache/tagpr/xorg/changelog.gz"
    if not log.is_file():
        pytest.skip("the X server's log is not cached here; `tagpr-data construct xorg` fetches it")
    output = tmp_path / "xorg"
    constructed = CliRunner().invoke(app, ["construct", "xorg", "--file", str(log), "--output", str(output)])
    assert constructed.exit_code == 0
    config = CorpusConfig(
        name="xorg", dataset=output, output=tmp_path / "corpus", limits={"train": 300, "validation": 50}
    )
    manifest = build(config)
    assert manifest.rejected.keys() <= {"duplicate"}
    assert manifest.grounded_claims == manifest.claims > 5000


def test_a_task_can_be_limited_by_name(song_config, songs):
    every = choose_examples(song_config, songs)["train"]
    chosen = choose_examples(changed(song_config, task_limits={"genre": 3}), songs)["train"]
    assert (chosen["task"] == "genre").sum() == 3
    assert chosen.filter(pl.col("task") != "genre").equals(every.filter(pl.col("task") != "genre"))
    assert set(chosen["id"]) < set(every["id"])


def test_working_files_that_were_damaged_are_made_anew_and_the_bytes_are_the_same(song_config):
    build(song_config)
    work, whole = song_config.output / ".work", files_of(song_config.output)
    damages: dict[Path, tuple[bytes, set[str]]] = {
        work / "stages.json": (b"[]", {"prompts", "generate", "select", "documents", "validate"}),
        work / "prompts.parquet": (b"PAR1", {"prompts"}),
        work / "candidates.parquet": (b"PAR1", {"generate"}),
        song_config.output / "traces/train.parquet": (b"PAR1", {"select"}),
        song_config.output / "data_docs/report.json": (b"{", {"validate"}),
    }
    for path, (content, expected) in damages.items():
        path.write_bytes(content)
        ran = stages(song_config)
        assert {stage for stage, is_new in ran.items() if is_new} == expected, path
        assert files_of(song_config.output) == whole
    (work / "stages.json").write_bytes(b"\xff")
    assert all(stages(song_config).values())


def test_pairs_that_came_later_are_documented_and_checked_by_the_next_build(song_config):
    build(song_config)
    write_pairs(song_config.output / "pairs", Dataset.load(song_config.dataset), PairOptions(), song_config.output)
    ran = stages(song_config)
    assert {stage for stage, is_new in ran.items() if is_new} == {"documents", "validate"}
    assert stale(open_corpus(song_config.output)) == []
