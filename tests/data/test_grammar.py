"""The exported grammars are regular, so an independent reading of them is a translation to one regular expression:
what it matches must be valid for the parser, and what teachers write must be matched."""

import random
import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tagpr_data.errors import InputError
from tagpr_data.grammar import export
from tagpr_data.records import Step
from tagpr_data.tags import TagSet, cited, load_tagset, parse, render
from tagpr_data.tags_cli import app

SHIPPED = load_tagset()
SMALL = TagSet.model_validate(
    {
        "name": "small",
        "tags": [
            {"name": "see", "meaning": "look", "cites": "required"},
            {"name": "örnek", "meaning": "compare", "cites": "pattern"},
            {"name": "end-it", "meaning": "conclude", "cites": "no"},
            {"name": "aside", "meaning": "mention", "cites": "optional"},
        ],
        "required_any": ["örnek", "end-it"],
        "min_steps": 2,
        "max_steps": 4,
    }
)
CASES = [(tagset, k, notation) for tagset in (SMALL, SHIPPED) for k in (None, 0, 1, 3) for notation in ("gbnf", "lark")]
PIECE = re.compile(
    r'("(?:[^"\\]|\\.)*")|/?(\[(?:[^\]\\]|\\.)*\])/?|(?:\{(\d+),(\d+)\}|~(\d+)\.\.(\d+))|(\w+)|([()|*+?])| +'
)


@cache
def rules(tagset: TagSet, k: int | None, notation: str) -> dict[str, str]:
    lines = [line for line in export(tagset, k, notation).splitlines() if not line.startswith(("#", "//"))]
    return dict(re.split(" ::= " if notation == "gbnf" else ": ", line, maxsplit=1) for line in lines)


@cache
def regex(tagset: TagSet, k: int | None, notation: str) -> re.Pattern[str]:
    of = rules(tagset, k, notation)

    @cache
    def expanded(name: str) -> str:
        assert re.sub(PIECE, "", of[name]) == ""
        return "".join(map(piece, PIECE.finditer(of[name])))

    def piece(match: re.Match[str]) -> str:
        literal, characters, low, high, lark_low, lark_high, name, sign = match.groups()
        if literal:
            return f"(?:{re.escape(eval(literal))})"
        if low or lark_low:
            return f"{{{low or lark_low},{high or lark_high}}}"
        return f"(?:{expanded(name)})" if name else characters or sign or ""

    return re.compile(expanded("root" if notation == "gbnf" else "start"))


def written(tagset: TagSet, k: int | None, notation: str, rng: random.Random) -> str:
    """A random text of the language, drawn rule by rule from the exported grammar."""
    of = rules(tagset, k, notation)
    odd = 'aP1 <[]>\n"“é猫/x?.\u200b\U0001f600'

    def draw(tokens: list[re.Match[str]]) -> str:
        options: list[list[tuple[object, tuple[int, int]]]] = [[]]
        at = 0
        while at < len(tokens):
            literal, characters, low, high, lark_low, lark_high, name, sign = tokens[at].groups()
            if sign == "|":
                options.append([])
            elif sign in ("*", "+", "?") or low or lark_low:
                bounds = {"*": (0, 4), "+": (1, 5), "?": (0, 1)}.get(sign or "")
                options[-1][-1] = (options[-1][-1][0], bounds or (int(low or lark_low), int(high or lark_high)))
            elif sign == "(":
                end, depth = at, 0
                while True:
                    depth += {"(": 1, ")": -1}.get(tokens[end][0], 0)
                    if not depth:
                        break
                    end += 1
                options[-1].append((tokens[at + 1 : end], (1, 1)))
                at = end
            elif literal:
                options[-1].append((eval(literal), (1, 1)))
            elif characters:
                allowed = [c for c in odd + "0123456789" if re.fullmatch(characters, c)]
                options[-1].append(((allowed,), (1, 1)))
            elif name:
                options[-1].append((list(PIECE.finditer(of[name])), (1, 1)))
            at += 1
        text = ""
        for item, (low_count, high_count) in rng.choice(options):
            for _ in range(rng.randint(low_count, high_count)):
                if isinstance(item, list):
                    text += draw(item)
                else:
                    text += item if isinstance(item, str) else rng.choice(item[0])
        return text

    return draw(list(PIECE.finditer(of["root" if notation == "gbnf" else "start"])))


