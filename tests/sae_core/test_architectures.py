"""Every architecture's arithmetic and losses against its paper's formula, written densely in float64."""

import json

import pytest
import torch
from pydantic import ValidationError

from sae_core import ActivationError, FormatError, SAEConfig, load_sae, make_sae, save_sae
from sae_core.architectures.jumprelu import jump, step
from sae_core.config import default_prefixes
from sae_core.losses import Batch
from sae_core.sae import SAE

D, N, K, ROWS = 12, 64, 4, 50
CONFIGS = {
    "topk": {"k": K},
    "multi_topk": {"architecture": "topk", "k": K, "multi_topk": True},
    "batch_topk": {"architecture": "batch_topk", "k": K},
    "relu": {"architecture": "relu"},
    "jumprelu": {"architecture": "jumprelu", "bandwidth": 0.3},
    "gated": {"architecture": "gated"},
    "matryoshka": {"architecture": "matryoshka", "k": K},
    "matryoshka_rows": {"architecture": "matryoshka", "k": K, "selection": "row", "prefixes": (8, 20, N)},
    "transcoder": {"architecture": "transcoder", "k": K, "d_out": 7},
    "skip_transcoder": {"architecture": "transcoder", "k": K, "d_out": 7, "skip": True},
}


def random_sae(name: str, dtype=torch.float64, **changes) -> SAE:
    sae = make_sae(SAEConfig(d_in=D, n_latents=N, **(CONFIGS[name] | changes)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        for buffer, value in {"input_scale": 0.5, "target_scale": 2.0, "threshold": 1.1}.items():
            if hasattr(sae, buffer):
                getattr(sae, buffer).fill_(value)
        if name == "jumprelu":
            sae.log_threshold.copy_(torch.rand(N, generator=generator).add(0.4).log())
    return sae.to(dtype)


def some_rows(seed=2, width=D, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(ROWS, width, generator=torch.Generator().manual_seed(seed)).to(dtype) + 0.5


def the_target(sae: SAE, x_BD: torch.Tensor) -> torch.Tensor:
    return some_rows(3, 7) if sae.config.architecture == "transcoder" else x_BD


def keep_largest(pre_BN: torch.Tensor, k: int) -> torch.Tensor:
    """ReLU of the k largest of each row by a full sort, zero elsewhere."""
    smallest_B1 = pre_BN.sort(dim=1, descending=True).values[:, k - 1 : k]
    return torch.where(pre_BN >= smallest_B1, pre_BN, 0).relu()


def dense_pre(sae: SAE, x_BD: torch.Tensor) -> torch.Tensor:
    """W_enc (x - b_pre) + b_enc, element by element."""
    centred_BD = x_BD - sae.b_pre if sae.config.subtracts_pre_bias else x_BD
    return (centred_BD[:, None, :] * sae.W_enc[None]).sum(-1) + getattr(sae, "b_enc", 0)


def dense_code(sae: SAE, x_BD: torch.Tensor, training: bool) -> torch.Tensor:
    """The published rule by which latents fire."""
    architecture, pre_BN = sae.config.architecture, dense_pre(sae, x_BD)
    if architecture in ("topk", "transcoder") or sae.config.selection == "row":
        return keep_largest(pre_BN, K)
    if architecture in ("batch_topk", "matryoshka"):
        kept = pre_BN.flatten().sort(descending=True).values[K * len(x_BD) - 1] if training else sae.threshold
        return torch.where(pre_BN >= kept, pre_BN, 0).relu()
    if architecture == "jumprelu":
        return pre_BN * (pre_BN > sae.log_threshold.exp())
    if architecture == "gated":
        magnitude_BN = pre_BN * sae.r_mag.exp() + sae.b_mag
        return ((pre_BN + sae.b_gate) > 0) * magnitude_BN.relu()
    return pre_BN.relu()


def dense_forward(sae: SAE, x_BD: torch.Tensor, code_BN: torch.Tensor) -> torch.Tensor:
    """W_dec z + b_pre, with a transcoder's skip."""
    skip = getattr(sae, "W_skip", None)
    linear = 0 if skip is None else x_BD @ skip.T
    return (code_BN[:, :, None] * sae.W_dec[None]).sum(1) + sae.b_pre + linear


FORWARDS = [(name, normalization) for name in CONFIGS for normalization in ("none", "standardise_rows", "scale")]
FORWARDS = [found for found in FORWARDS if not ("transcoder" in found[0] and found[1] == "standardise_rows")]


@pytest.mark.parametrize(("name", "normalization"), FORWARDS)
def test_forward_is_the_published_formula(name, normalization):
    sae, x_BD = random_sae(name, normalization=normalization), some_rows()
    shift, scale, out = 0.0, 1.0, None
    if normalization == "standardise_rows":
        shift = x_BD.mean(1, keepdim=True)
        scale = (x_BD - shift).square().mean(1, keepdim=True).sqrt() + sae.config.epsilon
    if normalization == "scale":
        scale, out = 2.0, getattr(sae, "target_scale", None)
    normal_BD = (x_BD - shift) / scale
    code_BN = dense_code(sae, normal_BD, training=False)
    expected_BD = dense_forward(sae, normal_BD, code_BN) * (scale if out is None else 1 / out) + shift
    torch.testing.assert_close(sae(x_BD), expected_BD, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sae.encode(x_BD).dense(N), code_BN, rtol=1e-12, atol=1e-12)
    assert 0 < float((code_BN > 0).double().mean()) < 0.7


def expected_loss(sae: SAE, batch: Batch) -> dict[str, torch.Tensor]:
    """The parts of the published loss, in dense form."""
    pre_BN, code_BN = dense_pre(sae, batch.x_BD), dense_code(sae, batch.x_BD, training=True)
    target_BD, norms_N = batch.target_BD, sae.W_dec.square().sum(1).sqrt()

    def error_of(code_BN: torch.Tensor) -> torch.Tensor:
        return (dense_forward(sae, batch.x_BD, code_BN) - target_BD).square().sum()

    found = {"error": error_of(code_BN)}
    if sae.uses_auxiliary:
        residual_BD = (target_BD - dense_forward(sae, batch.x_BD, code_BN)).detach()
        dead_BM = keep_largest(pre_BN[:, batch.dead_N], batch.k_auxiliary)
        found["auxiliary"] = (residual_BD - dead_BM @ sae.W_dec[batch.dead_N]).square().sum()
    if sae.config.multi_topk:
        found["other"] = error_of(keep_largest(pre_BN, 4 * K)) / 8
    if sae.config.architecture == "matryoshka":
        prefixes = sae.config.prefixes or (4, 8, 16, 32, N)
        nested = [error_of(code_BN * (torch.arange(N) < size)) for size in prefixes]
        found["other"] = sum(nested) / len(nested) - found["error"]
    if sae.config.architecture == "relu":
        found["sparsity"] = (code_BN * norms_N).sum()
    if sae.config.architecture == "gated":
        gate_BN = (pre_BN + sae.b_gate).relu()
        found["sparsity"] = gate_BN.sum()
        frozen_BD = gate_BN @ sae.W_dec.detach() + sae.b_pre.detach()
        found["other"] = (frozen_BD - target_BD).square().sum()
    return found


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "jumprelu"])
def test_losses_and_their_gradients_are_the_published_formulas(name):
    sae, x_BD = random_sae(name), some_rows()
    batch = Batch(x_BD, the_target(sae, x_BD), torch.arange(N) % 3 == 0, k_auxiliary=5)
    found = sae.loss(batch)._asdict()
    expected = expected_loss(sae, batch)
    weights = {"error": 1.0, "other": 1.0, "auxiliary": 0.3, "sparsity": 0.7}
    for part in weights:
        assert (found[part] is None) == (part not in expected), part
        if part in expected:
            torch.testing.assert_close(found[part], expected[part], rtol=1e-12, atol=1e-12)
    names, parameters = zip(*sae.named_parameters(), strict=True)
    totals = [sum(weights[part] * parts[part] for part in expected) for parts in (found, expected)]
    grads = [torch.autograd.grad(total, parameters, materialize_grads=True, allow_unused=True) for total in totals]
    for parameter, ours, theirs in zip(names, *grads, strict=True):
        assert float((ours - theirs).norm()) <= 1e-12 * float(theirs.norm()), parameter
        assert theirs.norm() > 0, parameter
    assert torch.equal(found["fired_N"], (dense_code(sae, x_BD, training=True) > 0).double().sum(0))


def test_jumprelu_has_the_straight_through_gradients_of_its_paper():
    epsilon = 0.3
    sae, x_BD = random_sae("jumprelu"), some_rows()
    found = sae.loss(Batch(x_BD, x_BD, torch.zeros(N, dtype=torch.bool), k_auxiliary=1))
    pre_BN, theta_N = dense_pre(sae, x_BD).detach(), sae.log_threshold.exp().detach()
    open_BN = pre_BN > theta_N
    near_BN = ((pre_BN - theta_N) / epsilon).abs() < 0.5
    assert 20 < near_BN.sum() < 0.5 * near_BN.numel()
    code_BN = pre_BN * open_BN
    d_code_BN = 2 * (code_BN @ sae.W_dec + sae.b_pre - x_BD) @ sae.W_dec.T
    d_code_BN = d_code_BN.detach()
    d_theta_N = -(theta_N / epsilon) * (near_BN * d_code_BN).sum(0) - 0.7 / epsilon * near_BN.double().sum(0)
    assert found.sparsity.item() == int(open_BN.sum())
    error = (code_BN @ sae.W_dec + sae.b_pre - x_BD).square().sum()
    assert found.error.item() == pytest.approx(error.item(), rel=1e-12)
    wanted = (sae.log_threshold, sae.W_enc, sae.b_enc)
    grads = torch.autograd.grad(found.error + 0.7 * found.sparsity, wanted)
    d_pre_BN = d_code_BN * open_BN
    for ours, theirs in zip(grads, (d_theta_N * theta_N, d_pre_BN.T @ x_BD, d_pre_BN.sum(0)), strict=True):
        assert float((ours - theirs).norm()) <= 1e-12 * float(theirs.norm())


def test_the_estimators_are_steps_where_they_are_evaluated():
    pre_BN, theta_N = torch.tensor([[0.1, 0.9, 0.5]]), torch.tensor([0.5, 0.5, 0.5])
    assert jump(pre_BN, theta_N, 1.0).tolist() == [[0, pytest.approx(0.9), 0]]
    assert step(pre_BN, theta_N, 1.0).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_and_loaded_it_is_the_same(tmp_path, name):
    sae, x_BD = random_sae(name, torch.float32), some_rows(dtype=torch.float32)
    save_sae(sae, tmp_path)
    loaded = load_sae(tmp_path)
    assert type(loaded) is type(sae)
    assert loaded.config == sae.config
    assert torch.equal(loaded(x_BD), sae(x_BD))
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in sae.state_dict().items())


