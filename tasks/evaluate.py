"""evaluate: how good the autoencoder is on text it was not trained on, each figure with its spread.

On held-out activations: FVU, L0, dead share, cosine, densities, co-activation. On held-out rows of text, with the
autoencoder spliced into the model: cross-entropy, the share of it that is recovered, KL. Every definition is in
`sae_core.metrics` and `sae_core.coactivation`; the intervals are 95% bootstraps over activations or rows of text. What
training left out (BOS) is left as it is. A transcoder is measured by its target: what it predicts of it from its site
takes the target's place in the model.

    metrics.json            {"fvu": {"value", "low", "high"}, ..., "dead_share": 0.01, "paired_share": 0.02,
                             "density": {"log10_edges", "counts"}}
    coactivation.parquet    for each latent the PARTNERS others that fire most with it, by Jaccard: latent, partner,
                            count (activations on which both fire), jaccard, phi, expected (count by chance)

It runs in the process of the flow, on its GPU if there is one.
"""

import json
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tasks.artifacts import Artifact, Spec, Stage, Summary, Workspace
from tasks.corpus import holds_chats
from tasks.errors import InputError
from tasks.row_table import write_columns

if TYPE_CHECKING:
    from torch import Tensor

    from sae_core import SAE

CHUNK_ROWS = 4096
PARTNERS = 8
BATCH_TOKENS = 2048  # of text at once; logits take vocabulary x 4 bytes for each, three times


class EvaluateSpec(Spec):
    """How much is held out to measure on."""

    activations: int = Field(
        32768, ge=1, title="Activations", json_schema_extra={"position": 0},
        description="Held-out activations to reconstruct; all there are when there are fewer.",
    )  # fmt: skip
    text_rows: int = Field(
        256, ge=2, title="Rows of text", json_schema_extra={"position": 1},
        description="Held-out rows the model reads three times: as it is, with the autoencoder, with zeros.",
    )  # fmt: skip
    seed: int = Field(
        0, ge=0, lt=2**32, title="Seed", json_schema_extra={"position": 2}, description="Seed of the bootstrap.",
    )  # fmt: skip


def evaluate(
    spec: EvaluateSpec, out: Workspace, *, sae: Artifact, rows: Artifact, corpus: Artifact, model: Artifact
) -> Summary:
    """Writes metrics.json and coactivation.parquet, and returns the headline figures."""
    from sae_core import load_sae

    autoencoder = load_sae(sae.folder(), device=out.runtime.device_here())
    index = rows.json("index.json")
    metrics = _on_activations(spec, out, autoencoder, rows, index)
    metrics |= _on_text(spec, out, autoencoder, corpus, model, index)
    (out.path / "metrics.json").write_text(json.dumps(metrics, sort_keys=True, indent=1) + "\n")
    headline = {name: metrics[name]["value"] for name in ("fvu", "l0", "ce_recovered")}
    headline |= {"dead_share": metrics["dead_share"], "ce": metrics["ce"]["value"], "kl": metrics["kl"]["value"]}
    return headline | {"paired_share": metrics["paired_share"]}


EVALUATE = Stage("evaluate", version=2, spec=EvaluateSpec, run=evaluate)


