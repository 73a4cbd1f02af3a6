"""What a file leaves open, so that its reader has to be told."""

from typing import Literal, NamedTuple

from sae_core.errors import FormatError


class Given(NamedTuple):
    """The caller's answers; None: none was given."""

    k: int | None = None
    epsilon: float | None = None
    input_scale: float | None = None
    architecture: Literal["topk", "batch_topk"] | None = None

    def only(self, *names: str) -> None:
        """Raises FormatError where an answer was given that nothing would read."""
        for name, value in self._asdict().items():
            if value is not None and name not in names:
                raise FormatError(f"{name} = {value} is given, but this file does not leave it open; leave it out.")
