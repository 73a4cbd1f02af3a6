"""SAELens's layout: read by the formulas of its classes, written and read back."""

import json

import pytest
import torch
from safetensors.torch import load_file

from sae_core import FormatError, JumpReLUSAE, SAEConfig, make_sae, read_foreign, write_foreign
from tests.sae_core.formats.examples import (
    CONFIGS,
    NOT_TRANSCODERS,
    D,
    K,
    N,
    above,
    check,
    check_outputs,
    folder_of,
    noise,
    random_sae,
    relu,
    rows,
    top,
)

WEIGHTS = "sae_weights.safetensors"


def saved(folder, architecture, config=None, **tensors):
    """A folder as SAELens 6 saves it; returns it and its tensors."""
    weights = {"W_enc": noise(D, N, seed=1), "W_dec": noise(N, D, seed=2), "b_dec": noise(D, seed=3), **tensors}
    settings = {
        "architecture": architecture, "d_in": D, "d_sae": N, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post"},
    }  # fmt: skip
    return folder_of(folder, settings | (config or {}), WEIGHTS, weights), weights


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("theirs", ["standard", "topk", "jumprelu"])
def test_reads_what_saelens_computes(tmp_path, theirs, subtract):
    threshold = noise(N, seed=5).abs()
    config = {"apply_b_dec_to_input": subtract} | ({"k": K} if theirs == "topk" else {})
    more = {"threshold": threshold} if theirs == "jumprelu" else {}
    folder, weights = saved(tmp_path, theirs, config, b_enc=noise(N, seed=4), **more)
    found = read_foreign(folder)
    activation = {"standard": relu, "topk": top(K), "jumprelu": above(threshold)}[theirs]
    W_enc, W_dec, b_dec, b_enc = (weights[name] for name in ("W_enc", "W_dec", "b_dec", "b_enc"))
    check(found.sae, rows(), W_enc.T, W_dec, b_enc, b_dec, activation, subtract)
    assert (found.format, found.metadata["model_name"]) == ("saelens", "gpt2")


def test_reads_gated(tmp_path):
    gates = {"b_gate": noise(N, seed=4), "b_mag": noise(N, seed=5), "r_mag": noise(N, seed=6)}
    folder, weights = saved(tmp_path, "gated", **gates)
    W_enc, W_dec, b_dec, b_gate, b_mag, r_mag = (tensor.double() for tensor in weights.values())
    shared_BN = (rows().double() - b_dec) @ W_enc
    code_BN = torch.where(shared_BN + b_gate > 0, relu(shared_BN * r_mag.exp() + b_mag), 0)
    check_outputs(read_foreign(folder).sae, rows(), code_BN, code_BN @ W_dec + b_dec)


def test_selection_by_decoder_norm_is_folded_into_the_weights(tmp_path):
    config = {"k": K, "rescale_acts_by_decoder_norm": True}
    folder, weights = saved(tmp_path, "topk", config, b_enc=noise(N, seed=4))
    W_enc, W_dec, b_dec, b_enc = (tensor.double() for tensor in weights.values())
    norm_N = W_dec.norm(dim=1)
    code_BN = top(K)(((rows().double() - b_dec) @ W_enc + b_enc) * norm_N)
    sae = read_foreign(folder).sae
    check_outputs(sae, rows(), code_BN, (code_BN / norm_N) @ W_dec + b_dec)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(N))


def test_the_factor_of_scaled_activations_is_given(tmp_path):
    config = {"normalize_activations": "expected_average_only_in"}
    folder, weights = saved(tmp_path, "standard", config, b_enc=noise(N, seed=4))
    with pytest.raises(FormatError, match=r"input_scale is None; give sqrt\(d_in\)"):
        read_foreign(folder)
    W_enc, W_dec, b_dec, b_enc = (tensor.double() for tensor in weights.values())
    code_BN = relu((0.25 * rows().double() - b_dec) @ W_enc + b_enc)
    check_outputs(read_foreign(folder, input_scale=0.25).sae, rows(), code_BN, (code_BN @ W_dec + b_dec) / 0.25)


