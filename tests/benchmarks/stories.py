"""Activations of stories260K (output of block 3) on TinyStories: rows to train on, rows to choose by, rows to report.

    stories = Stories.capture(folder)                     # folder gets the training rows as a file for sae_core.Rows
    stories.rows.batch(step, 1024).float()                # the same rows in the same order for everyone
    stories.quality(sae, "test")                          # Quality(fvu, l0, dead, ce_recovered)

The three parts are tokens of different stories. Each story is read as the pipeline reads one: BOS is fed and not
stored, at most the model's context, bf16 in storage.

Shapes: T tokens of a part, D width, B rows of a batch, L padded length, V vocabulary.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_core import SAE, Rows, capture, metrics, splice
from tasks.prompts import Batch, padded, tokenise

SHARED = Path(__file__).parents[3] / "shared"
MODEL = SHARED / "models" / "stories260K"
TEXT = SHARED / "data" / "tinystories" / "tiny_stories_944k.txt"
SITE = "resid_post.3"
PARTS = {"train": 65_536, "validation": 16_384, "test": 16_384}  # tokens: training rows exactly, others at least
TOKENS_AT_ONCE = 8192


class Part(NamedTuple):
    """Whole stories and their activations."""

    batches: list[Batch]
    x_TD: Tensor  # fp32, through bf16


class Quality(NamedTuple):
    """How good an autoencoder is on one part."""

    fvu: float
    l0: float
    dead: float  # share of latents that fire nowhere in the part
    ce_recovered: float


class Stories(NamedTuple):
    """The model, the training rows, and the parts that are held out."""

    model: Any
    rows: Rows
    held_out: dict[str, Part]

    @classmethod
    def capture(cls, folder: Path) -> "Stories":
        """Reads the text once; raises FileNotFoundError where model or text are not beside the repository."""
        for path in (MODEL, TEXT):
            if not path.exists():
                raise FileNotFoundError(f"{path.relative_to(SHARED.parent)} is not beside this repository")
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(MODEL)
        model = AutoModelForCausalLM.from_pretrained(MODEL).eval().requires_grad_(False)
        stories = iter(re.split(r"(?<!\n)\n(?!\n)", TEXT.read_text()))
        parts = {name: _part(model, tokenizer, stories, tokens) for name, tokens in PARTS.items()}
        x_TD = parts.pop("train").x_TD[: PARTS["train"]]
        shuffled_T = torch.randperm(len(x_TD), generator=torch.Generator().manual_seed(0))
        save_file({"activations": x_TD[shuffled_T].bfloat16()}, folder / "train.safetensors")
        return cls(model, Rows([folder / "train.safetensors"]), parts)

    def quality(self, sae: SAE, part: str) -> Quality:
        """All figures of one autoencoder on one held-out part."""
        batches, x_TD = self.held_out[part]
        codes = sae.encode(x_TD)
        fired_N = metrics.firing_counts(codes, sae.config.n_latents)
        fvu = metrics.fvu(x_TD, sae.decode(codes))
        return Quality(fvu, metrics.l0(codes), metrics.dead_share(fired_N), self._ce_recovered(sae, batches))

    def _ce_recovered(self, sae: SAE, batches: list[Batch]) -> float:
        sums = {"clean": 0.0, "spliced": 0.0, "ablated": 0.0}
        for _, ids_BL, kept_BL in batches:
            counted_BL = kept_BL[:, :-1] & kept_BL[:, 1:]

            def cross_entropy(ids_BL: Tensor = ids_BL, counted_BL: Tensor = counted_BL) -> float:
                logits_TV = self.model(input_ids=ids_BL, use_cache=False).logits[:, :-1][counted_BL]
                return float(metrics.token_cross_entropy(logits_TV, ids_BL[:, 1:][counted_BL]).double().sum())

            def reconstruct(x_BLD: Tensor, kept_BL: Tensor = kept_BL) -> Tensor:
                x_BLD = x_BLD.clone()
                x_BLD[kept_BL] = sae(x_BLD[kept_BL])
                return x_BLD

            sums["clean"] += cross_entropy()
            with splice(self.model, SITE, reconstruct):
                sums["spliced"] += cross_entropy()
            with splice(self.model, SITE, lambda x_BLD, kept_BL=kept_BL: x_BLD.masked_fill(kept_BL.unsqueeze(2), 0)):
                sums["ablated"] += cross_entropy()
        return metrics.ce_recovered(**sums)


def _part(model: Any, tokenizer: Any, stories: Iterator[str], tokens: int) -> Part:
    """The next stories, until there are at least so many tokens."""
    texts: list[str] = []
    stored = 0
    longest = model.config.max_position_embeddings
    while stored < tokens:
        texts.append(next(stories))
        prompts = tokenise(tokenizer, texts[-1:], bos="add", drop_bos=True, longest=longest)
        stored += len(prompts.ids[0]) - prompts.skipped[0]
    prompts = tokenise(tokenizer, texts, bos="add", drop_bos=True, longest=longest)
    batches = list(padded(prompts, TOKENS_AT_ONCE))
    with capture(model, [SITE]) as forward:
        found = [forward(input_ids=ids_BL)[SITE][kept_BL] for _, ids_BL, kept_BL in batches]
    return Part(batches, torch.cat(found).bfloat16().float())
