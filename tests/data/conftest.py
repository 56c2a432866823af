"""A small data set and corpora made of it, for the tests of the corpus pipeline."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tagpr_data.build import CorpusConfig, Description, write_corpus
from tagpr_data.dataset import Dataset, write_dataset
from tagpr_data.records import CorpusManifest, Example, ProfileItem, Rejected, Split, Task, Trace
from tagpr_data.tags import load_tagset

GENRE = Task(
    name="genre",
    kind="classification",
    labels=("rock", "jazz", "folk"),
    question="Under which genre would this user file the song?",
    answer_form="one genre",
    item_template='"{title}" is filed under {label}',
)
TITLE = Task(
    name="title",
    kind="generation",
    question="Which title would this user give?",
    answer_form="a title",
    item_template='"{title}": {text}',
)
SONGS = {
    "ann": ("rock", "loud: {} guitar riff", "a guitar riff about the {} road and a drum"),
    "bob": ("jazz", "Slow {} saxophone evening", "a saxophone solo over the {} river in the evening"),
    "cyd": ("folk", "trad: {} fiddle reel", "a fiddle reel from the {} hills, sung at harvest"),
}
PLACES = ("northern", "southern", "eastern", "western", "coastal", "desert", "winter", "summer", "harbour", "midnight")


@pytest.fixture(scope="session")
def song_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three users with ten songs each; the last four are asked for in both tasks, the first six are profile."""
    folder = tmp_path_factory.mktemp("songs") / "dataset"
    items: list[ProfileItem] = []
    examples: dict[Split, list[Example]] = {"train": [], "validation": []}
    for user, (genre, title, text) in SONGS.items():
        for position, place in enumerate(PLACES):
            # every fourth song is filed elsewhere, so that items disagree
            label = "jazz" if position % 4 == 3 else genre
            items.append(
                ProfileItem(
                    profile_id=user,
                    position=position,
                    item_id=f"{user}-{position}",
                    date=f"2020-01-{position + 1:02}",
                    title=title.format(place),
                    text=text.format(place),
                    label=label,
                )
            )
            if position < 6:
                continue
            split: Split = "train" if position < 9 else "validation"
            for task, gold in ((GENRE, label), (TITLE, title.format(place))):
                examples[split].append(
                    Example(
                        id=f"{task.name}-{user}-{position}",
                        task=task.name,
                        user_id=user,
                        profile_id=user,
                        profile_size=position,
                        input=text.format(place),
                        output=gold,
                        date=f"2020-01-{position + 1:02}",
                    )
                )
    write_dataset(
        folder,
        name="songs",
        source="made up",
        licence="CC0-1.0",
        tasks=[GENRE, TITLE],
        examples=examples,
        items=items,
        parameters={},
        skipped={},
    )
    return folder


@pytest.fixture
def songs(song_folder: Path) -> Dataset:
    return Dataset.load(song_folder)


@pytest.fixture
def song_config(song_folder: Path, tmp_path: Path) -> CorpusConfig:
    return CorpusConfig(name="songs", dataset=song_folder, output=tmp_path / "corpus", k=3)


@pytest.fixture
def make_corpus() -> Callable[..., CorpusManifest]:
    """Write a corpus whose manifest follows from the rows, whatever they hold."""
    return _make_corpus


def _make_corpus(
    folder: Path,
    traces: dict[Split, list[Trace]],
    rejected: dict[Split, list[Rejected]],
    **parameters: object,
) -> CorpusManifest:
    return write_corpus(
        folder,
        traces,
        rejected,
        Description(
            name="songs",
            tagset=load_tagset(),
            dataset="songs",
            dataset_hash="0" * 64,
            licence="CC0-1.0",
            tasks=(GENRE, TITLE),
            parameters={"best_of": 1, "min_score": {"classification": 1.0, "generation": 0.3}, **parameters},
        ),
    )


@pytest.fixture(scope="session")
def corpus_with_pairs(song_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid, documented corpus with kept and rejected rows, preference pairs and its validation report."""
    from tagpr_data import card
    from tagpr_data.build import build
    from tagpr_data.corpus import open_corpus
    from tagpr_data.pairs import PairOptions, write_pairs

    folder = tmp_path_factory.mktemp("with-pairs") / "corpus"
    config = CorpusConfig(
        name="songs",
        dataset=song_folder,
        output=folder,
        k=3,
        attempts=2,
        teacher={"type": "scripted", "hindsight": False},
        selection={"min_score": {"classification": 1.0, "generation": 0.1}},
    )
    build(config)
    write_pairs(folder / "pairs", Dataset.load(song_folder), PairOptions(unseen_users=0.4), folder)
    card.write_documents(open_corpus(folder))
    return folder
