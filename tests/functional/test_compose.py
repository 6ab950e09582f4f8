"""The product of a stack."""

import pytest
import torch

from lightning_rank.functional import compose_linear


def test_factors_apply_in_order():
    first, second, third = torch.randn(5, 3), torch.randn(4, 5), torch.randn(2, 4)
    torch.testing.assert_close(compose_linear([first, second, third]), third @ second @ first)


def test_the_product_of_one_matrix_is_a_copy():
    weight = torch.randn(3, 3, requires_grad=True)
    product = compose_linear([weight])
    assert torch.equal(product, weight)
    assert product.data_ptr() != weight.data_ptr()
    product.sum().backward()
    assert torch.equal(weight.grad, torch.ones(3, 3))


def test_half_precision_is_composed_wide_and_rounded_once():
    wide = [torch.linalg.qr(torch.randn(64, 64)).Q.bfloat16() for _ in range(16)]
    exact = compose_linear([w.double() for w in wide])
    ours = compose_linear(wide)
    naive = wide[0]
    for weight in wide[1:]:
        naive = weight @ naive
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).norm() / exact.norm() < 2.5e-3
    assert (naive.double() - exact).norm() / exact.norm() > 4e-3


def test_autocast_does_not_reach_it():
    weights = [torch.randn(8, 8) for _ in range(4)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = compose_linear(weights)
    assert torch.equal(inside, compose_linear(weights))


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([], ValueError, "weights: expected at least one matrix"),
        ([torch.ones(2, 2, dtype=torch.int64)], TypeError, r"weights\[0\]: expected a floating-point.*int64"),
        ([torch.ones(2)], ValueError, r"weights\[0\]: expected shape \(out, in\), got \(2,\)"),
        ([torch.ones(2, 3), torch.ones(4, 3)], ValueError, r"weights\[1\]: expected shape \(out, 2\), got \(4, 3\)"),
    ],
)
def test_bad_stacks_are_refused(bad, error, message):
    with pytest.raises(error, match=message):
        compose_linear(bad)
