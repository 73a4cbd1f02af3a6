"""What a batch is made of: names, sizes, an estimate of the bill, and how an answer is read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.claude import requests as claude_requests
from tasks.claude.prices import Usage, bill_dollars
from tasks.claude.requests import NAME, Request, check_requests, estimate, judge, split
from tests.servers.message_batches import CUSTOM_ID
from tests.tasks.claude.made_requests import requests

KEY = "5ae" * 21 + "0"


@given(st.text(max_size=40))
def test_a_name_is_accepted_exactly_when_the_custom_id_made_of_it_is_valid(name: str) -> None:
    custom_id = f"{KEY[:24]}-2-{name}"
    valid = bool(name) and len(name) <= 32 and bool(CUSTOM_ID.fullmatch(custom_id))
    assert bool(NAME.fullmatch(name)) == valid


@given(st.lists(st.integers(0, 400), max_size=30), st.integers(1, 5), st.integers(1600, 3000))
def test_split_keeps_order_and_limits(sizes: list[int], most: int, room: int) -> None:
    asked = [Request(f"{i}", {"text": "x" * size}) for i, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claude_requests, "MOST_REQUESTS", most)
        patch.setattr(claude_requests, "MOST_BYTES", room)
        groups = split(asked)
    assert [request for group in groups for request in group] == asked
    for group in groups:
        assert 0 < len(group) <= most
        body = [{"custom_id": "c" * 64, "params": request.params} for request in group]
        assert len(group) == 1 or len(json.dumps({"requests": body})) <= room


def test_an_estimate_is_an_upper_bound_of_the_bill() -> None:
    asked = requests(1)[0]
    check_requests([asked])
    most = Usage(input_tokens=asked.size // 4, output_tokens=asked.params["max_tokens"])
    assert bill_dollars("claude-haiku-4-5", most) <= estimate([asked])


def test_an_answer_of_several_blocks_is_read_whole() -> None:
    blocks = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": '{"a":'}, {"type": "text", "text": "1}"}]
    line = {"type": "succeeded", "message": {"stop_reason": "end_turn", "content": blocks}}
    assert judge(line, json.loads).value == {"a": 1}
