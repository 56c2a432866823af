"""PRMU: a reward model that scores a completion *for one user*, usable on its own.

    prmu = PRMU.from_pretrained("folder or Hub id")
    prmu.score("u0007", prompt, completion)             # a user of the training table
    prmu.score(items, prompt, completion)               # anyone, from past items, without retraining

Any causal LM or encoder serves as backbone. The user enters twice: as one soft token in front of the sequence, and by
a bilinear match with the last token's state z, score = w·z + (M·user)·z. Without the match a small model only learns
what a user likes in general: 0.75 against 0.95 pair accuracy on `personas-choice` after as many steps. User vector =
learned table row + projection of the frozen profile embedding (`user_embedding.py`); an unseen user has only the second
term, and user dropout in training (the row is left out at random) makes that term carry the user. Profile embeddings
are standardised over the training users, and nobody's profile (no items) is the average user's. Everything is one
folder: config.json, model.safetensors, tokenizer, users.json. Scores are in nats of preference (Bradley-Terry):
σ(a - b) is the chance that a is preferred to b.

The paper gives PRMU its name and purpose; architecture, projection and dropout are ours. B batch, T tokens, D width,
F profile features, U users.
"""

import inspect
import json
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_outputs import SequenceClassifierOutput

from tagpr_data.data_source import fetch
from tagpr_data.errors import InputError, shorten
from tagpr_data.records import Message, ProfileItem
from tagpr_data.tables import write_text
from tagpr_train.user_embedding import Encoder, feature_size, profile_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

User = str | Sequence[ProfileItem] | Tensor
"""Who is scored for: an id of the training table, past items, or a vector from `embed_user`."""

Prompt = str | Sequence[Message]
"""What was asked, without the profile: a user turn, or a chat."""

USERS_FILE = "users.json"

_MATCH_GAIN = 4.0  # how fast the match learns against the rest; 1 and 2 were slower in a trial


class PRMUConfig(PreTrainedConfig):
    """Architecture and calibration of a PRMU; written to config.json."""

    model_type = "prmu"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        num_users: int = 0,
        profile_encoder: str = "hashed",
        profile_features: int = 1024,
        use_user: bool = True,
        user_dropout: float = 0.5,
        max_tokens: int = 1024,
        reads: str = "completion",
        score_mean: float = 0.0,
        score_std: float = 1.0,
        **kwargs: Any,
    ) -> None:
        """backbone: the backbone's own config as a dict. num_users: U. use_user: False leaves the soft token out (an
        ablation). user_dropout: chance in training that a table row is left out. max_tokens: of prompt and
        completion. reads: `completion`, or `answer` for what follows the think block only. score_mean, score_std: of
        the training completions' scores, for `standardised`."""
        self.backbone = backbone or {}
        self.num_users = num_users
        self.profile_encoder = profile_encoder
        self.profile_features = profile_features
        self.use_user = use_user
        self.user_dropout = user_dropout
        self.max_tokens = max_tokens
        self.reads = reads
        self.score_mean = score_mean
        self.score_std = score_std
        kwargs.setdefault("num_labels", 1)
        super().__init__(**kwargs)


