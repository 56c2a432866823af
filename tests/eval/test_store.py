import pytest

from tagpr_data.errors import InputError
from tagpr_data.records import Sampling
from tagpr_eval.models import Completion
from tagpr_eval.store import FILE, SampleStore, sample_key

KEYS = [sample_key("model", "prompt", Sampling(), seed) for seed in range(3)]


def fill(folder, order=(0, 1, 2)):
    store = SampleStore(folder)
    for number in order:
        store.add(KEYS[number], Completion(f"text {number}\n\u2028", "stop", 3, 4))
    return store


def test_the_key_depends_on_all_that_decides_the_answer():
    cases = [
        ("model", "prompt", Sampling(), 0),
        ("other", "prompt", Sampling(), 0),
        ("model", "other", Sampling(), 0),
        ("model", "prompt", Sampling(temperature=1.0), 0),
        ("model", "prompt", Sampling(max_new_tokens=9), 0),
        ("model", "prompt", Sampling(), 1),
    ]
    assert len({sample_key(*case) for case in cases}) == len(cases)


def test_samples_are_there_again_after_opening_and_a_torn_line_is_dropped(tmp_path):
    fill(tmp_path).close()
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-10])
    store = SampleStore(tmp_path)
    assert [key in store for key in KEYS] == [True, True, False]
    assert store[KEYS[1]].text == "text 1\n\u2028"
    store.close()


def test_the_first_completion_of_a_key_stays(tmp_path):
    store = fill(tmp_path)
    store.add(KEYS[0], Completion("another", "length"))
    assert store[KEYS[0]].text == "text 0\n\u2028"
    store.close()
    assert (tmp_path / FILE).read_bytes().count(b"\n") == 3


def test_a_tidied_file_does_not_show_in_which_order_samples_came(tmp_path):
    for name, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        store = fill(tmp_path / name, order)
        store.tidy()
        store.close()
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()
    store = SampleStore(tmp_path / "a")
    assert len(store) == 3
    store.close()


def test_a_file_of_something_else_is_refused_with_its_line(tmp_path):
    (tmp_path / FILE).write_text('{"id": "x"}\n')
    with pytest.raises(InputError, match=r"samples.jsonl, line 1 is not a Sample"):
        SampleStore(tmp_path)
