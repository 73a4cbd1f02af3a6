"""A real trained model on real text: stories260K reads TinyStories, and a small autoencoder learns from it."""

import pytest

from tests.integration.through import run_through

SETTINGS = {
    "name": "stories",
    "capture": {"sites": ["resid_post.3"], "shards": 2, "max_tokens": 256},
    "train": {"n_latents": 1024, "k": 16, "batch_size": 1024, "epochs": 2},
    "evaluate": {"text_rows": 64},
    "runtime": {"capture_workers": 1, "train_workers": 2},
}


def test_an_autoencoder_of_stories260k_reconstructs_and_keeps_the_model_able(shared, tmp_path):
    model, text = shared / "models" / "stories260K", shared / "data" / "tinystories" / "tiny_stories_944k.txt"
    if not (model.is_dir() and text.is_file()):
        pytest.skip(f"{model} and {text} are not both there")
    settings = SETTINGS | {
        "model": {"path": str(model)},
        "corpus": {"path": str(text), "unit": "paragraph", "max_rows": 1200},
    }
    metrics = run_through("evaluate", settings, tmp_path).stages["evaluate"][0]["summary"]
    assert metrics["ce"] < 2.5, "the model was not read as it was trained"  # nats per token; ln 512 = 6.2
    assert 0 < metrics["l0"] <= 16
    assert metrics["fvu"] < 0.2
    assert metrics["ce_recovered"] > 0.9
    assert metrics["dead_share"] < 0.2
