"""A user's past items as one frozen vector: what a personalization reward model (PRMU) knows about unseen users.

F features. The vector is the mean over items of a frozen text embedding, so it needs no training, a new user gets
one from items alone, and the order of items does not matter. Two encoders:

hashed    signed feature hashing of words, labels and word-label pairs: no weights, no download, 20,000 items/s; sees
          which words go with which label, which is where label preferences show
a folder  mean-pooled last hidden states of a transformers encoder (MiniLM, Contriever): sees meaning and style

The paper says "user embeddings"; what they are made of is not public. This construction is ours.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tagpr_data.errors import InputError
from tagpr_data.records import ProfileItem

Floats = npt.NDArray[np.float32]
Encoder = Callable[[Sequence[ProfileItem]], Floats]
"""Items of one user → (F,) float32; zeros for a user without items."""

HASHED_FEATURES = 1024
"""F of the hashed encoder."""

_WORD = re.compile(r"\w+|[^\w\s]")


def hashed_profile(items: Sequence[ProfileItem]) -> Floats:
    """Give the mean over items of hashed word, label and word-label features, each item scaled to length 1.
    items → (F,) float32 with F = HASHED_FEATURES; length at most 1; zeros for no items."""
    total = np.zeros(HASHED_FEATURES, dtype=np.float64)
    for item in items:
        total += _hashed_item(item.title or "", item.text, item.label or "")
    return (total / max(1, len(items))).astype(np.float32)


def transformer_profile(model_folder: str, batch_size: int = 32, device: str = "cpu") -> Encoder:
    """Give an encoder that mean-pools the last hidden states of the model in `model_folder` (or Hub id), each item
    as `title: text (label)`, normalised, then averages over items. Truncates at 256 tokens."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModel.from_pretrained(model_folder).to(device).eval()

    def encode(items: Sequence[ProfileItem]) -> Floats:
        rows: list[torch.Tensor] = []
        texts = [_as_text(item) for item in items]
        with torch.inference_mode():
            for start in range(0, len(texts), batch_size):
                batch = tokenizer(
                    texts[start : start + batch_size],
                    padding=True, truncation=True, max_length=256, return_tensors="pt",
                ).to(device)  # fmt: skip
                hidden = model(**batch).last_hidden_state  # (B, T, F)
                mask = batch["attention_mask"].unsqueeze(-1)
                pooled = (hidden * mask).sum(1) / mask.sum(1)
                rows.append(torch.nn.functional.normalize(pooled, dim=1))
        if not rows:
            return np.zeros(model.config.hidden_size, dtype=np.float32)
        return torch.cat(rows).mean(0).float().cpu().numpy()

    return encode


def prefix_profiles(encode: Encoder, items: Sequence[ProfileItem]) -> Floats:
    """Give the vectors of a growing profile: row n is `encode(items[:n])`, each item encoded once. → (len + 1, F)."""
    rows = np.stack([encode(()), *(encode((item,)) for item in items)]).astype(np.float64)
    return (rows.cumsum(0) / np.maximum(1, np.arange(len(rows)))[:, None]).astype(np.float32)


def profile_encoder(name: str) -> Encoder:
    """Give the encoder of that name: `hashed`, or a folder or Hub id of a transformers encoder."""
    return hashed_profile if name == "hashed" else transformer_profile(name)


def feature_size(name: str) -> int:
    """Give F of an encoder without running it."""
    if name == "hashed":
        return HASHED_FEATURES
    from transformers import AutoConfig

    try:
        return int(AutoConfig.from_pretrained(name).hidden_size)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"encoder {name!r} cannot be loaded: {str(error).splitlines()[0]}; known: hashed, or a folder or Hub id "
            "of a transformers encoder"
        ) from None


def _as_text(item: ProfileItem) -> str:
    head = f"{item.title}: " if item.title else ""
    tail = f" ({item.label})" if item.label else ""
    return f"{head}{item.text}{tail}"


@lru_cache(maxsize=65536)
def _hashed_item(title: str, text: str, label: str) -> npt.NDArray[np.float64]:
    words = set(_WORD.findall(f"{title} {text}".lower()))
    features = [f"w:{word}" for word in sorted(words)]
    if label:
        features += [f"l:{label}", *(f"p:{word}:{label}" for word in sorted(words))]
    vector = np.zeros(HASHED_FEATURES)
    for feature in features:
        place, sign = _place(feature)
        vector[place] += sign
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


@lru_cache(maxsize=1 << 18)
def _place(feature: str) -> tuple[int, int]:
    digest = int.from_bytes(hashlib.blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
    return digest % HASHED_FEATURES, 1 if digest >> 63 else -1
