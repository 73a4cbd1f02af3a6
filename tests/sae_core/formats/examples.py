"""Small autoencoders of every architecture, foreign files in their documented layouts, and what they compute.

The formulas are written out in float64 with dense codes and share no code with sae_core.

Shapes: B rows, N latents, D width.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_core import SAE, SAEConfig, make_sae

D, N, K = 12, 40, 5
CONFIGS = {
    "topk": SAEConfig(d_in=D, n_latents=N, k=K),
    "topk_without_pre_bias": SAEConfig(d_in=D, n_latents=N, k=K, pre_bias=False),
    "topk_scaled": SAEConfig(d_in=D, n_latents=N, k=K, normalization="scale"),
    "relu": SAEConfig(d_in=D, n_latents=N, architecture="relu"),
    "relu_with_pre_bias": SAEConfig(d_in=D, n_latents=N, architecture="relu", pre_bias=True),
    "jumprelu": SAEConfig(d_in=D, n_latents=N, architecture="jumprelu"),
    "gated": SAEConfig(d_in=D, n_latents=N, architecture="gated"),
    "batch_topk": SAEConfig(d_in=D, n_latents=N, k=K, architecture="batch_topk"),
    "matryoshka": SAEConfig(d_in=D, n_latents=N, k=K, architecture="matryoshka"),
    "matryoshka_by_row": SAEConfig(d_in=D, n_latents=N, k=K, architecture="matryoshka", selection="row"),
    "transcoder": SAEConfig(d_in=D, n_latents=N, k=K, architecture="transcoder"),
    "skip_transcoder": SAEConfig(d_in=D, n_latents=N, k=K, architecture="transcoder", skip=True),
    "skip_transcoder_scaled": SAEConfig(
        d_in=D, n_latents=N, k=K, architecture="transcoder", skip=True, normalization="scale"
    ),
}
BY_ROW = [name for name in CONFIGS if name.startswith(("topk", "matryoshka_by_row", "transcoder", "skip"))]
NOT_TRANSCODERS = [name for name in CONFIGS if "transcoder" not in name]


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal values (shape), float32."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows(seed: int = 9) -> Tensor:
    """Activations (200, D)."""
    return 2 * noise(200, D, seed=seed) + 0.5


def random_sae(name: str) -> SAE:
    """One of CONFIGS with no weight left at its first value."""
    sae = make_sae(CONFIGS[name])
    with torch.no_grad():
        for seed, parameter in enumerate(sae.parameters()):
            parameter += noise(*parameter.shape, seed=seed, scale=0.3)
        for buffer, value in (("input_scale", 0.7), ("target_scale", 1.3), ("threshold", 0.4)):
            if buffer in dict(sae.named_buffers()):
                getattr(sae, buffer).fill_(value)
    return sae.requires_grad_(False).eval()


def relu(pre_BN: Tensor) -> Tensor:
    """What is positive."""
    return pre_BN.clamp(min=0)


def top(k: int) -> Callable[[Tensor], Tensor]:
    """The positive ones among the k largest of each row."""
    return lambda pre_BN: torch.where(pre_BN >= pre_BN.sort(dim=1).values[:, -k, None], pre_BN, 0).clamp(min=0)


def above(threshold: Tensor) -> Callable[[Tensor], Tensor]:
    """What is positive and above the threshold, one or (N,)."""
    return lambda pre_BN: torch.where(pre_BN > threshold.double(), pre_BN, 0).clamp(min=0)


def check(
    sae: SAE,
    x_BD: Tensor,
    W_enc: Tensor,
    W_dec: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    activation: Callable[[Tensor], Tensor],
    subtract: bool = True,
) -> None:
    """Asserts codes and reconstruction: activation(W_enc (x - b_dec) + b_enc) and W_dec z + b_dec, both W (N, D)."""
    x_BD, W_enc, W_dec, b_enc, b_dec = (tensor.double() for tensor in (x_BD, W_enc, W_dec, b_enc, b_dec))
    code_BN = activation((x_BD - b_dec if subtract else x_BD) @ W_enc.T + b_enc)
    assert 0.02 < (code_BN > 0).double().mean() < 0.98, "the example must have latents that fire and such that do not"
    check_outputs(sae, x_BD.float(), code_BN, code_BN @ W_dec + b_dec)


def check_outputs(sae: SAE, x_BD: Tensor, code_BN: Tensor, reconstruction_BD: Tensor) -> None:
    """Asserts that an autoencoder gives these codes and this reconstruction, up to the rounding of float32."""
    codes = sae.encode(x_BD)
    torch.testing.assert_close(codes.dense(N).double(), code_BN.double(), atol=3e-5, rtol=1e-5)
    torch.testing.assert_close(sae(x_BD).double(), reconstruction_BD.double(), atol=1e-4, rtol=1e-5)


def folder_of(path: Path, config: dict, weights: str, tensors: dict[str, Tensor], name: str = "cfg.json") -> Path:
    """Writes a folder of settings and weights."""
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(json.dumps(config))
    if weights.endswith(".safetensors"):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / weights)
    else:
        torch.save(tensors, path / weights)
    return path
