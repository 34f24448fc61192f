"""What is special about each backbone; what all of them promise stands in test_recommenders.py."""

import math
from dataclasses import replace

import pytest
import torch

from llm4dsr.config import RecommenderConfig
from llm4dsr.core.arrays import PAD
from llm4dsr.errors import ConfigError
from llm4dsr.recommenders import cl4srec
from llm4dsr.recommenders.backbone import MASK, Backbone, Dropout
from llm4dsr.recommenders.bert4rec import BERT4Rec
from llm4dsr.recommenders.cl4srec import CL4SRec
from llm4dsr.recommenders.fmlprec import FilterBlock, FMLPRec
from llm4dsr.recommenders.gru4rec import GRU4Rec
from llm4dsr.recommenders.sasrec import SASRec

N = 30
SMALL = RecommenderConfig(hidden_size=32, blocks=2, dropout=0.1, history=5)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-6)


def test_dropout_keeps_the_mean_and_rests_in_evaluation() -> None:
    layer, x = Dropout(0.3), torch.ones(100, 1001)
    out = layer(x)
    assert (out == 0).double().mean() == pytest.approx(0.3, abs=0.01)
    assert out.mean() == pytest.approx(1, abs=0.01)
    assert torch.equal(layer.eval()(x), x)


# --- which items a state has seen ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SASRec, GRU4Rec, CL4SRec])
def test_a_state_sees_no_later_item(kind: type[Backbone]) -> None:
    model = kind(N, SMALL).eval()
    states = model(torch.tensor([[3, 7, 1, 9, 4], [3, 7, 1, 20, 21]]))
    assert same(states[0, :3], states[1, :3])
    assert not same(states[0, 3], states[1, 3])
    assert not same(states[0, 4], states[1, 4])


def test_bert4rec_sees_both_sides_of_a_gap() -> None:
    model = BERT4Rec(N, SMALL).eval()
    rows = [[3, 7, MASK, 9, 4], [5, 7, MASK, 9, 4], [3, 7, MASK, 9, 6], [3, 7, MASK, 9, PAD]]
    states = model(torch.tensor(rows))[:, 2]
    assert not same(states[0], states[1])  # another first item
    assert not same(states[0], states[2])  # another last item
    assert not same(states[0], states[3])  # no last item


# --- BERT4Rec: examples ----------------------------------------------------------------------------------------------

ITEMS = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, PAD, PAD, PAD]]).repeat(3000, 1)


def test_bert4rec_never_reads_the_item_that_it_guesses() -> None:
    inputs, targets, _ = BERT4Rec(N, SMALL).examples(ITEMS, torch.ones(ITEMS.shape))
    asked = targets != PAD
    assert asked.any(1).all()  # each row asks something
    assert (inputs[asked] == MASK).all()
    assert torch.equal(targets[asked], ITEMS[asked])
    assert torch.equal(inputs[~asked], ITEMS[~asked])  # all else, padding included, is as it was


def test_bert4rec_asks_for_the_last_item_in_half_of_the_rows_and_for_gaps_in_the_others() -> None:
    _, targets, _ = BERT4Rec(N, SMALL).examples(ITEMS, torch.ones(ITEMS.shape))
    asked = targets != PAD
    for row, length in ((0, 6), (1, 3)):
        alone = asked[row::2, length - 1] & (asked[row::2].sum(1) == 1)
        # by the choice of the row; by its only gap being there; or by no gap at all
        expected = 0.5 + 0.5 * (0.2 * 0.8 ** (length - 1) + 0.8**length)
        assert alone.float().mean() == pytest.approx(expected, abs=0.03)
    assert asked[0::2, 0].float().mean() == pytest.approx(0.5 * 0.2, abs=0.03)


def test_bert4rec_asks_behind_the_newest_items() -> None:
    items = torch.tensor([[1, 2, 3, 4, 5], [7, 8, PAD, PAD, PAD], [PAD] * 5])
    expected = [[1, 2, 3, 4, 5, MASK], [7, 8, MASK, PAD, PAD, PAD], [MASK, *[PAD] * 5]]
    assert BERT4Rec(N, SMALL).ends_with(items).tolist() == expected


# --- FMLP-Rec --------------------------------------------------------------------------------------------------------


def block(filters: torch.Tensor, length: int) -> FilterBlock:
    """filters: complex [length // 2 + 1]; the same one for each of 4 columns."""
    made = FilterBlock(length, 4, 0.0)
    with torch.no_grad():
        made.filter.copy_(torch.view_as_real(filters.to(torch.complex64))[:, None].expand(-1, 4, 2))
    return made


