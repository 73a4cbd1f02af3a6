"""One training step on a GPU beside its floor, one encoder matmul of the same shape and precision.

    python -m tests.benchmarks.gpu [--only PART_OF_A_NAME] [--precision bf16] [--architecture batch_topk] [-o gpu.json]

Prints for each shape and precision: the matmul, the step and both in ratio, activations per second, the step's parts,
the most memory held against what has to be held, and DenseStep (fp32, plain torch) where that fits.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae_core import SAEConfig, make_sae
from sae_core.kernels import Moments, Precision, Step, StepOptions
from sae_core.kernels.reference import DenseStep


class Shape(NamedTuple):
    """What fixes the cost of a step."""

    rows: int
    d: int
    n: int
    k: int


SHAPES = {
    "3b": Shape(8192, 3072, 65536, 64),
    "1b": Shape(8192, 2048, 32768, 64),
    "8b": Shape(8192, 4096, 65536, 64),
    "70b": Shape(8192, 8192, 65536, 64),
    "wide": Shape(8192, 3072, 2**18, 32),
}
ARCHITECTURES = ("topk", "batch_topk", "matryoshka", "transcoder")
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
REPEATS = 8
AT_ONCE = 4  # calls that are timed together
GIB = 2**30


def main() -> None:
    """Measures, prints a table, writes the rows; ends with status 2 where there is nothing to measure on."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", default="", help="only shapes whose name contains this")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="of the encoder's matmul; all")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="topk", help="of the autoencoder; topk")
    parser.add_argument("-o", type=Path, default=Path("gpu.json"), help="where the rows go")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU that torch can use: run this where torch.cuda.is_available() is True.", file=sys.stderr)
        raise SystemExit(2)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    rows = []
    for name, shape in SHAPES.items():
        if arguments.only in name:
            for row in measure(name, shape, arguments.precision or PRECISIONS, arguments.architecture):
                rows.append(row)
                print(line(row), flush=True)
    arguments.o.write_text(json.dumps(rows, indent=1) + "\n")


def measure(
    name: str, shape: Shape, precisions: Sequence[Precision], architecture: str = "topk"
) -> Iterator[dict[str, Any]]:
    """A row for each precision, and one for DenseStep; what does not fit says so."""
    from sae_core.kernels.gpu import TritonStep

    for kind, precision in [*((TritonStep, precision) for precision in precisions), (DenseStep, "fp32")]:
        row = {"shape": name, **shape._asdict(), "architecture": architecture}
        row |= {"step": kind.__name__, "precision": precision}
        torch.cuda.empty_cache()
        try:
            yield row | floor_and_step(shape, kind, precision, architecture)
        except torch.OutOfMemoryError:
            yield row | {"out_of_memory": True}


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    head = "{shape:5} {architecture:10} {step:10} {precision:5}".format(**row)
    if "out_of_memory" in row:
        return f"{head} does not fit into this GPU's memory"
    parts = "".join(f"  {part} {value:.2f}" for part, value in row["parts"].items())
    return head + (
        " matmul {floor:7.2f} ms  step {value:7.2f} ms  ratio {ratio:5.2f}  {per_second:9.0f} activations/s  "
        "peak {peak:6.2f} GiB of {bound:6.2f} needed{parts}"
    ).format(**row | {"parts": parts})


