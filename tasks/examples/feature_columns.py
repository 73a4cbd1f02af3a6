"""The columns of features.parquet: what is known of each latent besides its examples.

    columns = feature_columns(found, sae, site, model, text, neighbours=10, effect_tokens=10)

Promoted and suppressed tokens are those whose logits the decoder direction moves most through the unembedding; they
are empty where the site does not write to the residual stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.artifacts import Artifact

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from sae_core import SAE
    from tasks.examples.firings import Collection
    from tasks.examples.windows import TokenText

RESIDUAL_KINDS = ("resid_pre", "resid_post", "attn_out", "mlp_out")


def feature_columns(
    found: Collection, sae: SAE, site: str, model: Artifact, text: TokenText, neighbours: int, effect_tokens: int
) -> dict[str, pa.Array]:
    """The columns of features.parquet, one row per latent."""
    import numpy as np
    import pyarrow as pa
    import torch

    from sae_core.directions import nearest_directions

    alive = torch.from_numpy(found.count > 0).to(sae.W_dec.device)
    cosines_NC, neighbours_NC = nearest_directions(sae.W_dec, neighbours, alive)
    return {
        "latent": pa.array(np.arange(found.n_latents, dtype=np.int32)),
        "firing_rate": pa.array(found.count / found.tokens),
        "count": pa.array(found.count),
        "score_count": pa.array(found.score_count),
        "max": pa.array(found.maximum),
        "mean": pa.array((found.total / np.maximum(found.count, 1)).astype(np.float32)),
        "dead": pa.array(found.count == 0),
        "neighbours": _lists(neighbours_NC.int()),
        "neighbour_cosines": _lists(cosines_NC),
        **_effect_columns(sae, site, model, text, effect_tokens),
    }


def _effect_columns(
    sae: SAE, site: str, model: Artifact, text: TokenText, effect_tokens: int
) -> dict[str, pa.Array]:
    import pyarrow as pa
    import torch

    from sae_core import Site
    from sae_core.directions import token_effects
    from tasks.examples.unembedding import load_unembedding

    latents = sae.config.n_latents
    if Site.parse(site).kind not in RESIDUAL_KINDS:  # a direction before a matrix says nothing about tokens
        nothing = torch.zeros(latents, 0)
        words = pa.array([[] for _ in range(latents)], pa.list_(pa.string()))
        return {
            "promoted": words,
            "promoted_effects": _lists(nothing),
            "suppressed": words,
            "suppressed_effects": _lists(nothing),
        }
    unembedding_VD, gain_D = load_unembedding(model)
    gain_D = None if gain_D is None else gain_D.to(sae.W_dec)
    found = token_effects(sae.W_dec, unembedding_VD.to(sae.W_dec), gain_D, effect_tokens)

    def words_of(ids_NC: torch.Tensor) -> pa.Array:
        ids, place = ids_NC.flatten().unique(return_inverse=True)
        strings = pa.array(text.decode(ids.tolist()), pa.string())
        return _lists(ids_NC, strings.take(pa.array(place.cpu().numpy())))

    return {
        "promoted": words_of(found.promoted_NC),
        "promoted_effects": _lists(found.promoted_effect_NC),
        "suppressed": words_of(found.suppressed_NC),
        "suppressed_effects": _lists(found.suppressed_effect_NC),
    }


def _lists(values_NC: torch.Tensor, flat: pa.Array | None = None) -> pa.Array:
    """A column of lists of equal length, one a latent."""
    import numpy as np
    import pyarrow as pa

    rows, width = values_NC.shape
    flat = pa.array(values_NC.flatten().cpu().numpy()) if flat is None else flat
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * width), flat)
