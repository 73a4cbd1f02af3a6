"""A plan's times and dollars: as the arithmetic by hand, and as what was measured."""

import pytest

from flows.config import load_preset
from flows.estimate import Estimate, estimate
from flows.hardware import hardware
from flows.planner import plan
from flows.sizing import Cost, sizing, step_seconds, train_bytes
from tasks.artifacts import Store, open_store
from tasks.errors import SpecError
from tasks.settings import settings


@pytest.fixture
def store(tmp_path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """The hub cannot be reached, and nothing of it is here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def reckoned(preset: str, store: Store, *sets: str) -> tuple[Estimate, dict[str, Cost]]:
    config = load_preset(preset, sets).resolved(settings({}))
    needs = estimate(config, plan(config, store))
    costs = sizing(config, needs, hardware(config.runtime.hardware or "h200"))
    return needs, {cost.stage: cost for cost in costs}


def test_a_step_takes_what_was_measured() -> None:
    """One H200, d=3,072 n=65,536 k=64 B=8,192: 12.4 ms in bf16 (tests/benchmarks/NOTES.md)."""
    config = load_preset("llama-3.2-3b-sentences", ["runtime.train_workers=1"])
    assert step_seconds(config, 3072, hardware("h200"))[0] == pytest.approx(12.4e-3, rel=0.05)


def test_a_training_holds_what_was_measured() -> None:
    config = load_preset("llama-3.2-3b-sentences", ["runtime.train_workers=1"])
    held = train_bytes(config, 3072, hardware("h200"))
    assert held == pytest.approx(5.96 * 2**30, rel=0.06)
    for architecture, tables in {"batch_topk": 0, "matryoshka": 4, "relu": None}.items():
        of = load_preset("llama-3.2-3b-sentences", [
            "runtime.train_workers=1", f"train.architecture={architecture}",
            *(["train.precision="] if tables is None else []),
        ])  # fmt: skip
        more = train_bytes(of, 3072, hardware("h200")) - held
        assert more == 8192 * 3072 * 6 * tables if tables is not None else more > 8 * 2**30, architecture


def test_a_training_that_does_not_fit_is_said(store: Store) -> None:
    """2 x 65,536 x 8,192 weights of 16 bytes and a rank's 4 x 4 x 512 x 65,536 of tiles are 17.8 GB."""
    fits = reckoned("llama-3.3-70b-chat", store, "runtime.hardware=8xh200")[1]["train"].how
    assert fits.endswith("17.8GB held on each"), fits
    sets = ("runtime.hardware=8xrtx4090", "train.n_latents=131072")
    large = reckoned("llama-3.3-70b-chat", store, *sets)[1]["train"].how
    assert "held on each, which has 24GB: lower runtime.train_micro_batch" in large


def test_sentences_are_reckoned_as_by_hand(store: Store) -> None:
    needs, costs = reckoned("llama-3.2-3b-sentences", store)
    assert needs.tokens == 25_000_000 * 27.3
    assert needs.captured_bytes == pytest.approx(4.19e12, rel=0.01)  # 682.5M x 3,072 x 2; published: 4 TB
    assert needs.archived_bytes == pytest.approx(3.2e12, rel=0.1)  # as published
    assert costs["train"].seconds == pytest.approx(0.95 * 682.5e6 * 10 / 8192 * 0.0513, rel=0.02)
    assert costs["train"].gpu_seconds == 8 * costs["train"].seconds
    assert sum(needs.dollars.values()) == pytest.approx(55, rel=0.02)


@pytest.mark.parametrize(
    ("preset", "d", "n", "capture", "step", "examples"),
    [
        # 9 layers of 60.8M weights at 0.4 x 71 TFLOP/s; 6 matmuls at 0.75 x 35.6, (42 x 2nd + 40 Bn) at 0.7 x 936 GB/s
        ("llama-3.2-1b-chat", 2048, 32768, 2 * 9 * 60.8e6 * 560e6 / 28.4e12, 0.1235 + 0.0168, 0.5 * 35.6e12),
        # 4.6 TB written at 0.5 GB/s; 8 ranks share matmuls at 0.75 x 67 TFLOP/s and exchange 8 x 2nd bytes at 450 GB/s
        ("llama-3.1-8b-chat", 4096, 65536, 560e6 * 4096 * 2 / 0.5e9, 0.0328 + 0.0102 + 0.0095, 0.5 * 67e12),
        ("llama-3.3-70b-chat", 8192, 65536, 560e6 * 8192 * 2 / 0.5e9, 0.0656 + 0.0138 + 0.0191, 0.5 * 67e12),
    ],
)
def test_chats_are_reckoned_as_by_hand(
    store: Store, preset: str, d: int, n: int, capture: float, step: float, examples: float
) -> None:
    needs, costs = reckoned(preset, store)
    assert needs.captured_bytes == 560e6 * d * 2
    assert costs["capture"].seconds == pytest.approx(capture, rel=0.01)
    assert costs["preprocess"].seconds == pytest.approx(560e6 * d * 2 / 0.25e9, rel=0.01)
    assert costs["train"].seconds == pytest.approx(0.95 * 560e6 / 4096 * step, rel=0.02)
    assert costs["examples"].seconds == pytest.approx(2 * n * d * 560e6 / examples, rel=0.01)


def test_capture_is_the_model_or_the_writing(store: Store) -> None:
    _, big = reckoned("llama-3.3-70b-chat", store, "runtime.hardware=h200")
    flop = 2 * 51 * 856e6 * 560e6  # 51 layers of 2 x 8,192 x (8,192 + 1,024) + 3 x 8,192 x 28,672 weights
    assert big["capture"].seconds == pytest.approx(flop / (0.4 * 989e12), rel=0.01)
    _, small = reckoned("llama-3.1-8b-chat", store)
    assert small["capture"].seconds == pytest.approx(560e6 * 4096 * 2 / 0.5e9, rel=0.01)
    assert "the model itself takes" in small["capture"].how


def test_a_model_that_does_not_fit_is_said(store: Store) -> None:
    _, fits = reckoned("llama-3.3-70b-chat", store)  # 51 layers: 87 GB, an H200 has 141
    _, not_ = reckoned("llama-3.3-70b-chat", store, "runtime.hardware=8xh100")
    assert "do not fit" not in fits["capture"].how
    assert "87.3GB of bf16 weights do not fit one GPU of 80GB" in not_["capture"].how


def test_the_shuffle_takes_the_cores_or_what_one_thread_does_alone(store: Store) -> None:
    _, few = reckoned("llama-3.2-1b-chat", store)
    assert few["preprocess"].seconds == pytest.approx(560e6 * 2048 * 2 / 0.25e9, rel=0.01)  # 8 x 70 MB/s would be more
    _, many = reckoned("llama-3.3-70b-chat", store)
    assert many["preprocess"].seconds == pytest.approx(560e6 * 8192 * 2 / 0.25e9, rel=0.01)


def test_more_gpus_share_the_matmuls_of_a_step_alone() -> None:
    one, eight = (
        step_seconds(load_preset("llama-3.3-70b-chat", [f"runtime.train_workers={n}"]), 8192, hardware("8xh200"))[0]
        for n in (1, 8)
    )
    matmuls = 6 * 2 * 4096 * 65536 * 8192 / (0.75 * 67e12)
    assert matmuls < one < 1.2 * matmuls
    assert matmuls / 8 < eight < one / 3


def test_hardware_that_nobody_knows_is_refused_at_once() -> None:
    with pytest.raises(SpecError, match=r"'8xh2000'.*such as 8xh200.*rtx4090"):
        load_preset("demo", ["runtime.hardware=8xh2000"])


def test_nothing_is_reckoned_from_nothing(store: Store) -> None:
    assert reckoned("demo", store, "model.path=some/unknown-model")[1] == {}
    assert reckoned("llama-3.2-1b-chat", store, "runtime.expected_tokens=")[1] == {}
