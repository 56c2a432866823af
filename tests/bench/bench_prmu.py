"""PRMU scores a second, batched against one by one, on the shape RL asks for: groups of 8 answers to one prompt.

Run: OMP_NUM_THREADS=1 python tests/bench/bench_prmu.py          Target: batched at least 5 times one by one.
Random Llama, 4 layers of width 128, 512 words; prompts of 24 words, answers of 8. The same scores come out.
"""

import time

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from tagpr_train.prmu import PRMU

GROUPS, SIZE, PROMPT_WORDS, ANSWER_WORDS = 32, 8, 24, 8


def make() -> PRMU:
    torch.manual_seed(0)
    words = {"<eos>": 0, **{f"w{number}": number for number in range(1, 512)}}
    core = Tokenizer(models.WordLevel(words, unk_token="w1"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    backbone = LlamaModel(LlamaConfig(vocab_size=512, num_key_value_heads=4, **sizes))
    users = {f"u{number}": [] for number in range(GROUPS)}
    return PRMU.from_backbone(backbone, PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>"), users).eval()


if __name__ == "__main__":
    torch.set_num_threads(1)
    prmu = make()
    draw = torch.Generator().manual_seed(1)

    def text(count: int) -> str:
        return " ".join(f"w{int(n)}" for n in torch.randint(1, 512, (count,), generator=draw))

    prompts = [prompt for prompt in (text(PROMPT_WORDS) for _ in range(GROUPS)) for _ in range(SIZE)]
    users = [f"u{number}" for number in range(GROUPS) for _ in range(SIZE)]
    answers = [text(ANSWER_WORDS) for _ in prompts]
    prmu.score_batch(users, prompts, answers)
    start = time.perf_counter()
    together = prmu.score_batch(users, prompts, answers)
    batched = len(prompts) / (time.perf_counter() - start)
    start = time.perf_counter()
    alone = [prmu.score(*row) for row in zip(users, prompts, answers, strict=True)]
    single = len(prompts) / (time.perf_counter() - start)
    assert max(abs(a - b) for a, b in zip(together, alone, strict=True)) < 1e-4
    print(f"batched {batched:.0f}/s, one by one {single:.0f}/s: {batched / single:.1f} times")