class PRMU(PreTrainedModel):
    """The reward model. `forward` is what a trainer calls; people call `score`, `score_batch` and `embed_user`."""

    config_class = PRMUConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True

    def __init__(self, config: PRMUConfig) -> None:
        super().__init__(config)
        settings = dict(config.backbone)
        backbone_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        self.backbone = AutoModel.from_config(backbone_config)
        width = int(backbone_config.hidden_size)
        self.user_table = nn.Embedding(max(1, config.num_users), width)
        self.profile_projection = nn.Linear(config.profile_features, width)
        self.match = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, 1, bias=False)
        self.register_buffer("profiles", torch.zeros(max(1, config.num_users), config.profile_features))  # (U, F)
        self.register_buffer("profile_mean", torch.zeros(config.profile_features))
        self.register_buffer("profile_scale", torch.ones(()))
        self.users: dict[str, int] = {}
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self._encoder: Encoder | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Table rows start at zero (an untrained user adds nothing), the head small; projection and match keep the
        size of what they get."""
        if module is self.user_table:
            nn.init.zeros_(self.user_table.weight)
        elif isinstance(module, nn.Linear):
            keeps_size = module is self.profile_projection or module is self.match
            nn.init.normal_(module.weight, std=module.in_features**-0.5 if keeps_size else 0.02)
            if module is self.profile_projection:
                nn.init.zeros_(module.bias)

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path | PreTrainedModel,
        tokenizer: "PreTrainedTokenizerBase",
        profiles: Mapping[str, Sequence[ProfileItem]],
        *,
        encoder: str = "hashed",
        **settings: Any,
    ) -> Self:
        """Make an untrained PRMU on a pretrained backbone; `profiles` are the training users and their items."""
        loaded = AutoModel.from_pretrained(backbone) if isinstance(backbone, (str, Path)) else backbone
        config = PRMUConfig(
            backbone=_plain_config(loaded.config),
            num_users=len(profiles),
            profile_encoder=encoder,
            profile_features=feature_size(encoder),
            **settings,
        )
        model = cls(config)
        missing, unexpected = model.backbone.load_state_dict(loaded.state_dict(), strict=False)
        missing = [name for name in missing if not name.startswith("pooler.")]  # an unused part of BERT's kind
        assert not missing and not unexpected, f"backbone weights do not fit: {missing[:3]} {unexpected[:3]}"
        model.tokenizer = tokenizer
        model.users = {user: row for row, user in enumerate(sorted(profiles))}
        for user, row in model.users.items():
            cast(Tensor, model.profiles)[row] = torch.from_numpy(model.encoder(profiles[user]))
        if len(profiles) > 1:
            model.standardise_profiles(cast(Tensor, model.profiles))
        return model

    def standardise_profiles(self, profiles: Tensor) -> None:
        """Take mean and spread of these profile embeddings (N, F), N at least 2, as those of all people. One spread
        for all features: scaling each by its own would make rare words as loud as habits."""
        centred = profiles - profiles.mean(0)
        cast(Tensor, self.profile_mean).copy_(profiles.mean(0))
        cast(Tensor, self.profile_scale).copy_(centred.square().mean().sqrt().clamp(min=1e-6))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load a PRMU with tokenizer and users from a folder or OWNER/NAME[@REVISION] of the Hub; safetensors only.
        InputError where it cannot be got, is not a PRMU or is damaged."""
        name = pretrained_model_name_or_path
        folder = Path(name)
        if not folder.is_dir():
            revision = kwargs.pop("revision", None)
            folder = fetch("PRMU", f"{name}@{revision}" if revision else str(name), "model")
        if not (folder / USERS_FILE).is_file():
            raise InputError(f"{name} is not a PRMU: it has no {USERS_FILE}; give a folder made by `tagpr-train prmu`")
        options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, **kwargs}
        try:
            loaded: Any = super().from_pretrained(folder, *args, **options)
            model, found = loaded
            model.users = dict(json.loads((folder / USERS_FILE).read_text(encoding="utf-8")))
            model.tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            what = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            raise InputError(f"{name} is not a whole PRMU ({what}); make it or fetch it again") from error
        if missing := sorted(found["missing_keys"]):
            raise InputError(f"{name} is not a whole PRMU: its weights lack {', '.join(missing[:3])}; make it again")
        return model.eval()

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write config, weights, tokenizer and users; the folder loads by `from_pretrained`."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)
        write_text(Path(save_directory) / USERS_FILE, json.dumps(self.users, ensure_ascii=False, indent=0))

    @property
    def encoder(self) -> Encoder:
        """The frozen profile encoder, loaded at first use."""
        if self._encoder is None:
            self._encoder = profile_encoder(self.config.profile_encoder)
        return self._encoder

    def get_input_embeddings(self) -> nn.Module:
        """Give the backbone's word embeddings."""
        return self.backbone.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        user_index: Tensor | None = None,
        profiles: Tensor | None = None,
        user_vector: Tensor | None = None,
        keep_rows: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Score sequences. input_ids, attention_mask (B, T) right-padded; user_index (B,) int64 rows of the table, with
        `profiles` (B, F) where not the stored ones and `keep_rows` as in `known_users`, or user_vector (B, D) → logits
        (B, 1) in nats."""
        embedded = self.get_input_embeddings()(input_ids)  # (B, T, D)
        if self.config.use_user:
            if user_vector is None:
                assert user_index is not None, "a user is needed: user_index or user_vector"
                user_vector = self.known_users(user_index, profiles, keep_rows)
            embedded = torch.cat([user_vector.to(embedded.dtype).unsqueeze(1), embedded], dim=1)
            attention_mask = torch.cat([attention_mask.new_ones(len(attention_mask), 1), attention_mask], dim=1)
        hidden = self.backbone(inputs_embeds=embedded, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(1) - 1  # (B,)
        final = hidden[torch.arange(len(hidden), device=hidden.device), last]  # (B, D)
        return SequenceClassifierOutput(logits=self._logits(final, user_vector))

    def known_users(
        self, user_index: Tensor, profiles: Tensor | None = None, keep_rows: Tensor | None = None
    ) -> Tensor:
        """Give the vectors of table users: row + projected profile, the stored one unless `profiles` (B, F) are given.
        (B,) → (B, D). In training a row is left out with chance `user_dropout`, or where `keep_rows` (B, 1) bool says
        so. An index of -1 is nobody's row."""
        rows = self.user_table(user_index.clamp(min=0)) * (user_index >= 0).unsqueeze(1)
        if self.training and self.config.user_dropout:
            if keep_rows is None:
                keep_rows = torch.rand(len(rows), 1, device=rows.device) >= self.config.user_dropout
            rows = rows * keep_rows
        return rows + self.projected(cast(Tensor, self.profiles)[user_index] if profiles is None else profiles)

    def projected(self, profiles: Tensor) -> Tensor:
        """Project profile embeddings, standardised over the training users. (B, F) → (B, D)."""
        known = profiles.abs().sum(-1, keepdim=True) > 0
        standard = (profiles - cast(Tensor, self.profile_mean)) / cast(Tensor, self.profile_scale)
        return self.profile_projection((standard * known).to(self.head.weight.dtype))

    @torch.inference_mode()
    def embed_user(self, user: User, items: Sequence[ProfileItem] | None = None) -> Tensor:
        """Give a user's vector (D,): of a table user, or of anyone from past items (none: the average user). With both,
        the table's row meets these items instead of the stored ones, and an id not in the table is no error."""
        if isinstance(user, Tensor):
            return user
        if not isinstance(user, str):
            user, items = "", user
        features = None if items is None else torch.from_numpy(self.encoder(items)).to(self.device)
        if user in self.users:
            index = torch.tensor([self.users[user]], device=self.device)
            return self.known_users(index, None if features is None else features[None])[0]
        if features is None:
            raise InputError(
                f"user {shorten(user)} is not among the {len(self.users)} users of this PRMU; give past items instead"
            )
        return self.projected(features[None])[0]

    def score(self, user: User, prompt: Prompt, completion: str) -> float:
        """Score one completion for one user, in nats; higher is better."""
        return self.score_batch([user], [prompt], [completion])[0]

    @torch.inference_mode()
    def score_batch(
        self, users: Sequence[User], prompts: Sequence[Prompt], completions: Sequence[str], batch_size: int = 32
    ) -> list[float]:
        """Score many. Equal users given as the same object are embedded once; completions of one prompt and user, as in
        RL, share the work on the prompt where the backbone is causal. Raises InputError where the three differ in
        length."""
        if not len(users) == len(prompts) == len(completions):
            raise InputError(f"{len(users)} users, {len(prompts)} prompts and {len(completions)} completions: one each")
        self.eval()
        vectors: dict[Any, Tensor] = {}
        fronts: dict[Any, list[int]] = {}
        groups: dict[Any, list[tuple[int, list[int]]]] = {}  # user and prompt tokens → completions
        for row, (user, prompt, completion) in enumerate(zip(users, prompts, completions, strict=True)):
            who = user if isinstance(user, str) else id(user)
            if who not in vectors:
                vectors[who] = self.embed_user(user)
            asked = prompt if isinstance(prompt, str) else tuple(prompt)
            if asked not in fronts:
                fronts[asked] = self._prompt_tokens(prompt)
            front, back = self._fitted(fronts[asked], completion)
            groups.setdefault((who, tuple(front)), []).append((row, back))
        scores = [0.0] * len(users)
        for batch in _batches(groups, batch_size, is_shared=len(groups) < len(users) and self._shares_prompts(groups)):
            owner = [number for number, (_, members) in enumerate(batch) for _ in members]
            backs = [member for _, members in batch for member in members]
            heads = [list(front) for (_, front), _ in batch]
            stacked = torch.stack([vectors[who] for (who, _), _ in batch])
            if len(batch) < len(backs):
                logits = self._shared_logits(heads, [back for _, back in backs], stacked, owner)
            else:
                input_ids, mask = pad([head + back for head, (_, back) in zip(heads, backs, strict=True)], self.device)
                logits = self(input_ids=input_ids, attention_mask=mask, user_vector=stacked).logits
            for (row, _), value in zip(backs, logits[:, 0].float().tolist(), strict=True):
                scores[row] = value
        return scores

    def standardised(self, scores: Sequence[float]) -> list[float]:
        """Give scores minus the training mean, over the training deviation: what the reward's sigmoid takes."""
        return [(score - self.config.score_mean) / self.config.score_std for score in scores]

    def encode(self, prompt: Prompt, completion: str) -> list[int]:
        """Give the token ids of one prompt and completion. A sequence longer than `max_tokens` loses the front of its
        prompt first: the completion is what is judged."""
        front, back = self._fitted(self._prompt_tokens(prompt), completion)
        return [*front, *back]

    def is_cut(self, prompt: Prompt, completion: str) -> bool:
        """Tell whether `encode` drops tokens: of the prompt's front, or of a completion longer than `max_tokens`."""
        front = self._prompt_tokens(prompt)
        fitted, back = self._fitted(front, completion)
        return len(fitted) < len(front) or len(back) == self.config.max_tokens

    def _prompt_tokens(self, prompt: Prompt) -> list[int]:
        assert self.tokenizer is not None, "a PRMU made by from_backbone or from_pretrained has a tokenizer"
        return list(self.tokenizer(_front(self.tokenizer, prompt), add_special_tokens=False)["input_ids"])

    def _fitted(self, front: list[int], completion: str) -> tuple[list[int], list[int]]:
        """Give the tokens of prompt and completion, cut to `max_tokens` together."""
        assert self.tokenizer is not None, "a PRMU made by from_backbone or from_pretrained has a tokenizer"
        if self.config.reads == "answer":
            completion = completion.rpartition("</think>")[2].strip()
        back = self.tokenizer(f"{completion}{self.tokenizer.eos_token or ''}", add_special_tokens=False)["input_ids"]
        back = list(back[-self.config.max_tokens :])
        return front[max(0, len(front) - self.config.max_tokens + len(back)) :], back

    def _shares_prompts(self, groups: Mapping[Any, Sequence[tuple[int, list[int]]]]) -> bool:
        """Whether one pass over a prompt can serve several completions: a causal backbone with a plain cache."""
        parameters = inspect.signature(self.backbone.forward).parameters
        if not {"past_key_values", "position_ids"} <= parameters.keys():
            return False
        if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=self.backbone.config).layers):
            return False
        if any(
            not back or not (front or self.config.use_user) for (_, front), rows in groups.items() for _, back in rows
        ):
            return False
        first, other = (
            self.backbone(input_ids=torch.tensor([[0, token]], device=self.device)).last_hidden_state[:, 0]
            for token in (0, 1)
        )
        return torch.equal(first, other)  # a later token changes nothing before it

    def _shared_logits(
        self, fronts: list[list[int]], backs: list[list[int]], users: Tensor, owner: Sequence[int]
    ) -> Tensor:
        """Give the logits (N, 1) of N completions; completion n continues prompt owner[n] of G, with users (G, D)."""
        ids, mask = pad(fronts, self.device)
        embedded = self.get_input_embeddings()(ids)  # (G, P, D)
        if self.config.use_user:
            embedded = torch.cat([users.to(embedded.dtype).unsqueeze(1), embedded], dim=1)
            mask = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
        cache = DynamicCache(config=self.backbone.config)
        self.backbone(inputs_embeds=embedded, attention_mask=mask, past_key_values=cache, use_cache=True)
        rows = torch.tensor(owner, device=self.device)
        cache.batch_select_indices(rows)
        back_ids, back_mask = pad(backs, self.device)
        places = mask.sum(1)[rows].unsqueeze(1) + torch.arange(back_ids.shape[1], device=self.device)
        hidden = self.backbone(
            inputs_embeds=self.get_input_embeddings()(back_ids),
            attention_mask=torch.cat([mask[rows], back_mask], dim=1),
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        final = hidden[torch.arange(len(hidden), device=hidden.device), back_mask.sum(1) - 1]
        return self._logits(final, users[rows])

    def _logits(self, final: Tensor, users: Tensor | None) -> Tensor:
        """Judge last states (B, D) for users (B, D): head plus match. → (B, 1)."""
        final = final.to(self.head.weight.dtype)
        logits = self.head(final)
        if users is None or not self.config.use_user:
            return logits
        matched = (self.match(users.to(final.dtype)) * final).sum(1, keepdim=True)
        return logits + _MATCH_GAIN * final.shape[1] ** -0.5 * matched


def _batches(groups: Mapping[Any, list[Any]], batch_size: int, *, is_shared: bool) -> Generator[list[Any], None, None]:
    """Give lists of (user and prompt, completions) with at most `batch_size` completions, alike in length; one
    completion each unless `is_shared`."""
    step = batch_size if is_shared else 1
    parts = [(key, rows[start : start + step]) for key, rows in groups.items() for start in range(0, len(rows), step)]
    parts.sort(key=lambda part: len(part[0][1]) + max(len(back) for _, back in part[1]))
    batch: list[Any] = []
    for part in parts:
        if batch and sum(len(rows) for _, rows in batch) + len(part[1]) > batch_size:
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch


def pad(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Right-pad token ids: → input_ids (B, T), attention_mask (B, T), int64. Padding is id 0, masked out."""
    longest = max(1, max((len(sequence) for sequence in sequences), default=1))
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
        mask[row, : len(sequence)] = 1
    return ids.to(device), mask.to(device)


def pairwise_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, centring: float = 0.0) -> Tensor:
    """Bradley-Terry loss with margin, -log σ(chosen - rejected - margin), plus `centring` times the mean square of
    the pair's sum, which keeps scores around 0. (B,), (B,) → scalar in nats."""
    loss = -nn.functional.logsigmoid(chosen - rejected - margin).mean()
    return loss + centring * (chosen + rejected).square().mean() if centring else loss


def _front(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> str:
    messages = (
        [{"role": "user", "content": prompt}]
        if isinstance(prompt, str)
        else [message.model_dump(mode="json") for message in prompt]
    )
    if tokenizer.chat_template:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return "\n".join(message["content"] for message in messages) + "\n"


def _plain_config(config: Any) -> dict[str, Any]:
    """Give a backbone's config without the traces of its file (name, architecture, quantisation)."""
    values = config.to_dict()
    for key in ("_name_or_path", "architectures", "quantization_config", "transformers_version", "dtype"):
        values.pop(key, None)
    return values


AutoConfig.register("prmu", PRMUConfig)
AutoModel.register(PRMUConfig, PRMU)
