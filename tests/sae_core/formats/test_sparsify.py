"""sparsify's layout: read by the formula of its SparseCoder, written and read back."""

import json

import pytest
import torch

from sae_core import FormatError, SAEConfig, TopKSAE, Transcoder, make_sae, read_foreign, write_foreign
from tests.sae_core.formats.examples import (
    BY_ROW,
    CONFIGS,
    D,
    K,
    N,
    check_outputs,
    folder_of,
    noise,
    random_sae,
    rows,
    top,
)

WEIGHTS = "sae.safetensors"


def saved(folder, config=None, **tensors):
    """A folder as sparsify saves it; returns it and its tensors."""
    weights = {
        "encoder.weight": noise(N, D, seed=1), "encoder.bias": noise(N, seed=2), "W_dec": noise(N, D, seed=3),
        "b_dec": noise(D, seed=4), **tensors,
    }  # fmt: skip
    settings = {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": N, "k": K,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D,
    }  # fmt: skip
    return folder_of(folder, settings | (config or {}), WEIGHTS, weights), weights


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_reads_what_sparsify_computes(tmp_path, transcode, skip):
    more = {"W_skip": noise(D, D, seed=5)} if skip else {}
    folder, weights = saved(tmp_path, {"transcode": transcode, "skip_connection": skip}, **more)
    weights = {name: tensor.double() for name, tensor in weights.items()}
    x_BD, b_dec = rows().double(), weights["b_dec"]
    code_BN = top(K)((x_BD if transcode else x_BD - b_dec) @ weights["encoder.weight"].T + weights["encoder.bias"])
    out_BD = code_BN @ weights["W_dec"] + b_dec
    if skip:
        out_BD = out_BD + x_BD @ weights["W_skip"].T
    sae = read_foreign(folder).sae
    check_outputs(sae, rows(), code_BN, out_BD)
    assert type(sae) is (Transcoder if transcode or skip else TopKSAE)


def test_the_number_of_latents_may_be_left_to_the_expansion_factor(tmp_path):
    more = {"encoder.weight": noise(4 * D, D), "encoder.bias": noise(4 * D), "W_dec": noise(4 * D, D)}
    folder, _ = saved(tmp_path, {"num_latents": 0, "expansion_factor": 4, "multi_topk": True}, **more)
    config = read_foreign(folder).sae.config
    assert (config.n_latents, config.multi_topk) == (4 * D, True)


@pytest.mark.parametrize("name", BY_ROW)
def test_written_and_read_back_is_the_same(tmp_path, name):
    sae, x_BD = random_sae(name), rows()
    write_foreign(sae, tmp_path / "a", "sparsify", {"hook_name": "layers.3"})
    write_foreign(sae, tmp_path / "b", "sparsify", {"hook_name": "layers.3"})
    found = read_foreign(tmp_path / "a")
    assert (found.format, found.metadata) == ("sparsify", {"hook_name": "layers.3"})
    check_outputs(found.sae, x_BD, sae.encode(x_BD).dense(N), sae(x_BD))
    if sae.config.normalization == "none":
        for tensor in ("W_enc", "W_dec", "b_pre", "b_enc"):
            assert torch.equal(getattr(found.sae, tensor), getattr(sae, tensor))
    for file in (WEIGHTS, "cfg.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_number_of_latents_is_written_as_it_is(tmp_path):
    write_foreign(random_sae("topk"), tmp_path, "sparsify")
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert (config["num_latents"], config["d_in"], config["k"], config["transcode"]) == (N, D, K, False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation": "groupmax"}, "activation = groupmax"),
        ({"signed": True}, "signed = True"),
        ({"k": None}, "k = None; it must be at least 1"),
        ({"num_latents": N - 1}, rf"encoder.weight has shape \({N}, {D}\), but the config says {N - 1}"),
        ({"num_latents": 0, "expansion_factor": 3}, f"the config says {3 * D}"),
        ({"skip_connection": True}, "not .*W_skip"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(tmp_path, config, message):
    with pytest.raises(FormatError, match=message):
        read_foreign(saved(tmp_path, config)[0])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIGS["relu"], "this autoencoder is relu; write it in the format saelens"),
        (CONFIGS["batch_topk"], "batch_topk"),
        (CONFIGS["matryoshka"], "matryoshka"),
        (SAEConfig(d_in=D, n_latents=N, k=K, normalization="standardise_rows"), "sparsify has no such step"),
        (SAEConfig(d_in=D, d_out=D + 1, n_latents=N, k=K, architecture="transcoder"), f"from {D} to {D + 1}"),
    ],
)
def test_what_sparsify_cannot_compute_is_not_written(tmp_path, config, message):
    with pytest.raises(FormatError, match=message):
        write_foreign(make_sae(config), tmp_path / "never", "sparsify")
    assert not (tmp_path / "never").exists()
