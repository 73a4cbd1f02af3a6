"""A model of the exact shape of Llama-3.2-1B goes through capture, archive, preprocess and train in bounded memory.

Its weights are random numbers, its tokenizer is a small one trained here: what is tested is that a model of this size
fits, not what it says.
"""

import multiprocessing
from pathlib import Path

from tests.integration.through import run_through

GIB = 2**30
ROWS = 200
WORDS = "stone river lamp garden winter letter bridge copper window harbour meadow signal paper engine orchard shadow"

# https://huggingface.co/meta-llama/Llama-3.2-1B, config.json
SHAPE = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

SETTINGS = {
    "name": "llama-1b",
    "capture": {"sites": ["resid_post.7"], "shards": 2, "max_tokens": 64, "tokens_per_batch": 2048},
    "train": {"n_latents": 4096, "k": 32, "batch_size": 512, "epochs": 2},
    "runtime": {"capture_workers": 1, "capture_threads": 2, "train_workers": 2, "checkpoint_every_steps": 10},
}


def text() -> list[str]:
    """Rows of about two dozen tokens, all different."""
    words = WORDS.split()
    return [" ".join(words[(i * 7 + j * (1 + i // 16)) % 16] for j in range(16)) + f" number {i}." for i in range(ROWS)]


def make_model(folder: Path) -> None:
    """Writes the model and its tokenizer in Hugging Face format; in a process of its own, whose memory goes with it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, dtype="bfloat16")).to(torch.bfloat16)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 1.235e9 < parameters < 1.237e9, parameters
    model = model.to_empty(device="cpu")
    model.tie_weights()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.ones_(parameter)
        else:
            parameter.data.normal_(0, 0.02, generator=generator)
    model.save_pretrained(folder)

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    tokenizer.train_from_iterator(text(), trainers.BpeTrainer(vocab_size=600, special_tokens=special))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1]).save_pretrained(
        folder
    )


def test_a_model_of_llama_1b_shape_in_under_8_gib(tmp_path):
    folder = tmp_path / "model"
    maker = multiprocessing.get_context("spawn").Process(target=make_model, args=(folder,))
    maker.start()
    maker.join()
    assert maker.exitcode == 0
    assert 2.47e9 < (folder / "model.safetensors").stat().st_size < 2.48e9
    (tmp_path / "text.txt").write_text("\n\n".join(text()))

    corpus = {"path": str(tmp_path / "text.txt"), "unit": "paragraph"}
    run = run_through("train", SETTINGS | {"model": {"path": str(folder)}, "corpus": corpus}, tmp_path)
    (folder / "model.safetensors").unlink()  # not 2.5 GB for each of the last runs that pytest keeps

    captured = [entry["summary"] for entry in run.stages["capture"]]
    tokens = sum(summary["tokens"] for summary in captured)
    assert [summary["rows"] for summary in captured] == [ROWS // 2, ROWS // 2]
    assert all(summary["d"] == SHAPE["hidden_size"] for summary in captured)
    assert ROWS * 18 < tokens < ROWS * 30
    rows = run.stages["preprocess"][0]["summary"]
    assert rows["train_rows"] + rows["validation_rows"] == tokens
    trained = run.stages["train"][0]["summary"]
    assert trained["steps"] == -(-2 * rows["train_rows"] // 512)
    assert trained["fvu"] < 1.0
    print(f"peak memory of all processes together: {run.peak_bytes / GIB:.2f} GiB")
    assert 2 * GIB < run.peak_bytes < 8 * GIB, f"{run.peak_bytes / GIB:.2f} GiB"
