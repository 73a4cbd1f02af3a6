"""How long each stage of a whole run takes on named hardware, and what it costs, with the arithmetic in words.

    for cost in sizing(config, estimate(config, planned), hardware("8xh200")):
        print(cost.stage, cost.seconds, cost.gpu_seconds, cost.how)

What a stage reaches of its hardware was measured where it could be, and is said beside each constant. A plan is good to
a factor of two, not to a per cent; that the arithmetic is as it says is tested.
"""

from typing import NamedTuple

from flows.config import PipelineConfig
from flows.estimate import BYTES_PER_TOKEN, Estimate
from flows.hardware import Hardware
from flows.live import clock_text, quantity
from tasks.model import describe_model
from tasks.model.files import ModelShape

TEXT_RATE = 5e6  # bytes/s that one process cuts into rows
FORWARD_SHARE = 0.4  # of the GPUs' bf16 peak in a forward pass over short rows: usual for inference without a cache
WRITE_RATE = 0.5e9  # bytes/s from the capture actors into the store, through one process
PACK_RATE = {"size": 60e6, "speed": 100e6}  # bytes/s of one thread, with checksums and reading back: measured
SHUFFLE_RATE = 70e6  # bytes/s of one site on one core, unpacking included: measured
SHUFFLE_MOST = 250e6  # bytes/s of what stays with one thread (checksums, appending): from one and two threads, measured
CORES = 8  # beside each GPU, at least: what clouds rent with one
MATMUL_SHARE, BANDWIDTH_SHARE = 0.75, 0.7  # of the peaks in a training step: measured on one H200, in bf16
WEIGHT_TRAFFIC = 42  # bytes per weight and step: the weight, its two moments and its gradient, read and written
GATHER_TRAFFIC = 6  # bytes per element of a decoder row: decoding, and the gradients of both matrices, in bf16
TILE_TRAFFIC = 40  # bytes per element of a dense (tokens, latents) tile, by plain autograd in fp32
SPARSE = ("topk", "batch_topk", "matryoshka", "transcoder")  # have the step of sae_core/kernels/gpu.py
PREFIXES = 5  # of matryoshka, where none are given
DENSE_MATMULS = 6  # encoder and decoder, each forward and twice backward
ENCODE_SHARE = 0.5  # of one GPU's fp32 peak where examples encodes all tokens again


class Cost(NamedTuple):
    """What one stage takes. `gpu_seconds` are GPUs x time where it computes on them, else 0."""

    stage: str
    seconds: float
    gpu_seconds: float
    stored_bytes: int
    how: str


def sizing(config: PipelineConfig, needs: Estimate, on: Hardware) -> list[Cost]:
    """One Cost per stage that takes its time, in running order; none where model or corpus are not known."""
    shape = describe_model(config.model)
    if shape is None or needs.tokens is None:
        return []
    capture = _capture(config, needs, shape, on)
    return [
        _corpus(needs),
        capture,
        _archive(config, needs, capture),
        _preprocess(needs, on),
        _train(config, needs, shape, on),
        _evaluate(config, shape, on),
        _examples(config, needs, shape, on),
    ]


def _corpus(needs: Estimate) -> Cost:
    text = int(BYTES_PER_TOKEN * (needs.tokens or 0))
    return Cost("corpus", text / TEXT_RATE, 0, text, f"{quantity(text)}B of text at {quantity(TEXT_RATE)}B/s")


def _capture(config: PipelineConfig, needs: Estimate, shape: ModelShape, on: Hardware) -> Cost:
    """The model up to the last site, or the writing of what it says, whichever takes longer."""
    layers = 1 + max(int(site.rpartition(".")[2]) for site in config.capture.sites)
    weights, tokens, stored = layers * shape.layer_parameters, needs.tokens or 0, needs.captured_bytes or 0
    speed = FORWARD_SHARE * on.gpu.bf16 * on.gpus
    computing, writing = 2 * weights * tokens / speed, stored / WRITE_RATE
    how = f"2 x {quantity(weights)} weights of {layers} layers x {quantity(tokens)} tokens at {quantity(speed)}FLOP/s"
    if writing > computing:
        how = f"{quantity(stored)}B at {quantity(WRITE_RATE)}B/s; the model itself takes {clock_text(computing)}"
    if 2 * weights > on.gpu.memory:
        how += f"; {quantity(2 * weights)}B of bf16 weights do not fit one GPU of {quantity(on.gpu.memory)}B"
    seconds = max(computing, writing)
    return Cost("capture", seconds, seconds * on.gpus, stored, how)


def _archive(config: PipelineConfig, needs: Estimate, capture: Cost) -> Cost:
    """Shards are packed while others are captured: only what takes longer than that counts."""
    rate = PACK_RATE[config.archive.codec] * config.runtime.window
    after = max(0.0, capture.stored_bytes / rate - capture.seconds)
    how = f"{quantity(capture.stored_bytes)}B at {quantity(rate)}B/s ({config.runtime.window} at once), beside capture"
    return Cost("archive", after, 0, needs.archived_bytes or 0, how)