@pytest.mark.parametrize("length", [5, 6])
def test_a_filter_of_ones_changes_nothing(length: int) -> None:
    x = torch.randn(3, length, 4)
    assert same(block(torch.ones(length // 2 + 1), length).filtered(x), x)


@pytest.mark.parametrize("length", [5, 6])
def test_a_filter_can_average_and_delay(length: int) -> None:
    x = torch.randn(3, length, 4)
    frequencies = torch.arange(length // 2 + 1)
    mean = block((frequencies == 0).float(), length)  # nothing but the constant part passes
    assert same(mean.filtered(x), x.mean(1, keepdim=True).expand_as(x))
    delay = block(torch.exp(-2j * math.pi * frequencies / length), length)
    assert torch.allclose(delay.filtered(x), x.roll(1, dims=1), atol=1e-5)


@pytest.mark.parametrize("length", [5, 6])
def test_the_last_place_of_a_filter_alone_is_the_same(length: int) -> None:
    made, x = FilterBlock(length, 4, 0.0), torch.randn(3, length, 4)
    assert same(made.filtered(x, last=True), made.filtered(x)[:, -1:])
    assert torch.allclose(made(x, last=True), made(x)[:, -1:], atol=1e-5)


def test_fmlprec_refuses_to_learn_from_each_item() -> None:
    with pytest.raises(ConfigError, match="supervise = 'all'"):
        FMLPRec(N, replace(SMALL, supervise="all"))


# --- CL4SRec ---------------------------------------------------------------------------------------------------------

HISTORIES = torch.tensor([[*range(10)], [10, 11, 12, 13, 14, *[PAD] * 5], [15, *[PAD] * 9]]).repeat(500, 1)
LENGTHS = (HISTORIES != PAD).sum(1)


def test_a_crop_is_a_run_of_six_tenths() -> None:
    views = cl4srec.crop(HISTORIES)
    assert (views != PAD).sum(1)[:3].tolist() == [6, 3, 1]
    kept = views[:, :-1][views[:, 1:] != PAD]
    assert ((views[:, 1:][views[:, 1:] != PAD] - kept) == 1).all()  # neighbors stay neighbors
    assert set(views[0::3, 0].tolist()) == {0, 1, 2, 3, 4}  # from each start that leaves room


def test_a_mask_hides_three_tenths_and_moves_nothing() -> None:
    views = cl4srec.mask(HISTORIES)
    hidden = views == MASK
    assert hidden.sum(1)[:3].tolist() == [3, 1, 0]
    assert torch.equal(views[~hidden], HISTORIES[~hidden])
    assert not hidden[HISTORIES == PAD].any()
    assert hidden[0::3].any(0).all()  # any position may be hidden


def test_a_reorder_shuffles_a_run_and_leaves_the_rest() -> None:
    views = cl4srec.reorder(HISTORIES)
    assert torch.equal(views.sort(1).values, HISTORIES.sort(1).values)
    moved = views != HISTORIES
    span = torch.where(moved, torch.arange(10), -1).amax(1) - torch.where(moved, torch.arange(10), 10).amin(1) + 1
    assert span[0::3].max() == 6  # six tenths of ten
    assert span[1::3].max() == 3  # six tenths of five
    assert not moved[2::3].any()


def test_contrast_by_hand() -> None:
    # Two histories at right angles, equal views. 3 · 3 / √4 = 4.5: a view scores its partner 4.5 and two others 0
    one, other = [3.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0]
    right = cl4srec.contrast(torch.tensor([one, other, one, other]))
    assert float(right) == pytest.approx(math.log(1 + 2 * math.exp(-4.5)), rel=1e-5)
    wrong = cl4srec.contrast(torch.tensor([one, other, other, one]))  # each is like another's view
    assert float(wrong) == pytest.approx(math.log(2 + math.exp(4.5)), rel=1e-5)


def test_equal_views_cost_less_than_changed_ones() -> None:
    model, items = CL4SRec(N, SMALL).eval(), HISTORIES[:2, :5]
    plain, changed = model.last_states(items), model.last_states(cl4srec.crop(items))
    assert cl4srec.contrast(torch.cat([plain, plain])) < cl4srec.contrast(torch.cat([plain, changed]))


def test_the_penalty_is_a_tenth_of_the_contrast_of_two_views() -> None:
    model, items = CL4SRec(N, SMALL).eval(), HISTORIES[:2, :5]
    torch.manual_seed(1)
    penalty = model.penalty(items)
    torch.manual_seed(1)
    views = torch.cat([cl4srec.augment(items), cl4srec.augment(items)])
    assert float(penalty.detach()) == pytest.approx(
        0.1 * float(cl4srec.contrast(model.last_states(views)).detach()), rel=1e-5
    )
    penalty.backward()
    assert model.items.weight.grad is not None  # so it teaches the item vectors too
