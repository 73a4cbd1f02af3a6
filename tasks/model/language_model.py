"""Trains the demo's language model: a byte-level BPE tokenizer and a small untied Llama, saved in Hugging Face format.

About a minute on two threads: a fixed number of steps, because its files must be the same bits when it is made again
(same machine type, same number of threads). A plain start stays above the bigram for that minute; this one begins near
the bigram, from a low-rank factorisation of the log-bigram matrix (tasks/model/bigram.py), and ends well below it.

    summary = train_language_model(LanguageModelSpec(), documents, folder, report=print)
    summary["validation_bits_per_byte"] < summary["bigram_bits_per_byte"]
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from tasks.artifacts import Spec, Summary
from tasks.corpus.sentences import split_paragraphs
from tasks.errors import InputError, SpecError

if TYPE_CHECKING:
    from torch import Tensor

BEGIN = "<|begin|>"  # stands before each paragraph, so that a row of the corpus begins as in training
WARM_UP_STEPS = 20
LAST_RATE = 0.02  # share of the learning rate at the last step
HELD_OUT = 20  # one paragraph in so many is kept for validation


class LanguageModelSpec(Spec):
    """Shape and training of the demo's model."""

    vocabulary: int = Field(
        2048,
        ge=300,
        description="Tokens, 256 bytes and the begin token among them.",
        title="Vocabulary",
        json_schema_extra={"position": 0},
    )
    d_model: int = Field(
        128, ge=8, description="Width of the residual stream.", title="Width", json_schema_extra={"position": 1}
    )
    layers: int = Field(3, ge=1, description="Decoder layers.", title="Layers", json_schema_extra={"position": 2})
    heads: int = Field(
        4, ge=1, description="Attention heads; must divide d_model.", title="Heads", json_schema_extra={"position": 3}
    )
    d_mlp: int = Field(384, ge=8, description="Width of the MLP.", title="MLP width", json_schema_extra={"position": 4})
    context: int = Field(
        64,
        ge=8,
        description="Tokens of one training window, and the longest input it is made for.",
        title="Context",
        json_schema_extra={"position": 5},
    )
    batch: int = Field(
        16, ge=1, description="Windows per step.", title="Windows per step", json_schema_extra={"position": 6}
    )
    steps: int = Field(
        800,
        ge=1,
        description="Optimizer steps; 16 windows of 64 tokens take 0.06 s on two threads.",
        title="Steps",
        json_schema_extra={"position": 7},
    )
    learning_rate: float = Field(
        1.2e-2,
        gt=0,
        description="AdamW's highest rate; it falls linearly to 2% of it.",
        title="Learning rate",
        json_schema_extra={"position": 8},
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Decides initial weights and the order of windows.",
        title="Seed",
        json_schema_extra={"position": 9},
    )
    threads: int = Field(
        2,
        ge=1,
        description="CPU threads; another number can change the last bits of the weights, so it is hashed.",
        title="Threads",
        json_schema_extra={"position": 10},
    )

    @model_validator(mode="after")
    def _whole_heads(self) -> LanguageModelSpec:
        if self.d_model % (2 * self.heads):
            raise SpecError(f"d_model {self.d_model} over {self.heads} heads is no even head width; choose a multiple.")
        return self


def train_language_model(
    spec: LanguageModelSpec, documents: Sequence[str], folder: Path, report: Callable[[int, int, str], None]
) -> Summary:
    """Trains on the documents' paragraphs, saves model and tokenizer into `folder` and returns the figures.

    Raises InputError when there is too little text for one batch and for a validation set.
    """
    paragraphs = [paragraph for document in documents for paragraph in split_paragraphs(document)]
    training = [paragraph for i, paragraph in enumerate(paragraphs) if (i + 1) % HELD_OUT]
    validation = paragraphs[HELD_OUT - 1 :: HELD_OUT]
    with _threads(spec.threads):
        report(0, spec.steps, "steps")  # here and below: the work before the first step takes seconds, and may be ended
        tokenizer = _train_tokenizer(training, spec)
        report(0, spec.steps, "steps")
        train_N, validation_N = _encode(tokenizer, training), _encode(tokenizer, validation)
        if len(train_N) < 2 * spec.batch * spec.context or len(validation_N) < 2:
            raise InputError(
                f"The text has {len(train_N)} tokens, too few to train a language model on; "
                f"it takes at least {2 * spec.batch * spec.context} and {HELD_OUT} paragraphs."
            )
        figures = _train(spec, tokenizer, train_N, validation_N, folder, report)
    bits, bigram_bits, model = figures
    held_out_bytes = sum(len(paragraph.encode()) for paragraph in validation)
    return {
        "validation_bits_per_byte": round(bits / held_out_bytes, 4),
        "bigram_bits_per_byte": round(bigram_bits / held_out_bytes, 4),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "layers": spec.layers,
        "d_model": spec.d_model,
        "vocabulary": spec.vocabulary,
        "context": spec.context,
        "steps": spec.steps,
        "text_bytes": sum(len(paragraph.encode()) for paragraph in paragraphs),
        "text_tokens": len(train_N) + len(validation_N),
    }


