"""The contract for options that no yaml file sets (those are in test_contract.py), and what is special to a head."""

import inspect
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor

from flowpolicy.flow.losses import DISPERSIVE_KINDS
from flowpolicy.flow.path import expand
from flowpolicy.flow.times import num_equal_times, time_grid
from flowpolicy.heads.alpha_flow import AlphaFlowHead
from flowpolicy.heads.base import Head
from flowpolicy.heads.consistency import ConsistencyHead
from flowpolicy.heads.diffusion import DiffusionHead
from flowpolicy.heads.drift import DriftHead
from flowpolicy.heads.flow_matching import FlowMatchingHead
from flowpolicy.heads.imf_dual import DualMeanFlowHead
from flowpolicy.heads.iterative_regression import IterativeRegressionHead
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.heads.regression import RegressionHead
from flowpolicy.heads.shortcut import ShortcutHead
from flowpolicy.heads.terms.direction import DirectionAlignment
from flowpolicy.heads.terms.dispersive import DispersiveRegularizer
from flowpolicy.heads.terms.guidance import Guidance
from flowpolicy.nets.base import VelocityNet
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.samplers.jump import sample_ode
from flowpolicy.seeding import stream

HEADS = {
    "meanflow_x": MeanFlowHead,
    "meanflow_u": partial(MeanFlowHead, parameterization="u"),
    "imf": partial(MeanFlowHead, objective="imf"),
    "dm1": partial(MeanFlowHead, dispersive=DispersiveRegularizer(taps="all")),
    "guided": partial(MeanFlowHead, guidance=partial(Guidance, cond_dropout=0.3)),
    "guided_interval_imf": partial(MeanFlowHead, objective="imf", guidance=partial(Guidance, kappa=0.5, t_end=0.7)),
    "guided_as_released": partial(MeanFlowHead, guidance=partial(Guidance, kappa=-1.0, cond_dropout=0.0)),
    "omp_by_differences": partial(MeanFlowHead, direction=DirectionAlignment(decay=True), derivative="difference"),
    "imf_dual_u": partial(DualMeanFlowHead, parameterization="u"),
    "shortcut_u": partial(ShortcutHead, parameterization="u"),
    "alpha_flow_u": partial(AlphaFlowHead, parameterization="u"),
    "drift_after_squared_error": partial(DriftHead, mse_until=0.5),
    "flow_matching_x": FlowMatchingHead,
    "flow_matching_u": partial(FlowMatchingHead, parameterization="u"),
    "diffusion_sample": DiffusionHead,
    "diffusion_epsilon": partial(DiffusionHead, prediction="epsilon"),
    "diffusion_leading": partial(DiffusionHead, spacing="leading"),
    "consistency_u": ConsistencyHead,
    "consistency_x": partial(ConsistencyHead, parameterization="x", target="stop_gradient"),
    "consistency_teacher": partial(ConsistencyHead, target="ema"),
    "regression": RegressionHead,
}
BATCH, HORIZON, ACTION, COND = 16, 4, 2, 3


def _head(name: str) -> Head:
    torch.manual_seed(0)
    return HEADS[name](ResidualMLP(action_dim=ACTION, horizon=HORIZON, cond_dim=COND, width=32))


def _data() -> tuple[Tensor, Tensor, Tensor]:
    generator = stream(0, "data")
    action = torch.randn(BATCH, HORIZON, ACTION, generator=generator)
    return action, torch.randn(BATCH, COND, generator=generator), torch.ones(BATCH, HORIZON)


@pytest.mark.parametrize("name", HEADS)
def test_loss_is_a_finite_scalar_fixed_by_the_generator_and_moves_every_parameter(name: str) -> None:
    head, (action, cond, mask) = _head(name), _data()
    first, second = (head.loss(action, cond, mask, stream(1, "noise")) for _ in range(2))
    assert first.loss.shape == () and torch.equal(first.loss, second.loss)
    assert all(not value.requires_grad and value.isfinite() for value in first.metrics.values())
    first.loss.backward()
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    assert trained and all(p.grad is not None and float(p.grad.norm()) > 0 for p in trained)


@pytest.mark.parametrize("name", HEADS)
def test_masked_steps_do_not_change_the_loss(name: str) -> None:
    if name == "dm1":
        pytest.skip("hidden features see the whole chunk; only the regression part is masked")
    head, (action, cond, mask) = _head(name), _data()
    if name != "regression":  # x_t carries the padded steps into the net, so look at the target side only
        for net in (module for module in head.modules() if isinstance(module, VelocityNet)):
            net.forward_with_features = lambda x_t, t, r, cond: (x_t * 0, {})  # type: ignore[method-assign]
    mask[:, -1] = 0.0
    before = head.loss(action, cond, mask, stream(1, "noise")).loss.detach()
    action[:, -1] += 5.0
    torch.testing.assert_close(head.loss(action, cond, mask, stream(1, "noise")).loss.detach(), before)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_sampling_gives_a_chunk_with_exactly_that_many_evaluations(name: str, num_steps: int) -> None:
    head, (_, cond, _) = _head(name), _data()
    if head.max_steps is not None and num_steps > head.max_steps:
        pytest.skip("one-step head")
    calls = []
    head.net.register_forward_hook(lambda *_: calls.append(1))
    noise = torch.randn(BATCH, HORIZON, ACTION, generator=stream(2, "noise"))
    with torch.no_grad():
        chunk = sample_ode(head.velocity, noise, cond, time_grid(num_steps))
    assert chunk.shape == (BATCH, HORIZON, ACTION) and len(calls) == num_steps


