"""Requests as a labeller makes them."""

from typing import Any

from tasks.claude.requests import Request


def params(text: str, **more: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"common_semantic": {"type": "string"}}}
    asked = {"model": "claude-haiku-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": text}]}
    return {**asked, "output_config": {"format": {"type": "json_schema", "schema": schema}}, **more}


def requests(count: int) -> list[Request]:
    return [Request(f"{i}", params(f"the <<word{i}>> here")) for i in range(count)]
