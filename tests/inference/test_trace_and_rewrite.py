"""Recording: what is constant and what is refused. Rewriting: fewer calls, the same numbers, also beside writes."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from flowpolicy.inference.rewrite import simplify
from flowpolicy.inference.trace import record
from flowpolicy.seeding import stream

W, V = (torch.randn(5, size, generator=stream(0, name)) for name, size in (("w", 6), ("v", 4)))
TIME, BIAS = torch.randn(2, 2, generator=stream(0, "t")), torch.randn(5, generator=stream(0, "b"))


def simplified(function: Callable[..., Tensor], inputs: Sequence[Tensor], **words) -> tuple[Callable[..., Tensor], str]:
    """The replay and its code."""
    recording = record(function, inputs)
    simplify(recording, **words)
    module = recording.module()
    return module.forward, module.code


def check(function: Callable[..., Tensor], *shapes: Sequence[int], **words) -> str:
    """The replay gives what the function gives, on other numbers than were recorded; its code."""
    replay, code = simplified(function, [torch.zeros(*shape) for shape in shapes], **words)
    for seed in range(3):
        inputs = [torch.randn(*shape, generator=stream(seed, f"x{i}")) for i, shape in enumerate(shapes)]
        torch.testing.assert_close(replay(*inputs), function(*inputs), rtol=1e-5, atol=1e-6)
    return code


def calls(code: str, name: str) -> int:
    return code.count(f".{name}(")


def test_what_does_not_depend_on_the_inputs_is_not_computed_again() -> None:
    code = check(lambda x: x + TIME.sin().exp() @ torch.ones(2, 4) + x.new_full((4,), 2.0).cos(), (2, 4))
    assert "sin" not in code and "cos" not in code and "mm" not in code


def test_constant_columns_move_into_the_bias() -> None:
    code = check(lambda x: torch.nn.functional.linear(torch.cat([TIME, x], dim=-1), W, BIAS), (2, 4))
    assert calls(code, "cat") == 0 and calls(code, "addmm") == 1
    code = check(lambda x: torch.nn.functional.mish(torch.cat([x, TIME], dim=1)) @ W.t(), (2, 4))
    assert calls(code, "cat") == 0 and calls(code, "addmm") == 1


def test_nested_cats_become_one() -> None:
    code = check(lambda x, y: torch.cat([x, torch.cat([TIME, y], dim=-1)], dim=-1), (2, 1), (2, 3))
    assert calls(code, "cat") == 1


def test_two_products_that_are_added_become_a_chain() -> None:
    linear = torch.nn.functional.linear
    code = check(lambda x, y: linear(x, W, BIAS) + linear(y, V), (2, 6), (2, 4))
    assert calls(code, "addmm") == 2 and calls(code, "add") == 0
    code = check(lambda x, y: linear(x, W) + linear(y, V, BIAS), (1, 6), (1, 4))
    assert calls(code, "addmm") == 2 and calls(code, "mm") == 0


def test_a_product_that_is_used_twice_is_not_taken_apart() -> None:
    def twice(x: Tensor, y: Tensor) -> Tensor:
        first = torch.nn.functional.linear(x, W, BIAS)
        return first + torch.nn.functional.linear(y, V) * first

    check(twice, (2, 6), (2, 4))


def test_differences_and_affine_maps_shrink() -> None:
    code = check(lambda x, y: x - (x - y) / torch.ones(1, 1) * 1.0, (2, 4), (2, 4))
    assert calls(code, "sub") == 0 and calls(code, "div") == 0
    code = check(lambda x: (x - V[0]) / V[1].abs().add(1.0), (2, 4))
    assert calls(code, "addcmul") == 1 and calls(code, "div") == 0


def test_what_broadcasts_is_not_dropped() -> None:
    check(lambda x, y: x - (x - y), (2, 4), (1, 4))
    check(lambda x: x[:1] * torch.ones(3, 4), (2, 4))


def test_what_makes_floats_of_bytes_is_not_dropped() -> None:
    function = lambda image: image / torch.ones(1)  # noqa: E731
    replay, _ = simplified(function, [torch.zeros(3, dtype=torch.uint8)])
    assert replay(torch.arange(3, dtype=torch.uint8)).dtype == torch.float32


def test_the_same_operation_twice_is_done_once() -> None:
    assert calls(check(lambda x: torch.exp(x + 1.0) * torch.sin(x + 1.0), (2, 4)), "add") == 1


def test_writing_in_place_keeps_its_order() -> None:
    def first(x: Tensor) -> Tensor:
        y = x + 1.0
        z = torch.cat([TIME, y], dim=-1)
        y.relu_()
        return torch.cat([torch.nn.functional.silu(z), y, (x + 1.0)], dim=-1)

    check(first, (2, 3))

    def second(x: Tensor) -> Tensor:
        y = torch.nn.functional.linear(torch.cat([x, TIME], dim=-1), W, BIAS)
        view = y[:, :2]
        y.relu_()
        return view - 1.0

    check(second, (2, 4))


@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_along_pixels_are_the_same(transposed: bool) -> None:
    torch.manual_seed(0)
    kind = torch.nn.ConvTranspose1d if transposed else torch.nn.Conv1d
    for kernel, stride, padding, groups in ((5, 1, 2, 1), (4, 2, 1, 1), (1, 1, 0, 1), (3, 1, 1, 2)):
        layer = kind(4, 6, kernel, stride, padding, groups=groups).requires_grad_(False)
        code = check(layer, (2, 4, 8), pixels_first=True)
        assert calls(code, "unsqueeze") == 1


def test_numbers_that_leave_for_python_are_refused() -> None:
    with pytest.raises(ValueError, match="Python decides"):
        record(lambda x: x * 2 if x.sum() > 0 else x, [torch.ones(2)])
    with pytest.raises(ValueError, match="Python decides"):
        record(lambda x: x * float(x[0]), [torch.ones(2)])


def test_writing_into_what_outlives_the_call_is_refused() -> None:
    total = torch.zeros(2)
    with pytest.raises(ValueError, match="outlives the call"):
        record(lambda x: total.add_(x), [torch.ones(2)])


def test_a_constant_result_is_a_constant() -> None:
    replay, _ = simplified(lambda x: TIME * 2.0, [torch.ones(2)])
    assert torch.equal(replay(torch.zeros(2)), TIME * 2.0)