@pytest.mark.parametrize("name", HEADS)
def test_weights_survive_a_state_dict_round_trip(name: str) -> None:
    head, other, (action, cond, mask) = _head(name), _head(name), _data()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.01)
    other.load_state_dict(head.state_dict())
    losses = [h.loss(action, cond, mask, stream(1, "noise")).loss for h in (head, other)]
    assert torch.equal(*losses)


def test_p_equal_one_is_flow_matching_bit_for_bit() -> None:
    """With r = t everywhere MeanFlow's loss is the flow-matching loss on the same times and noise."""
    action, cond, mask = _data()
    net = _head("meanflow_x").net
    head = MeanFlowHead(net, p_equal=1.0, p_start=0.0, loss_power=0.0, time_mean=0.5, time_std=1.0)
    generator = stream(1, "noise")
    noise = torch.randn(action.shape, generator=generator)
    pair = torch.sigmoid(0.5 + torch.randn((2, BATCH), generator=generator))
    t = pair.amax(dim=0)
    x_t = action + expand(t, action) * (noise - action)
    wanted = (head.velocity(x_t, t, t, cond) - (noise - action)).square().mean(dim=(1, 2)).mean()
    assert torch.equal(head.loss(action, cond, mask, stream(1, "noise")).loss, wanted)


def test_imf_with_the_path_velocity_as_tangent_is_meanflow() -> None:
    """The two objectives differ in the tangent and in nothing else: same loss, same gradient."""
    action, cond, mask = _data()
    noise = torch.randn(action.shape, generator=stream(1, "noise"))
    path_velocity = (noise - action)[num_equal_times(BATCH, 0.75) :]
    found = []
    for name in ("meanflow_x", "imf"):
        head = _head(name)
        velocity = head.velocity
        if name == "imf":  # its tangent is the only call with r = t as the same tensor
            head.velocity = lambda x, t, r, c: path_velocity if r is t else velocity(x, t, r, c)  # noqa: B023
        loss = head.loss(action, cond, mask, stream(1, "noise")).loss
        found.append([loss, *torch.autograd.grad(loss, list(head.parameters()))])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(_head("imf").loss(action, cond, mask, stream(1, "noise")).loss, found[0][0])


def test_jacobian_product_runs_only_on_rows_with_r_unlike_t(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    original = torch.func.jvp

    def spy(function, primals, tangents):  # noqa: ANN001, ANN202
        rows.append(primals[0].shape[0])
        return original(function, primals, tangents)

    monkeypatch.setattr(torch.func, "jvp", spy)
    head, (action, cond, mask) = _head("meanflow_x"), _data()
    head.loss(action, cond, mask, stream(1, "noise"))
    assert rows == [BATCH // 4]


@pytest.mark.parametrize("kind", DISPERSIVE_KINDS)
@pytest.mark.parametrize("taps", ["early", "mid", "late", "all", ["early", "late"]])
def test_dispersive_term_alone_moves_the_layers_below_its_tap(kind: str, taps: str | list[str]) -> None:
    head, (action, cond, _) = _head("dm1"), _data()
    regularizer = DispersiveRegularizer(kind=kind, taps=taps, margin=50.0)  # type: ignore[arg-type]
    _, features = head.net.forward_with_features(action, torch.rand(BATCH), torch.zeros(BATCH), cond)
    regularizer(features, cond).backward()
    assert isinstance(head.net, ResidualMLP)
    assert float(head.net.input.weight.grad.norm()) > 0  # type: ignore[union-attr]
    assert head.net.output.weight.grad is None


def test_cond_tap_disperses_the_encoder_output() -> None:
    cond = torch.randn(BATCH, COND, generator=stream(0, "c")).requires_grad_()
    DispersiveRegularizer(taps="cond")({}, cond).backward()
    assert cond.grad is not None and float(cond.grad.norm()) > 0


def test_bad_options_are_refused_with_the_choices() -> None:
    net = ResidualMLP(action_dim=ACTION, horizon=HORIZON, cond_dim=COND, width=32)
    with pytest.raises(ValueError, match="'u' .*'x'"):
        MeanFlowHead(net, parameterization="v")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'meanflow' or 'imf'"):
        MeanFlowHead(net, objective="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="early, second, mid, late, cond"):
        DispersiveRegularizer(taps="down0")
    with pytest.raises(ValueError, match="infonce_l2"):
        DispersiveRegularizer(kind="l2")  # type: ignore[arg-type]


def test_meanflow_without_equal_times_warns() -> None:
    net = ResidualMLP(action_dim=ACTION, horizon=HORIZON, cond_dim=COND, width=32)
    with pytest.warns(UserWarning, match="p_equal=0"):
        MeanFlowHead(net, p_equal=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MeanFlowHead(net, p_equal=0.0, objective="imf")


@pytest.mark.parametrize(
    "build",
    [
        MeanFlowHead,
        FlowMatchingHead,
        DiffusionHead,
        ConsistencyHead,
        RegressionHead,
        DispersiveRegularizer,
        Guidance,
        AlphaFlowHead,
        DriftHead,
        DualMeanFlowHead,
        IterativeRegressionHead,
        ShortcutHead,
        DirectionAlignment,
    ],
)
def test_no_constructor_swallows_unknown_words(build: type) -> None:
    kinds = {parameter.kind for parameter in inspect.signature(build).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds
