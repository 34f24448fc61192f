"""CL4SRec: the augmentations and the contrastive loss."""

import math

import pytest
import torch

from llm4dsr.core.arrays import PAD
from llm4dsr.recommenders import cl4srec
from llm4dsr.recommenders.backbone import MASK
from llm4dsr.recommenders.cl4srec import CL4SRec

from .harness import encoder

HISTORIES = torch.tensor([[*range(10)], [10, 11, 12, 13, 14, *[PAD] * 5], [15, *[PAD] * 9]]).repeat(500, 1)


def test_a_crop_keeps_a_run_of_six_tenths() -> None:
    views = cl4srec.crop(HISTORIES)
    assert (views != PAD).sum(1)[:3].tolist() == [6, 3, 1]
    kept = views[:, :-1][views[:, 1:] != PAD]
    assert ((views[:, 1:][views[:, 1:] != PAD] - kept) == 1).all()  # neighbors stay neighbors
    assert set(views[0::3, 0].tolist()) == {0, 1, 2, 3, 4}  # every possible start is drawn


def test_a_mask_hides_three_tenths_and_moves_no_item() -> None:
    views = cl4srec.mask(HISTORIES)
    hidden = views == MASK
    assert hidden.sum(1)[:3].tolist() == [3, 1, 0]
    assert torch.equal(views[~hidden], HISTORIES[~hidden])
    assert not hidden[HISTORIES == PAD].any()
    assert hidden[0::3].any(0).all()  # every position may be hidden


def test_a_reorder_shuffles_a_run_and_keeps_the_rest() -> None:
    views = cl4srec.reorder(HISTORIES)
    assert torch.equal(views.sort(1).values, HISTORIES.sort(1).values)
    moved = views != HISTORIES
    span = torch.where(moved, torch.arange(10), -1).amax(1) - torch.where(moved, torch.arange(10), 10).amin(1) + 1
    assert span[0::3].max() == 6  # six tenths of ten
    assert span[1::3].max() == 3  # six tenths of five
    assert not moved[2::3].any()


def test_contrast_has_the_values_of_a_calculation_by_hand() -> None:
    # Two orthogonal histories, equal views. 3 · 3 / √4 = 4.5: a view scores its partner 4.5 and the two others 0
    one, other = [3.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0]
    matching = cl4srec.contrast(torch.tensor([one, other, one, other]))
    assert float(matching) == pytest.approx(math.log(1 + 2 * math.exp(-4.5)), rel=1e-5)
    swapped = cl4srec.contrast(torch.tensor([one, other, other, one]))  # each equals a view of the other history
    assert float(swapped) == pytest.approx(math.log(2 + math.exp(4.5)), rel=1e-5)


def test_equal_views_cost_less_than_different_ones() -> None:
    model, items = encoder(CL4SRec), HISTORIES[:2, :5]
    plain, changed = model.last_states(items), model.last_states(cl4srec.crop(items))
    assert cl4srec.contrast(torch.cat([plain, plain])) < cl4srec.contrast(torch.cat([plain, changed]))


def test_the_penalty_is_a_tenth_of_the_contrast_of_two_views() -> None:
    model, items = encoder(CL4SRec), HISTORIES[:2, :5]
    torch.manual_seed(1)
    penalty = model.penalty(items)
    torch.manual_seed(1)
    views = torch.cat([cl4srec.augment(items), cl4srec.augment(items)])
    contrast = float(cl4srec.contrast(model.last_states(views)).detach())
    assert float(penalty.detach()) == pytest.approx(0.1 * contrast, rel=1e-5)
    penalty.backward()
    assert model.items.weight.grad is not None  # it trains the item vectors too
