"""Scores: the hard protocol, its interval, the look-up beside it, and what is no number."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import claude
from tasks.artifacts import Artifact, Store, open_store
from tasks.claude import service as claude_service
from tasks.examples.table import examples_by_latent
from tasks.label import LABEL, LabelSpec
from tasks.runtime import Runtime
from tasks.score import SCORE, SCORE_ROLES, ScoreSpec, held_out, score_dollars
from tasks.score.detection import balanced_accuracy
from tasks.score.scorers import ClaudeScorer, parse_active
from tests.servers.message_batches import MessageBatches
from tests.tasks.made_examples import made_examples, table

CLAUDE = ScoreSpec(scorer="claude")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Any:
    fast = claude_service.Patience(first_poll=0.01, longest_poll=0.02, settle=0.02)
    monkeypatch.setattr(claude, "Patience", lambda: fast)
    with MessageBatches() as running:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", running.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "test-key")
        yield running


def built(store: Store, spec: ScoreSpec | None = None, label: LabelSpec | None = None, **made: Any) -> Artifact:
    examples = made_examples(store, **made)
    labels = LABEL.build(store, label or LabelSpec(), examples=examples).artifact
    return SCORE.build(store, spec or ScoreSpec(), labels=labels, examples=examples).artifact


def scores(artifact: Artifact) -> dict[int, dict[str, Any]]:
    return {row["latent"]: row for row in table(artifact, "scores.parquet")}


def test_labels_are_scored_on_tokens_that_no_labeller_saw(store: Store) -> None:
    artifact = built(store)
    rows = scores(artifact)
    assert rows[0]["score"] == rows[0]["baseline"] == 1.0  # the token decides: label and look-up both know it
    assert rows[1]["score"] == 1.0  # what comes before decides: the look-up cannot know it
    assert rows[1]["baseline"] < 0.75
    assert rows[1]["baseline_high"] < rows[1]["score"]
    assert rows[2]["baseline"] < 1.0  # " cat" without " black" is among the silent tokens
    for row in rows.values():
        if row["status"] == "scored":
            assert row["low"] <= row["score"] <= row["high"]
            assert row["n_positive"] >= 20
    assert artifact.summary["scorer"] == "keywords"
    assert artifact.summary["share_above_baseline"] > 0
    assert artifact.summary["median_score"] > 0.5


def test_the_look_up_knows_the_label_half_only(store: Store) -> None:
    """Its table says " cat", but in the score half " dog" fires: it must be wrong, and a peek would be right."""
    row = scores(built(store, exchanged=True))[0]
    assert row["n_positive"] >= 20
    assert row["baseline"] < 0.5


def test_under_twenty_held_out_activations_there_is_no_number(store: Store) -> None:
    artifact = built(store)
    rows = scores(artifact)
    assert rows[4]["n_positive"] < 20
    for latent in (4, 5):
        assert rows[latent]["status"] == "too few"
        assert rows[latent]["score"] is None
        assert rows[latent]["baseline"] is None
        assert f"{rows[latent]['n_positive']} held-out activations" in rows[latent]["reason"]
    assert artifact.summary["too_few"] == 2
    allowed = rows[4]["n_positive"]
    assert scores(built(store, ScoreSpec(min_positives=allowed)))[4]["status"] in ("scored", "no label")


def test_a_latent_without_a_label_still_has_its_baseline(store: Store) -> None:
    rows = scores(built(store, label=LabelSpec(max_latents=1)))
    row = next(row for row in rows.values() if row["status"] == "no label")
    assert row["score"] is None
    assert 0 <= row["baseline_low"] <= row["baseline"] <= row["baseline_high"] <= 1


def test_half_of_the_negatives_come_from_the_rows_of_the_positives(store: Store) -> None:
    for latent, found in examples_by_latent(made_examples(store), set(SCORE_ROLES)):
        kept = held_out(found)
        same = [one for one in kept if one.role == "score_negative_same_row"]
        far = [one for one in kept if one.role == "score_negative_random"]
        assert len(same) == len(far), latent
        assert sum(one.role == "score_positive" for one in kept) == sum(one.role == "score_positive" for one in found)
        assert all(one.activations[one.hit] == 0 for one in same + far)
        assert all(one.half == "score" for one in kept)
        fewer = [one for one in found if one not in same[3:]]
        assert sum(one.role == "score_negative_random" for one in held_out(fewer)) == len(same[:3])


def test_the_score_repeats_and_follows_its_seed(tmp_path: Path) -> None:
    stores = [open_store(str(tmp_path / f"{number}")) for number in range(3)]
    digests = [built(store, ScoreSpec(seed=seed)).digest for store, seed in zip(stores, (0, 0, 1), strict=True)]
    assert digests[0] == digests[1] != digests[2]


ITEMS = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 6)), min_size=2, max_size=40).filter(
    lambda items: {active for active, _, _ in items} == {True, False}
)


def arrays(items: list[tuple[bool, bool, int]]) -> tuple[Any, Any, Any]:
    active, predicted, row = zip(*items, strict=True)
    return np.array(active), np.array(predicted), np.array(row, dtype=np.int64) * 17 - 5


@given(ITEMS)
def test_balanced_accuracy_equals_a_plain_count_and_its_interval_holds_it_or_touches(items: list) -> None:
    active, predicted, row = arrays(items)
    found = balanced_accuracy(active, predicted, row, 200, (0,))
    hits = [p for a, p, _ in items if a]
    spared = [not p for a, p, _ in items if not a]
    assert found.value == pytest.approx((sum(hits) / len(hits) + sum(spared) / len(spared)) / 2)
    assert 0 <= found.low <= found.high <= 1


@given(ITEMS)
def test_a_constant_guess_is_worth_a_half_and_the_opposite_guess_the_rest(items: list) -> None:
    active, predicted, row = arrays(items)
    for constant in (True, False):
        found = balanced_accuracy(active, np.full(len(active), constant), row, 100, (0,))
        assert found == pytest.approx((0.5, 0.5, 0.5)) or found == pytest.approx((0.5, 0.0, 1.0))
    assert balanced_accuracy(active, active, row, 100, (0,)).value == 1.0
    one, other = (balanced_accuracy(active, guess, row, 100, (0,)) for guess in (predicted, ~predicted))
    assert one.value + other.value == pytest.approx(1.0)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low)) or one.low == 0.0


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Guesses that are right with probability 0.8, four tokens a row: about 95 of 100 intervals hold 0.8."""
    dice, held = np.random.default_rng(0), 0
    for trial in range(200):
        active = np.arange(160) % 2 == 0
        predicted = np.where(dice.random(160) < 0.8, active, ~active)
        found = balanced_accuracy(active, predicted, np.arange(160) // 4, 500, (trial,))
        held += found.low <= 0.8 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_rows_that_are_right_or_wrong_together_widen_the_interval() -> None:
    """The cluster bootstrap knows that 40 tokens of 4 rows are not 40 independent tokens."""
    active = np.arange(40) % 2 == 0
    predicted = np.where(np.arange(40) // 10 < 3, active, ~active)
    together = balanced_accuracy(active, predicted, np.arange(40) // 10, 1000, (0,))
    apart = balanced_accuracy(active, predicted, np.arange(40), 1000, (0,))
    assert together.value == apart.value
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_claude_guesses_from_label_and_context(store: Store, service: MessageBatches) -> None:
    artifact = built(store, CLAUDE, LabelSpec(labeller="claude"))
    rows = scores(artifact)
    assert rows[0]["score"] == 1.0  # the scripted answerer finds the marked token that the label names
    assert rows[0]["scorer"] == "claude"
    assert rows[4]["status"] == "too few"
    assert artifact.summary["dollars"] > 0
    assert artifact.summary["dollars"] <= score_dollars(CLAUDE, 7)
    assert artifact.summary["answered"] == artifact.summary["requests"]
    asked = {one["custom_id"][25:]: one["params"] for batch in service.batches.values() for one in batch["requests"]}
    lines = asked["0-0-1"]["messages"][0]["content"].splitlines()
    assert lines[0] == "Label: the token cat"
    assert sum("<<" in line for line in lines) == 20
    assert all(line.count("<<") == 1 for line in lines[2:])


def test_keyword_scores_of_claude_labels_match_words_whatever_their_case(store: Store, service: MessageBatches) -> None:
    answer = service.answer
    service.answer = lambda params: answer(params).replace('"cat"', '"Cat"')
    assert scores(built(store, ScoreSpec(), LabelSpec(labeller="claude")))[0]["score"] == 1.0


def test_guesses_that_do_not_come_back_are_said_not_invented(store: Store, service: MessageBatches) -> None:
    service.script["outcomes"] = [{"custom_id": "-1-[0-9]$", "outcome": "not_json", "times": 99},
                                  {"custom_id": "-3-0$", "outcome": "refusal", "times": 99}]  # fmt: skip
    rows = scores(built(store, CLAUDE))
    assert rows[1]["status"] == "unanswered"
    assert rows[1]["score"] is None
    assert rows[1]["baseline"] is not None
    assert "did not come back" in rows[1]["reason"]
    assert rows[0]["status"] == "scored"


@pytest.mark.parametrize("answer", ["", "[]", '{"active": [1.5]}', '{"active": [true]}', '{"active": "1"}', "{}"])
def test_a_malformed_guess_is_a_value_error(answer: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_active(answer)


@given(st.sets(st.integers(1, 100)))
def test_line_numbers_are_read(numbers: set[int]) -> None:
    assert parse_active(json.dumps({"active": sorted(numbers)})) == numbers


@given(st.integers(0, 70000), st.integers(0, 200), st.integers(1, 100))
def test_each_example_is_asked_once_and_no_place_tells_a_positive(latent: int, count: int, size: int) -> None:
    groups = ClaudeScorer("claude-haiku-4-5", size, 100, 0)._groups(latent, count)
    assert sorted(index for group in groups for index in group) == list(range(count))
    assert all(len(group) <= size for group in groups)


def test_a_scoring_that_is_stopped_goes_on_with_what_it_sent(store: Store, service: MessageBatches) -> None:
    examples = made_examples(store)
    labels = LABEL.build(store, LabelSpec(), examples=examples).artifact
    service.script["ends_after"] = 10**6
    with pytest.raises(Exception, match="has not ended"):
        SCORE.build(store, CLAUDE, Runtime(batch_hours=1e-5), labels=labels, examples=examples)
    service.script["ends_after"] = 0
    SCORE.build(store, CLAUDE, labels=labels, examples=examples)
    assert len(service.created()) == 1