@torch.no_grad()
def floor_and_step(shape: Shape, kind: type, precision: Precision, architecture: str) -> dict[str, Any]:
    """Median milliseconds of both, taken alternately, and what memory the step took."""
    rows, d, n, k = shape
    torch.cuda.reset_peak_memory_stats()
    x_BD = torch.randn(rows, d, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    step, dead_N = prepared(shape, kind, precision, architecture), torch.zeros(n, dtype=torch.bool, device="cuda")
    numbers = iter(range(1, 1_000_000))

    target_BD = x_BD.roll(1, 1) if architecture == "transcoder" else x_BD

    def whole() -> None:
        step.gradients(x_BD, target_BD, dead_N, 0.0)
        step.update(1e-4, next(numbers))

    whole()
    peak = torch.cuda.max_memory_allocated() / GIB
    matmul = encoder(x_BD, n, precision)
    times = in_turn({"step": whole, "matmul": matmul} | (parts(step) if kind is not DenseStep else {}))
    tables = len(step._sae.prefixes) + (target_BD is not x_BD)  # of errors, and of rows beside those encoded
    halves = (4 * n + 2 * (1 + tables) * rows) * d if precision == "bf16" else 0  # copies of weights, rows and errors
    value, below = times.pop("step"), times.pop("matmul")
    return {
        "value": value,
        "floor": below,
        "ratio": value / below,
        "per_second": 1e3 * rows / value,
        "peak": peak,
        "bound": (4 * (3 * (2 * n * d + n + d) + rows * ((2 + tables) * d + 2 * k)) + halves) / GIB,
        "parts": times,
    }


@torch.no_grad()
def prepared(shape: Shape, kind: type, precision: Precision, architecture: str) -> Step:
    """A step whose autoencoder and moments lie on the GPU; its weights are drawn there, which takes no time."""
    with torch.device("meta"):
        sae = make_sae(SAEConfig(d_in=shape.d, n_latents=shape.n, k=shape.k, architecture=architecture))
    sae = sae.to_empty(device="cuda")
    for tensor in sae.state_dict().values():
        tensor.zero_()
    sae.W_dec.normal_(generator=torch.Generator("cuda").manual_seed(1)).div_(sae.W_dec.norm(dim=1, keepdim=True))
    sae.W_enc.copy_(sae.W_dec)
    moments = {
        name: Moments(*(torch.zeros_like(tensor, requires_grad=False) for _ in Moments._fields))
        for name, tensor in sae.named_parameters()
    }
    options = StepOptions(shape.rows, shape.d, 1 / 32, 2048, 0.9, 0.999, 6.25e-10, 0.0, precision=precision)
    return kind(sae, moments, options)


def encoder(x_BD: torch.Tensor, n: int, precision: Precision) -> Callable[[], Any]:
    """One matmul of these rows with random weights into memory that is there; factors are rounded beforehand."""
    from sae_core.kernels.gpu import product

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows_BD, pre_BN = x_BD.to(dtype), torch.empty(len(x_BD), n, device="cuda")
    weights_ND = torch.randn(n, x_BD.shape[1], device="cuda", dtype=dtype)
    return lambda: product(rows_BD, weights_ND, pre_BN, precision)


def parts(step: Any) -> dict[str, Callable[[], Any]]:
    """What a step of the Triton kernels is made of, each part by itself on what the last step left."""
    from sae_core.kernels import gpu_decode, gpu_update

    sae, chosen = step._sae, step._selection
    codes = chosen.values_BK, chosen.latents_BK
    pairs = gpu_update.Pairs.of(*codes, len(sae.b_enc))
    moving = (step._moving[name] for name in ("W_enc", "W_dec", "b_enc"))
    _, W_dec, inputs_BD, error_GBD = step._factors()
    table = (inputs_BD, error_GBD, step._scale, step._ends_G, pairs, step._no_gradients(0), *moving)
    copies = (step._halves.W_enc, step._halves.W_dec) if step._halves else None
    still = step._options.adamw(0.0, 1), copies, sae.unit_decoder
    return {
        "encode": step._encode,
        "errors": lambda: gpu_decode.errors(
            step._wanted_BD, sae.b_pre, W_dec, step._ends_G, *codes, chosen.counts_B, step._error_GBD, error_GBD
        ),
        "sort": lambda: gpu_update.Pairs.of(*codes, len(sae.b_enc)),
        "update": lambda: gpu_update.update(*table, *still),
    }


def in_turn(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median milliseconds of each, by the GPU's own clock."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(REPEATS + 1):
        for name, call in calls.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            call()  # so that the GPU does not wait for the host in what is timed, as it does not in a training
            begin.record()
            for _ in range(AT_ONCE):
                call()
            end.record()
            end.synchronize()
            if repeat:
                times[name].append(begin.elapsed_time(end) / AT_ONCE)
    return {name: statistics.median(taken) for name, taken in times.items()}


if __name__ == "__main__":
    main()