@pytest.mark.parametrize(("tagset", "k", "notation"), CASES)
def test_what_the_grammar_allows_is_valid(tagset: TagSet, k: int | None, notation: str):
    rng = random.Random(0)
    texts = [written(tagset, k, notation, rng) for _ in range(50)]
    for text in texts:
        parsed = parse(text, tagset, k)
        assert parsed.violations == (), text
        assert render(parsed.steps, parsed.answer) == text.rstrip() or "\n" in text.rpartition("</think>")[2][1:]
    assert len({step.tag for text in texts for step in parse(text, tagset, k).steps}) >= len(tagset.tags) - (k == 0)


WORDS = st.lists(
    st.sampled_from(["likes", "a < b", "<X11/Xlib.h>", "[PATCH]", "a[i]", "[P1]", "[P2]", "[P3]", "é", "\n", " "]),
    min_size=1,
).map(" ".join)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(SHIPPED.names), WORDS), max_size=13),
    st.sampled_from(["glx", "<X11>", "", "[1]"]),
)
def test_canonical_texts_are_allowed_exactly_when_valid(pairs: list[tuple[str, str]], answer: str):
    steps = [Step(tag=tag, text=words, cites=cited(words)) for tag, words in pairs]
    text = render(steps, answer)
    is_plain = "[PATCH" not in text and all(step.text[0] not in " \n" for step in steps)
    for k in (None, 3):
        for notation in ("gbnf", "lark"):
            allowed = regex(SHIPPED, k, notation).fullmatch(text) is not None
            valid = parse(text, SHIPPED, k).is_valid
            assert allowed <= valid
            assert allowed == valid or not is_plain


def test_a_tag_set_that_needs_citations_has_no_grammar_without_items():
    tagset = SMALL.model_copy(update={"required_any": ("see",)})
    with pytest.raises(InputError, match="with k = 0 no item can be cited"):
        export(tagset, 0, "gbnf")


def test_the_command_prints_the_grammar():
    result = CliRunner().invoke(app, ["grammar", "--format", "lark", "--k", "2"])
    assert result.exit_code == 0
    assert result.stdout == export(SHIPPED, 2, "lark")
    assert CliRunner().invoke(app, ["grammar", "--format", "bnf"]).exit_code == 2
    assert CliRunner().invoke(app, ["grammar", "--format", "gbnf", "--k", "-1"]).exit_code == 2


@pytest.mark.parametrize("k", [None, 0, 3])
def test_lark_reads_its_grammar_as_we_do(k: int | None):
    lark = pytest.importorskip("lark", reason="the lark package is not installed")
    parser = lark.Lark(export(SMALL, k, "lark"), parser="earley")
    rng = random.Random(1)
    for _ in range(20):
        parser.parse(written(SMALL, k, "gbnf", rng))
    with pytest.raises(lark.exceptions.LarkError):
        parser.parse("<think>\n<end-it>a</end-it>\n<aside>b</end-it>\n</think>\nc")


def test_a_lexer_that_cannot_go_back_writes_the_same_texts():
    llguidance = pytest.importorskip("llguidance", reason="the llguidance package is not installed")
    grammar = llguidance.LLMatcher.grammar_from_lark(export(SMALL, 3, "lark"))
    tokenizer = llguidance.LLTokenizer("byte")
    rng = random.Random(2)
    for _ in range(30):
        text = written(SMALL, 3, "gbnf", rng)
        matcher = llguidance.LLMatcher(tokenizer, grammar)
        tokens = list(text.encode())
        assert matcher.try_consume_tokens(tokens) == len(tokens), text
        assert matcher.is_accepting()


def test_a_pushdown_matcher_writes_the_same_texts():
    xgrammar = pytest.importorskip("xgrammar", reason="the xgrammar package is not installed")
    vocabulary = [bytes([byte]) for byte in range(256)] + [b"</s>"]
    info = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[256])
    grammar = xgrammar.GrammarCompiler(info).compile_grammar(export(SMALL, 3, "gbnf"))
    rng = random.Random(3)
    for _ in range(30):
        text = written(SMALL, 3, "lark", rng)
        matcher = xgrammar.GrammarMatcher(grammar)
        assert all(matcher.accept_token(byte) for byte in text.encode()), text
        assert matcher.accept_token(256)
