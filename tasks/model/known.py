"""Shapes of well-known models, so that a plan can reckon with one that is not on this machine, or is gated.

From the config.json of each (November 2026); a model's own config.json, where it is here, is what counts.
"""

from tasks.model.files import ModelShape

_CONTEXT, _VOCABULARY = 131_072, 128_256  # of Llama 3.1, 3.2 and 3.3


def known_shape(name: str) -> ModelShape | None:
    """The shape of a hub name, None where it is not in the table; instruction-tuned models are shaped as their base."""
    return _SHAPES.get(name.removesuffix("-Instruct"))


def _llama(layers: int, d_model: int, d_mlp: int, d_keys: int) -> ModelShape:
    """d_keys: width of all keys of a token together, which are fewer than its queries."""
    parameters = 2 * d_model * (d_model + d_keys) + 3 * d_model * d_mlp
    return ModelShape(layers, d_model, _VOCABULARY, _CONTEXT, parameters)


_SHAPES = {
    "meta-llama/Llama-3.2-1B": _llama(16, 2048, 8192, 512),
    "meta-llama/Llama-3.2-3B": _llama(28, 3072, 8192, 1024),
    "meta-llama/Llama-3.1-8B": _llama(32, 4096, 14336, 1024),
    "meta-llama/Llama-3.1-70B": _llama(80, 8192, 28672, 1024),
    "meta-llama/Llama-3.3-70B": _llama(80, 8192, 28672, 1024),
}
