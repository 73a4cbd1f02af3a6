"""What a run will need, reckoned before it starts: tokens, bytes, training FLOP, Claude dollars.

Rough on purpose and said so: tokens come from the corpus artifact when there is one, else from file sizes at
4 bytes a token; a bf16 activation takes 2 bytes a dimension; the archive keeps 0.7 of it (measured on residual
streams); a dense TopK step costs 12 B n d FLOP, as for any pair of matmuls with their gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flows.config import PipelineConfig
from flows.planner import Planned
from tasks.corpus import pin_corpus
from tasks.label import label_dollars
from tasks.model import describe_model
from tasks.score import score_dollars
from tasks.settings import settings
from tasks.train import TrainSpec

BYTES_PER_TOKEN = 4.0
ARCHIVED_SHARE = 0.7
DEMO_TEXT_BYTES = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """Figures of a whole run. Bytes are what the store ends up holding; None where nothing is known yet."""

    tokens: int | None
    captured_bytes: int | None
    archived_bytes: int | None
    shuffled_bytes: int | None
    training_flop: float | None
    dollars: dict[str, float]  # upper bound for Claude, of label and of score; 0 with keywords

    @property
    def largest_bytes(self) -> int:
        """Free space the largest stage needs at once (the shuffle keeps its partitions beside its output)."""
        return 2 * (self.shuffled_bytes or 0)


def estimate(config: PipelineConfig, planned: list[Planned], points: Sequence[TrainSpec] = ()) -> Estimate:
    """Reckons from the configuration (and a sweep's points) and what is committed already."""
    described = describe_model(config.model)
    tokens = _tokens(config, planned)
    d_model = described.d_model if described else None
    latents = config.train.n_latents
    labelled = min(latents, config.label.max_latents or latents)
    dollars = {"label": label_dollars(config.label, labelled), "score": score_dollars(config.score, labelled)}
    if points:  # a sweep labels nothing
        dollars = dict.fromkeys(dollars, 0.0)
    flop = None
    if d_model is not None:
        flop = sum(
            12.0 * train.batch_size * train.number_of_steps(tokens or 0) * train.n_latents * d_model
            for train in points or [config.train]
        )
    if tokens is None or d_model is None:
        return Estimate(tokens, None, None, None, flop, dollars)
    one_site = tokens * d_model * 2
    captured = one_site * len(config.capture.sites)
    return Estimate(tokens, captured, int(captured * ARCHIVED_SHARE), one_site, flop, dollars)


def _tokens(config: PipelineConfig, planned: list[Planned]) -> int | None:
    captures = [entry.manifest for entry in planned if entry.stage == "capture"]
    if captures and all(captures):
        return sum(manifest.summary.get("tokens", 0) for manifest in captures if manifest)
    corpus = next((entry.manifest for entry in planned if entry.stage == "corpus"), None)
    if corpus is not None and "bytes" in corpus.summary:
        return int(corpus.summary["bytes"] / BYTES_PER_TOKEN)
    if config.corpus.path is None:
        return int(DEMO_TEXT_BYTES / BYTES_PER_TOKEN)
    files = pin_corpus(config.corpus, settings()).get("files", [])  # a data set on the hub says nothing of its size
    return int(sum(file.get("size", 0) for file in files) / BYTES_PER_TOKEN) or None
