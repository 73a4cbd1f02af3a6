"""Capture and splice on three families of Hugging Face decoders, tiny and random."""

import pytest
import torch
import transformers

from sae_core import Site, SiteError, capture, decoder_layers, splice
from sae_core.hooks import KINDS

LAYERS = 3


def llama():
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=4
    )
    return transformers.LlamaForCausalLM(config)


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=LAYERS, n_head=4))


def gpt_neox():
    config = transformers.GPTNeoXConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=4
    )
    return transformers.GPTNeoXForCausalLM(config)


@pytest.fixture(params=[llama, gpt2, gpt_neox], ids=["llama", "gpt2", "gpt_neox"])
def model(request):
    torch.manual_seed(0)
    return request.param().eval()


@pytest.fixture
def ids():
    return torch.arange(14).reshape(2, 7)


def norm_before(layer, part):
    names = {"attn_in": ("input_layernorm", "ln_1"), "mlp_in": ("post_attention_layernorm", "ln_2")}[part]
    return next(getattr(layer, name) for name in names if hasattr(layer, name))


def test_residual_stream_is_bit_equal_to_the_full_model(model, ids):
    with torch.no_grad():
        full = model(input_ids=ids, output_hidden_states=True).hidden_states
    sites = [f"resid_pre.{i}" for i in range(LAYERS)] + [f"resid_post.{i}" for i in range(LAYERS - 1)]
    with capture(model, sites) as forward:
        recorded = forward(input_ids=ids)
    for i in range(LAYERS):
        assert torch.equal(recorded[f"resid_pre.{i}"], full[i])
    for i in range(LAYERS - 1):
        assert torch.equal(recorded[f"resid_post.{i}"], full[i + 1])


def test_attn_in_and_mlp_in_are_after_the_norms(model, ids):
    seen = {}
    layer = decoder_layers(model)[1]
    for part in ("attn_in", "mlp_in"):
        norm_before(layer, part).register_forward_hook(lambda _m, _i, out, part=part: seen.__setitem__(part, out))
    with capture(model, ["attn_in.1", "mlp_in.1"]) as forward:
        recorded = forward(input_ids=ids)
    assert torch.equal(recorded["attn_in.1"], seen["attn_in"])
    assert torch.equal(recorded["mlp_in.1"], seen["mlp_in"])


def test_the_block_outputs_add_up_to_the_residual_stream(model, ids):
    with capture(model, ["resid_pre.1", "attn_out.1", "mlp_out.1", "resid_post.1"]) as forward:
        x = forward(input_ids=ids)
    torch.testing.assert_close(x["resid_pre.1"] + x["attn_out.1"] + x["mlp_out.1"], x["resid_post.1"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_stops_after_the_last_needed_site(model, ids, kind):
    ran = []
    for number, layer in enumerate(decoder_layers(model)):
        layer.register_forward_pre_hook(lambda _m, _i, number=number: ran.append(number))
    model.get_output_embeddings().register_forward_pre_hook(lambda _m, _i: ran.append("unembedding"))
    with capture(model, [f"{kind}.1", "resid_post.0"]) as forward:
        forward(input_ids=ids)
    assert ran == [0, 1]


def test_the_model_is_whole_again_afterwards(model, ids):
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with capture(model, ["resid_post.0"]) as forward:
            first = forward(input_ids=ids)
            assert torch.equal(forward(input_ids=ids)["resid_post.0"], first["resid_post.0"])
        assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("kind", KINDS)
def test_splice_of_the_same_value_changes_nothing_and_of_zero_changes_all(model, ids, kind):
    with torch.no_grad():
        clean = model(input_ids=ids).logits
        with splice(model, f"{kind}.1", lambda x: x.clone()):
            assert torch.equal(model(input_ids=ids).logits, clean)
        with splice(model, f"{kind}.1", torch.zeros_like):
            assert not torch.allclose(model(input_ids=ids).logits, clean)
        assert torch.equal(model(input_ids=ids).logits, clean)


def test_splice_reaches_the_site_it_names(model, ids):
    with capture(model, ["resid_pre.2"]) as forward, splice(model, "resid_post.1", lambda x: x.double() + 1):
        moved = forward(input_ids=ids)["resid_pre.2"]
    with capture(model, ["resid_pre.2"]) as forward:
        assert torch.equal(moved, forward(input_ids=ids)["resid_pre.2"] + 1)


def test_an_exception_in_splice_removes_the_hook(model, ids):
    with torch.no_grad():
        clean = model(input_ids=ids).logits
        with pytest.raises(RuntimeError, match="boom"), splice(model, "resid_post.1", torch.zeros_like):
            raise RuntimeError("boom")
        assert torch.equal(model(input_ids=ids).logits, clean)


def test_a_layer_that_does_not_exist_is_refused_with_the_number_of_layers(model):
    with pytest.raises(SiteError, match=r"layer 3.*has 3 layers.*0 to 2"), capture(model, ["resid_post.3"]):
        pass
    with pytest.raises(SiteError, match="has 3 layers"), splice(model, "mlp_out.17", torch.zeros_like):
        pass


MALFORMED = ["resid_post", "resid_post.", "resid_post.-1", "resid_post.1.2", "residual.1", "resid_post.²"]


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_site_is_refused(text):
    with pytest.raises(SiteError, match=r"is not <kind>.<layer>"):
        Site.parse(text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_site_comes_back_from_its_name(kind):
    assert Site.parse(f"{kind}.12") == Site(kind, 12)
    assert str(Site.parse(f"{kind}.12")) == f"{kind}.12"


def test_no_site_and_no_layers_are_refused(model):
    with pytest.raises(SiteError, match="No site"), capture(model, []):
        pass
    with pytest.raises(SiteError, match="no list of None decoder layers"):
        decoder_layers(torch.nn.Linear(2, 2))
