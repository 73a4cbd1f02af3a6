"""qresearch's releases: as Goodfire's, with the two linear maps named encoder and decoder.

dictionary_learning's AutoEncoderNew is the same file.
"""

from typing import Any

from sae_core.formats import goodfire
from sae_core.formats.given import Given
from sae_core.formats.source import Source
from sae_core.sae import SAE

NAMES = ("encoder", "decoder")


def read(source: Source, given: Given) -> tuple[SAE, dict[str, Any]]:
    """The autoencoder; such a file says nothing more."""
    return goodfire.read(source, given, NAMES)
