"""The three formats that are one state dict: Goodfire, qresearch, llama3_interpretability_sae."""

import pytest
import torch

from sae_core import FormatError, read_foreign
from tests.sae_core.formats.examples import D, K, N, check, check_outputs, noise, relu, rows, top

W_ENC, B_ENC, W_DEC, BIAS = noise(N, D, seed=1), noise(N, seed=2), noise(D, N, seed=3), noise(D, seed=4)


@pytest.mark.parametrize(
    ("format_name", "encoder", "decoder"),
    [("goodfire", "encoder_linear", "decoder_linear"), ("qresearch", "encoder", "decoder")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_linear_layers_subtract_nothing_from_the_input(tmp_path, format_name, encoder, decoder, dtype):
    parts = [part.to(dtype) for part in (W_ENC, B_ENC, W_DEC, BIAS)]
    names = (f"{encoder}.weight", f"{encoder}.bias", f"{decoder}.weight", f"{decoder}.bias")
    torch.save(dict(zip(names, parts, strict=True)), tmp_path / "sae.pth")
    found = read_foreign(tmp_path / "sae.pth")
    check(found.sae, rows(), parts[0], parts[2].T, parts[1], parts[3], relu, subtract=False)
    assert (found.format, found.metadata) == (format_name, {})


@pytest.mark.parametrize("epsilon", [None, 0.5])
def test_llama3_divides_by_the_corrected_standard_deviation(tmp_path, epsilon):
    state = {"b_pre": BIAS, "encoder.weight": W_ENC, "encoder.bias": B_ENC, "decoder.weight": W_DEC}
    torch.save(state, tmp_path / "sae.pth")
    x_BD = rows().double()
    mean_B1, std_B1 = x_BD.mean(1, keepdim=True), x_BD.std(1, keepdim=True) + (epsilon or 1e-6)
    code_BN = top(K)(((x_BD - mean_B1) / std_B1 - BIAS) @ W_ENC.double().T + B_ENC)
    found = read_foreign(tmp_path / "sae.pth", k=K, epsilon=epsilon)
    reconstruction_BD = (code_BN @ W_DEC.double().T + BIAS) * std_B1 + mean_B1
    check_outputs(found.sae, rows(), code_BN, reconstruction_BD)
    assert found.format == "llama3_interpretability_sae"
    with pytest.raises(FormatError, match="does not say how many latents fire at each row; give k"):
        read_foreign(tmp_path / "sae.pth")
    with pytest.raises(FormatError, match=f"k = {N + 1} is larger than n_latents = {N}"):
        read_foreign(tmp_path / "sae.pth", k=N + 1)


def test_llama3_of_width_1_is_refused(tmp_path):
    state = {"b_pre": noise(1), "encoder.weight": noise(N, 1), "encoder.bias": B_ENC, "decoder.weight": noise(1, N)}
    torch.save(state, tmp_path / "sae.pth")
    with pytest.raises(FormatError, match="rows of width 1, which have no deviation"):
        read_foreign(tmp_path / "sae.pth", k=K)
