"""Machines that a plan can reckon with: `runtime.hardware=8xh200`.

Data-sheet figures, dense (no structured sparsity); what a stage reaches of them is in flows/sizing.py. Prices are
typical ones of GPU clouds, per GPU and hour with the cores and the memory that come along; they change monthly.
"""

import re
from typing import NamedTuple

from tasks.errors import SpecError

PRICES_AS_OF = "2026-11-26"


class Gpu(NamedTuple):
    """One kind of GPU."""

    bf16: float  # FLOP/s of matmuls in bfloat16
    fp32: float  # the same in float32, without tensor cores
    memory: float  # bytes
    bandwidth: float  # bytes/s of that memory
    link: float  # bytes/s one way between GPUs of a machine: NVLink, or PCIe
    dollars: float  # an hour


GPUS = {
    "rtx3090": Gpu(71e12, 35.6e12, 24e9, 0.936e12, 20e9, 0.25),
    "rtx4090": Gpu(165e12, 82.6e12, 24e9, 1.008e12, 20e9, 0.45),
    "a100": Gpu(312e12, 19.5e12, 80e9, 2.039e12, 300e9, 1.60),
    "h100": Gpu(989e12, 67e12, 80e9, 3.35e12, 450e9, 2.60),
    "h200": Gpu(989e12, 67e12, 141e9, 4.8e12, 450e9, 3.40),
}


class Hardware(NamedTuple):
    """So many GPUs of a kind, in one machine."""

    name: str
    gpus: int
    gpu: Gpu


def hardware(name: str) -> Hardware:
    """The hardware of a name such as `8xh200` or `rtx3090`; SpecError where there is none."""
    match = re.fullmatch(r"(?:(\d{1,4})x)?(\w+)", name)
    count = int(match[1] or 1) if match else 0
    if not match or not count or match[2] not in GPUS:
        raise SpecError(
            f"runtime.hardware is {name!r}, of which a plan knows nothing; write a count and a kind, such as 8xh200. "
            f"The kinds are {', '.join(GPUS)}."
        )
    return Hardware(name, count, GPUS[match[2]])
