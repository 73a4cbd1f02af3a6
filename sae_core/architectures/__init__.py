"""One class for each way in which latents are chosen; `make_sae` picks it by the config's architecture.

    sae = make_sae(SAEConfig(d_in=64, n_latents=1024, architecture="jumprelu"))
"""

from sae_core.architectures.batch_topk import BatchTopKSAE
from sae_core.architectures.gated import GatedSAE
from sae_core.architectures.jumprelu import JumpReLUSAE
from sae_core.architectures.matryoshka import MatryoshkaSAE
from sae_core.architectures.relu import ReLUSAE
from sae_core.architectures.transcoder import Transcoder
from sae_core.config import Architecture, SAEConfig
from sae_core.sae import SAE, TopKSAE

__all__ = [
    "BatchTopKSAE",
    "GatedSAE",
    "JumpReLUSAE",
    "MatryoshkaSAE",
    "ReLUSAE",
    "Transcoder",
    "make_sae",
]

CLASSES: dict[Architecture, type[SAE]] = {
    "topk": TopKSAE,
    "batch_topk": BatchTopKSAE,
    "relu": ReLUSAE,
    "jumprelu": JumpReLUSAE,
    "gated": GatedSAE,
    "matryoshka": MatryoshkaSAE,
    "transcoder": Transcoder,
}


def make_sae(config: SAEConfig) -> SAE:
    """A new autoencoder of the config's architecture, with its first weights."""
    return CLASSES[config.architecture](config)
