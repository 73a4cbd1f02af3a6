"""How good an autoencoder is: one definition for each figure, with its formula and source.

    fvu(x_BD, x_hat_BD, mean_D); l0(codes); ce_recovered(clean, spliced, ablated)

Shapes: B rows (tokens), D width, N latents, T tokens, V vocabulary.
"""

import torch
from torch import Tensor

from sae_core.codes import Codes


def squared_error(x_BD: Tensor, x_hat_BD: Tensor) -> Tensor:
    """||x - x^||^2 of each row, (B,), float64."""
    return (x_BD.double() - x_hat_BD.double()).square().sum(dim=1)


def squared_deviation(x_BD: Tensor, mean_D: Tensor) -> Tensor:
    """||x - mean||^2 of each row, (B,), float64."""
    return (x_BD.double() - mean_D.double()).square().sum(dim=1)


def fvu(x_BD: Tensor, x_hat_BD: Tensor, mean_D: Tensor | None = None) -> float:
    """Fraction of variance unexplained: sum_b ||x_b - x^_b||^2 / sum_b ||x_b - mean||^2.

    Gao et al. 2024 ("normalized MSE", against the constant prediction of the mean). Both sums run over rows and
    dimensions before the one division; a mean of per-row or per-dimension ratios is another, noisier figure.
    `mean_D` is the mean of these rows by default.
    """
    mean_D = x_BD.double().mean(dim=0) if mean_D is None else mean_D
    return float(squared_error(x_BD, x_hat_BD).sum() / squared_deviation(x_BD, mean_D).sum())


def explained_variance(x_BD: Tensor, x_hat_BD: Tensor, mean_D: Tensor | None = None) -> float:
    """1 - FVU, the coefficient of determination R^2."""
    return 1.0 - fvu(x_BD, x_hat_BD, mean_D)


def l0(codes: Codes) -> float:
    """Mean number of latents that fire (activation > 0) per row."""
    return float(codes.counts().double().mean())


def firing_counts(codes: Codes, n_latents: int) -> Tensor:
    """In how many of these rows each latent fires, (N,), int64."""
    return torch.bincount(codes.pairs().latent_F, minlength=n_latents)


def dead_share(firing_counts_N: Tensor) -> float:
    """Share of latents that fired in none of the counted rows."""
    return float((firing_counts_N == 0).double().mean())


def density_histogram(firing_counts_N: Tensor, rows: int, bins_per_decade: int = 4) -> tuple[Tensor, Tensor]:
    """Histogram of log10 firing rates: bin edges (H + 1,) from log10(1 / rows) to 0, and counts (H,), int64.

    Bricken et al. 2023, "Towards monosemanticity" (feature density). Latents that never fired are in no bin: see
    `dead_share`.
    """
    decades = max(1, int(torch.tensor(float(max(rows, 2))).log10().ceil()))
    edges = torch.linspace(-decades, 0, decades * bins_per_decade + 1, dtype=torch.float64)
    rates = (firing_counts_N[firing_counts_N > 0].double() / rows).log10()
    place = torch.bucketize(rates, edges[1:-1], right=True)
    return edges, torch.bincount(place, minlength=len(edges) - 1)


def cosine_similarity(x_BD: Tensor, x_hat_BD: Tensor) -> float:
    """Mean over rows of the cosine between a row and its reconstruction."""
    return float(torch.nn.functional.cosine_similarity(x_BD.double(), x_hat_BD.double(), dim=1).mean())


def token_cross_entropy(logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    """-log p(target) of each token in nats, (T,)."""
    return torch.nn.functional.cross_entropy(logits_TV.float(), targets_T, reduction="none")


def token_kl(logits_TV: Tensor, other_logits_TV: Tensor) -> Tensor:
    """KL(p || q) of each token in nats, (T,): p the model's own prediction, q the prediction with something changed."""
    log_p_TV, log_q_TV = logits_TV.float().log_softmax(-1), other_logits_TV.float().log_softmax(-1)
    return (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1)


def ce_recovered(clean: float, spliced: float, ablated: float) -> float:
    """(ablated - spliced) / (ablated - clean): 1 where the autoencoder costs nothing, 0 where zeros do as well.

    The "loss recovered" of Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders":
    cross-entropies of the model, with the reconstruction spliced in, and with the activation set to zero.
    """
    return (ablated - spliced) / (ablated - clean)


def fidelity(clean: float, spliced: float, ablated: float) -> float:
    """(spliced - clean) / (ablated - clean), lower is better: 1 - ce_recovered, as Goodfire reports it."""
    return 1.0 - ce_recovered(clean, spliced, ablated)
