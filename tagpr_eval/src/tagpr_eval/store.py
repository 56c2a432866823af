"""The sample store: what models wrote, each distinct request once, in a file that survives `kill -9`.

A sample's key is the hash of model identity, prompt, sampling, seed and labels to be scored, so equal prompts are
answered once across all cells, seeds that do not matter, and runs continued later. Guarantee: a sample is on
file when `add` returns.
"""

from collections.abc import Sequence
from pathlib import Path

from tagpr_data.journal import Journal
from tagpr_data.records import Sample, Sampling
from tagpr_data.tables import canonical_json, sha256_text, write_text
from tagpr_eval.models import Completion

FILE = "samples.jsonl"


def sample_key(identity: str, prompt: str, sampling: Sampling, seed: int, labels: Sequence[str] = ()) -> str:
    """Give the key of a sample; `prompt` is its `prompt_hash`, `seed` its `effective_seed`, `labels` those scored
    instead of writing. Chat template and thinking are in the model's identity, the system prompt in the prompt."""
    return sha256_text(canonical_json([identity, prompt, sampling.model_dump(mode="json"), seed, list(labels)]))


class SampleStore:
    """Samples by key; the folder must be locked by the caller."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._journal = Journal(self._path, Sample)
        self._samples = {row.key: row for row in self._journal.rows}

    def __contains__(self, key: str) -> bool:
        return key in self._samples

    def __getitem__(self, key: str) -> Sample:
        return self._samples[key]

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, key: str, completion: Completion) -> None:
        """Keep a completion; a key that is already there keeps its first one."""
        if key not in self._samples:
            sample = Sample(
                key=key,
                text=completion.text,
                finish_reason=completion.finish_reason,
                input_tokens=completion.input_tokens,
                output_tokens=completion.output_tokens,
                label_logprobs=completion.label_logprobs,
            )
            self._journal.append(sample)
            self._samples[key] = sample

    def merge(self, samples: "SampleStore") -> None:
        """Take over what another store has and this one lacks."""
        for key, sample in samples._samples.items():
            if key not in self._samples:
                self._journal.append(sample)
                self._samples[key] = sample

    def tidy(self) -> None:
        """Sort the file by key, so that the same samples are the same bytes however they came in."""
        self._journal.close()
        lines = [self._samples[key].model_dump_json() + "\n" for key in sorted(self._samples)]
        write_text(self._path, "".join(lines))
        self._journal = Journal(self._path, Sample)

    def close(self) -> None:
        """Bring everything to the disk."""
        self._journal.close()
