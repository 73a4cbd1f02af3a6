"""llama3_interpretability_sae (PaulPauls): one state dict; TopK on rows that are standardised.

It divides by the standard deviation with Bessel's correction, c s with c = sqrt(d / (d - 1)), where ours is s. With
x' = c x'_theirs, epsilon / c, W_enc / c, c b_pre and c W_dec both compute the same codes and the same reconstruction.
"""

import math
from typing import Any

from sae_core.errors import FormatError
from sae_core.formats.build import build
from sae_core.formats.given import Given
from sae_core.formats.source import Source
from sae_core.sae import SAE

SHAPES = {"b_pre": "d", "encoder.weight": "nd", "encoder.bias": "n", "decoder.weight": "dn"}
EPSILON = 1e-6  # of its published training


def read(source: Source, given: Given) -> tuple[SAE, dict[str, Any]]:
    """The autoencoder with `given.k` latents per row and `given.epsilon` (EPSILON); raises FormatError without k."""
    given.only("k", "epsilon")
    if given.k is None:
        raise FormatError(f"{source.path} does not say how many latents fire at each row; give k (64 as published).")
    b_pre, W_enc, b_enc, W_dec = source.take(SHAPES).values()
    d = len(b_pre)
    if d == 1:
        raise FormatError(f"{source.path} reads rows of width 1, which have no deviation to be divided by.")
    correction = math.sqrt(d / (d - 1))
    epsilon = EPSILON if given.epsilon is None else given.epsilon
    settings = {"k": given.k, "normalization": "standardise_rows", "epsilon": epsilon / correction}
    sae = build("topk", settings, W_enc / correction, W_dec.t() * correction, b_pre * correction, b_enc=b_enc)
    return sae, {}
