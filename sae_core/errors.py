"""The errors of sae_core: each is a ValueError whose message says what was wrong, the value, and what to do.

Settings that contradict each other (k > n_latents) are refused by pydantic's ValidationError, also a ValueError.

    SAEError(ValueError)
    ├── SiteError          a site that does not exist in the model
    ├── ActivationError    activations that are not finite, or of another width
    ├── RowsError          a folder of rows that is missing, damaged or of another shape
    ├── FormatError        a saved autoencoder that is damaged or foreign
    └── CheckpointError    a training state that belongs to another autoencoder or is incomplete
"""


class SAEError(ValueError):
    """Base of every error that sae_core raises on purpose."""


class SiteError(SAEError):
    """A site that cannot be parsed, or that the model does not have."""


class ActivationError(SAEError):
    """Activations that cannot be encoded or trained on."""


class RowsError(SAEError):
    """A folder of rows that cannot be read."""


class FormatError(SAEError):
    """A saved autoencoder that cannot be read."""


class CheckpointError(SAEError):
    """A training state that cannot be loaded into this trainer."""
