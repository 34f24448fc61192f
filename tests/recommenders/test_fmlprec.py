"""FMLP-Rec: filters with a known effect."""

import math
from dataclasses import replace

import pytest
import torch

from llm4dsr.errors import ConfigError
from llm4dsr.recommenders.fmlprec import FilterBlock, FMLPRec

from .harness import SMALL, N, same


def block(filters: torch.Tensor, length: int) -> FilterBlock:
    """A block with these filters, complex [length // 2 + 1], in each of 4 columns."""
    made = FilterBlock(length, 4, 0.0)
    with torch.no_grad():
        made.filter.copy_(torch.view_as_real(filters.to(torch.complex64))[:, None].expand(-1, 4, 2))
    return made


@pytest.mark.parametrize("length", [5, 6])
def test_a_filter_of_ones_is_the_identity(length: int) -> None:
    x = torch.randn(3, length, 4)
    assert same(block(torch.ones(length // 2 + 1), length).filtered(x), x)


@pytest.mark.parametrize("length", [5, 6])
def test_a_filter_can_average_and_delay(length: int) -> None:
    x = torch.randn(3, length, 4)
    frequencies = torch.arange(length // 2 + 1)
    mean = block((frequencies == 0).float(), length)  # passes the constant part only
    assert same(mean.filtered(x), x.mean(1, keepdim=True).expand_as(x))
    delay = block(torch.exp(-2j * math.pi * frequencies / length), length)
    assert torch.allclose(delay.filtered(x), x.roll(1, dims=1), atol=1e-5)


@pytest.mark.parametrize("length", [5, 6])
def test_the_last_position_computed_alone_is_the_same(length: int) -> None:
    made, x = FilterBlock(length, 4, 0.0), torch.randn(3, length, 4)
    assert same(made.filtered(x, last=True), made.filtered(x)[:, -1:])
    assert torch.allclose(made(x, last=True), made(x)[:, -1:], atol=1e-5)


def test_supervision_of_all_positions_is_refused() -> None:
    with pytest.raises(ConfigError, match="supervise = 'all'"):
        FMLPRec(N, replace(SMALL, supervise="all"))