def _on_activations(
    spec: EvaluateSpec, out: Workspace, sae: "SAE", rows: Artifact, index: dict[str, Any]
) -> dict[str, Any]:
    import torch

    from sae_core import Rows, metrics
    from sae_core.rows import input_and_target

    table = Rows([rows.path(group["name"]) for group in index["groups"] if group["name"].startswith("validation-")])
    count = min(spec.activations, len(table))

    def chunk(begin: int) -> "tuple[Tensor, Tensor]":
        """Rows of the site, and of what is to be reconstructed."""
        x_BD, target_BD = input_and_target(table.read(begin, min(begin + CHUNK_ROWS, count)), sae.config.d_in)
        return x_BD, x_BD if target_BD is None else target_BD

    mean_D = sum(
        (chunk(begin)[1].double().sum(0) for begin in range(0, count, CHUNK_ROWS)),
        start=torch.zeros(sae.config.width_out, dtype=torch.float64),
    ) / count
    device = next(sae.parameters()).device
    found: dict[str, list[Tensor]] = {name: [] for name in ("error", "deviation", "active", "cosine", "row", "latent")}
    for begin in range(0, count, CHUNK_ROWS):
        x_BD, target_BD = chunk(begin)
        x_BD, target_BD = x_BD.float().to(device), target_BD.float()
        with torch.no_grad():
            codes = sae.encode(x_BD)
            x_hat_BD = sae.predict(codes, x_BD).cpu()
        found["error"].append(metrics.squared_error(target_BD, x_hat_BD))
        found["deviation"].append(metrics.squared_deviation(target_BD, mean_D))
        found["active"].append(codes.counts().double().cpu())
        found["cosine"].append(torch.nn.functional.cosine_similarity(target_BD.double(), x_hat_BD.double(), dim=1))
        row_F, latent_F, _ = codes.pairs()
        found["row"].append(row_F.int().cpu() + begin)
        found["latent"].append(latent_F.int().cpu())
        out.report(begin + len(x_BD), count, "activations")
    joined = {name: torch.cat(parts) for name, parts in found.items()}
    ones = torch.ones(count, dtype=torch.float64)
    fired_N = torch.bincount(joined["latent"], minlength=sae.config.n_latents)
    edges, counts = metrics.density_histogram(fired_N, count)
    return {
        "fvu": _spread(joined["error"], joined["deviation"], spec.seed),
        "l0": _spread(joined["active"], ones, spec.seed),
        "cosine_similarity": _spread(joined["cosine"], ones, spec.seed),
        "dead_share": metrics.dead_share(fired_N),
        "paired_share": _write_coactivation(out, joined["row"], joined["latent"], fired_N, count),
        "density": {"log10_edges": edges.tolist(), "counts": counts.tolist()},
        "activations": count,
    }


def _write_coactivation(out: Workspace, row_F: "Tensor", latent_F: "Tensor", fired_N: "Tensor", rows: int) -> float:
    """Writes coactivation.parquet; returns the share of living latents with a partner of Jaccard above 1/2."""
    import numpy as np

    from sae_core.coactivation import coactivation, paired_share

    found = coactivation(row_F, latent_F, n_latents=len(fired_N), rows=rows, partners=PARTNERS)
    columns = {name.removesuffix("_P"): column.numpy() for name, column in found._asdict().items()}
    columns |= {name: columns[name].astype(np.int32) for name in ("latent", "partner", "count")}
    columns |= {name: columns[name].astype(np.float32) for name in ("jaccard", "phi", "expected")}
    write_columns(columns, "coactivation.parquet", out)
    return paired_share(found, fired_N)


def _on_text(
    spec: EvaluateSpec, out: Workspace, sae: "SAE", corpus: Artifact, model: Artifact, index: dict[str, Any]
) -> dict[str, Any]:
    import torch

    from tasks.model import load_model, load_tokenizer
    from tasks.prompts import padded, tokenise

    read, texts = index["capture"], _held_out_texts(spec, corpus, index)
    sites = index["site"], index.get("target", index)["site"]
    prompts = tokenise(
        load_tokenizer(model), texts, bos=read["bos"], drop_bos=not read["bos_stored"], longest=read["max_tokens"],
        chats=holds_chats(corpus),
    )  # fmt: skip
    device = next(sae.parameters()).device
    language_model = load_model(model, device=device)
    sums: list[Tensor] = []
    for _, ids_BL, kept_BL in padded(prompts, BATCH_TOKENS):
        sums.append(_of_batch(language_model, sae, sites, ids_BL.to(device), kept_BL.to(device)).cpu())
        out.report(sum(map(len, sums)), len(texts), "rows")
    table = torch.cat(sums)
    table = table[table[:, 0] > 0]
    if len(table) == 0:
        raise InputError("No held-out row of text has two tokens to predict from; take longer rows (corpus.unit).")
    tokens, clean, spliced, ablated, kl = table.unbind(1)
    return {
        "ce": _spread(clean, tokens, spec.seed),
        "ce_spliced": _spread(spliced, tokens, spec.seed),
        "ce_ablated": _spread(ablated, tokens, spec.seed),
        "ce_recovered": _spread(ablated - spliced, ablated - clean, spec.seed),
        "kl": _spread(kl, tokens, spec.seed),
        "text_rows": len(table),
        "text_tokens": int(tokens.sum()),
    }


