"""Goodfire's releases: one state dict of two nn.Linear with bias, encoder_linear and decoder_linear.

z = ReLU(W_enc x + b_enc),  x^ = W_dec z + b_dec: nothing is subtracted from the input.
"""

from typing import Any

from sae_core.formats.build import build
from sae_core.formats.given import Given
from sae_core.formats.source import Source
from sae_core.sae import SAE

NAMES = ("encoder_linear", "decoder_linear")


def shapes(encoder: str, decoder: str) -> dict[str, str]:
    """The tensors of two linear maps, and their dimensions."""
    return {f"{encoder}.weight": "nd", f"{encoder}.bias": "n", f"{decoder}.weight": "dn", f"{decoder}.bias": "d"}


def read(source: Source, given: Given, names: tuple[str, str] = NAMES) -> tuple[SAE, dict[str, Any]]:
    """The autoencoder; such a file says nothing more."""
    given.only()
    W_enc, b_enc, W_dec, b_dec = source.take(shapes(*names)).values()
    return build("relu", {"pre_bias": False}, W_enc, W_dec.t(), b_dec, b_enc=b_enc), {}
