"""dictionary_learning (saprmarks): ae.pt, and config.json whose trainer.dict_class says which class it is.

AutoEncoderTopK and BatchTopKSAE have the same tensors: without config.json the caller says which. Weights are read as
they are stored; the library's loader of AutoEncoder then divides decoder directions by their norms, which changes the
codes and not the reconstruction.
"""

from itertools import accumulate
from typing import Any, NamedTuple

from torch import Tensor

from sae_core.config import Architecture
from sae_core.errors import FormatError
from sae_core.formats.build import build, log_threshold
from sae_core.formats.given import Given
from sae_core.formats.source import Source
from sae_core.sae import SAE

MATRICES = {"encoder.weight": "nd", "decoder.weight": "dn", "W_enc": "dn", "W_dec": "nd"}
LINEAR, PLAIN = ("encoder.weight", "decoder.weight"), ("W_enc", "W_dec")  # nn.Linear keeps (outputs, inputs)
LINEAR_BIAS, PLAIN_BIAS = {"b_enc": ("encoder.bias", "n")}, {"b_enc": ("b_enc", "n")}
ONE_THRESHOLD, THRESHOLDS = {"threshold": ("threshold", "")}, {"threshold": ("threshold", "n")}
GATED = {"b_gate": ("gate_bias", "n"), "b_mag": ("mag_bias", "n"), "r_mag": ("r_mag", "n")}


class Layout(NamedTuple):
    """How a class of theirs keeps what one of ours has."""

    architecture: Architecture
    pre_bias: bool
    matrices: tuple[str, str]  # encoder, decoder
    b_pre: str
    others: dict[str, tuple[str, str]]  # our name: theirs, and its dimensions
    aside: tuple[str, ...] = ()  # what is no weight; a TopK's threshold is used on request only

    @property
    def shapes(self) -> dict[str, str]:
        """Every tensor of weights and its dimensions."""
        return {name: MATRICES[name] for name in self.matrices} | {self.b_pre: "d"} | dict(self.others.values())


LAYOUTS = {
    "AutoEncoder": Layout("relu", True, LINEAR, "bias", LINEAR_BIAS),
    "AutoEncoderNew": Layout("relu", False, LINEAR, "decoder.bias", LINEAR_BIAS),
    "GatedAutoEncoder": Layout("gated", True, LINEAR, "decoder_bias", GATED),
    "JumpReluAutoEncoder": Layout("jumprelu", False, PLAIN, "b_dec", PLAIN_BIAS | THRESHOLDS),
    "AutoEncoderTopK": Layout("topk", True, LINEAR, "b_dec", LINEAR_BIAS, ("k", "threshold")),
    "BatchTopKSAE": Layout("batch_topk", True, LINEAR, "b_dec", LINEAR_BIAS | ONE_THRESHOLD, ("k",)),
    "MatryoshkaBatchTopKSAE": Layout(
        "matryoshka", True, PLAIN, "b_dec", PLAIN_BIAS | ONE_THRESHOLD, ("k", "group_sizes")
    ),
}
ALIKE = {"topk": "AutoEncoderTopK", "batch_topk": "BatchTopKSAE"}
SIZES = {"d": "activation_dim", "n": "dict_size"}


def read(source: Source, given: Given) -> tuple[SAE, dict[str, Any]]:
    """The autoencoder, and what the config says of its training: model_name, layer, context_size.

    Raises FormatError for a class that we do not have, and where class or k are neither in the files nor given.
    """
    trainer = source.config.get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    layout = LAYOUTS[_class(source, trainer, given)]
    settings: dict[str, Any] = {"pre_bias": layout.pre_bias}
    if "k" in layout.aside:
        given.only("k", "architecture")
        settings["k"] = _k(source, trainer, given)
    else:
        given.only()
    if "group_sizes" in layout.aside:
        settings["prefixes"] = list(accumulate(_integers(source, "group_sizes")))

    weights = {name: value for name, value in source.weights.items() if name not in layout.aside}
    sizes = {letter: source.integer("trainer", key) for letter, key in SIZES.items() if key in trainer}
    tensors = source._replace(weights=weights).take(layout.shapes, **sizes)
    W_enc, W_dec = (tensors[name].t() if MATRICES[name] == "dn" else tensors[name] for name in layout.matrices)
    others = {ours: tensors[theirs] for ours, (theirs, _) in layout.others.items()}
    if layout.architecture == "jumprelu":
        others["log_threshold"] = log_threshold(others.pop("threshold"))
    sae = build(layout.architecture, settings, W_enc, W_dec, tensors[layout.b_pre], **others)
    return sae, _metadata(source, trainer)


def may_be(names: set[str]) -> list[str]:
    """The classes that keep tensors of these names."""
    return [
        name
        for name, layout in LAYOUTS.items()
        if layout.shapes.keys() <= names <= layout.shapes.keys() | set(layout.aside)
    ]


def _class(source: Source, trainer: dict[str, Any], given: Given) -> str:
    named = trainer.get("dict_class")
    found = [str(named)] if named is not None else may_be(set(source.weights))
    if found == list(ALIKE.values()) and given.architecture is not None:
        found = [ALIKE[given.architecture]]
    if found == list(ALIKE.values()):
        raise FormatError(
            f"{source.path} is an AutoEncoderTopK or a BatchTopKSAE, and no config.json beside it says which; give "
            "architecture topk or batch_topk."
        )
    if len(found) != 1 or found[0] not in LAYOUTS:
        what = found[0] if found else f"the tensors {sorted(source.weights)}"
        raise FormatError(f"{source.path} holds {what}, but only {', '.join(LAYOUTS)} can be read.")
    if given.architecture not in (None, LAYOUTS[found[0]].architecture):
        raise FormatError(f"{source.path} is {found[0]}, but architecture is {given.architecture}; leave it out.")
    return found[0]


def _k(source: Source, trainer: dict[str, Any], given: Given) -> int:
    """k of the weights (training may anneal it), or of the config, or given."""
    if "k" in source.weights:
        k = _integers(source, "k")[0]
    elif "k" in trainer:
        k = source.integer("trainer", "k")
    elif given.k is not None:
        k = given.k
    else:
        raise FormatError(f"{source.path} does not say k, and no config.json beside it does; give k.")
    if given.k not in (None, k):
        raise FormatError(f"k = {given.k} is given, but {source.path} says {k}; leave it out.")
    return k


def _integers(source: Source, name: str) -> list[int]:
    value = source.weights.get(name)
    if not isinstance(value, Tensor) or value.is_floating_point() or value.numel() == 0:
        raise FormatError(f"{source.path}: {name} is {value}, not a tensor of integers; this is another kind of file.")
    return [int(number) for number in value.flatten().tolist()]


def _metadata(source: Source, trainer: dict[str, Any]) -> dict[str, Any]:
    buffer = source.config.get("buffer")
    known = {
        "model_name": trainer.get("lm_name"),
        "layer": trainer.get("layer"),
        "context_size": buffer.get("ctx_len") if isinstance(buffer, dict) else None,
    }
    return {name: value for name, value in known.items() if value is not None}