def _preprocess(needs: Estimate, on: Hardware) -> Cost:
    """Threads on all cores of the machine, until what one thread does alone is what limits it."""
    stored, cores = needs.shuffled_bytes or 0, CORES * on.gpus
    rate = min(SHUFFLE_RATE * cores, SHUFFLE_MOST)
    return Cost("preprocess", stored / rate, 0, stored, f"{quantity(stored)}B at {quantity(rate)}B/s on {cores} cores")


def _train(config: PipelineConfig, needs: Estimate, shape: ModelShape, on: Hardware) -> Cost:
    steps = config.train.number_of_steps(needs.train_tokens or 0)
    step, how = step_seconds(config, shape.d_model, on)
    seconds = steps * step
    held = train_bytes(config, shape.d_model, on)
    how = f"{steps:,} steps of {how}; {quantity(held)}B held on each"
    if held > on.gpu.memory:
        how += f", which has {quantity(on.gpu.memory)}B: lower runtime.train_micro_batch or train.n_latents"
    return Cost("train", seconds, seconds * _ranks(config, on), needs.trained_bytes or 0, how)


def _evaluate(config: PipelineConfig, shape: ModelShape, on: Hardware) -> Cost:
    tokens = config.evaluate.text_rows * config.capture.max_tokens
    seconds = 3 * 2 * shape.n_layers * shape.layer_parameters * tokens / (FORWARD_SHARE * on.gpu.bf16)
    how = f"3 forwards of {quantity(tokens)} tokens through {shape.n_layers} layers, on one GPU"
    return Cost("evaluate", seconds, seconds, 0, how)


def _examples(config: PipelineConfig, needs: Estimate, shape: ModelShape, on: Hardware) -> Cost:
    flop, speed = 2 * config.train.n_latents * shape.d_model * (needs.tokens or 0), ENCODE_SHARE * on.gpu.fp32
    how = f"2 n d x {quantity(needs.tokens or 0)} tokens at {quantity(speed)}FLOP/s of one GPU"
    return Cost("examples", flop / speed, flop / speed, 0, how)


def _ranks(config: PipelineConfig, on: Hardware) -> int:
    return min(config.runtime.train_workers, on.gpus)


def train_bytes(config: PipelineConfig, d: int, on: Hardware) -> float:
    """Bytes that a training holds on each GPU: 5.96 GiB at d=3,072 n=65,536 k=64 B=8,192 in bf16, as measured.

    Weights and two moments, and rows with their errors. Where k is given every rank decodes all rows of the batch, with
    copies of weights and rows in bf16 where that is the precision; Matryoshka has errors of each nested dictionary, a
    transcoder rows of its target.
    Others: a gradient, and four dense tiles of a micro-batch.
    """
    train = config.train
    weights, rows = 2 * train.n_latents * d, train.batch_size
    if (train.architecture or "topk") in SPARSE:
        half = 2 if train.precision == "bf16" else 0
        nested = len(train.prefixes or range(PREFIXES)) if train.architecture == "matryoshka" else 1
        targets = 8 if train.transcodes else 0
        return weights * (12 + half) + rows * d * (16 + targets + 2 * half + (nested - 1) * (4 + half))
    share = rows // _ranks(config, on)
    tile = min(config.runtime.train_micro_batch or share, share)
    return weights * 16 + share * d * 16 + 4 * 4 * tile * train.n_latents


def step_seconds(config: PipelineConfig, d: int, on: Hardware) -> tuple[float, str]:
    """Seconds of one training step on `train_workers` GPUs, and how they come about.

    B tokens of the whole batch, d and n the autoencoder's widths. Where k is given the ranks share the encoder's
    matmul; each updates all weights from the exchanged codes (TopK: 12.4 ms at d=3,072 n=65,536 k=64 B=8,192 on one
    H200, as measured). Others: dense autograd, and an all-reduce of gradients.
    """
    train, gpu = config.train, on.gpu
    ranks = _ranks(config, on)
    B, n = train.batch_size, train.n_latents
    weights = 2 * n * d
    peak = {None: gpu.fp32, "tf32": gpu.bf16 / 2, "bf16": gpu.bf16}[train.precision] * MATMUL_SHARE
    bandwidth = BANDWIDTH_SHARE * gpu.bandwidth
    if (train.architecture or "topk") in SPARSE:
        matmul = 2 * B * n * d / (peak * ranks)
        traffic = (WEIGHT_TRAFFIC * weights + GATHER_TRAFFIC * B * train.k * d) / bandwidth
        exchanged = B * (8 * d + 8 * train.k) if ranks > 1 else 0  # rows and errors in fp32, codes and their numbers
    else:
        matmul = DENSE_MATMULS * 2 * B * n * d / (peak * ranks)
        traffic = (WEIGHT_TRAFFIC * weights + TILE_TRAFFIC * B * n / ranks) / bandwidth
        exchanged = 2 * 4 * weights if ranks > 1 else 0
    parts = {"matmuls": matmul, "memory": traffic, "exchange": exchanged / gpu.link}
    said = " + ".join(f"{1000 * seconds:.1f} {name}" for name, seconds in parts.items() if seconds)
    return sum(parts.values()), f"{1000 * sum(parts.values()):.1f} ms ({said}) on {ranks} GPU{'s' * (ranks > 1)}"