def test_a_folder_written_before_there_were_other_architectures_loads(tmp_path):
    save_sae(random_sae("topk", torch.float32), tmp_path)
    record = json.loads((tmp_path / "cfg.json").read_text())
    fields = {"d_in", "n_latents", "k", "architecture", "normalization", "epsilon", "seed"}
    assert record["sae"].keys() == fields  # and the same bytes are written today
    load_sae(tmp_path)
    record["sae"]["architecture"] = "relu"
    (tmp_path / "cfg.json").write_text(json.dumps(record))
    with pytest.raises(FormatError, match="k = 4 is given, but the architecture relu does not use it"):
        load_sae(tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_steering_adds_to_the_codes_in_eval_mode_only(name):
    sae, x_BD = random_sae(name, normalization="scale"), some_rows()
    plain_BD = sae(x_BD)
    sae.h_bias = torch.zeros(N, dtype=torch.float64)
    sae.h_bias[3] = 2.0
    assert torch.equal(sae.train()(x_BD), plain_BD)
    out = getattr(sae, "target_scale", sae.input_scale)
    torch.testing.assert_close(sae.eval()(x_BD), plain_BD + 2.0 * sae.W_dec[3] / out)
    assert "h_bias" not in sae.state_dict()


@pytest.mark.parametrize("initialisation", ["tied", "orthogonal", "random"])
@pytest.mark.parametrize("n", [5, 40])
def test_first_weights(initialisation, n):
    config = SAEConfig(d_in=9, n_latents=n, architecture="relu", initialisation=initialisation, decoder_norm=0.3)
    sae = make_sae(config)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((n,), 0.3))
    assert torch.equal(sae.W_enc, sae.W_dec) == (initialisation != "random")
    if initialisation == "orthogonal" and n <= 9:
        torch.testing.assert_close(sae.W_dec @ sae.W_dec.T, 0.09 * torch.eye(n))
    assert torch.equal(make_sae(config).W_enc, sae.W_enc)


