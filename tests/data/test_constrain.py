"""A random model under the constraint writes what the parser calls valid; what is canonical and valid is allowed."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tagpr_data.constrain import Constraint, Decoder, LogitsProcessor, request_fields
from tagpr_data.errors import InputError
from tagpr_data.grammar import export
from tagpr_data.records import Step
from tagpr_data.tags import TagSet, cited, load_tagset, parse, render

SHIPPED = load_tagset()
TURKISH = TagSet.model_validate(
    {
        "name": "tr",
        "tags": [
            {"name": "örnek", "meaning": "look", "cites": "required"},
            {"name": "karşılaştır", "meaning": "compare", "cites": "pattern"},
            {"name": "sonuç", "meaning": "conclude", "cites": "no"},
        ],
        "required_any": ["sonuç"],
        "min_steps": 2,
        "max_steps": 3,
    }
)
END = 0
PIECES = [
    "<think>", "</", ">\n", "<", "[P", "[P1]", "[P2]", "[P9]", "]", " likes", " [", "</think>", "pattern", "\n\n", "_",
    "</infer_preference>\n", "</infer_preference>", "ross", "rock", "jazz", "infer", "sonu",
]  # fmt: skip


def make_tokenizer() -> Tokenizer:
    """All bytes, and pieces that cut markup in odd places; 0 ends a completion."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate(["<end>", *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<end>"])
    core.add_tokens(PIECES)
    return core


TOKENIZER = make_tokenizer()
SIZE = TOKENIZER.get_vocab_size() + 5  # models have rows that no token uses
DECODER = Decoder(TOKENIZER, [END], SIZE)
LURES = {token: 4.0 for piece in (*PIECES, "<", "/") if (token := TOKENIZER.token_to_id(piece)) is not None}


def written(constraint: Constraint, seed: int, most: int = 400) -> tuple[str, bool]:
    """What random logits write that lean to markup and to the end, and whether they came to the end."""
    rng = np.random.default_rng(seed)
    matcher = DECODER.start(constraint)
    tokens: list[int] = []
    while len(tokens) < most:
        logits = rng.gumbel(size=SIZE)
        for token, lure in LURES.items():
            logits[token] += lure
        logits[END] += 5
        logits[~DECODER.allowed([matcher])[0]] = -np.inf
        token = int(logits.argmax())
        assert matcher.consume_token(token)
        if token == END:
            return TOKENIZER.decode(tokens, skip_special_tokens=False), True
        tokens.append(token)
    return TOKENIZER.decode(tokens, skip_special_tokens=False), False


@pytest.mark.parametrize("tagset", [SHIPPED, TURKISH], ids=["shipped", "turkish"])
@pytest.mark.parametrize("k", [None, 0, 1, 3])
@pytest.mark.parametrize("answers", [(), ("rock", "rock and roll", 'a "b"')], ids=["free", "labels"])
def test_what_a_random_model_writes_to_its_end_is_valid(tagset: TagSet, k: int | None, answers: tuple[str, ...]):
    ended = 0
    for seed in range(12):
        text, is_whole = written(Constraint(tagset, k, answers), seed)
        parsed = parse(text, tagset, k)
        if is_whole:
            ended += 1
            assert parsed.violations == (), text
            assert not answers or parsed.answer in answers
        else:  # cut at the token limit: a beginning, which is not valid
            assert not parsed.is_valid or not answers
    assert ended >= 3


def test_a_label_alone_is_one_of_the_labels():
    found = {written(Constraint(None, None, ("rock", "jazz", "rock [1]")), seed) for seed in range(30)}
    assert {text for text, _ in found} <= {"rock", "jazz", "rock [1]"} and len(found) > 1
    assert all(is_whole for _, is_whole in found)


def accepts(constraint: Constraint, text: str) -> bool:
    matcher = DECODER.start(constraint)
    tokens = TOKENIZER.encode(text).ids
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


WORDS = st.lists(
    st.sampled_from(["likes", "a < b", "<X11/Xlib.h>", "a[i]", "[P1]", "[P2]", "[P3]", "é猫", "word"]), min_size=1
).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(SHIPPED.names), WORDS), min_size=1, max_size=13),
    st.sampled_from(["rock", "<X11>", "jazz"]),
    st.sampled_from([None, 0, 2, 3]),
)
def test_a_canonical_text_is_allowed_exactly_when_the_parser_calls_it_valid(
    pairs: list[tuple[str, str]], answer: str, k: int | None
):
    text = render([Step(tag=tag, text=words, cites=cited(words)) for tag, words in pairs], answer)
    valid = parse(text, SHIPPED, k).is_valid
    assert accepts(Constraint(SHIPPED, k), text) == valid
    assert accepts(Constraint(SHIPPED, k, ("rock", "jazz")), text) == (valid and answer != "<X11>")


