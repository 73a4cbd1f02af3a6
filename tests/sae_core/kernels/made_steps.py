"""Training steps with an autoencoder away from the start, and rows for them: the same for every kernel."""

from collections.abc import Sequence
from typing import Any

import torch

from sae_core import SAE, SAEConfig, make_sae
from sae_core.kernels import Found, Moments, Step, StepOptions
from sae_core.kernels.reference import DenseStep

V = 3.7
PARAMETERS = ("W_enc", "W_dec", "b_enc", "b_pre")


def made(d: int, n: int, k: int, architecture: str) -> SAE:
    """An autoencoder; Matryoshka's ("matryoshka", or "matryoshka by row") with three nested dictionaries."""
    name, _, by_row = architecture.partition(" ")
    nested: dict[str, Any] = {"prefixes": tuple(sorted({1, n // 3 or 1, n}))} if name == "matryoshka" else {}
    selection: dict[str, Any] = {"selection": "row"} if by_row else {}
    return make_sae(SAEConfig(d_in=d, n_latents=n, k=k, architecture=name, **nested, **selection))


def prepared(
    kind: type, d: int, n: int, k: int, rows: int, architecture: str = "topk", device: str = "cpu", **changes: Any
) -> tuple[Step, SAE, dict[str, Moments]]:
    """A step (DenseStep in float64), its autoencoder and its moments; with k = n, negative pre-activations are kept."""
    sae = made(d, n, k, architecture)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        sae.b_enc -= 0.5
    sae = sae.to(device, torch.float64 if kind is DenseStep else torch.float32)
    options = {"auxiliary": 0.25, "k_auxiliary": 3, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.1}
    moments = {
        name: Moments(*(torch.zeros_like(tensor, requires_grad=False) for _ in Moments._fields))
        for name, tensor in sae.named_parameters()
    }
    return kind(sae, moments, StepOptions(rows=rows, variance=V, **(options | changes))), sae, moments


def batch(rows: int, d: int, number: int, device: str = "cpu") -> torch.Tensor:
    """(rows, d); another for each number."""
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(100 + number)).to(device)


def found_by(step: Any, x_BD: torch.Tensor, dead: Sequence[int]) -> Found:
    """The step's gradients with these latents dead."""
    dead_N = torch.zeros(len(step._sae.b_enc), dtype=torch.bool, device=x_BD.device)
    dead_N[list(dead)] = True
    return step.gradients(x_BD, x_BD, dead_N, 0.0)


def some_latents(n: int, count: int | str) -> list[int]:
    """`count` of n latents, or all of them."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(9))[: n if count == "all" else int(count)].tolist()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference in parts of the expected one's."""
    difference = float((found.double() - expected.double()).norm())
    return difference / float(expected.double().norm()) if difference else 0.0
