"""Sparse autoencoders: tensors in, tensors out. No environment, no printing, no scheduler.

    import sae_core
    sae = sae_core.load_sae("artifact folder")
    codes = sae.encode(activations)

Import is cheap apart from torch itself.
"""

from sae_core.errors import ActivationError, CheckpointError, FormatError, RowsError, SAEError, SiteError
from sae_core.files import load_sae, read_metadata, save_sae
from sae_core.hooks import Site, capture, decoder_layers, splice
from sae_core.rows import Rows
from sae_core.sae import Codes, SAEConfig, TopKSAE
from sae_core.schedule import ScheduleConfig
from sae_core.statistics import Estimate, Moments, bootstrap_ratio, merge_all
from sae_core.trainer import Trainer, TrainerConfig

__all__ = [
    "ActivationError",
    "CheckpointError",
    "Codes",
    "Estimate",
    "FormatError",
    "Moments",
    "Rows",
    "RowsError",
    "SAEConfig",
    "SAEError",
    "ScheduleConfig",
    "Site",
    "SiteError",
    "TopKSAE",
    "Trainer",
    "TrainerConfig",
    "bootstrap_ratio",
    "capture",
    "decoder_layers",
    "load_sae",
    "merge_all",
    "read_metadata",
    "save_sae",
    "splice",
]
