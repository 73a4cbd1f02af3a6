"""The identity of default work, written down: an accidental change of meaning or of hashing fails here.

Whoever changes what a stage computes raises its version and writes the new key here. A setting that is added later
starts as None, leaves the key alone, and so needs no change here.
"""

import pytest

from flows.dag import STAGES, SWEEP_STAGES
from tasks.artifacts import Spec, stage_key

GOLDEN = {
    "model": (1, "7548245865a49aed9768c7df6e4b8408a1a40655a13290520fb51912f3a55f82"),
    "corpus": (1, "dd4008d48ef1c1058893b67ef66a674d74e72d0a570a3478ca052c8da032ecc5"),
    "capture": (1, "32b8836fc6b399e8f1650f62c0c32256ef428b818dcccda2732c87493037a9d8"),
    "archive": (1, "24ab8b27ddf22e5298a95dbd826781a18435a5cda54c791d2f26f2f676ce8b82"),
    "preprocess": (1, "9b3c9a503b0051dee201a256fe0c1992d4b5b5038ef656be538505409d49a48a"),
    "train": (3, "cd72cb15689f375c2b52aeefb2648b50e6269bb339484e5bd573f989c6dec35b"),
    "evaluate": (2, "b4718ef58f9b19a45fe23663d1a382fe12529be7fe690517e8659c0a394d40a5"),
    "examples": (1, "7c3e59b871314acc28987d8b25e59842306ebe98ec65244a4729f6ae9238e345"),
    "label": (1, "1b81b319a628bc63288ef9410030e53d140d6d89835ae797d8e36118e3218a82"),
    "score": (1, "aecfcaa9d1a2fe1bb32b953f4486563093ea1d0b83d520e6a35c6fd92cc2d7d7"),
    "report": (1, "509265cdeec202ef3a8b7b05f890fae4a58a3185cca94f76082d0ec6cf3b985b"),
    "sweep": (1, "c1d81f1690af01383e84c4fe219dcb0fdbe89a79f02baf4c712ae7a651dbf10e"),
}
ALL = STAGES | SWEEP_STAGES
FILLED_IN = {"label": {"labeller": "keywords"}, "score": {"scorer": "keywords"}}  # by PipelineConfig.resolved


def default_spec(name: str) -> Spec:
    """The stage's spec as it is without any setting, and without a key for Claude."""
    return ALL[name].spec(**FILLED_IN.get(name, {}))


def key_of(name: str) -> str:
    """The key of the default work on an input of known digest; what lies outside is left out."""
    return stage_key(name, ALL[name].version, default_spec(name).hashed(), {"input": "ab" * 32})


def test_every_stage_is_written_down():
    assert list(GOLDEN) == list(ALL)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_key_of_default_work_has_not_changed(name):
    assert (ALL[name].version, key_of(name)) == GOLDEN[name]
