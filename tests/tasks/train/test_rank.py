"""Where a training starts: pre-bias, input scale and total variance, all in the space where the loss is taken."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_core import Rows, TopKSAE, geometric_median, make_sae
from sae_core.rows import input_and_target
from tasks.artifacts import Artifact, Store
from tasks.train import TrainSpec
from tasks.train.rank import start
from tests.tasks.activations import activations

D = 16


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Activations whose mean is no zero and whose norms are not sqrt(d)."""
    return activations(Store(str(tmp_path_factory.mktemp("store"))), d=D)


def training_files(rows: Artifact) -> list[Path]:
    return [rows.path(name) for name in rows.names() if name.startswith("train-")]


@pytest.mark.parametrize("normalization", ["none", "scale", "standardise_rows"])
def test_mean_and_variance_are_those_of_the_activations_as_the_loss_sees_them(rows: Artifact, normalization) -> None:
    sae = TopKSAE(TrainSpec(n_latents=32, k=4, normalization=normalization).sae_config(D))
    variance = start(sae, Rows(training_files(rows)), rows)
    x_BD = torch.cat([load_file(path)["activations"] for path in training_files(rows)]).float()
    seen_BD = sae.normalise(x_BD)[0].double()
    torch.testing.assert_close(sae.b_pre.double(), seen_BD.mean(0), rtol=1e-4, atol=1e-5)
    assert variance == pytest.approx(float(seen_BD.var(0, correction=0).sum()), rel=1e-4)


@pytest.mark.parametrize("centre", ["mean", "geometric_median"])
@pytest.mark.parametrize("normalization", ["none", "scale"])
def test_a_transcoder_starts_from_its_target_as_the_loss_sees_it(rows: Artifact, normalization, centre) -> None:
    paired = activations(Store(rows.store_url), d=D, target=True)
    spec = TrainSpec(n_latents=32, k=4, normalization=normalization, architecture="transcoder", pre_bias_from=centre)
    sae = make_sae(spec.sae_config(D))
    variance = start(sae, Rows(training_files(paired)), paired, centre)
    joined_BD = torch.cat([load_file(path)["activations"] for path in training_files(paired)]).float()
    x_BD, target_BD = sae.training_pair(*input_and_target(joined_BD, D))
    expected = target_BD.double().mean(0) if centre == "mean" else geometric_median(target_BD)
    torch.testing.assert_close(sae.b_pre.double(), expected, rtol=1e-4, atol=1e-5)
    assert variance == pytest.approx(float(target_BD.double().var(0, correction=0).sum()), rel=1e-4)
    if normalization == "scale":
        for part_BD in (x_BD, target_BD):
            assert float(part_BD.norm(dim=1).mean()) == pytest.approx(D**0.5, rel=1e-4)


def test_scaled_activations_have_the_norm_of_unit_variance(rows: Artifact) -> None:
    """E||x|| = sqrt(d), Anthropic's April 2024 update."""
    sae = TopKSAE(TrainSpec(n_latents=32, k=4, normalization="scale").sae_config(D))
    start(sae, Rows(training_files(rows)), rows)
    x_BD = torch.cat([load_file(path)["activations"] for path in training_files(rows)]).double()
    raw = float(x_BD.norm(dim=1).mean())
    assert raw != pytest.approx(D**0.5, rel=0.05)
    assert raw * float(sae.input_scale) == pytest.approx(D**0.5, rel=1e-5)


def test_the_geometric_median_is_that_of_the_activations_as_the_loss_sees_them(rows: Artifact) -> None:
    spec = TrainSpec(n_latents=32, k=4, normalization="scale", pre_bias_from="geometric_median")
    sae = TopKSAE(spec.sae_config(D))
    start(sae, Rows(training_files(rows)), rows, spec.pre_bias_from)
    x_BD = torch.cat([load_file(path)["activations"] for path in training_files(rows)]).float()
    seen_BD = sae.normalise(x_BD)[0]
    torch.testing.assert_close(sae.b_pre.double(), geometric_median(seen_BD), rtol=1e-4, atol=1e-5)
    assert (sae.b_pre - seen_BD.mean(0)).norm() > 1e-3