def _train_tokenizer(texts: Sequence[str], spec: LanguageModelSpec) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=spec.vocabulary,
            special_tokens=[BEGIN],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BEGIN, model_max_length=spec.context)


def _encode(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """One stream of token ids, each text with its begin token."""
    import torch

    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(texts))
    return torch.tensor([token for encoding in encodings for token in encoding.ids], dtype=torch.int64)


def _train(
    spec: LanguageModelSpec,
    tokenizer: Any,
    train_N: Tensor,
    validation_N: Tensor,
    folder: Path,
    report: Callable[[int, int, str], None],
) -> tuple[float, float, Any]:
    """The trained and saved model, with its bits and the bigram's for the validation stream."""
    import torch

    from tasks.model.bigram import baseline_bits, count_bigrams

    generator = torch.Generator().manual_seed(spec.seed)
    report(0, spec.steps, "steps")
    counts_VV = count_bigrams(train_N, spec.vocabulary)
    bigram_bits = baseline_bits(counts_VV, validation_N)
    report(0, spec.steps, "steps")
    model = _initial_model(spec, tokenizer, counts_VV, generator)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=spec.learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    windows = _windows(train_N, spec, generator)
    for step in range(spec.steps):
        for group in optimizer.param_groups:
            group["lr"] = spec.learning_rate * _rate(step, spec.steps)
        ids_BT = next(windows)
        _token_loss(model, ids_BT).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        report(step + 1, spec.steps, "steps")
    model.eval()
    bits = _stream_bits(model, validation_N, spec.context)
    with no_progress_bars():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return bits, bigram_bits, model


def _initial_model(spec: LanguageModelSpec, tokenizer: Any, counts_VV: Tensor, generator: Any) -> Any:
    """A Llama whose blocks add little yet, between an embedding and a head that act as the bigram does."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tasks.model.bigram import low_rank_start

    config = LlamaConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.d_model,
        intermediate_size=spec.d_mlp,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        max_position_embeddings=spec.context,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):  # every weight is drawn again below, the caller's random state stays
        model = LlamaForCausalLM(config)
    start = low_rank_start(counts_VV, spec.d_model, generator)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:  # the norms stay at one
                writes_to_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
                weight.normal_(0, (0.1 if writes_to_stream else 1.0) * weight.shape[1] ** -0.5, generator=generator)
        model.model.embed_tokens.weight.copy_(start.embedding_VD)
        model.lm_head.weight.copy_(start.head_VD)
    return model


def _windows(ids_N: Tensor, spec: LanguageModelSpec, generator: Any) -> Iterator[Tensor]:
    """Batches (B, context + 1) without end: each epoch cuts the stream at a new offset and shuffles the windows."""
    import torch

    span = torch.arange(spec.context + 1)
    while True:
        offset = int(torch.randint(spec.context, (1,), generator=generator))
        starts = torch.arange(offset, len(ids_N) - spec.context, spec.context)
        order = starts[torch.randperm(len(starts), generator=generator)]
        for batch in order.split(spec.batch):
            if len(batch) == spec.batch:
                yield ids_N[batch[:, None] + span]


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP_STEPS) * max(LAST_RATE, 1 - step / steps)


def _token_loss(model: Any, ids_BT: Tensor) -> Tensor:
    """Cross-entropy in nats of each next token, (B, T - 1)."""
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
    return cross_entropy(logits.transpose(1, 2), ids_BT[:, 1:], reduction="none")


def _stream_bits(model: Any, ids_N: Tensor, context: int) -> float:
    """Bits for the whole stream but its first token, each token seen once with at least half a context before it."""
    import torch

    width = min(context, len(ids_N) - 1)
    stride = max(width // 2, 1)
    starts = sorted({*range(0, len(ids_N) - 1 - width, stride), len(ids_N) - 1 - width})
    nats, scored = 0.0, 1
    with torch.no_grad():
        for chunk in torch.tensor(starts).split(64):
            losses = _token_loss(model, ids_N[chunk[:, None] + torch.arange(width + 1)])
            for start, loss_T in zip(chunk.tolist(), losses, strict=True):
                nats += loss_T[scored - start - 1 :].sum().item()
                scored = start + width + 1
    return nats / math.log(2)


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keeps transformers from drawing bars for loading and saving over the table of stages."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
