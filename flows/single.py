"""Each stage as a flow of its own, for the Prefect UI: it builds that one stage on artifacts that are there already.

    flows.single.train, flows.single.label, ...    (the same form as the whole pipeline)
"""

import inspect
from collections.abc import Callable
from typing import Any

from prefect import Flow

from flows.dag import STAGES
from flows.form import titled
from flows.notices import NOTICES
from flows.pipeline import pipeline


def _alone(stage: str) -> Flow[..., None]:
    def alone(**settings: Any) -> None:
        pipeline.fn(**{**settings, "only": stage})

    body: Callable[..., None] = pipeline.fn
    _, _, arguments = inspect.getdoc(body).partition("\n")  # type: ignore[union-attr]
    alone.__name__ = stage
    alone.__doc__ = f"Builds {stage} on earlier artifacts. The same settings as the whole pipeline.\n{arguments}"
    alone.__signature__ = _without_only(body)  # type: ignore[attr-defined]
    run_name = pipeline.flow_run_name
    return titled(Flow(alone, name=stage, flow_run_name=run_name, persist_result=False, **NOTICES))


def _without_only(body: Callable[..., None]) -> Any:
    signature = inspect.signature(body)
    return signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "only"])


model, corpus, capture, archive, preprocess, train, evaluate, examples, label, score, report = map(_alone, STAGES)
