"""Which format a path holds, and every way in which a file can be bad: one clear error each, and nothing is run."""

import contextlib
import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import sae_core
from sae_core import FormatError, read_foreign, save_sae, write_foreign
from tests.sae_core.formats.examples import D, N, noise, random_sae

GOODFIRE = {
    "encoder_linear.weight": noise(N, D), "encoder_linear.bias": noise(N),
    "decoder_linear.weight": noise(D, N), "decoder_linear.bias": noise(D),
}  # fmt: skip


class Trap:
    """Pickles to code that leaves a mark where it is run."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_holds_code_is_not_run(tmp_path, legacy):
    file = tmp_path / "sae.pt"
    torch.save({**GOODFIRE, "more": Trap(tmp_path / "ran")}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(FormatError, match=r"a pickle that would run (posix|nt)\.mkdir; nothing of it was run"):
        read_foreign(file)
    file.write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(FormatError, match=r"nothing of it was run|not a whole file"):
        read_foreign(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
@pytest.mark.parametrize("name", ["sae.pt", "sae_weights.safetensors"])
def test_a_truncated_file_is_one_clear_error(tmp_path, name, kept):
    write_foreign(random_sae("relu"), tmp_path, "saelens")
    torch.save(GOODFIRE, tmp_path / "sae.pt")
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(
        FormatError, match=r"not a whole file of torch.save|not whole safetensors|nothing of it was run"
    ):
        read_foreign(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder_linear.bias": noise(N).index_fill(0, torch.tensor([3]), float("nan"))},
            "bias holds values.*not fin",
        ),
        ({"encoder_linear.bias": noise(N).double() * 1e300}, "bias holds values that are not finite"),  # in float32
        ({"encoder_linear.bias": noise(N + 1)}, rf"bias has shape \({N + 1},\), but encoder_linear.weight says {N}"),
        ({"encoder_linear.bias": noise(N, 1)}, r"must have 1 dimension"),
        ({"encoder_linear.bias": torch.zeros(N, dtype=torch.int)}, "torch.int32, not a dense tensor of floats"),
        ({"encoder_linear.bias": noise(N).to_sparse()}, "torch.sparse_coo"),
        ({"encoder_linear.bias": [1.0]}, "bias is list"),
        ({"more": noise(N)}, "'more'.*as none of saelens, sparsify"),
    ],
)
def test_tensors_that_do_not_fit_are_one_clear_error(tmp_path, change, message):
    torch.save(GOODFIRE | change, tmp_path / "sae.pt")
    with pytest.raises(FormatError, match=message):
        read_foreign(tmp_path / "sae.pt")


@pytest.mark.parametrize("what", [[1, 2], {3: noise(2)}, noise(3)])
def test_what_is_no_state_dict_is_refused(tmp_path, what):
    torch.save(what, tmp_path / "sae.pt")
    with pytest.raises(FormatError, match="not named tensors; save the state dict alone"):
        read_foreign(tmp_path / "sae.pt")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "cfg.json").unlink(), "cfg.json is missing"),
        (lambda folder: (folder / "cfg.json").write_text("{"), "cfg.json is not JSON"),
        (lambda folder: (folder / "cfg.json").write_text("[]"), "holds list, not settings by name"),
        (lambda folder: (folder / "sae_weights.safetensors").unlink(), "holds none of sae_weights.safetensors, sae"),
    ],
)
def test_a_damaged_folder_is_one_clear_error(tmp_path, damage, message):
    write_foreign(random_sae("relu"), tmp_path, "saelens")
    damage(tmp_path)
    with pytest.raises(FormatError, match=message):
        read_foreign(tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    write_foreign(random_sae("topk"), tmp_path, "sparsify")
    weights = load_file(tmp_path / "sae.safetensors")
    weights["W_dec"][2, 3] = float("inf")
    save_file(weights, tmp_path / "sae.safetensors")
    with pytest.raises(FormatError, match="W_dec holds values that are not finite"):
        read_foreign(tmp_path)


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    sae = random_sae("topk")
    sae.b_enc[3] = float("nan")
    for format_name in ("saelens", "sparsify"):
        with pytest.raises(FormatError, match=r"(b_enc|encoder.bias) holds values that are not finite"):
            write_foreign(sae, tmp_path / "never", format_name)
    assert not (tmp_path / "never").exists()


@settings(max_examples=200)
@given(
    kind=st.sampled_from(["pickle", "old pickle", "weights", "config"]),
    changes=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=4),
    kept=st.none() | st.integers(0, 700),
)
def test_whatever_happened_to_the_bytes_it_is_read_or_refused(tmp_path_factory, kind, changes, kept):
    folder = tmp_path_factory.mktemp("bytes")
    if kind in ("weights", "config"):
        write_foreign(random_sae("topk"), folder, "sparsify")
        file = folder / ("sae.safetensors" if kind == "weights" else "cfg.json")
    else:
        file = folder / "sae.pt"
        torch.save(GOODFIRE, file, _use_new_zipfile_serialization=kind == "pickle")
    damaged = bytearray(file.read_bytes())
    for place, byte in changes:
        damaged[place % len(damaged)] = byte
    file.write_bytes(damaged[:kept])
    with contextlib.suppress(FormatError):
        read_foreign(file if file.name == "sae.pt" else folder)


def test_a_path_that_is_not_there_and_our_own_files_are_refused(tmp_path):
    with pytest.raises(FormatError, match="absent does not exist"):
        read_foreign(tmp_path / "absent")
    save_sae(random_sae("topk"), tmp_path)
    with pytest.raises(FormatError, match="was written by save_sae; read it with load_sae"):
        read_foreign(tmp_path)


def test_a_format_may_be_named_and_must_exist(tmp_path):
    torch.save(GOODFIRE, tmp_path / "sae.pt")
    assert read_foreign(tmp_path / "sae.pt", "goodfire").format == "goodfire"
    with pytest.raises(FormatError, match=r"not .*'decoder.bias'.*another kind of file"):
        read_foreign(tmp_path / "sae.pt", "qresearch")
    with pytest.raises(FormatError, match="no format gemma; choose saelens, sparsify"):
        read_foreign(tmp_path / "sae.pt", "gemma")
    with pytest.raises(FormatError, match="The format goodfire cannot be written; choose saelens or sparsify"):
        write_foreign(random_sae("relu"), tmp_path, "goodfire")


def test_what_was_read_can_be_saved_loaded_and_trained_on(tmp_path):
    torch.save(GOODFIRE, tmp_path / "sae.pt")
    found = read_foreign(tmp_path / "sae.pt")
    save_sae(found.sae, tmp_path / "ours", found.metadata)
    x_BD = noise(7, D)
    assert torch.equal(sae_core.load_sae(tmp_path / "ours")(x_BD), found.sae(x_BD))
