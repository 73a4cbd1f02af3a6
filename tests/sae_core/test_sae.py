"""The TopK autoencoder: its arithmetic against a float64 reference, exact selection, files that come back equal."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

import sae_core
from sae_core import ActivationError, FormatError, SAEConfig, TopKSAE, load_sae, read_metadata, save_sae
from sae_core import sae as sae_module
from sae_core.topk import top_k, top_k_indices


def random_sae(normalization="none", seed=0) -> TopKSAE:
    sae = TopKSAE(SAEConfig(d_in=12, n_latents=64, k=4, normalization=normalization, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        if normalization == "scale":
            sae.input_scale.fill_(0.25)
    return sae.requires_grad_(False)


def dense_reconstruction(sae: TopKSAE, x_BD: torch.Tensor) -> torch.Tensor:
    """The textbook formula in float64, with a dense code."""
    x_BD = x_BD.double()
    shift, factor = 0.0, 1.0
    if sae.config.normalization == "standardise_rows":
        shift = x_BD.mean(1, keepdim=True)
        factor = ((x_BD - shift).square().mean(1, keepdim=True)).sqrt() + sae.config.epsilon
    if sae.config.normalization == "scale":
        factor = 1 / sae.input_scale.double()
    normal_BD = (x_BD - shift) / factor
    pre_BN = (normal_BD - sae.b_pre.double()) @ sae.W_enc.double().T + sae.b_enc.double()
    threshold_B1 = pre_BN.sort(dim=1, descending=True).values[:, sae.config.k - 1 : sae.config.k]
    code_BN = torch.where(pre_BN >= threshold_B1, pre_BN, 0).relu()
    return (code_BN @ sae.W_dec.double() + sae.b_pre.double()) * factor + shift


@pytest.mark.parametrize("normalization", ["none", "standardise_rows", "scale"])
def test_equals_the_dense_formula(normalization):
    sae = random_sae(normalization)
    x_BD = 3 * torch.randn(50, 12, generator=torch.Generator().manual_seed(1)) + 1
    torch.testing.assert_close(sae(x_BD).double(), dense_reconstruction(sae, x_BD), atol=2e-5, rtol=1e-5)


def test_codes_have_k_latents_and_no_negative_activation():
    codes = random_sae().encode(torch.randn(20, 12))
    assert codes.values_BK.shape == codes.indices_BK.shape == (20, 4)
    assert (codes.values_BK >= 0).all()
    assert all(len(set(row)) == 4 for row in codes.indices_BK.tolist())


def test_encoding_in_tiles_changes_nothing(monkeypatch):
    sae, x_BD = random_sae(), torch.randn(33, 12)
    whole = sae(x_BD)
    monkeypatch.setattr(sae_module, "TILE_ELEMENTS", 64 * 5)
    torch.testing.assert_close(sae(x_BD), whole)


def test_gradients_reach_input_and_weights():
    sae, x_BD = random_sae().requires_grad_(True), torch.randn(5, 12, requires_grad=True)
    sae(x_BD).square().sum().backward()
    assert x_BD.grad.abs().sum() > 0
    assert sae.W_enc.grad.abs().sum() > 0


def test_another_width_is_refused():
    with pytest.raises(ActivationError, match=r"\(3, 7\).*width 12"):
        random_sae().encode(torch.zeros(3, 7))


def test_k_larger_than_n_latents_is_refused():
    with pytest.raises(ValidationError, match="k = 9 is larger than n_latents = 8"):
        SAEConfig(d_in=4, n_latents=8, k=9)


def test_starts_with_unit_directions_from_its_seed():
    first, again, other = (TopKSAE(SAEConfig(d_in=6, n_latents=32, k=2, seed=seed)) for seed in (3, 3, 4))
    torch.testing.assert_close(first.W_dec.norm(dim=1), torch.ones(32))
    assert torch.equal(first.W_enc, first.W_dec)
    assert torch.equal(first.W_dec, again.W_dec)
    assert not torch.equal(first.W_dec, other.W_dec)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 7),
    chunks=st.integers(1, 40),
    width=st.sampled_from([1, 2, 3, 4, 8, 16, 32, 64]),
    data=st.data(),
)
def test_top_k_is_exact(rows, chunks, width, data):
    n = chunks * width
    k = data.draw(st.integers(1, n))
    seed = data.draw(st.integers(0, 1 << 30))
    pre_BN = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))
    if data.draw(st.booleans()):
        pre_BN = pre_BN.round()  # many ties: the values must agree, whichever of the equals is chosen
    values_BK, indices_BK = top_k(pre_BN, k)
    assert torch.equal(values_BK.sort(1, descending=True).values, pre_BN.sort(1, descending=True).values[:, :k])
    assert torch.equal(pre_BN.gather(1, indices_BK), values_BK)
    assert all(len(set(row)) == k for row in top_k_indices(pre_BN, k).tolist())


@pytest.mark.parametrize("normalization", ["none", "scale"])
def test_save_and_load_give_the_same_autoencoder(tmp_path, normalization):
    sae = random_sae(normalization)
    save_sae(sae, tmp_path / "a", {"site": "resid_post.3"})
    save_sae(sae, tmp_path / "b", {"site": "resid_post.3"})
    loaded = load_sae(tmp_path / "a")
    x_BD = torch.randn(9, 12)
    assert torch.equal(loaded(x_BD), sae(x_BD))
    assert loaded.config == sae.config
    assert read_metadata(tmp_path / "a") == {"site": "resid_post.3"}
    for name in ("sae.safetensors", "cfg.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def damage_weights(folder: Path) -> None:
    path = folder / "sae.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def another_shape(folder: Path) -> None:
    record = json.loads((folder / "cfg.json").read_text())
    record["sae"]["n_latents"] = 65
    (folder / "cfg.json").write_text(json.dumps(record))


def another_dtype(folder: Path) -> None:
    weights = load_file(folder / "sae.safetensors")
    save_file({name: tensor.half() for name, tensor in weights.items()}, folder / "sae.safetensors")


def not_a_number(folder: Path) -> None:
    weights = load_file(folder / "sae.safetensors")
    weights["b_enc"][3] = float("nan")
    save_file(weights, folder / "sae.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_weights, "not whole safetensors"),
        (another_shape, r"asks for torch.float32 \(65"),
        (another_dtype, "torch.float16"),
        (not_a_number, "b_enc holds values that are not finite"),
        (lambda folder: (folder / "sae.safetensors").unlink(), "are missing"),
        (lambda folder: (folder / "cfg.json").unlink(), "holds no cfg.json"),
        (lambda folder: (folder / "cfg.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "cfg.json").write_text('{"d_sae": 8}'), "not written by save_sae"),
        (lambda folder: save_file({"W_enc": torch.zeros(2)}, folder / "sae.safetensors"), "another kind of file"),
    ],
)
def test_a_damaged_or_foreign_folder_is_one_clear_error(tmp_path, damage, message):
    save_sae(random_sae(), tmp_path)
    damage(tmp_path)
    with pytest.raises(FormatError, match=message):
        load_sae(tmp_path)


def test_exports_are_all_and_all_are_exported():
    public = {name for name in vars(sae_core) if not name.startswith("_")}
    modules = {name for name in public if type(getattr(sae_core, name)).__name__ == "module"}
    assert public - modules == set(sae_core.__all__)
    assert len(sae_core.__all__) == len(set(sae_core.__all__))