def test_orthogonal_directions_cover_space_more_evenly_than_random_ones():
    def spread(initialisation: str) -> float:
        W_ND = make_sae(SAEConfig(d_in=16, n_latents=64, k=2, initialisation=initialisation)).W_dec.detach()
        return float(torch.linalg.cond(W_ND))

    assert spread("orthogonal") < 0.6 * spread("tied")


def test_the_first_weights_of_the_published_recipes():
    relu = make_sae(SAEConfig(d_in=9, n_latents=20, architecture="relu"))
    torch.testing.assert_close(relu.W_dec.norm(dim=1), torch.full((20,), 0.1))
    assert torch.equal(relu.W_enc, relu.W_dec) and not relu.b_enc.any()
    jumprelu = make_sae(SAEConfig(d_in=100, n_latents=20, architecture="jumprelu"))
    torch.testing.assert_close(jumprelu.log_threshold.exp(), torch.full((20,), 0.05))
    transcoder = make_sae(SAEConfig(d_in=9, n_latents=20, k=2, architecture="transcoder", d_out=3, skip=True))
    assert not transcoder(torch.randn(4, 9)).any()
    torch.testing.assert_close(transcoder.W_enc.norm(dim=1), torch.ones(20))
    assert default_prefixes(2048) == (128, 256, 512, 1024, 2048)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "relu", "k": 3}, "k = 3 is given, but the architecture relu does not use it"),
        ({"architecture": "batch_topk"}, "batch_topk needs k"),
        ({"architecture": "batch_topk", "k": 9}, "k = 9 is larger than n_latents = 8"),
        ({"architecture": "matryoshka", "k": 1, "prefixes": (4, 2, 8)}, "do not ascend from at least 1 to"),
        ({"architecture": "matryoshka", "k": 1, "prefixes": (2, 4)}, "to n_latents = 8"),
        ({"architecture": "matryoshka", "k": 1, "prefixes": (0, 8)}, "do not ascend"),
        ({"architecture": "matryoshka", "k": 1, "prefixes": ()}, "do not ascend"),
        ({"architecture": "topk", "k": 1, "prefixes": (8,)}, "choose matryoshka"),
        ({"architecture": "gated", "bandwidth": 0.1}, "choose jumprelu"),
        ({"architecture": "topk", "k": 1, "decoder_norm": 0.1}, "choose relu"),
        ({"architecture": "relu", "d_out": 3}, "choose transcoder"),
        ({"architecture": "transcoder", "k": 1, "normalization": "standardise_rows"}, "transcoder cannot have"),
        ({"architecture": "tpok", "k": 1}, "architecture"),
    ],
)
def test_settings_that_do_not_go_together_are_one_sentence(settings, message):
    with pytest.raises(ValidationError, match=message):
        SAEConfig(d_in=4, n_latents=8, **settings)


def test_targets_are_for_transcoders_and_as_long_as_the_input():
    transcoder, x_BD = random_sae("transcoder"), some_rows()
    with pytest.raises(ActivationError, match="got no target"):
        transcoder.training_pair(x_BD, None)
    with pytest.raises(ActivationError, match="its 50 rows, but got 49 rows of the target"):
        transcoder.training_pair(x_BD, some_rows(width=7)[1:])
    with pytest.raises(ActivationError, match="width 7"):
        transcoder.training_pair(x_BD, x_BD)
    with pytest.raises(ActivationError, match="A target was given"):
        random_sae("relu").training_pair(x_BD, x_BD)
