"""dictionary_learning's layout: each of its classes read by its formula."""

import pytest
import torch

from sae_core import BatchTopKSAE, FormatError, TopKSAE, read_foreign
from tests.sae_core.formats.examples import D, K, N, above, check, check_outputs, folder_of, noise, relu, rows, top

LINEAR = {
    "encoder.weight": noise(N, D, seed=1),
    "encoder.bias": noise(N, seed=2),
    "decoder.weight": noise(D, N, seed=3),
}
PLAIN = {"W_enc": noise(D, N, seed=1), "b_enc": noise(N, seed=2), "W_dec": noise(N, D, seed=3)}
BIAS = noise(D, seed=4)
THRESHOLD = torch.tensor(1.5)
SELECTION = {"k": torch.tensor(K, dtype=torch.int), "threshold": THRESHOLD}


def saved(folder, name, weights, **trainer):
    """A folder as dictionary_learning saves it."""
    settings = {"dict_class": name, "activation_dim": D, "dict_size": N, "layer": 3, "lm_name": "pythia", **trainer}
    return folder_of(folder, {"trainer": settings, "buffer": {"ctx_len": 128}}, "ae.pt", weights, "config.json")


@pytest.mark.parametrize(
    ("name", "more", "activation", "subtract"),
    [
        ("AutoEncoder", {"bias": BIAS}, relu, True),
        ("AutoEncoderNew", {"decoder.bias": BIAS}, relu, False),
        ("AutoEncoderTopK", {"b_dec": BIAS, **SELECTION}, top(K), True),
        ("BatchTopKSAE", {"b_dec": BIAS, **SELECTION}, above(THRESHOLD), True),
        ("BatchTopKSAE", {"b_dec": BIAS, **SELECTION, "threshold": torch.tensor(-1.0)}, relu, True),  # never set
    ],
)
def test_reads_classes_of_linear_layers(tmp_path, name, more, activation, subtract):
    found = read_foreign(saved(tmp_path, name, LINEAR | more))
    W_enc, b_enc, W_dec = LINEAR.values()
    check(found.sae, rows(), W_enc, W_dec.T, b_enc, BIAS, activation, subtract)
    assert found.format == "dictionary_learning"
    assert found.metadata == {"model_name": "pythia", "layer": 3, "context_size": 128}


def test_reads_matryoshka(tmp_path):
    more = {"b_dec": BIAS, **SELECTION, "group_sizes": torch.tensor([8, 12, N - 20])}
    sae = read_foreign(saved(tmp_path, "MatryoshkaBatchTopKSAE", PLAIN | more)).sae
    W_enc, b_enc, W_dec = PLAIN.values()
    check(sae, rows(), W_enc.T, W_dec, b_enc, BIAS, above(THRESHOLD))
    assert (sae.config.prefixes, sae.config.k) == ((8, 20, N), K)


def test_reads_jumprelu(tmp_path):
    threshold = noise(N, seed=5).abs()
    sae = read_foreign(saved(tmp_path, "JumpReluAutoEncoder", PLAIN | {"b_dec": BIAS, "threshold": threshold})).sae
    W_enc, b_enc, W_dec = PLAIN.values()
    check(sae, rows(), W_enc.T, W_dec, b_enc, BIAS, above(threshold), subtract=False)


def test_reads_gated(tmp_path):
    r_mag, b_gate, b_mag = (noise(N, seed=seed).double() for seed in (5, 6, 7))
    matrices = {name: LINEAR[name] for name in ("encoder.weight", "decoder.weight")}
    gates = {
        "decoder_bias": BIAS,
        "r_mag": r_mag,
        "gate_bias": b_gate,
        "mag_bias": b_mag,
    }  # float64: rounded to float32
    shared_BN = (rows() - BIAS).double() @ matrices["encoder.weight"].double().T
    code_BN = torch.where(shared_BN + b_gate > 0, relu(shared_BN * r_mag.exp() + b_mag), 0)
    reconstruction_BD = code_BN @ matrices["decoder.weight"].double().T + BIAS
    sae = read_foreign(saved(tmp_path, "GatedAutoEncoder", matrices | gates)).sae
    check_outputs(sae, rows(), code_BN, reconstruction_BD)


def test_without_a_config_the_caller_says_what_the_tensors_leave_open(tmp_path):
    file = saved(tmp_path, "AutoEncoderTopK", LINEAR | {"b_dec": BIAS, **SELECTION}) / "ae.pt"
    assert isinstance(read_foreign(file).sae, TopKSAE)  # the config lies beside it
    (tmp_path / "config.json").unlink()
    with pytest.raises(FormatError, match="give architecture topk or batch_topk"):
        read_foreign(file)
    assert type(read_foreign(file, architecture="topk").sae) is TopKSAE
    assert type(read_foreign(file, architecture="batch_topk").sae) is BatchTopKSAE


def test_older_files_do_not_say_k(tmp_path):
    file = saved(tmp_path, "AutoEncoderTopK", LINEAR | {"b_dec": BIAS}) / "ae.pt"
    assert read_foreign(saved(tmp_path / "with", "AutoEncoderTopK", LINEAR | {"b_dec": BIAS}, k=K)).sae.config.k == K
    with pytest.raises(FormatError, match=r"does not say k, and no config\.json beside it does; give k"):
        read_foreign(file)
    (tmp_path / "config.json").unlink()
    assert read_foreign(file, k=3).sae.config.k == 3


@pytest.mark.parametrize(
    ("name", "weights", "given", "message"),
    [
        ("CrossCoder", LINEAR | {"b_dec": BIAS}, {}, "holds CrossCoder, but only AutoEncoder, "),
        ("AutoEncoder", LINEAR | {"bias": BIAS}, {"k": 3}, "k = 3 is given, but this file does not leave it open"),
        ("AutoEncoderTopK", LINEAR | {"b_dec": BIAS, **SELECTION}, {"k": K + 1}, f"k = {K + 1} is given.*says {K}"),
        (
            "BatchTopKSAE",
            LINEAR | {"b_dec": BIAS, **SELECTION},
            {"architecture": "topk"},
            r"ae.pt is BatchTopKSAE, but architecture is topk",
        ),
        ("BatchTopKSAE", LINEAR | {"b_dec": BIAS, **SELECTION, "k": torch.tensor(1.5)}, {}, "k is .*1.5.*of integers"),
        ("AutoEncoder", LINEAR | {"b_dec": BIAS}, {}, r"\['bias', 'decoder"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(tmp_path, name, weights, given, message):
    with pytest.raises(FormatError, match=message):
        read_foreign(saved(tmp_path, name, weights), **given)


def test_shapes_that_do_not_fit_the_config_are_refused(tmp_path):
    folder = saved(tmp_path, "AutoEncoder", LINEAR | {"bias": BIAS}, dict_size=N + 1)
    with pytest.raises(FormatError, match=rf"encoder.weight has shape \({N}, {D}\), but the config says {N + 1}"):
        read_foreign(folder)


def test_tied_weights_do_not_share_memory(tmp_path):
    tied = LINEAR["encoder.weight"]
    folder = saved(tmp_path, "AutoEncoder", LINEAR | {"decoder.weight": tied.T, "bias": BIAS})
    sae = read_foreign(folder).sae
    sae.W_enc.zero_()
    assert torch.equal(sae.W_dec, tied)
