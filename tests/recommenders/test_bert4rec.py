"""BERT4Rec: attention in both directions, and masked items as targets."""

import pytest
import torch

from llm4dsr.core.arrays import PAD
from llm4dsr.recommenders.backbone import MASK
from llm4dsr.recommenders.bert4rec import BERT4Rec

from .harness import encoder, same

ITEMS = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, PAD, PAD, PAD]]).repeat(3000, 1)


def test_a_masked_state_sees_both_sides() -> None:
    model = encoder(BERT4Rec)
    rows = [[3, 7, MASK, 9, 4], [5, 7, MASK, 9, 4], [3, 7, MASK, 9, 6], [3, 7, MASK, 9, PAD]]
    states = model(torch.tensor(rows))[:, 2]
    assert not same(states[0], states[1])  # another first item
    assert not same(states[0], states[2])  # another last item
    assert not same(states[0], states[3])  # no last item


def test_a_target_is_masked_in_the_input() -> None:
    inputs, targets, _ = encoder(BERT4Rec).examples(ITEMS, torch.ones(ITEMS.shape))
    masked = targets != PAD
    assert masked.any(1).all()  # each row has a target
    assert (inputs[masked] == MASK).all()
    assert torch.equal(targets[masked], ITEMS[masked])
    assert torch.equal(inputs[~masked], ITEMS[~masked])  # other items and padding stay


def test_half_of_the_rows_mask_the_last_item_and_the_others_random_items() -> None:
    _, targets, _ = encoder(BERT4Rec).examples(ITEMS, torch.ones(ITEMS.shape))
    masked = targets != PAD
    for row, length in ((0, 6), (1, 3)):
        only_last = masked[row::2, length - 1] & (masked[row::2].sum(1) == 1)
        # chosen for the row; or its only random gap is the last item; or it has no random gap
        expected = 0.5 + 0.5 * (0.2 * 0.8 ** (length - 1) + 0.8**length)
        assert only_last.float().mean() == pytest.approx(expected, abs=0.03)
    assert masked[0::2, 0].float().mean() == pytest.approx(0.5 * 0.2, abs=0.03)


def test_the_next_item_is_predicted_by_a_mask_after_the_newest_item() -> None:
    items = torch.tensor([[1, 2, 3, 4, 5], [7, 8, PAD, PAD, PAD], [PAD] * 5])
    expected = [[1, 2, 3, 4, 5, MASK], [7, 8, MASK, PAD, PAD, PAD], [MASK, *[PAD] * 5]]
    assert encoder(BERT4Rec).prediction_input(items).tolist() == expected
