"""The k largest of each row, exactly, faster than one pass of `torch.topk` over the whole row.

The k largest values of a row lie in the k chunks with the largest maxima, so two small selections (over the chunk
maxima, then over the surviving chunks) replace one large selection: tests/benchmarks/NOTES.md has the figures.

    values_BK, indices_BK = top_k(pre_BN, k=32)

Shapes: B rows, N latents, K kept, C chunks of a row, W width of a chunk.
"""

import torch
from torch import Tensor

WIDTHS = (64, 32, 16, 8, 4)


def chunk_width(n: int, k: int) -> int | None:
    """The chunk width that makes both selections small, or None where one plain selection is cheaper.

    The first selection sees n / width values, the second k * width; their sum is smallest at width = sqrt(n / k).
    """
    ideal = (n / k) ** 0.5
    for width in WIDTHS:
        if width <= ideal and n % width == 0:
            return width
    return None


@torch.no_grad()
def top_k_indices(pre_BN: Tensor, k: int) -> Tensor:
    """Indices (B, K), int64, of the k largest values of each row, in no promised order; ties are broken arbitrarily."""
    rows, n = pre_BN.shape
    width = chunk_width(n, k)
    if width is None:
        return pre_BN.topk(k, dim=1, sorted=False).indices
    # Chunk c holds the latents c, c + C, c + 2C, ...: maxima over a strided view run along memory.
    chunks_BWC = pre_BN.view(rows, width, n // width)
    chunk_BK = chunks_BWC.amax(dim=1).topk(k, dim=1, sorted=False).indices
    candidates_BWK = chunks_BWC.gather(2, chunk_BK.unsqueeze(1).expand(rows, width, k))
    place_BK = candidates_BWK.view(rows, width * k).topk(k, dim=1, sorted=False).indices
    return place_BK // k * (n // width) + chunk_BK.gather(1, place_BK % k)


def top_k(pre_BN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row and their indices, each (B, K); gradients flow to the chosen values."""
    indices_BK = top_k_indices(pre_BN, k)
    return pre_BN.gather(1, indices_BK), indices_BK
