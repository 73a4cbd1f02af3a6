"""A preprocess artifact of synthetic activations: sparse sums of fixed directions, made by a stage of the same name."""

import json

import torch
from safetensors.torch import save_file

from sae_core import Moments
from tasks.artifacts import Artifact, Spec, Stage, Store, Workspace


class ActivationsSpec(Spec):
    """How many rows, how wide, and whether one of them is spoilt."""

    d: int = 16
    train_rows: int = 3000
    validation_rows: int = 300
    rows_per_group: int = 1100
    site: str = "resid_post.1"
    spoilt_row: int | None = None
    target: bool | None = None  # a second site beside it: -2 times the first


def make(spec: ActivationsSpec, out: Workspace) -> dict:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4 * spec.d, spec.d, generator=generator)
    counts = {"train": spec.train_rows, "validation": spec.validation_rows}
    tables = {}
    for kind, rows in counts.items():
        active = torch.rand(rows, 4 * spec.d, generator=generator) < 3 / (4 * spec.d)
        code = torch.rand(rows, 4 * spec.d, generator=generator) * active
        tables[kind] = (code @ directions + 0.5).bfloat16()
        if kind == "train" and spec.spoilt_row is not None:
            tables[kind][spec.spoilt_row, 0] = float("nan")
        rows_BD = torch.cat([tables[kind], -2 * tables[kind]], dim=1) if spec.target else tables[kind]
        for number, part in enumerate(rows_BD.split(spec.rows_per_group)):
            save_file({"activations": part.clone()}, out.path / f"{kind}-{number:05}.safetensors")
    moments = Moments.of(tables["train"].nan_to_num())
    statistics = {"mean": moments.mean_D.float(), "variance": moments.variance().float()}
    if spec.target:
        statistics |= {"target_mean": -2 * statistics["mean"], "target_variance": 4 * statistics["variance"]}
    save_file(statistics, out.path / "statistics.safetensors")
    norms = tables["train"].nan_to_num().double().norm(dim=1)
    index = {"site": spec.site, "d": spec.d, "mean_norm": float(norms.mean())}
    index |= {f"{kind}_rows": rows for kind, rows in counts.items()} | {"rows_per_group": spec.rows_per_group}
    if spec.target:
        index["target"] = {"site": "mlp_out.2", "d": spec.d, "mean_norm": 2 * index["mean_norm"]}
    (out.path / "index.json").write_text(json.dumps(index))
    return {}


ACTIVATIONS = Stage("preprocess", version=1, spec=ActivationsSpec, run=make)


def activations(store: Store, **settings) -> Artifact:
    """The artifact in this store."""
    return ACTIVATIONS.build(store, ActivationsSpec(**settings)).artifact
