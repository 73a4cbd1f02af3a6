"""The titles of the form in Prefect's page: a flow's parameters are groups, and are called what a person calls them.

    pipeline = titled(pipeline)

Fields inside the groups have their titles, units and bounds from their Specs.
"""

from typing import Any, TypeVar

from prefect import Flow

AnyFlow = TypeVar("AnyFlow", bound=Flow[..., Any])
TITLES = {
    "grid": "Grid",
    "name": "Name of the run",
    "model": "1. Language model",
    "corpus": "2. Text",
    "capture": "3. Activations to record",
    "archive": "4. Archive",
    "preprocess": "5. Shuffle and split",
    "train": "6. Sparse autoencoder",
    "evaluate": "7. Measurements",
    "examples": "8. Examples per latent",
    "labeller": "Who labels",
    "claude_latents": "Latents for Claude",
    "label": "9. Labels",
    "score": "10. Scores of the labels",
    "report": "11. Report",
    "runtime": "How it is run",
    "store": "Store",
    "force": "Make again",
    "only": "Only this stage",
    "verify": "Verify",
    "remove": "Remove",
    "retain": "Retention",
    "ray_dashboard": "Ray dashboard URL",
}


def titled(flow: AnyFlow) -> AnyFlow:
    """The same flow, its parameters with their titles; KeyError for one that has none."""
    for name, about in flow.parameters.properties.items():
        about["title"] = TITLES[name]
    return flow
