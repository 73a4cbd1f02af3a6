"""The unembedding read alone is that of the whole model, tied, untied, in one file or in several."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tasks.artifacts import open_store
from tasks.examples.unembedding import load_unembedding
from tests.tasks.report_inputs import given

LLAMA = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}


def models():
    yield "tied", LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True)), "1GB"
    yield "untied", LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=False)), "1GB"
    yield "several files", LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=False)), "1KB"
    yield "gpt2", GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=50, n_positions=8)), "1GB"


@pytest.mark.parametrize("which", range(4))
def test_it_is_the_models_own(which, tmp_path):
    name, model, shard = list(models())[which]
    norm = model.transformer.ln_f if name == "gpt2" else model.model.norm
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    model.save_pretrained(tmp_path / "model", max_shard_size=shard)
    paths = sorted((tmp_path / "model").iterdir())
    assert (len(paths) > 5) == (name == "several files")
    files = {path.name: path.read_bytes() for path in paths}
    artifact = given(open_store(str(tmp_path / "store")), "model", files, {"source": name})
    unembedding, gain = load_unembedding(artifact)
    torch.testing.assert_close(unembedding, model.get_output_embeddings().weight.detach(), rtol=0, atol=0)
    torch.testing.assert_close(gain, norm.weight.detach(), rtol=0, atol=0)
