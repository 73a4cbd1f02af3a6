"""Sparse autoencoders: tensors in, tensors out. No environment, no printing, no scheduler.

    import sae_core
    sae = sae_core.load_sae("artifact folder")
    codes = sae.encode(activations)

Import is cheap apart from torch itself.
"""

from sae_core.errors import ActivationError, CheckpointError, FormatError, RowsError, SAEError, SiteError
from sae_core.files import load_sae, read_metadata, save_sae
from sae_core.hooks import Site, capture, decoder_layers, splice
from sae_core.sae import Codes, SAEConfig, TopKSAE
from sae_core.statistics import Estimate, Moments, bootstrap_ratio, merge_all

__all__ = [
    "ActivationError",
    "CheckpointError",
    "Codes",
    "Estimate",
    "FormatError",
    "Moments",
    "RowsError",
    "SAEConfig",
    "SAEError",
    "Site",
    "SiteError",
    "TopKSAE",
    "bootstrap_ratio",
    "capture",
    "decoder_layers",
    "load_sae",
    "merge_all",
    "read_metadata",
    "save_sae",
    "splice",
]
