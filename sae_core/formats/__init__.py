"""Autoencoders of other libraries: read six formats, write two.

    found = sae_core.read_foreign("downloads/layer_12")           # found.sae, found.format, found.metadata
    sae_core.save_sae(found.sae, "ours", found.metadata)
    sae_core.write_foreign(sae, "export", "saelens", {"model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post"})

A module for each format says how it computes and what of it is folded into the weights. The autoencoder that is read
computes the same codes and the same reconstruction, in float32; what ours cannot do in the same way is refused.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sae_core.errors import FormatError
from sae_core.formats import dictionary_learning, goodfire, llama3_interpretability_sae, qresearch, saelens, sparsify
from sae_core.formats.given import Given
from sae_core.formats.source import Source, open_source
from sae_core.sae import SAE

ForeignFormat = Literal[
    "saelens", "sparsify", "dictionary_learning", "goodfire", "qresearch", "llama3_interpretability_sae"
]
WritableFormat = Literal["saelens", "sparsify"]

READERS: dict[ForeignFormat, Callable[[Source, Given], tuple[SAE, dict[str, Any]]]] = {
    "saelens": saelens.read,
    "sparsify": sparsify.read,
    "dictionary_learning": dictionary_learning.read,
    "goodfire": goodfire.read,
    "qresearch": qresearch.read,
    "llama3_interpretability_sae": llama3_interpretability_sae.read,
}
WRITERS: dict[WritableFormat, Callable[[SAE, Path, dict[str, Any]], None]] = {
    "saelens": saelens.write,
    "sparsify": sparsify.write,
}


class Foreign(NamedTuple):
    """What was read."""

    sae: SAE
    format: ForeignFormat
    metadata: dict[str, Any]  # model_name, hook_name, layer, context_size, ... as far as the files say


def read_foreign(
    path: Path | str,
    format: ForeignFormat | None = None,  # noqa: A002
    *,
    k: int | None = None,
    epsilon: float | None = None,
    input_scale: float | None = None,
    architecture: Literal["topk", "batch_topk"] | None = None,
) -> Foreign:
    """The autoencoder in a folder of SAELens, sparsify or dictionary_learning, or in one file of weights.

    The format is recognised by the names of files and tensors unless it is given. Some files leave something open:
    llama3_interpretability_sae needs `k` (and takes `epsilon`), a bare ae.pt of dictionary_learning `architecture` and
    perhaps `k`, SAELens with expected_average_only_in `input_scale`. Nothing in a pickle is run.
    Raises FormatError for what is missing, damaged, not finite, of another shape, or not computed here in the same way.
    """
    source = open_source(Path(path))
    found = format or recognise(source)
    if found not in READERS:
        raise FormatError(f"There is no format {found}; choose {', '.join(READERS)}.")
    sae, metadata = READERS[found](source, Given(k, epsilon, input_scale, architecture))
    return Foreign(sae, found, metadata)


def recognise(source: Source) -> ForeignFormat:
    """The format of what was opened; raises FormatError where it is none of them."""
    names = set(source.weights)
    if source.path.name == "sae_weights.safetensors":
        return "saelens"
    if source.path.name == "sae.safetensors" and {"d_in", "k"} <= source.config.keys():
        return "sparsify"
    if source.path.name == "ae.pt" and source.config:
        return "dictionary_learning"
    if names == goodfire.shapes(*goodfire.NAMES).keys():
        return "goodfire"
    if names == goodfire.shapes(*qresearch.NAMES).keys():
        return "qresearch"
    if names == llama3_interpretability_sae.SHAPES.keys():
        return "llama3_interpretability_sae"
    if dictionary_learning.may_be(names):
        return "dictionary_learning"
    if source.config.get("schema"):
        raise FormatError(f"{source.path.parent} was written by save_sae; read it with load_sae.")
    raise FormatError(
        f"{source.path} holds the tensors {sorted(names)}, as none of {', '.join(READERS)} does; name the format, or "
        "save the weights in one of them."
    )


def write_foreign(
    sae: SAE,
    folder: Path | str,
    format: WritableFormat,  # noqa: A002
    metadata: dict[str, Any] | None = None,
) -> None:
    """Writes the autoencoder for SAELens (6 or newer) or sparsify into `folder`, which is made if needed.

    `metadata` under SAELens's names: model_name, hook_name, context_size, prepend_bos, dataset_path. BatchTopK and
    Matryoshka are written as SAELens's jumprelu. `h_bias` is not written.
    Raises FormatError for what the other library cannot compute, such as standardise_rows.
    """
    if format not in WRITERS:
        raise FormatError(f"The format {format} cannot be written; choose {' or '.join(WRITERS)}.")
    WRITERS[format](sae, Path(folder), metadata or {})
