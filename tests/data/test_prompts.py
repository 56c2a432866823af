"""The identity of a chat prompt."""

import hashlib
import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tagpr_data.prompts import hash_of_turns, prompt_hash
from tagpr_data.records import Message
from tagpr_data.tables import canonical_json


def test_the_hash_of_a_prompt_is_that_of_its_canonical_json_by_hand():
    text = '[{"content":"\u00fc \\"x\\"\\n","role":"user"}]'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert prompt_hash([Message(role="user", content='\u00fc "x"\n')]) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["system", "user"]), st.text(max_size=30)), max_size=3))
@example([("user", "".join(map(chr, range(0x100))) + "\u2028\u2029\ufeff\uffff\U0010ffff")])
@example([("user", "half \ud83d of a pair")])
def test_the_hash_is_the_same_for_every_text(turns: list[tuple[str, str]]):
    value = [{"role": role, "content": content} for role, content in turns]
    assert json.loads(canonical_json(value)) == value
    expected = hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()
    assert hash_of_turns(turns) == expected