def test_without_items_no_citation_can_be_written():
    begun = DECODER.start(Constraint(SHIPPED, 0), "<think>\n<infer_preference>As")
    allowed = DECODER.allowed([begun])[0]
    assert not any(allowed[TOKENIZER.token_to_id(piece)] for piece in ("[P1]", "[P", "[P9]"))
    begun = DECODER.start(Constraint(SHIPPED, 2), "<think>\n<infer_preference>As")
    allowed = DECODER.allowed([begun])[0]
    assert [bool(allowed[TOKENIZER.token_to_id(piece)]) for piece in ("[P1]", "[P2]", "[P9]")] == [True, True, False]


def test_a_step_cannot_be_closed_by_another_tags_mark():
    begun = DECODER.start(Constraint(SHIPPED, 2), "<think>\n<infer_preference>Short titles")
    allowed = DECODER.allowed([begun])[0]
    assert allowed[TOKENIZER.token_to_id("</infer_preference>\n")]
    assert not allowed[TOKENIZER.token_to_id("</think>")] and not allowed[END]


def test_an_answer_that_has_begun_goes_on_and_one_that_cannot_is_refused():
    matcher = DECODER.start(Constraint(SHIPPED, 0), "<think>\n<verify_answer>It")
    assert matcher.try_consume_tokens(TOKENIZER.encode(" fits.</verify_answer>\n").ids) > 0
    with pytest.raises(InputError, match="begins with 'Sure!'"):
        DECODER.start(Constraint(SHIPPED, 0), "Sure!")


def test_no_row_without_a_constraint_is_held_back_and_unused_tokens_never_come():
    allowed = DECODER.allowed([None, DECODER.start(Constraint(SHIPPED, 0))])
    assert allowed.shape == (2, SIZE) and allowed[0].all() and 0 < allowed[1].sum() < 10
    assert not allowed[1, TOKENIZER.get_vocab_size() :].any()


def test_a_grammar_no_trace_can_meet_is_an_error():
    tagset = TURKISH.model_copy(update={"required_any": ("örnek",)})
    with pytest.raises(InputError, match="with k = 0 no item can be cited"):
        DECODER.start(Constraint(tagset, 0))


def test_servers_are_asked_in_their_own_fields():
    constraint = Constraint(SHIPPED, 2)
    assert request_fields("vllm", constraint) == {"structured_outputs": {"grammar": export(SHIPPED, 2, "gbnf")}}
    assert request_fields("llama-cpp", constraint) == {"grammar": export(SHIPPED, 2, "gbnf")}
    assert request_fields("none", constraint) == request_fields("vllm", None) == {}
    assert request_fields("llama-cpp", Constraint(None, None, ("a", 'b"'))) == {
        "grammar": '# One of 2 answers\nroot ::= "a" | "b\\""\n'
    }


def test_llama_cpps_notation_of_labels_is_read_by_an_independent_matcher():
    xgrammar = pytest.importorskip("xgrammar", reason="the xgrammar package is not installed")
    vocabulary = [bytes([byte]) for byte in range(256)] + [b"</s>"]
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[256]))
    matcher = xgrammar.GrammarMatcher(compiler.compile_grammar(Constraint(None, None, ("rock", 'b"')).grammar("gbnf")))
    assert all(matcher.accept_token(byte) for byte in b'b"') and matcher.accept_token(256)


def test_generate_of_transformers_keeps_to_the_grammar_row_by_row():
    torch = pytest.importorskip("torch", reason="the LogitsProcessor is for transformers")
    constraints = [Constraint(None, None, ("rock", "jazz")), None, Constraint(SHIPPED, 0)]
    process = LogitsProcessor(DECODER, constraints)
    generator = torch.Generator().manual_seed(0)
    rows = torch.full((3, 4), 7)
    for _ in range(40):
        scores = torch.randn(3, SIZE, generator=generator)
        before = scores.clone()
        masked = process(rows, scores)
        assert torch.equal(scores, before) and torch.equal(masked[1], scores[1])
        rows = torch.cat([rows, masked.argmax(-1, keepdim=True)], dim=1)
    first = rows[0, 4:].tolist()
    assert TOKENIZER.decode(first[: first.index(END)]) in ("rock", "jazz")
    assert TOKENIZER.decode(rows[2, 4:].tolist()).startswith("<think>\n<")
    with pytest.raises(InputError, match="1 rows are generated, but 3 constraints"):
        LogitsProcessor(DECODER, constraints)(rows[:1], scores[:1])


def test_teachers_traces_are_allowed():
    from tagpr_data.records import ProfileItem, Task
    from tagpr_data.teachers import scripted_trace

    task = Task(
        name="genre", kind="classification", labels=("rock", "jazz"), question="Which?", answer_form="a genre",
        item_template="{text}: {label}",
    )  # fmt: skip
    rng = random.Random(0)
    words = ["guitar", "riff", "road", "saxophone", "river", "evening", "drum", "fiddle", "harvest"]
    for seed in range(40):
        k = seed % 5
        items = [
            ProfileItem(profile_id="p", position=n, item_id=str(n), label=rng.choice(("rock", "jazz")),
                        text=" ".join(rng.sample(words, 3)))
            for n in range(k)
        ]  # fmt: skip
        text = scripted_trace(task, " ".join(rng.sample(words, 4)), items, "rock", seed)
        assert accepts(Constraint(SHIPPED, k, ("rock", "jazz")), text), text