def test_thresholds_at_and_below_zero_let_every_positive_value_through(tmp_path):
    threshold = torch.tensor([0.0, -1.0, 0.5, 1e-30]).repeat(N // 4)
    folder, weights = saved(tmp_path, "jumprelu", b_enc=noise(N, seed=4), threshold=threshold)
    W_enc, W_dec, b_dec, b_enc, _ = weights.values()
    sae = read_foreign(folder).sae
    check(sae, rows(), W_enc.T, W_dec, b_enc, b_dec, above(threshold))
    assert torch.isfinite(sae.log_threshold).all()


@pytest.mark.parametrize("name", NOT_TRANSCODERS)
def test_written_and_read_back_is_the_same(tmp_path, name):
    sae, x_BD = random_sae(name), rows()
    write_foreign(sae, tmp_path / "a", "saelens", {"hook_name": "blocks.3.hook_resid_post"})
    write_foreign(sae, tmp_path / "b", "saelens", {"hook_name": "blocks.3.hook_resid_post"})
    found = read_foreign(tmp_path / "a")
    assert found.metadata == {"hook_name": "blocks.3.hook_resid_post", "sae_lens_version": "6.0.0"}
    check_outputs(found.sae, x_BD, sae.encode(x_BD).dense(N), sae(x_BD))
    if sae.config.normalization == "none":
        for tensor in ("W_enc", "W_dec", "b_pre"):
            assert torch.equal(getattr(found.sae, tensor), getattr(sae, tensor))
    for file in (WEIGHTS, "cfg.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    write_foreign(found.sae, tmp_path / "again", "saelens", {"hook_name": "blocks.3.hook_resid_post"})
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "a" / WEIGHTS).read_bytes()


def test_batch_topk_and_matryoshka_become_jumprelu_with_their_threshold(tmp_path):
    for name in ("batch_topk", "matryoshka"):
        write_foreign(random_sae(name), tmp_path / name, "saelens")
        assert json.loads((tmp_path / name / "cfg.json").read_text())["architecture"] == "jumprelu"
        assert torch.equal(load_file(tmp_path / name / WEIGHTS)["threshold"], torch.full((N,), 0.4))
        assert isinstance(read_foreign(tmp_path / name).sae, JumpReLUSAE)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"metadata": {"sae_lens_version": "5.11.0"}}, "sae_lens_version = 5.11.0, but 6"),
        ({"metadata": {}}, "sae_lens_version = None"),
        ({"architecture": "abstopk"}, "architecture abstopk, but only standard, topk"),
        ({"architecture": ["topk"]}, r"architecture \['topk'\], but only"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations = layer_norm, which ours cannot"),
        ({"k": 0}, "k = 0; it must be at least 1"),
        ({"k": N + 1}, f"k = {N + 1} is larger than n_latents"),
        ({"d_sae": N + 1}, rf"W_enc has shape \({D}, {N}\), but the config says {N + 1}"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(tmp_path, config, message):
    folder, _ = saved(tmp_path, "topk", {"k": K} | config, b_enc=noise(N, seed=4))
    with pytest.raises(FormatError, match=message):
        read_foreign(folder)


def test_an_answer_that_nothing_asks_for_is_refused(tmp_path):
    folder, _ = saved(tmp_path, "topk", {"k": K}, b_enc=noise(N, seed=4))
    with pytest.raises(FormatError, match=r"k = 7 is given, but this file does not leave it open"):
        read_foreign(folder, k=7)
    with pytest.raises(FormatError, match=r"input_scale = 2.0 is given"):
        read_foreign(folder, input_scale=2.0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIGS["transcoder"], "no TopK transcoder; write it in the format sparsify"),
        (SAEConfig(d_in=D, n_latents=N, k=K, normalization="standardise_rows"), "SAELens has no such step"),
    ],
)
def test_what_saelens_cannot_compute_is_not_written(tmp_path, config, message):
    with pytest.raises(FormatError, match=message):
        write_foreign(make_sae(config), tmp_path / "never", "saelens")
    assert not (tmp_path / "never").exists()
