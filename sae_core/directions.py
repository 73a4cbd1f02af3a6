"""What decoder directions point at: their nearest neighbours, and the tokens they promote or suppress.

    cosines_NC, neighbours_NC = nearest_directions(sae.W_dec, count=10)
    promoted = token_effects(sae.W_dec, unembedding_VD, final_norm_gain_D, count=10)

Both work in blocks, so that neither (N, N) nor (N, V) ever lies in memory whole.

Shapes: N latents, D = d_model, V vocabulary, C count.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 25  # cosines or effects held at once: 128 MiB in fp32


class TokenEffects(NamedTuple):
    """The tokens whose logits a direction moves most, strongest first."""

    promoted_NC: Tensor  # int64 token ids
    promoted_effect_NC: Tensor  # change of the logit per unit of activation, against the mean token
    suppressed_NC: Tensor
    suppressed_effect_NC: Tensor


def nearest_directions(directions_ND: Tensor, count: int, alive_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cosines (N, C) and numbers (N, C) of each direction's nearest others; only living latents are named.

    C is smaller than `count` where there are not enough others.
    """
    unit_ND = torch.nn.functional.normalize(directions_ND.float(), dim=1)
    alive_N = torch.ones(len(unit_ND), dtype=torch.bool, device=unit_ND.device) if alive_N is None else alive_N
    candidates = alive_N.nonzero().squeeze(1)
    count = max(min(count, len(candidates) - 1), 0)
    others_MD = unit_ND[candidates]
    place_N = torch.full((len(unit_ND),), -1, device=unit_ND.device)
    place_N[candidates] = torch.arange(len(candidates), device=unit_ND.device)
    cosines, numbers = [], []
    for start in range(0, len(unit_ND), _block(len(candidates))):
        block_BM = unit_ND[start : start + _block(len(candidates))] @ others_MD.T
        place_B = place_N[start : start + len(block_BM)]
        itself = (place_B >= 0).nonzero().squeeze(1)
        block_BM[itself, place_B[itself]] = -torch.inf  # no direction is its own neighbour
        cosine_BC, place_BC = block_BM.topk(count, dim=1)
        cosines.append(cosine_BC)
        numbers.append(candidates[place_BC])
    return torch.cat(cosines), torch.cat(numbers)


def token_effects(directions_ND: Tensor, unembedding_VD: Tensor, gain_D: Tensor | None, count: int) -> TokenEffects:
    """Which tokens each direction promotes and suppresses when added to the final residual stream.

    The logit lens (nostalgebraist 2020) applied to directions: W_U (gain * direction), centred over the vocabulary
    because a shift common to all logits changes no probability. `gain_D` is the final norm's weight, None for none.
    """
    lens_VD = unembedding_VD.float() if gain_D is None else unembedding_VD.float() * gain_D.float()
    lens_VD = lens_VD - lens_VD.mean(dim=0)
    count = min(count, len(lens_VD))
    found = []
    for block_BD in directions_ND.float().split(_block(len(lens_VD))):
        effect_BV = block_BD @ lens_VD.T
        up, down = effect_BV.topk(count, dim=1), effect_BV.topk(count, dim=1, largest=False)
        found.append((up.indices, up.values, down.indices, down.values))
    return TokenEffects(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _block(width: int) -> int:
    return max(1, BLOCK_ELEMENTS // max(width, 1))
