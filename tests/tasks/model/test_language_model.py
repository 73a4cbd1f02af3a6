import random

import pytest
import torch

from tasks.artifacts.artifact import sha256_file
from tasks.errors import InputError, SpecError
from tasks.model.language_model import BEGIN, LanguageModelSpec, _stream_bits, _token_loss, train_language_model

TINY = LanguageModelSpec(
    vocabulary=300, d_model=16, layers=1, heads=2, d_mlp=16, context=16, batch=4, steps=60, threads=1
)


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """Sentences whose last word follows from the first: a bigram cannot see it, attention can."""
    draw = random.Random(0)
    animals = {"cat": "milk", "dog": "bones", "cow": "grass", "bee": "nectar"}
    paragraphs = []
    for _ in range(400):
        animal = draw.choice(list(animals))
        paragraphs.append(f"The {animal} in the garden always likes {animals[animal]}.")
    return ["\n\n".join(paragraphs[:200]), "\n\n".join(paragraphs[200:])]


@pytest.fixture(scope="module")
def trained(documents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    reports = []
    return folder, train_language_model(TINY, documents, folder, lambda *report: reports.append(report)), reports


def test_it_learns_more_than_the_bigram(trained) -> None:
    _, summary, reports = trained
    assert summary["validation_bits_per_byte"] < summary["bigram_bits_per_byte"]
    assert reports == [(0, 60, "steps")] * 4 + [(step, 60, "steps") for step in range(1, 61)]


def test_the_same_work_gives_the_same_bits(trained, documents, tmp_path) -> None:
    folder, summary, _ = trained
    torch.manual_seed(99)  # the caller's random state must not matter, nor change
    torch.rand(3)
    state = torch.get_rng_state()
    assert train_language_model(TINY, documents, tmp_path, lambda *_: None) == summary
    files = sorted(path.name for path in folder.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert [sha256_file(folder / name) for name in files] == [sha256_file(tmp_path / name) for name in files]
    assert torch.equal(torch.get_rng_state(), state)
    other = LanguageModelSpec(**TINY.model_dump() | {"seed": 1, "steps": 1})
    assert train_language_model(other, documents, tmp_path, lambda *_: None) != summary


def test_hugging_face_loads_it(trained) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _, _ = trained
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    text = "The cat in the garden — naïve 猫."
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id == model.config.bos_token_id
    assert tokenizer.convert_ids_to_tokens(0) == BEGIN
    assert tokenizer.decode(ids[1:]) == text
    assert model(torch.tensor([ids[:16]])).logits.shape == (1, 16, 300)
    assert not model.config.tie_word_embeddings


@pytest.mark.parametrize("length", [2, 9, 17, 18, 25, 60, 100])
def test_the_stream_is_scored_token_by_token_with_half_a_context_at_least(trained, length: int) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(trained[0]).eval()
    ids = torch.randint(300, (length,), generator=torch.Generator().manual_seed(length))
    width = min(16, length - 1)
    stride = max(width // 2, 1)
    total = 0.0
    with torch.no_grad():
        for target in range(1, length):
            start = 0 if target <= width else min(-(-(target - width) // stride) * stride, length - 1 - width)
            total += _token_loss(model, ids[None, start : target + 1])[0, -1].item()
    assert _stream_bits(model, ids, 16) * torch.log(torch.tensor(2.0)).item() == pytest.approx(total, rel=1e-4)


def test_too_little_text_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="too few to train"):
        train_language_model(TINY, ["A short text."], tmp_path, lambda *_: None)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(SpecError, match="d_model 16 over 3 heads"):
        LanguageModelSpec(**TINY.model_dump() | {"heads": 3})
