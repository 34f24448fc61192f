"""LoRA at a lower cost: the fused layer has the gradients of peft, and added to the weights an adapter scores alike."""

import pytest
import torch

from llm4dsr.config import ModelConfig
from llm4dsr.lm.load import add_lora
from llm4dsr.lm.lora import LEVELS, _LoraLinear, can_merge, draw_kept, fused_lora, merged

from .architectures import make_lm

IDS = torch.tensor([[1, 2, 3, 4, 5], [3, 3, 1, 0, 2]])


def adapted(name: str = "llama3", **options):
    """A model of one kind with an adapter that does something."""
    lm = add_lora(make_lm(name, ["Red Train"])[0], ModelConfig(tuning="lora", **options))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for p in lm.parameters():
            if p.requires_grad:
                torch.nn.init.normal_(p, std=0.3)
    return lm


def gradients(lm) -> list[torch.Tensor]:
    lm.zero_grad()
    lm.eval()  # OPT has dropout of its own
    lm(input_ids=IDS).logits.square().mean().backward()
    return [p.grad.clone() for p in lm.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", ["llama3", "opt"])
def test_gradients_are_those_of_peft(name):
    """OPT has biases."""
    lm = adapted(name, lora_dropout=0.0)
    expected = gradients(lm)
    with fused_lora(lm):
        fused = gradients(lm)
    assert len(fused) > 10
    assert all(float(grad.abs().max()) > 0 for grad in expected[-4:])
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients(lm), expected, rtol=0, atol=0)  # as before, after the block


def test_gradients_with_dropout_against_finite_differences():
    torch.manual_seed(0)
    sizes = ((2, 3, 5), (4, 5), (4,), (2, 5), (4, 2))  # x, W, its bias, A, B
    x, weight, bias, a, b = (torch.randn(size, dtype=torch.float64) for size in sizes)

    def layer(*tuned: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)  # the same elements are left out
        return _LoraLinear.apply(tuned[0], weight, bias, *tuned[1:], 1.5, 0.3)

    assert torch.autograd.gradcheck(layer, tuple(p.requires_grad_() for p in (x, a, b)))


def test_half_precision_has_about_the_same_gradients():
    """With autocast, as on CPUs that multiply bf16 in hardware, and without."""
    lm = adapted(lora_dropout=0.0)
    expected = gradients(lm)
    for base in (m.base_layer for m in lm.modules() if hasattr(m, "base_layer")):
        base.to(torch.bfloat16)
    with fused_lora(lm), torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(lm)
    for grad, of_fp32 in zip(found, expected, strict=True):
        assert grad.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(grad.flatten(), of_fp32.flatten(), dim=0) > 0.99


def test_dropout_keeps_its_mean():
    """Rate 0.25, where LEVELS is exact: kept inputs count 4/3."""
    torch.manual_seed(0)
    kept = draw_kept(torch.Size([1000, 333]), 0.25)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.005)
    assert kept.float().mean(0).std().item() == pytest.approx((0.75 * 0.25 / 1000) ** 0.5, rel=0.15)  # independent
    assert (0.25 * LEVELS).is_integer()
    ones, eye = torch.ones(1000, 4), torch.eye(4)
    out = _LoraLinear.apply(ones, torch.zeros(4, 4), None, eye, eye, 3.0, 0.25)
    assert sorted(set(out.flatten().tolist())) == [0.0, 4.0]


def test_an_adapter_in_the_weights_scores_alike_and_leaves_the_model_as_it_is():
    lm = adapted()
    lm.eval()
    before = {name: p.clone() for name, p in lm.named_parameters()}
    one = merged(lm)
    with torch.inference_mode():
        torch.testing.assert_close(one(input_ids=IDS).logits, lm(input_ids=IDS).logits, rtol=0, atol=1e-5)
        with lm.disable_adapter():
            plain = lm(input_ids=IDS).logits
    assert float((one(input_ids=IDS).logits - plain).abs().max()) > 0.01
    assert not any("lora" in name for name, _ in one.named_modules())
    assert one.get_input_embeddings().weight is lm.get_base_model().get_input_embeddings().weight
    assert all(torch.equal(before[name], p) for name, p in lm.named_parameters())


def test_in_half_precision_the_sum_is_rounded():
    lm = adapted().to(torch.bfloat16)
    layer = next(m for m in lm.modules() if hasattr(m, "base_layer"))
    a, b = layer.lora_A["default"].weight.float(), layer.lora_B["default"].weight.float()
    expected = layer.base_layer.weight.float() + layer.scaling["default"] * b @ a
    found = merged(lm).model.layers[0].self_attn.q_proj.weight
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2**-6, atol=1e-3)


def test_what_is_not_merged():
    assert not can_merge(make_lm("llama3", ["Red Train"])[0])  # no adapter
    assert not can_merge(adapted("gpt2"))  # layers of another kind
    assert can_merge(adapted())