def _of_batch(
    model: Any, sae: "SAE", sites: tuple[str, str], ids_BL: "Tensor", kept_BL: "Tensor"
) -> "Tensor":
    """Sums per row (B, 5), float64: tokens, cross-entropy clean, spliced and ablated, KL of spliced from clean.

    `sites`: what the autoencoder reads, and what it is to reconstruct, the same but for a transcoder. Counted are
    predictions made where the autoencoder acts (kept) of a token that is there.
    """
    import torch

    from sae_core import metrics, splice

    site, target = sites
    made: list[Tensor] = []  # at `site`, for the hook at `target`, which comes at once or later in the same forward

    def read(x_BLD: "Tensor") -> None:
        made[:] = [sae(x_BLD[kept_BL].float())]

    def reconstruct(x_BLD: "Tensor") -> "Tensor":
        x_BLD = x_BLD.clone()
        x_BLD[kept_BL] = made[0].to(x_BLD.dtype)
        return x_BLD

    def zero(x_BLD: "Tensor") -> "Tensor":
        return x_BLD.masked_fill(kept_BL.unsqueeze(2), 0)

    counted = kept_BL[:, :-1] & kept_BL[:, 1:]
    targets = ids_BL[:, 1:][counted]
    with torch.no_grad():
        clean = model(input_ids=ids_BL, use_cache=False).logits[:, :-1][counted]
        with splice(model, site, read), splice(model, target, reconstruct):
            spliced = model(input_ids=ids_BL, use_cache=False).logits[:, :-1][counted]
        kl = metrics.token_kl(clean, spliced)
        losses = [metrics.token_cross_entropy(logits, targets) for logits in (clean, spliced)]
        del clean, spliced
        with splice(model, target, zero):
            losses.append(
                metrics.token_cross_entropy(model(input_ids=ids_BL, use_cache=False).logits[:, :-1][counted], targets)
            )
    row_of = counted.nonzero()[:, 0]
    sums = torch.zeros(len(ids_BL), 5, dtype=torch.float64, device=ids_BL.device)
    for column, values in enumerate((torch.ones_like(kl), *losses, kl)):
        sums[:, column].index_add_(0, row_of, values.double())
    return sums


def _held_out_texts(spec: EvaluateSpec, corpus: Artifact, index: dict[str, Any]) -> list[str]:
    """Validation rows spread evenly over the whole corpus."""
    import numpy as np
    import pyarrow.parquet as pq

    from tasks.split import is_validation

    with pq.ParquetFile(corpus.path("rows.parquet")) as file:
        chosen = np.flatnonzero(
            is_validation(np.arange(file.metadata.num_rows), index["validation_fraction"], index["seed"])
        )
        if len(chosen) > spec.text_rows:
            chosen = chosen[np.linspace(0, len(chosen) - 1, spec.text_rows).astype(np.int64)]
        texts: list[str] = []
        begin = 0
        for group in range(file.metadata.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            inside = chosen[(chosen >= begin) & (chosen < begin + size)] - begin
            if len(inside):
                texts += file.read_row_group(group, columns=["text"])["text"].take(inside).to_pylist()
            begin += size
    return texts


def _spread(numerators: "Tensor", denominators: "Tensor", seed: int) -> dict[str, float]:
    from sae_core import bootstrap_ratio

    return bootstrap_ratio(numerators, denominators, seed)._asdict()
