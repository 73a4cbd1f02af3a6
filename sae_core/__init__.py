"""Sparse autoencoders: tensors in, tensors out. No environment, no printing, no scheduler.

    import sae_core
    sae = sae_core.load_sae("artifact folder")      # or make_sae(SAEConfig(d_in=64, n_latents=1024, k=16))
    codes = sae.encode(activations)

Import is cheap apart from torch itself.
"""

from sae_core.architectures import (
    BatchTopKSAE,
    GatedSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    ReLUSAE,
    Transcoder,
    make_sae,
)
from sae_core.codes import Codes, CSRCodes, TopKCodes
from sae_core.config import SAEConfig
from sae_core.errors import ActivationError, CheckpointError, FormatError, RowsError, SAEError, SiteError
from sae_core.feed import Feed
from sae_core.files import load_sae, read_metadata, save_sae
from sae_core.formats import Foreign, read_foreign, write_foreign
from sae_core.hooks import Site, capture, decoder_layers, splice
from sae_core.rows import Rows
from sae_core.sae import SAE, TopKSAE
from sae_core.schedule import ScheduleConfig
from sae_core.statistics import Estimate, Moments, bootstrap_ratio, geometric_median, merge_all
from sae_core.trainer import Trainer, TrainerConfig

__all__ = [
    "SAE",
    "ActivationError",
    "BatchTopKSAE",
    "CSRCodes",
    "CheckpointError",
    "Codes",
    "Estimate",
    "Feed",
    "Foreign",
    "FormatError",
    "GatedSAE",
    "JumpReLUSAE",
    "MatryoshkaSAE",
    "Moments",
    "ReLUSAE",
    "Rows",
    "RowsError",
    "SAEConfig",
    "SAEError",
    "ScheduleConfig",
    "Site",
    "SiteError",
    "TopKCodes",
    "TopKSAE",
    "Trainer",
    "TrainerConfig",
    "Transcoder",
    "bootstrap_ratio",
    "capture",
    "decoder_layers",
    "geometric_median",
    "load_sae",
    "make_sae",
    "merge_all",
    "read_foreign",
    "read_metadata",
    "save_sae",
    "splice",
    "write_foreign",
]
