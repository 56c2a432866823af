"""The official prompts, byte for byte, and the behaviours at their edges."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tagpr_data.errors import InputError
from tagpr_data.lamp.prompts import LampTokenizer, corpus, find_query, official_prompt, query
from tagpr_data.retrieve import Bm25


def word_tokenizer(special=0):
    """One token a word, unknown words included, and `special` tokens at the end; decoding joins with blanks."""
    words = [*"abcdefgx.!'", "n't"]
    vocabulary = {word: place for place, word in enumerate(["<unk>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>"])
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(["$0"] + ["</s>"] * special), special_tokens=[("</s>", vocabulary["</s>"])]
        )
    return LampTokenizer(tokenizer)


@pytest.fixture(scope="module")
def reference(shared_lamp):
    rows = json.loads((shared_lamp / "official_prompts_bm25.json").read_text(encoding="utf-8"))["rows"]
    sources = {(row["task"], row["query_index"]): row for row in rows if row["input"] is not None}
    return [(row, sources[row["task"], row["query_index"]]) for row in rows]


def test_all_official_prompts_are_reproduced_byte_for_byte(reference, shared_lamp):
    tokenizer = LampTokenizer.load(shared_lamp / "tokenizer.json")
    rankings = {}
    assert len(reference) == 480
    for row, source in reference:
        key = (row["task"], row["query_index"])
        if key not in rankings:
            texts = corpus(row["task"], source["profile"])
            rankings[key] = Bm25(texts).ranking(query(row["task"], source["input"]))
        items = [source["profile"][position] for position in rankings[key][: row["k"]]]
        prompt = official_prompt(row["task"], source["input"], items, tokenizer, row["max_length"])
        assert prompt == row["prompt"], (key, row["k"], row["max_length"])


def test_all_official_rankings_are_reproduced(shared_lamp):
    questions = json.loads((shared_lamp / "LaMP_3_time_derived" / "dev_questions.json").read_text(encoding="utf-8"))
    official = json.loads((shared_lamp / "official_bm25_LaMP_3.json").read_text(encoding="utf-8"))
    by_id = {row["id"]: row for row in official}
    assert len(by_id) == len(questions) == 30
    for question in questions:
        bm25, words = Bm25(corpus("LaMP-3", question["profile"])), query("LaMP-3", question["input"])
        ids = [question["profile"][position]["id"] for position in bm25.ranking(words)]
        assert ids == by_id[question["id"]]["ranking"]
        assert bm25.scores(words).tolist() == pytest.approx(by_id[question["id"]]["scores"], abs=1e-9)


@pytest.mark.parametrize(
    ("task", "text", "expected"),
    [
        ("LaMP_1", 'with the title "t", which [1]: "r 1" [2]: "r2"', "r 1 r2"),
        ("LaMP-1", 'title "a "quoted" word", [1]: "r1" [2]: "r2"', " word r1"),  # inner quotes shift: officially so
        ("LaMP-1", 'title "a 5" disk", [1]: "r1" [2]: "r2"', ", [1]:   [2]: "),
        ("LaMP-1", '"a" "b" "c" "d', "b c"),
        ("LaMP-2", "tags: [x] description: a film  description: b ", "a film  description: b"),
        ("LaMP-2-old", "categories: [x] article: text", "text"),
        ("LaMP-3", "review: 5 review: 6", "5 review: 6"),
        ("LaMP-4", "the following article:  x\n", "x"),
        ("LaMP-5", "abstract of a paper: x: y", "x: y"),
        ("LaMP-6", "email: Re: x", "Re: x"),
        ("LaMP-7", "after it: x", "x"),
        ("LaMP-7", ":", ""),
    ],
)
def test_the_query_is_what_the_official_code_cuts_out(task, text, expected):
    assert find_query(task, text) == query(task, text) == expected


@pytest.mark.parametrize(
    ("task", "text"),
    [("LaMP-1", 'one "a" two "b" three "c'), ("LaMP-2", "a film"), ("LaMP-7", "a tweet"), ("LaMP-3", "")],
)
def test_without_the_marker_the_whole_input_is_the_query(task, text):
    assert find_query(task, text) is None
    assert query(task, text) == text


def test_corpus_texts_leave_out_tags_scores_and_dates():
    fields = {"title": "T", "text": "X", "abstract": "A", "description": "D"}
    item = {"id": "1", "tag": "g", "category": "c", "score": "5", "date": "2015", **fields}
    expected = {"LaMP-1": "T A", "LaMP-2": "D", "LaMP-2-old": "T X", "LaMP-3": "X"}
    expected |= {"LaMP-4": "T X", "LaMP-5": "T A", "LaMP-6": "X", "LaMP-7": "X"}
    assert {task: corpus(task, [item])[0] for task in expected} == expected
    assert corpus("LaMP-3", []) == []


def test_the_wording_of_every_task():
    tokenizer = word_tokenizer()
    item = {"title": "a", "text": "b", "abstract": "c", "description": "d", "tag": "e", "category": "f", "score": "5"}
    two = [item, item]

    def prompt(task, text="g"):
        return official_prompt(task, text, two, tokenizer, 200)

    assert prompt("LaMP-1", 'the title "x" title') == 'the title, and "a", and "a" "x" title'
    assert prompt("LaMP-1", "no such word") == "no such word"
    assert prompt("LaMP-2") == 'the tag for the movie: "d" is "e" , and the tag for the movie: "d" is "e" . g'
    assert prompt("LaMP-2N").startswith('the category for the article: "b" is "f" , and the category')
    assert prompt("LaMP-3") == '5 is the score for "b" , and 5 is the score for "b" . g'
    assert prompt("LaMP-4") == prompt("LaMP-6") == '"a" is the title for "b" , and "a" is the title for "b" . g'
    assert prompt("LaMP-5") == '"a" is a title for "c" , and "a" is a title for "c" . Following the given patterns g'
    assert prompt("LaMP-7") == '"b" , and "b"  are written by a person. Following the given patterns g'


def test_budget_by_hand():
    """LaMP-3, 2 items, length 40: input 2 tokens, so 38 are left; per item (38 - 1 - 2) // 2 = 17, the frame `5 is the
    score for " " ` takes 7, so 10 go to the first text; it uses 3, so the second may take 10 + 7."""
    items = [{"score": "5", "text": "a b c"}, {"score": "5", "text": "d " * 30}]
    prompt = official_prompt("LaMP-3", "review: x", items, word_tokenizer(), 40)
    assert prompt == f'5 is the score for "a b c" , and 5 is the score for "{" ".join("d" * 17)}" . review: x'
    # the other way round nothing is saved for the long text
    prompt = official_prompt("LaMP-3", "review: x", items[::-1], word_tokenizer(), 40)
    assert prompt == f'5 is the score for "{" ".join("d" * 10)}" , and 5 is the score for "a b c" . review: x'


def test_the_share_of_a_long_input_shrinks_until_the_frames_fit():
    """Input 30 tokens, length 20: at 0.6 the budget is 20 - 12 = 8, and (8 - 1) // 1 = 7 is just the frame: no token
    for the text. A frame of 8 tokens (score "1 1") needs the share 0.5: 20 - 10 - 1 = 9, so one token."""
    long_input = "g " * 30
    assert official_prompt("LaMP-3", long_input, [{"score": "5", "text": "a b"}], word_tokenizer(), 20).startswith(
        '5 is the score for "" . '
    )
    assert official_prompt("LaMP-3", long_input, [{"score": "1 1", "text": "a b"}], word_tokenizer(), 20).startswith(
        '1 1 is the score for "a" . '
    )


def test_the_last_share_is_a_little_above_zero_because_tenths_do_not_add_up():
    """0.6 - 6 · 0.1 is 2.8e-17 in floating point, not below 0: a seventh try with the whole length as budget."""
    item = {"title": "a " * 13, "text": "b c"}  # frame: 13 words, the quotes stick to them; plus is the title for " "
    tokenizer = word_tokenizer()
    frame = tokenizer.count(f'"{item["title"]}" is the title for " " ')
    length = frame + 1 + 1
    assert official_prompt("LaMP-4", "g " * 50, [item], tokenizer, length).startswith(
        f'"{item["title"]}" is the title for "b" '
    )
    assert official_prompt("LaMP-4", "g " * 50, [item], tokenizer, length - 2) == "g " * 50


def test_a_title_longer_than_the_budget_drops_the_whole_profile():
    items = [{"title": "a", "text": "b"}, {"title": "a " * 200, "text": "b"}]
    assert official_prompt("LaMP-4", "g", items, word_tokenizer(), 100) == "g"


def test_no_items_give_the_raw_input():
    assert official_prompt("LaMP-3", "review: x", [], word_tokenizer(), 100) == "review: x"


def test_no_room_but_an_end_token_means_no_cut_at_all():
    """The library subtracts the end token from 0 and wraps round; without an end token the text is empty."""
    assert word_tokenizer(special=1).cut("a b c", 0) == ("a b c", 4)
    assert word_tokenizer(special=1).cut("a b c", 1) == ("", 1)
    assert word_tokenizer(special=1).cut("a b c", 3) == ("a b", 3)
    assert word_tokenizer(special=2).cut("a b c", 1) == ("a b c", 5)
    assert word_tokenizer(special=0).cut("a b c", 0) == ("", 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(list("abcd")), max_size=9), st.integers(0, 12), st.integers(0, 2))
def test_cut_equals_the_librarys_own_truncation(words, length, special):
    ours = word_tokenizer(special)
    text = " ".join(words)
    cut, used = ours.cut(text, length)
    library = word_tokenizer(special)._tokenizer
    library.enable_truncation(length)
    ids = library.encode(text).ids
    assert (cut, used) == (library.decode(ids), len(ids))


def test_blanks_before_punctuation_and_clitics_go_after_decoding():
    tokenizer = word_tokenizer()
    words = "a . b ! it n't ' x"
    assert tokenizer.cut(words, 99)[0] == "a. b! <unk>n't'x"


def test_names_of_tasks_go_by_either_spelling_and_unknown_ones_are_refused():
    assert query("LaMP_2N", "article: x") == query("lamp-2-old", "article: x") == "x"
    with pytest.raises(InputError, match="known: LaMP-1"):
        query("LaMP-8", "x")


def test_a_tokenizer_that_is_not_there_or_broken_is_named(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match=r"does not exist; give a tokenizer\.json"):
            LampTokenizer.load(path)
    for content in (b"{}", b"\xff\xfe", b""):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            LampTokenizer.load(tmp_path)


def test_a_tokenizer_loads_from_its_folder(shared_lamp):
    assert LampTokenizer.load(shared_lamp).count("") == 1  # its end token


def test_truncation_and_padding_in_the_tokenizer_file_are_ignored(tmp_path):
    tokenizer = word_tokenizer()._tokenizer
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert LampTokenizer.load(tmp_path).count("a b c") == 3
