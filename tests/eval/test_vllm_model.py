"""The offline vLLM model where vLLM is not installed; `make test-server` runs the real one as a server."""

from importlib.util import find_spec

import pytest

from tagpr_data.errors import InputError
from tagpr_data.records import Message
from tagpr_eval.config import Decoding, EvaluationConfig
from tagpr_eval.models import Prompt, open_model, parse_spec
from tagpr_eval.vllm_model import VllmModel


def opened(folder, **settings):
    config = EvaluationConfig(models=("majority",), dataset="x", sampling=Decoding(max_new_tokens=4), **settings)
    return open_model(parse_spec(f"vllm:{folder}"), config)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_extra_is_named(tiny_model):
    model = opened(tiny_model)
    prompts = [Prompt((Message(role="user", content="q"),), 0)]
    with pytest.raises(InputError, match=r"pip install 'tagpr-data\[vllm\]'; .* hf:DIR_OR_ID"):
        model.generate(prompts, model.batches(prompts), lambda index, completion: None)


def test_its_answers_are_not_taken_for_those_of_transformers(tiny_model, make_model):
    assert opened(tiny_model).identity == opened(tiny_model).identity
    assert len({opened(tiny_model).identity, opened(make_model(seed=1)).identity}) == 2
    other = open_model(parse_spec(f"hf:{tiny_model}"), EvaluationConfig(models=("majority",), dataset="x"))
    assert opened(tiny_model).identity != other.identity


def test_every_prompt_is_in_one_portion(tiny_model):
    model = opened(tiny_model)
    assert isinstance(model, VllmModel)
    portions = model.batches([Prompt((Message(role="user", content="q"),), n) for n in range(600)])
    assert [len(portion) for portion in portions] == [256, 256, 88]
    assert sorted(index for portion in portions for index in portion) == list(range(600))


def test_an_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="LoRA adapter"):
        opened(tmp_path)
