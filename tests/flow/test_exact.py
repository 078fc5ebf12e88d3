"""What must not be rounded is not: by bfloat16 under autocast, nor by a GPU's TF32, which is emulated here."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowpolicy.flow.alpha_flow import alpha_flow_target
from flowpolicy.flow.drift import drift
from flowpolicy.flow.exact import without_tf32
from flowpolicy.flow.losses import DISPERSIVE_KINDS, direction_loss, dispersive_loss
from flowpolicy.flow.meanflow import Derivative, meanflow_correction, time_derivative
from flowpolicy.flow.precision import excess_precision
from flowpolicy.heads.terms.dispersive_legacy import LegacyDispersive
from flowpolicy.nets.unet1d import UNet1D
from flowpolicy.seeding import stream

ACTION = 0.3 + 0.1 * torch.randn(24, 4, 3, generator=stream(0, "action"))
OTHER = torch.randn(24, 4, 3, generator=stream(1, "other"))
COND = torch.randn(24, 8, generator=stream(0, "cond"))
MASK = torch.ones(24, 4)
IN_FLOAT32: dict[str, Callable[[], Tensor]] = {
    "excess_precision": lambda: excess_precision(ACTION, COND, MASK),
    "drift": lambda: drift(ACTION, OTHER[:, :1], temperatures=(0.05, 0.2)).field,
    "direction": lambda: direction_loss(ACTION, OTHER, MASK),
    **{f"dispersive {kind}": lambda kind=kind: dispersive_loss(COND, kind=kind) for kind in DISPERSIVE_KINDS},
    **{f"legacy {kind}": lambda kind=kind: LegacyDispersive(kind=kind)({}, COND) for kind in DISPERSIVE_KINDS},
}


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_autocast_changes_no_digit_of_a_statistic(name: str) -> None:
    wanted = IN_FLOAT32[name]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(IN_FLOAT32[name](), wanted)


def _tf32() -> bool:
    """Whether a GPU would convolve in TF32 now."""
    cudnn = torch.backends.cudnn
    return cudnn.conv.fp32_precision == "tf32" if hasattr(cudnn, "conv") else cudnn.allow_tf32


def _state() -> list[object]:
    """All that decides in which precision float32 is multiplied."""
    backends = torch.backends
    values: list[object] = [torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32]
    values.append(backends.cuda.matmul.allow_tf32)
    if hasattr(backends.cudnn, "conv"):
        operators = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.matmul)
        values += [operator.fp32_precision for operator in operators]
    return values


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_switches_are_off_inside_and_as_before_afterwards(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    before = _state()
    try:
        assert _tf32(), "the default of a GPU"
        with without_tf32():
            assert not _tf32() and _state()[:3] == ["highest", False, False]
            with without_tf32():  # a block in a block ends where it began
                pass
            assert not _tf32()
        assert _state() == before
        with pytest.raises(KeyError), without_tf32():
            raise KeyError
        assert _state() == before
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9 has no switch for it")
def test_switches_that_somebody_set_for_single_operators_survive() -> None:
    """Torch then refuses to read the overall ones."""
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    try:
        for value in ("ieee", "tf32"):
            conv.fp32_precision = value
            with without_tf32():
                assert conv.fp32_precision == "ieee"
            assert conv.fp32_precision == value
    finally:
        conv.fp32_precision = before


def _eleven_bits(x: Tensor) -> Tensor:
    """x rounded as TF32 does it (Veltkamp's splitting), through which derivatives go."""
    large = 8193.0 * x
    return large - (large - x)


def _emulate_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions round their inputs wherever a GPU would."""
    convolve = nn.functional.conv1d

    def rounded(x: Tensor, weight: Tensor, *rest, **words) -> Tensor:
        return (
            convolve(_eleven_bits(x), _eleven_bits(weight), *rest, **words)
            if _tf32()
            else convolve(x, weight, *rest, **words)
        )

    monkeypatch.setattr(nn.functional, "conv1d", rounded)


def _problem() -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """A U-Net's velocity and (x_t, t, r, cond, tangent)."""
    torch.manual_seed(0)
    net = UNet1D(action_dim=3, horizon=4, cond_dim=8, dims=(16, 32), time_dim=16).requires_grad_(False)
    t = torch.linspace(0.2, 0.9, 24)
    return net, (OTHER, t, 0.5 * t, COND, OTHER - ACTION)


def test_a_quotient_of_differences_is_lost_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the switch is for: the error with TF32 left on, relative to the exact derivative; else 0.0003."""
    net, inputs = _problem()
    exact = time_derivative(net, *inputs)
    _emulate_tf32(monkeypatch)
    monkeypatch.setattr("flowpolicy.flow.meanflow.without_tf32", lambda: torch.no_grad())
    errors = {}
    for name in ("difference", "jvp"):
        errors[name] = float((time_derivative(net, *inputs, derivative=name) - exact).norm() / exact.norm())
    assert errors["difference"] > 0.1 and 5e-4 < errors["jvp"] < 5e-3


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_derivatives_are_taken_in_float32(derivative: Derivative, monkeypatch: pytest.MonkeyPatch) -> None:
    net, inputs = _problem()
    wanted = time_derivative(net, *inputs, derivative=derivative)
    _emulate_tf32(monkeypatch)
    assert torch.equal(time_derivative(net, *inputs, derivative=derivative), wanted)
    assert _tf32()


def test_the_predicted_tangent_and_the_teacher_of_alpha_flow_are_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (x_t, t, r, cond, path) = _problem()
    compute = (
        lambda: meanflow_correction(net, x_t, t, r, cond, path, num_equal=0, objective="imf"),
        lambda: alpha_flow_target(net, x_t, t, r, cond, path, torch.full((24,), 0.05)),
    )
    wanted = [call() for call in compute]
    _emulate_tf32(monkeypatch)
    assert all(torch.equal(call(), value) for call, value in zip(compute, wanted, strict=True))
