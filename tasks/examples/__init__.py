"""Examples: for every latent, the text it fires on and the text it does not, split into a label and a score half.

    EXAMPLES.build(store, ExamplesSpec(), sae=trained, archives=[...], corpus=corpus, model=model)

One pass encodes the archived shards, keeps the sparse codes on local disk and collects per latent what
`tasks.examples.firings` keeps; a second pass over those codes cuts the windows. Memory: one shard, the collection, one
block of latents.

features.parquet, one row per latent: firing_rate, count, score_count (activations in the score half), max, mean, dead,
    neighbours and neighbour_cosines (decoder cosines, living latents only), promoted and suppressed tokens with their
    effects (logit change per unit of activation; empty where the site, a transcoder's target, does not write to the
    residual stream).
examples.parquet, sorted by (latent, role): row_id, doc_id, position, activation, half, token_id, and the window as
    `tokens` (joined, they read as the text) and `activations`, in which `hit` is the token in question and
    [word_start, word_end) the whole word it belongs to.
Roles: top (the strongest token of each row, strongest rows first); {label,score}_positive (a uniform sample of all
activations); {label,score}_negative_same_row (silent tokens of the positives' rows); {label,score}_negative_random
(silent tokens drawn from all tokens). A row belongs to one half for ever: nothing the labeller sees of the label half
tells it about the score half. `top` spans both; its `half` column says which.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tasks.artifacts import Artifact, Spec, Stage, Summary, Workspace
from tasks.errors import InputError
from tasks.examples.feature_columns import feature_columns
from tasks.examples.roles import ROLES, Chosen, choose
from tasks.examples.table import ENOUGH
from tasks.row_table import add_values, write_columns

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from sae_core import SAE
    from tasks.examples.codes import Stored
    from tasks.examples.firings import Collection
    from tasks.examples.windows import TokenText

    Integers = NDArray[np.int64]

RANDOM_TOKENS = 1024  # drawn once per half; each latent takes its random negatives from those it is silent at
LATENT_BLOCK = 1024  # latents whose windows are in memory together; one row group of examples.parquet


class ExamplesSpec(Spec):
    """How many examples of each kind a latent gets, and how much text is shown around them."""

    top: int = Field(
        16, ge=1, title="Strongest rows", json_schema_extra={"position": 0},
        description="Strongest rows kept for each latent.",
    )  # fmt: skip
    label_positives: int = Field(
        20, ge=1, title="Activations to label from", json_schema_extra={"position": 1},
        description="Activations sampled for labelling.",
    )  # fmt: skip
    label_negatives: int = Field(
        20, ge=0, title="Silent tokens to label from", json_schema_extra={"position": 2},
        description="Silent tokens for labelling; half of them from the same rows.",
    )  # fmt: skip
    score_positives: int = Field(
        40, ge=1, title="Activations to score on", json_schema_extra={"position": 3},
        description="Activations sampled for scoring.",
    )  # fmt: skip
    score_negatives: int = Field(
        40, ge=0, title="Silent tokens to score on", json_schema_extra={"position": 4},
        description="Silent tokens for scoring; half of them from the same rows.",
    )  # fmt: skip
    before: int = Field(
        24, ge=0, title="Tokens before", json_schema_extra={"position": 5},
        description="Tokens shown before the hit; more where a word would be cut.",
    )  # fmt: skip
    after: int = Field(
        8, ge=0, title="Tokens after", json_schema_extra={"position": 6},
        description="Tokens shown after the hit; more where a word would be cut.",
    )  # fmt: skip
    neighbours: int = Field(
        10, ge=0, title="Neighbours", json_schema_extra={"position": 7},
        description="Nearest latents by decoder cosine.",
    )  # fmt: skip
    effect_tokens: int = Field(
        10, ge=0, title="Promoted tokens", json_schema_extra={"position": 8},
        description="Promoted and suppressed tokens of each latent.",
    )  # fmt: skip
    seed: int = Field(
        0, ge=0, lt=2**32, title="Seed", json_schema_extra={"position": 9},
        description="Seed of the halves and the samples.",
    )  # fmt: skip


def examples(
    spec: ExamplesSpec, out: Workspace, *, sae: Artifact, archives: list[Artifact], corpus: Artifact, model: Artifact
) -> Summary:
    """Writes features.parquet and examples.parquet; raises InputError when no shard holds a token."""
    from sae_core import load_sae, read_metadata
    from tasks.model import load_tokenizer

    autoencoder = load_sae(sae.folder(), device=out.runtime.device_here())
    about = read_metadata(sae.folder())
    site, writes_to = about["site"], about.get("target", about["site"])
    found, store = _one_pass(spec, out, autoencoder, site, archives)
    text = _token_text(load_tokenizer(model), store)
    written = _write_examples(spec, out, found, store, text, _documents(corpus))
    columns = feature_columns(found, autoencoder, writes_to, model, text, spec.neighbours, spec.effect_tokens)
    write_columns(columns, "features.parquet", out)
    enough = (found.score_count >= ENOUGH).sum()
    return {
        "tokens": found.tokens,
        "rows": found.rows,
        "latents": found.n_latents,
        "dead": int((found.count == 0).sum()),
        f"latents_with_{ENOUGH}_held_out": int(enough),
        "examples": written,
    }


def _one_pass(
    spec: ExamplesSpec, out: Workspace, sae: SAE, site: str, archives: list[Artifact]
) -> tuple[Collection, Stored]:
    from tasks.archive import read_shard
    from tasks.examples.codes import CodeStore
    from tasks.examples.firings import Quota, collect, merge

    quota = Quota(spec.top, spec.label_positives, spec.score_positives, RANDOM_TOKENS, spec.seed)
    codes, found = CodeStore(out.scratch / "codes"), None
    for done, archive in enumerate(archives):
        for firings, rows in codes.append(sae, read_shard(archive, site)):
            part = collect(firings, rows, sae.config.n_latents, quota, so_far=found)
            found = part if found is None else merge(found, part)
        out.report(done + 1, len(archives), "shards")
    if found is None or not found.tokens:
        raise InputError(
            f"None of the {len(archives)} archived shards holds a token of {site}, so there is nothing to show; "
            "check that the corpus has text and that the rows are not all too long."
        )
    return found, codes.read()


def _token_text(tokenizer: Any, store: Stored) -> TokenText:
    import numpy as np

    from tasks.examples.windows import TokenText

    counts = np.zeros(0, dtype=np.int64)
    for start in range(0, len(store.tokens), 1 << 24):
        found = np.bincount(store.tokens[start : start + (1 << 24)], minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    return TokenText(tokenizer, np.flatnonzero(counts))


def _documents(corpus: Artifact) -> Integers:
    """Document of every row, by row_id."""
    import pyarrow.parquet as pq

    with corpus.local("rows.parquet") as path:
        return pq.read_table(path, columns=["doc_id"])["doc_id"].to_numpy()


def _write_examples(
    spec: ExamplesSpec, out: Workspace, found: Collection, store: Stored, text: TokenText, documents: Integers
) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    written, writer, meaning = 0, None, hashlib.sha256()
    negatives = {"label": spec.label_negatives, "score": spec.score_negatives}
    for start in range(0, found.n_latents, LATENT_BLOCK):
        latents = range(start, min(start + LATENT_BLOCK, found.n_latents))
        table = pa.table(_example_columns(spec, choose(found, store, latents, negatives), store, text, documents))
        if writer is None:
            writer = pq.ParquetWriter(out.path / "examples.parquet", table.schema, compression="zstd")
        writer.write_table(table)
        add_values(meaning, table)
        written += len(table)
        out.report(latents.stop, found.n_latents, "latents")
    if writer is not None:
        writer.close()
    out.content("examples.parquet", meaning.hexdigest())
    return written


def _example_columns(
    spec: ExamplesSpec, chosen: Chosen, store: Stored, text: TokenText, documents: Integers
) -> dict[str, pa.Array]:
    import numpy as np
    import pyarrow as pa

    from tasks.examples.firings import in_score_half
    from tasks.examples.windows import cut

    tokens = store.token_of(chosen.row_id, chosen.position)
    windows = cut(store, text, tokens, spec.before, spec.after)
    latent_W = np.repeat(chosen.latent, np.diff(windows.starts))
    activations = store.activation(windows.tokens, latent_W)
    index, strings = text.strings(windows)
    half = in_score_half(chosen.row_id, spec.seed).astype(np.int8)

    def named(index: NDArray, names: list[str]) -> pa.Array:
        return pa.array(names, pa.string()).take(pa.array(index))

    def listed(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(windows.starts.astype(np.int32)), values)

    return {
        "latent": pa.array(chosen.latent.astype(np.int32)),
        "role": named(chosen.role, list(ROLES)),
        "half": named(half, ["label", "score"]),
        "row_id": pa.array(chosen.row_id),
        "doc_id": pa.array(documents[chosen.row_id]),
        "position": pa.array(chosen.position.astype(np.int32)),
        "activation": pa.array(chosen.activation),
        "token_id": pa.array(store.tokens[tokens]),
        "hit": pa.array(windows.hit.astype(np.int32)),
        "word_start": pa.array(windows.word_start.astype(np.int32)),
        "word_end": pa.array(windows.word_end.astype(np.int32)),
        "tokens": listed(named(index, strings)),
        "activations": listed(pa.array(activations)),
    }


EXAMPLES = Stage("examples", version=1, spec=ExamplesSpec, run=examples)
