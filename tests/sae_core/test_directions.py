"""Neighbours and token effects against one dense float64 product; blocks must not show."""

import pytest
import torch

from sae_core import directions
from sae_core.directions import nearest_directions, token_effects


@pytest.fixture(params=[1 << 25, 64])
def _block_elements(request, monkeypatch):
    monkeypatch.setattr(directions, "BLOCK_ELEMENTS", request.param)


@pytest.mark.usefixtures("_block_elements")
def test_neighbours_are_the_largest_cosines_of_others():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(23, 6, generator=generator) * torch.rand(23, 1, generator=generator)
    cosines, numbers = nearest_directions(w, 4)
    unit = torch.nn.functional.normalize(w.double(), dim=1)
    dense = (unit @ unit.T).fill_diagonal_(-2)
    expected = dense.topk(4, dim=1)
    torch.testing.assert_close(cosines.double(), expected.values, atol=1e-6, rtol=0)
    assert torch.equal(numbers, expected.indices)


@pytest.mark.usefixtures("_block_elements")
def test_dead_latents_are_nobodys_neighbour_but_have_some():
    w = torch.eye(5) + 0.1
    alive = torch.tensor([True, False, True, True, False])
    _, numbers = nearest_directions(w, 10, alive)
    assert numbers.shape == (5, 2)
    assert set(numbers.flatten().tolist()) == {0, 2, 3}
    assert all(latent not in row for latent, row in enumerate(numbers.tolist()))


def test_a_single_direction_has_no_neighbour():
    cosines, numbers = nearest_directions(torch.ones(1, 3), 5)
    assert cosines.shape == numbers.shape == (1, 0)


@pytest.mark.usefixtures("_block_elements")
def test_token_effects_fold_the_norm_and_centre_the_logits():
    generator = torch.Generator().manual_seed(1)
    w, unembedding = torch.randn(9, 6, generator=generator), torch.randn(31, 6, generator=generator) + 3
    gain = torch.rand(6, generator=generator)
    found = token_effects(w, unembedding, gain, 5)
    dense = (w.double() * gain.double()) @ unembedding.double().T
    dense -= dense.mean(dim=1, keepdim=True)
    torch.testing.assert_close(found.promoted_effect_NC.double(), dense.topk(5).values, atol=1e-5, rtol=0)
    assert torch.equal(found.promoted_NC, dense.topk(5).indices)
    assert torch.equal(found.suppressed_NC, dense.topk(5, largest=False).indices)
    assert (found.suppressed_effect_NC <= 0).all()
