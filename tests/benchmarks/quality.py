"""Quality at one budget: autoencoders of ours and of other libraries on the same rows, measured by the same function.

    make peers && .venv-peers/bin/python -m tests.benchmarks.quality [-k part-of-a-name] [--seeds 3]

stories260K, output of block 3, 65,536 tokens of TinyStories, n=1,024, k=16, 1,200 steps of 1,024 rows in one order.
Ours train with the train stage's defaults. Each of the others trains with its own defaults, and again with its best of
four learning rates, chosen on validation rows and with ours' warm-up, decay and count of dead latents. Reported are
means over seeds of the first weights, on test rows that nothing was chosen by.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sae_core import SAE, Moments, Trainer, make_sae, read_foreign
from tasks.train.spec import TrainSpec
from tests.benchmarks.peers import PEERS, Budget, Prepared
from tests.benchmarks.stories import Quality, Stories

BUDGET = Budget(rows=1024, d=64, n=1024, k=16, steps=1200)
SCALED = {"normalization": "scale"}
OURS: dict[str, dict[str, Any]] = {  # settings of TrainSpec
    "topk": {},
    "batch_topk": {"architecture": "batch_topk"},
    "matryoshka": {"architecture": "matryoshka"},
    "relu": {"architecture": "relu"} | SCALED,
    "gated": {"architecture": "gated"} | SCALED,
    "jumprelu": {"architecture": "jumprelu"} | SCALED,
}
ADAM_RATES, SIGN_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2), (2.5e-3, 5e-3, 1e-2, 2e-2)
RATES = {"sparsify": SIGN_RATES, "dictionary_learning": ADAM_RATES, "sae_lens": ADAM_RATES}


def main() -> None:
    """Trains, prints a table, writes the rows."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality", description=__doc__)
    parser.add_argument("-k", default="", help="only autoencoders whose name contains this")
    parser.add_argument("-o", type=Path, default=Path("quality.json"), help="where the rows go")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each, from different first weights")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    rows = []
    print(f"{'':44} {'FVU':>7} {'+-':>7} {'L0':>6} {'dead':>6} {'CE recovered':>13}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            stories = Stories.capture(Path(folder))
        except FileNotFoundError as error:
            raise SystemExit(f"Nothing to train on: {error}.") from error
        for name, qualities in measured(stories, arguments.k, arguments.seeds):
            mean = Quality(*map(statistics.mean, zip(*qualities, strict=True)))
            spread = statistics.pstdev(quality.fvu for quality in qualities)
            print(
                f"{name:44} {mean.fvu:7.4f} {spread:7.4f} {mean.l0:6.2f} {mean.dead:6.3f} {mean.ce_recovered:13.4f}",
                flush=True,
            )
            rows.append({"name": name, **mean._asdict(), "fvu_spread": spread, "seeds": len(qualities)})
    arguments.o.write_text(json.dumps(rows, indent=1) + "\n")


def measured(stories: Stories, wanted: str, seeds: int) -> Iterator[tuple[str, list[Quality]]]:
    """Name and test qualities, one for each seed, of all whose name contains `wanted`."""
    for ours, settings in OURS.items():
        if wanted in (name := f"saeflow {ours}"):
            spec = TrainSpec(n_latents=BUDGET.n, k=BUDGET.k, batch_size=BUDGET.rows, steps=BUDGET.steps, **settings)
            specs = [spec.model_copy(update={"seed": seed}) for seed in range(seeds)]
            yield name, [stories.quality(trained(stories, spec), "test") for spec in specs]
    for (library, architecture), prepared in PEERS.items():
        if wanted not in (name := f"{library} {architecture}"):
            continue

        def qualities(rate: float | None, prepared: Prepared = prepared) -> list[Quality]:
            return [_peer(stories, prepared, rate, seed, "test") for seed in range(seeds)]

        try:
            yield f"{name}, its defaults", qualities(None)
        except ModuleNotFoundError as error:
            print(f"{name:44} not measured: {error}; `make peers` installs it", flush=True)
            continue
        by_rate = {rate: _peer(stories, prepared, rate, 0, "validation").fvu for rate in RATES[library]}
        best = min(by_rate, key=lambda rate: by_rate[rate])
        yield f"{name}, {best:g}", qualities(best)


def trained(stories: Stories, spec: TrainSpec) -> SAE:
    """An autoencoder of ours after a whole training; rows come in the order of seed 0 whatever the spec's seed."""
    rows = stories.rows
    sae, moments = make_sae(spec.sae_config(rows.d)), Moments.of(rows.read(0, len(rows)))
    if spec.normalization == "scale":
        sae.input_scale.fill_(rows.d**0.5 / float(rows.read(0, len(rows)).double().norm(dim=1).mean()))
    if sae.config.subtracts_pre_bias:
        with torch.no_grad():
            sae.b_pre.copy_(moments.mean_D * sae.input_scale)
    variance = float(moments.variance().sum() * sae.input_scale**2)
    trainer = Trainer(sae, spec.trainer_config(len(rows), rows.d), variance=variance)
    for step in range(trainer.config.steps):
        trainer.step(rows.batch(step, spec.batch_size).float())
    return sae.requires_grad_(False).eval()


def _peer(stories: Stories, prepared: Prepared, rate: float | None, seed: int, part: str) -> Quality:
    """One whole training by another library, written by it, read and measured by us."""
    budget = BUDGET._replace(lr=rate, seed=seed)
    peer = prepared(budget)
    for step in range(budget.steps):
        peer.step(stories.rows.batch(step, budget.rows).float())
    with tempfile.TemporaryDirectory() as folder:
        peer.save(Path(folder) / "sae")
        return stories.quality(read_foreign(Path(folder) / "sae").sae, part)


if __name__ == "__main__":
    main()
