"""First weights of an autoencoder, from its config's seed alone.

    W_enc_ND, W_dec_ND = first_weights(config, norm=1.0)

Shapes: N latents, D width.
"""

import torch
from torch import Tensor

from sae_core.config import SAEConfig


def first_weights(config: SAEConfig, norm: float) -> tuple[Tensor, Tensor]:
    """Encoder and decoder rows (N, D) of this norm, fp32, as `config.initialisation` says.

    tied: Gao et al. 2024, section 2.4: random directions for both leave few latents dead. orthogonal: the columns of
    the matrix (or its rows, where N < D) are orthonormal before each row is brought to its norm.
    """
    generator = torch.Generator().manual_seed(config.seed)
    decoder_ND = torch.randn(config.n_latents, config.d_in, generator=generator, device="cpu")
    if config.initialisation == "orthogonal":
        decoder_ND = _orthonormal(decoder_ND)
    decoder_ND = decoder_ND / decoder_ND.norm(dim=1, keepdim=True) * norm
    if config.initialisation != "random":
        return decoder_ND, decoder_ND
    encoder_ND = torch.randn(config.n_latents, config.d_in, generator=generator, device="cpu")
    return encoder_ND / encoder_ND.norm(dim=1, keepdim=True) * norm, decoder_ND


def _orthonormal(matrix_ND: Tensor) -> Tensor:
    """The orthogonal factor of a matrix, unique because the triangular one's diagonal is made positive."""
    tall = len(matrix_ND) >= matrix_ND.shape[1]
    q, r = torch.linalg.qr(matrix_ND if tall else matrix_ND.T)
    q = q * r.diagonal().sign()
    return q if tall else q.T
