"""Training steps with an autoencoder away from the start, and rows for them: the same for every kernel."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sae_core import SAE, SAEConfig, make_sae
from sae_core.kernels import Found, Moments, Step, StepOptions
from sae_core.kernels.reference import DenseStep

V = 3.7
PARAMETERS = ("W_enc", "W_dec", "b_enc", "b_pre")
HOW: dict[str, Callable[[int], dict[str, Any]]] = {
    "by row": lambda d: {"selection": "row"},
    "without pre-bias": lambda d: {"pre_bias": False},
    "to another width": lambda d: {"d_out": d + 1},
    "with skip": lambda d: {"skip": True},
}


def made(d: int, n: int, k: int, architecture: str) -> SAE:
    """An autoencoder; Matryoshka's with three nested dictionaries. Behind its name one of HOW."""
    name, _, how = architecture.partition(" ")
    settings = dict(HOW[how](d)) if how else {}
    if name == "matryoshka":
        settings["prefixes"] = tuple(sorted({1, n // 3 or 1, n}))
    return make_sae(SAEConfig(d_in=d, n_latents=n, k=k, architecture=name, **settings))


def prepared(
    kind: type, d: int, n: int, k: int, rows: int, architecture: str = "topk", device: str = "cpu", **changes: Any
) -> tuple[Step, SAE, dict[str, Moments]]:
    """A step (DenseStep in float64), its autoencoder and its moments; with k = n, negative pre-activations are kept."""
    sae = made(d, n, k, architecture)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        if sae.unit_decoder:
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
    """The step's gradients with these latents dead; a transcoder's target is made of its rows."""
    dead_N = torch.zeros(len(step._sae.b_enc), dtype=torch.bool, device=x_BD.device)
    dead_N[list(dead)] = True
    config, target_BD = step._sae.config, x_BD
    if config.architecture == "transcoder":
        target_BD = torch.cat([x_BD.roll(1, 1) ** 2, x_BD], dim=1)[:, : config.width_out]
    return step.gradients(x_BD, target_BD, dead_N, 0.0)


def some_latents(n: int, count: int | str) -> list[int]:
    """`count` of n latents, or all of them."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(9))[: n if count == "all" else int(count)].tolist()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference in parts of the expected one's."""
    difference = float((found.double() - expected.double()).norm())
    return difference / float(expected.double().norm()) if difference else 0.0
