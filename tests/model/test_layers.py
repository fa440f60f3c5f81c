"""The adapted layer's own derivatives, first and second, against finite differences."""

import pytest
import torch
from torch import Tensor, nn

from airpfed.model.layers import ROW_MULTIPLE, LowRank, OutputLayer, StackedLoRA


def tensors(devices: int, rows: int) -> list[Tensor]:
    """x, W, bias, A and U of a layer from 3 to 4 with rank 2, in float64."""
    rng = torch.Generator().manual_seed(0)
    shapes = (rows, 3), (4, 3), (4,), (devices, 2, 3), (devices, 2, 4)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("moving", ["x, A and B", "A and B", "B alone"])
@pytest.mark.parametrize("spans", [None, [1, 3, 2]])
def test_derivatives_are_right_twice(spans: list[int] | None, moving: str) -> None:
    x, weight, bias, a, up = tensors(3, 6)
    x.requires_grad_(moving == "x, A and B")
    a.requires_grad_(moving != "B alone")
    up.requires_grad_()
    leaves = tuple(one for one in (x, a, up) if one.requires_grad)

    def loss(*_moved: Tensor) -> Tensor:
        out: Tensor = LowRank.apply(x, weight, bias, a, up, spans)  # type: ignore[no-untyped-call]
        return out.sin()

    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.parametrize("spans", [[2, 2, 2], [1, 3, 2]])
def test_rows_go_through_their_own_factors(spans: list[int]) -> None:
    x, weight, bias, a, up = tensors(3, 6)
    layer = StackedLoRA(nn.Linear(3, 4).double(), 0.5)
    layer.base.weight.data, layer.base.bias.data = weight, bias
    layer.a, layer.b, layer.counts = a, up.mT, spans
    found = layer(x[None])[0]
    for own, rows, factor, other in zip(found.split(spans), x.split(spans), a, up.mT, strict=True):
        torch.testing.assert_close(own, rows @ weight.T + bias + 0.5 * rows @ factor.T @ other.T)
    layer.b = torch.zeros(3, 4, 2, dtype=torch.float64)
    assert torch.equal(layer(x[None]), layer.base(x[None])), "a zero B leaves the base as it is"


@pytest.mark.parametrize("rows", [(1,), (2, 8), (5, 7)])
def test_an_output_layer_has_the_gradient_of_a_linear_layer_twice(rows: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    base = nn.Linear(3, 9).double().requires_grad_(False)
    layer = OutputLayer(base)
    x = torch.randn(*rows, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.equal(layer(x), base(x)) and layer.weight is base.weight
    assert torch.autograd.gradcheck(lambda x: layer(x).sin(), (x,))
    assert torch.autograd.gradgradcheck(lambda x: layer(x).sin(), (x,))


def test_an_output_layer_adds_a_vocabulary_up_in_whole_multiples_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: seen.append(len(a)) or real(a, b))
    for rows in (1, 7, 16, 17):
        OutputLayer(nn.Linear(3, 5).requires_grad_(False))(torch.ones(rows, 3, requires_grad=True)).sum().backward()
    assert seen == [ROW_MULTIPLE, ROW_MULTIPLE, ROW_MULTIPLE, 2 * ROW_MULTIPLE]
