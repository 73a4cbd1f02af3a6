"""Labels: from the label half only, repeatable with keywords, whole or with a reason with Claude."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import claude
from tasks.artifacts import Artifact, Store, open_store
from tasks.claude import service as claude_service
from tasks.errors import InputError, ServiceError
from tasks.examples import table as example_table
from tasks.examples.table import Example, examples_by_latent
from tasks.label import LABEL, LabelSpec, label_dollars
from tasks.label.keywords import keywords, lookup, matches
from tasks.label.labellers import LEVELS, parse_label, show
from tasks.runtime import Runtime
from tests.servers.message_batches import MessageBatches
from tests.tasks.made_examples import MadeSpec, made_examples, made_rows, table

CLAUDE = LabelSpec(labeller="claude")


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


def labels(artifact: Artifact) -> dict[int, dict[str, Any]]:
    return {row["latent"]: row for row in table(artifact, "labels.parquet")}


def example(token: str, previous: str = " x", activation: float = 1.0, **more: Any) -> Example:
    tokens = [previous, token] if previous else [token]
    hit = len(tokens) - 1
    given = {"latent": 0, "role": "label_positive", "half": "label", "row_id": 0, "position": hit, "tokens": tokens,
             "activation": activation, "activations": [0.0] * hit + [activation], "hit": hit, "word_start": hit,
             "word_end": hit + 1}  # fmt: skip
    return Example(**{**given, **more})


def test_keywords_name_the_token_or_what_comes_before_it(store: Store) -> None:
    built = LABEL.build(store, LabelSpec(), examples=made_examples(store))
    found = labels(built.artifact)
    assert found[0]["label"] == "“cat”"
    assert found[0]["keywords"] == [" cat"]
    assert found[0]["certainty"] == pytest.approx(1.0)
    assert found[1]["label"] == "after “of”"
    assert found[1]["previous_keywords"] == [" of"]
    assert found[2]["certainty"] > 0.5
    assert found[3]["status"] == "no pattern" or found[3]["certainty"] < 0.6
    assert found[5]["status"] == "too few examples"
    assert found[5]["label"] is None
    assert "0 times" in found[5]["reason"]
    assert sorted(found) == list(range(6))


def test_the_summary_says_who_labelled_and_why(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_examples(store)
    summary = LABEL.build(store, LabelSpec(), examples=made).artifact.summary
    assert summary["labeller"] == "keywords"
    assert "ANTHROPIC_API_KEY is not set" in summary["why"]
    assert summary["labelled"] + summary["too_few_examples"] + summary.get("no_pattern", 0) == summary["latents"] == 6
    monkeypatch.setenv("ANTHROPIC_API_KEY", "some-key")
    assert "settings say keywords" in LABEL.build(store, LabelSpec(seed=1), examples=made).artifact.summary["why"]


def test_keywords_repeat_and_never_see_the_score_half(tmp_path: Path) -> None:
    digests = set()
    for number, score_seed in enumerate((0, 0, 7)):
        store = open_store(str(tmp_path / f"store{number}"))
        made = made_examples(store, score_seed=score_seed)
        digests.add(LABEL.build(store, LabelSpec(), examples=made).artifact.digest)
    assert len(digests) == 1


def test_max_latents_draws_among_those_that_can_be_labelled(store: Store) -> None:
    made = made_examples(store)
    all_rows = labels(LABEL.build(store, LabelSpec(), examples=made).artifact)
    rows = labels(LABEL.build(store, LabelSpec(max_latents=2), examples=made).artifact)
    drawn = [latent for latent in rows if rows[latent]["status"] not in ("not chosen", "too few examples")]
    assert len(drawn) == 2
    assert all(rows[latent] == all_rows[latent] for latent in drawn)
    assert rows[5]["status"] == "too few examples"
    assert len(rows) == 6


TOKEN = st.sampled_from(["a", " b", " c", "\n", ""])
BEFORE = st.sampled_from(["", " of", "a"])
FIRES = st.lists(st.tuples(TOKEN, BEFORE, st.floats(0.1, 9.0)), min_size=1, max_size=30)
SILENT = st.lists(st.tuples(TOKEN, BEFORE), max_size=30)


@given(FIRES, SILENT)
def test_keyword_labels_hold_what_they_say(fires: list[tuple[str, str, float]], silent: list[tuple[str, str]]) -> None:
    """Certainty is the covered mass minus the share of silent tokens matched; the order is no matter."""
    positives = [example(token, before, value) for token, before, value in fires]
    negatives = [example(token, before, 0.0) for token, before in silent]
    found, again = keywords(positives, negatives), keywords(positives[::-1], negatives[::-1])
    assert (found is None) == (again is None)
    if found is None or again is None:
        return
    hit = [matches(found.current, found.previous, one) for one in positives]
    covered = sum(one.activation for one, yes in zip(positives, hit, strict=True) if yes) / sum(f[2] for f in fires)
    wrong = sum(matches(found.current, found.previous, one) for one in negatives) / max(1, len(negatives))
    assert found.certainty == pytest.approx(max(0.0, covered - wrong))
    assert (found.current, found.previous) == (again.current, again.previous)
    assert found.text


def test_part_of_a_word_is_shown_with_its_word() -> None:
    positives = [example("ular", "tab", word_start=0) for _ in range(4)]
    found = keywords(positives, [example(" x", " y", 0.0) for _ in range(4)])
    assert found is not None
    assert found.text == "“ular” (tabular)"


def test_lookup_takes_the_tokens_that_are_commoner_where_it_fires() -> None:
    positives = [example("a")] * 3 + [example("b")]
    negatives = [example("a")] + [example("b")] * 2
    assert lookup(positives, negatives).tokens == {"a"}


def test_examples_are_grouped_by_latent_whatever_the_batch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_examples(store)
    whole = dict(examples_by_latent(made, {"label_positive", "top"}))
    monkeypatch.setattr(example_table, "BATCH_ROWS", 7)
    assert dict(examples_by_latent(made, {"label_positive", "top"})) == whole
    wanted = [row for row in made_rows(MadeSpec()) if row["role"] in ("label_positive", "top")]
    assert sum(map(len, whole.values())) == len(wanted)
    assert {one.role for found in whole.values() for one in found} == {"label_positive", "top"}


def test_claude_is_shown_the_whole_range_of_the_label_half(store: Store) -> None:
    found = dict(examples_by_latent(made_examples(store), {"top", "label_positive", "label_negative_same_row"}))[0]
    given = [one for one in found if one.half == "label"]
    text, number = show(given, 16)
    levels = [int(line.partition("level ")[2].partition(")")[0]) for line in text.splitlines() if "level" in line]
    assert number == len(levels) == 16
    assert levels == sorted(levels, reverse=True)
    assert max(levels) == LEVELS
    assert min(levels) <= 2
    assert text.count("<< ") == 0
    assert "<<cat>>" in text
    assert sum(line.startswith("Silent") and "[[" in line for line in text.splitlines()) == 4


def test_a_line_break_stays_on_the_line() -> None:
    one = example("\n", "a\nb")
    assert one.text([1]) == "a↵b<<↵>>"
    assert example("the ", " ").text([1]) == " <<the>> "


@pytest.mark.parametrize("certainty", [1, 0, 0.5, 1.0])
def test_a_whole_number_is_a_certainty(certainty: float) -> None:
    text = json.dumps({"common_semantic": " a  cat\n", "certainty": certainty, "key_words": ["cat", " "]})
    assert parse_label(text) == ("a cat", float(certainty), ["cat"])


@pytest.mark.parametrize(
    "answer",
    ["", "no", "[]", "{}", '{"common_semantic": "", "certainty": 1, "key_words": []}',
     '{"common_semantic": "x", "certainty": true, "key_words": []}',
     '{"common_semantic": "x", "certainty": 1.1, "key_words": []}',
     '{"common_semantic": "x", "certainty": NaN, "key_words": []}',
     '{"common_semantic": "x", "certainty": 1, "key_words": [1]}',
     json.dumps({"common_semantic": "x" * 301, "certainty": 1, "key_words": []})],
)  # fmt: skip
def test_a_malformed_answer_is_a_value_error(answer: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_label(answer)


def test_claude_labels_come_back_whole_or_with_a_reason(store: Store, service: MessageBatches) -> None:
    service.script["outcomes"] = [
        {"custom_id": "-1$", "outcome": "refusal", "times": 9},
        {"custom_id": "-2$", "outcome": "wrong_fields", "times": 9},
        {"custom_id": "-3$", "outcome": "expired", "times": 1},
    ]
    built = LABEL.build(store, CLAUDE, examples=made_examples(store)).artifact
    rows = labels(built)
    assert rows[0]["label"] == "the token cat"
    assert rows[0]["certainty"] == 1.0
    assert rows[0]["keywords"] == ["cat"]
    assert rows[0]["labeller"] == "claude"
    assert (rows[1]["status"], rows[1]["label"]) == ("refused", None)
    assert rows[2]["status"] == "malformed"
    assert "common_semantic" in rows[2]["reason"]
    assert rows[3]["status"] == "labelled"
    assert rows[5]["status"] == "too few examples"
    assert built.summary["labeller"] == "claude"
    assert built.summary["refused"] == 1
    assert built.summary["dollars"] > 0
    assert [len(ids) for ids in service.created()][:2] == [4, 2]


def test_claude_is_asked_the_same_whatever_is_in_the_score_half(tmp_path: Path, service: MessageBatches) -> None:
    for number, score_seed in enumerate((0, 7)):
        store = open_store(str(tmp_path / f"store{number}"))
        LABEL.build(store, CLAUDE, examples=made_examples(store, score_seed=score_seed))
    one, other = ([request["params"] for request in batch["requests"]] for batch in service.batches.values())
    assert one == other


def test_requests_share_cached_instructions_and_ask_for_json(store: Store, service: MessageBatches) -> None:
    LABEL.build(store, CLAUDE, examples=made_examples(store))
    asked = [request["params"] for batch in service.batches.values() for request in batch["requests"]]
    assert len({json.dumps(params["system"]) for params in asked}) == 1
    assert asked[0]["system"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert asked[0]["output_config"]["format"]["type"] == "json_schema"
    assert asked[0]["output_config"]["format"]["schema"]["additionalProperties"] is False


def test_a_killed_labelling_goes_on_with_the_batch_it_sent(store: Store, service: MessageBatches) -> None:
    made = made_examples(store)
    service.script["ends_after"] = 10**6
    with pytest.raises(ServiceError, match="run the same command again"):
        LABEL.build(store, CLAUDE, Runtime(batch_hours=1e-5), examples=made)
    service.script["ends_after"] = 0
    built = LABEL.build(store, CLAUDE, examples=made)
    assert not built.cached
    assert labels(built.artifact)[0]["label"] == "the token cat"
    assert len(service.created()) == 1
    assert LABEL.build(store, CLAUDE, examples=made).cached


def test_no_key_and_no_budget_are_said_before_anything_is_sent(
    store: Store, service: MessageBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = made_examples(store)
    with pytest.raises(InputError, match="more than the budget of"):
        LABEL.build(store, CLAUDE, Runtime(budget_dollars=0.001), examples=made)
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(InputError, match="set ANTHROPIC_API_KEY, or use the keywords labeller"):
        LABEL.build(store, CLAUDE, examples=made)
    assert service.calls == []


def test_the_key_is_in_no_file_of_the_store(tmp_path: Path, store: Store, service: MessageBatches) -> None:
    service.script["ends_after"] = 10**6  # leaves progress behind, too
    with pytest.raises(ServiceError):
        LABEL.build(store, CLAUDE, Runtime(batch_hours=1e-5), examples=made_examples(store))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("batches" in str(path) for path in files)
    assert not [path for path in files if b"test-key" in path.read_bytes()]


def test_the_estimate_before_there_are_examples_covers_the_bill(store: Store, service: MessageBatches) -> None:
    summary = LABEL.build(store, CLAUDE, examples=made_examples(store)).artifact.summary
    assert summary["dollars"] <= label_dollars(CLAUDE, 6) + label_dollars(CLAUDE, 1)
    assert label_dollars(LabelSpec(), 65_536) == 0.0
    few = LabelSpec(labeller="claude", max_latents=10)
    assert label_dollars(few, 65_536) == pytest.approx(label_dollars(CLAUDE, 10))
