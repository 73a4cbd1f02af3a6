"""The published systems end to end, in small: their presets with a random model of Llama's make and a few texts."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.config import load_preset
from tests.integration.through import run_through

TEMPLATE = (
    "{{ bos_token }}{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }} {% endif %}"
    "{% for message in messages %}<|user|>{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
)
SMALL = {  # of the shapes and the amounts; of the recipe only the rate, which 40 steps would learn nothing with
    "capture": {"shards": 2, "tokens_per_batch": 2048, "max_tokens": 64},
    "train": {"n_latents": 96, "batch_size": 128, "dead_after": None, "steps": 40, "lr": 5e-3},
    "evaluate": {"activations": 500, "text_rows": 8},
    "labeller": "keywords",
    "runtime": {"hardware": None, "train_workers": 1, "capture_workers": 1, "train_micro_batch": None, "window": 2},
}


def model(folder: Path, layers: int, chat: bool) -> Path:
    """A random Llama with grouped queries, and a tokenizer with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=400, num_hidden_layers=layers, **shape)).save_pretrained(folder)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        [text for talk in chats() for text in (turn["content"] for turn in talk)],
        trainers.BpeTrainer(vocab_size=400, special_tokens=["<|begin|>", "<|user|>"], initial_alphabet=alphabet),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|begin|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokenizer.chat_template = TEMPLATE if chat else None
    tokenizer.save_pretrained(folder)
    return folder


def chats() -> list[list[dict[str, str]]]:
    return [
        [
            {"role": "user", "content": f"I want to see {film} at {hour} o'clock in {town}."},
            {"role": "assistant", "content": f"There are {hour} seats left for {film} in {town}. Shall I book?"},
        ]
        for film in ("Alien", "Jaws", "Brazil", "Heat", "Fargo")
        for town in ("Oslo", "Bonn", "Graz", "Turku")
        for hour in range(5, 11)
    ]


def small(name: str, tmp_path: Path) -> dict[str, Any]:
    """The preset's settings on a small model and a few texts."""
    config = load_preset(name)
    values = config.model_dump(exclude_unset=True, mode="json")
    for group, changes in SMALL.items():
        values[group] = values.get(group, {}) | changes if isinstance(changes, dict) else changes
    del values["label"], values["score"]  # the names of Claude's models
    chat = config.corpus.unit == "chat"
    layer = int(config.site.rpartition(".")[2])
    values["capture"]["sites"] = [f"{config.site.partition('.')[0]}.{min(layer, 2)}"]
    values["train"]["k"] = 8
    values["model"] = {"path": str(model(tmp_path / "model", 4, chat))}
    rows = chats() if chat else [" ".join(turn["content"] for turn in talk) for talk in chats()]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({config.corpus.column: row}) + "\n" for row in rows))
    values["corpus"] |= {"path": str(tmp_path / "text.jsonl")}
    return values


@pytest.mark.parametrize(("name", "rows"), [("llama-3.2-3b-sentences", 360), ("llama-3.3-70b-chat", 120)])
def test_a_preset_runs_to_its_report(name: str, rows: int, tmp_path: Path) -> None:
    stages = run_through("report", small(name, tmp_path), tmp_path).stages
    assert stages["corpus"][0]["summary"]["rows"] == rows
    trained = stages["train"][0]["summary"]
    assert trained["steps"] == 40 and trained["fvu"] < 1
    assert stages["report"][0]["summary"]["features"] == 96


def test_a_transcoder_runs_to_its_report(tmp_path: Path) -> None:
    values = small("llama-3.2-3b-sentences", tmp_path)
    values["capture"]["sites"] = ["mlp_in.1", "mlp_out.1"]
    values["train"] |= {"architecture": "transcoder", "normalization": "scale", "skip": True}
    stages = run_through("report", values, tmp_path).stages
    named = {"site": "mlp_in.1", "target": "mlp_out.1"}
    assert all(stages[name][0]["summary"].items() >= named.items() for name in ("preprocess", "train"))
    assert stages["train"][0]["summary"]["fvu"] < 0.8
    assert stages["evaluate"][0]["summary"]["ce_recovered"] > 0.2
    assert stages["report"][0]["summary"]["features"] == 96
