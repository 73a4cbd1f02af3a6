"""Against the libraries themselves: what we write they load, what they save we read, and both compute the same.

`make peers` installs them into .venv-peers; without it these tests say so and skip. Each library is run once.
"""

import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sae_core import read_foreign, write_foreign
from tests.sae_core.formats import peers
from tests.sae_core.formats.examples import BY_ROW, NOT_TRANSCODERS, K, N, check_outputs, random_sae, rows

PYTHON = Path(__file__).parents[3] / ".venv-peers" / "bin" / "python"
OURS = {"saelens": NOT_TRANSCODERS, "sparsify": BY_ROW}
THEIRS = {
    "saelens": [
        "standard", "standard_without_b_dec", "topk", "topk_rescaled", "jumprelu", "gated",
        "topk_trained", "batch_topk_trained", "matryoshka_trained",
    ],
    "sparsify": ["topk", "transcoder", "skip_transcoder", "skip_without_transcode"],
    "dictionary_learning": [
        "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a library once on our exports and its own autoencoders; returns the folder of both."""
    folders: dict[str, Path] = {}

    def run_once(library: str) -> Path:
        if not PYTHON.exists():
            pytest.skip("the other libraries are not installed (make peers)")
        if library not in folders:
            folder = folders[library] = tmp_path_factory.mktemp(library)
            save_file({"x": rows()}, folder / "x.safetensors")
            for name in OURS.get(library, []):
                write_foreign(random_sae(name), folder / "ours" / name, library)
            command = [PYTHON, "-W", "ignore", peers.__file__, library, folder]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return folders[library]

    return run_once


@pytest.mark.parametrize(("library", "name"), [(library, name) for library in OURS for name in OURS[library]])
def test_the_library_computes_the_same_with_what_we_wrote(run, library, name):
    theirs = load_file(run(library) / "ours" / f"{name}.safetensors")
    check_outputs(random_sae(name), rows(), theirs["code"], theirs["out"])


@pytest.mark.parametrize(("library", "name"), [(library, name) for library in THEIRS for name in THEIRS[library]])
def test_we_compute_the_same_with_what_the_library_saved(run, library, name):
    folder = run(library) / "theirs"
    theirs = load_file(folder / f"{name}.safetensors")
    found = read_foreign(folder / name)
    assert found.format == library
    check_outputs(found.sae, rows(), theirs["code"], theirs["out"])


def test_the_examples_of_both_sides_have_the_same_size():
    assert (peers.N, peers.K) == (N, K)
