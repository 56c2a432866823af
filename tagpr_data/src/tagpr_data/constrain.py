"""Constrained decoding: what keeps a model inside the tag grammar while it writes.

A `Constraint` says what one completion may be: a trace in the grammar of a tag set that cites only the items its
prompt shows ([P1] … [Pk], none for k = 0), perhaps with one of the task's labels as the answer, or a label alone. It
is enforced by the server (`request_fields`: vLLM, llama.cpp) or, over transformers, by `Decoder` with llguidance (the
extra `constrain`), as masks over the next token. Guarantee: a completion that ended by itself is valid for
`tags.parse` with that k. One cut at the token limit is a beginning of a valid one and breaks the grammar
(`unclosed-think`): nothing here makes a model come to an end. Price: the Lark and GBNF languages are a part of what
`parse` accepts (grammar.py); a mask takes some 0.05 ms a row (see the README), and the first one of a grammar more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

from tagpr_data.errors import InputError
from tagpr_data.grammar import Format, export, export_answers
from tagpr_data.tags import TagSet

if TYPE_CHECKING:
    import numpy as np
    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray

ServerKind = Literal["none", "vllm", "llama-cpp"]
"""How a server takes a grammar. `vllm`: field `structured_outputs` (vLLM 0.12 and later). `llama-cpp`: field
`grammar` (llama.cpp's server, llama-cpp-python's)."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What one completion may be."""

    tagset: TagSet | None
    """Tags of the trace; None: no trace, only one of the answers."""
    k: int | None
    """Items in the prompt; None: not known."""
    answers: tuple[str, ...] = ()
    """What the answer may be; empty: any text."""

    def grammar(self, notation: Format) -> str:
        """Give it as a grammar; InputError where no trace could be valid."""
        return _grammar(self, notation)


def request_fields(kind: ServerKind, constraint: Constraint | None) -> dict[str, Any]:
    """Give the fields of a chat request by which a server of this kind enforces the constraint; none without one."""
    if constraint is None or kind == "none":
        return {}
    grammar = constraint.grammar("gbnf")
    return {"structured_outputs": {"grammar": grammar}} if kind == "vllm" else {"grammar": grammar}


class Decoder:
    """The grammars of one tokenizer, as masks over the next token. Sizes: B rows, V tokens of the model."""

    def __init__(self, tokenizer: Any, end_ids: Sequence[int], vocabulary: int) -> None:
        """Take a tokenizer (a fast one of transformers, or one of tokenizers), the tokens that end a completion, and
        the width V of the logits."""
        core = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not hasattr(core, "to_str"):
            raise InputError("constrained decoding needs a fast tokenizer (tokenizer.json)")
        self._tokenizer = core
        self._end_ids = sorted(end_ids)
        self.vocabulary = vocabulary
        self._first: dict[Constraint, LLMatcher] = {}

    def start(self, constraint: Constraint, begun: str = "") -> "LLMatcher":
        """Give the state before the first token of a completion, or after the part that the prompt has `begun`.
        InputError where that part cannot be the beginning of an allowed completion."""
        if constraint not in self._first:
            llguidance = _llguidance()
            grammar = llguidance.LLMatcher.grammar_from_lark(constraint.grammar("lark"))
            self._first[constraint] = _checked(llguidance.LLMatcher(self._tokens, grammar, log_level=0))
        matcher = self._first[constraint].deep_copy()
        tokens = self._tokens.tokenize_bytes(begun.encode())
        if matcher.try_consume_tokens(tokens) < len(tokens):
            raise InputError(f"the answer begins with {begun[:80]!r}, which no trace in the tag grammar does")
        return matcher

    def allowed(self, matchers: "Sequence[LLMatcher | None]") -> "NDArray[np.bool_]":
        """Give which tokens may come next, (B, V); all where there is no matcher."""
        import numpy as np
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        words = allocate_token_bitmask(len(matchers), self.vocabulary)  # all bits set
        for row, matcher in enumerate(matchers):
            if matcher is not None:
                fill_next_token_bitmask(matcher, words, row)
                _checked(matcher)
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little", count=self.vocabulary)
        return bits.view(np.bool_)

    @cached_property
    def _tokens(self) -> "LLTokenizer":
        """The tokens as bytes. llguidance reads them off the tokenizer, but takes every added token that looks like
        `<think>` for a control token, which no text can hold; here only those are that the tokenizer calls special."""
        llguidance = _llguidance()
        core = type(self._tokenizer).from_str(self._tokenizer.to_str())  # a copy: the settings are changed
        core.no_padding()
        core.no_truncation()
        read = llguidance.LLTokenizer(core.to_str(), n_vocab=self.vocabulary, eos_token=self._end_ids)
        special = {number for number, token in core.get_added_tokens_decoder().items() if token.special}
        tokens = _Tokens(
            tokens=[read.decode_bytes([number]) for number in range(self.vocabulary)],
            special_token_ids=sorted(special.union(self._end_ids)),
            eos_token_id=self._end_ids[0],
            cut=read.tokenize_bytes,
        )
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(tokens), eos_token=self._end_ids)


@dataclass(frozen=True)
class _Tokens:
    """A tokenizer in the form that llguidance asks for."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    cut: Callable[[bytes], list[int]]
    bos_token_id: None = None

    def __call__(self, text: bytes) -> list[int]:
        return self.cut(text)


class LogitsProcessor:
    """The same for `generate` of transformers: `logits_processor=[LogitsProcessor(decoder, constraints)]`, one
    constraint a row (None: free), made anew for each call. Beams, which change rows, are not supported."""

    def __init__(self, decoder: Decoder, constraints: Sequence[Constraint | None]) -> None:
        self._decoder = decoder
        self._matchers = [None if constraint is None else decoder.start(constraint) for constraint in constraints]
        self._length = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Take the tokens so far (B, T) and logits (B, V); give the logits with what may not come at −∞."""
        if len(input_ids) != len(self._matchers):
            raise InputError(f"{len(input_ids)} rows are generated, but {len(self._matchers)} constraints were given")
        if self._length:
            assert input_ids.shape[1] == self._length + 1, "a processor serves one call of generate"
            for matcher, token in zip(self._matchers, input_ids[:, -1].tolist(), strict=True):
                if matcher is not None and not matcher.is_stopped():  # after its end a row is padded
                    matcher.consume_token(token)
        self._length = input_ids.shape[1]
        banned = scores.new_tensor(~self._decoder.allowed(self._matchers)).bool()
        return scores.masked_fill(banned, float("-inf"))


@lru_cache(maxsize=256)
def _grammar(constraint: Constraint, notation: Format) -> str:
    if constraint.tagset is None:
        return export_answers(constraint.answers, notation)
    return export(constraint.tagset, constraint.k, notation, constraint.answers)


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise InputError(
            "constrained decoding needs llguidance: pip install 'tagpr-data[constrain]', or leave it off"
        ) from None
    return llguidance


def _checked(matcher: "LLMatcher") -> "LLMatcher":
    if matcher.is_error():
        raise InputError(f"the grammar cannot be enforced: {matcher.get_error()}")
    return matcher
