"""trainer.compile: the same loss and gradients as without, Jacobian product included."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from flowpolicy.encoders.state import StateEncoder
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.heads.terms.dispersive import DispersiveRegularizer
from flowpolicy.nets.base import VelocityNet
from flowpolicy.nets.joint_transformer import JointTransformer
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.nets.norm import CompilableGroupNorm, CompilableLayerNorm
from flowpolicy.nets.unet1d import UNet1D
from flowpolicy.policy import build_policy
from flowpolicy.seeding import stream
from flowpolicy.trainers.imitation import compiled
from flowpolicy.types import Batch
from tests.helpers import EMBODIMENT, needs_compiler, observation

CPU = torch.device("cpu")
DM1 = partial(MeanFlowHead, dispersive=DispersiveRegularizer())
NETS = [
    pytest.param(partial(ResidualMLP, width=32, depth=1), False, id="mlp", marks=pytest.mark.ci),
    pytest.param(partial(ResidualMLP, width=32, depth=1), True, id="mlp_bfloat16"),
    pytest.param(partial(UNet1D, dims=(16, 32), time_dim=16), False, id="unet1d"),
    pytest.param(partial(JointTransformer, dim=32, depth=1, heads=2), False, id="joint_transformer"),
]


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(CompilableLayerNorm(12), (5, 3, 12)), (CompilableGroupNorm(4, 12), (5, 12, 6))],
    ids=["layer", "group"],
)
def test_written_out_norms_equal_the_fused_ones(norm: Callable, shape: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    x = 3.0 + 2.0 * torch.randn(shape, generator=stream(0, "x"))
    for parameter in norm.parameters():
        torch.nn.init.uniform_(parameter, generator=stream(1, "w"))
    fused = norm(x)
    monkeypatch.setattr("flowpolicy.nets.norm._traced", lambda: True)
    torch.testing.assert_close(norm(x), fused)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    assert float((norm(x.bfloat16()).float() - fused).abs().max()) < 0.05


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("net", "half"), NETS)
def test_compiled_loss_and_gradients_are_those_of_eager(net: Callable[..., VelocityNet], half: bool) -> None:
    torch.manual_seed(0)
    eager = build_policy(
        embodiment=EMBODIMENT,
        encoder=StateEncoder,
        net=net,
        head=DM1,
        horizon=8,
        obs_horizon=2,
        action_horizon=4,
        action_representation="relative",
    )
    traced = copy.deepcopy(eager)
    action = torch.randn(48, 8, 3, generator=stream(0, "action"))
    batch = Batch(observation(48), action, torch.ones(48, 8))
    losses: dict[str, Tensor] = {}
    torch.compiler.reset()
    counters.clear()
    for name, loss in (("eager", eager.loss), ("traced", compiled(traced.loss, CPU))):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            output = loss(batch, stream(1, "noise"))
        output.loss.backward()
        losses[name] = output.loss.detach()
        assert {"loss_meanflow", "loss_velocity"} <= output.metrics.keys()
    assert counters["stats"]["unique_graphs"] >= 3, "it fell back to eager"
    torch.testing.assert_close(losses["traced"], losses["eager"], rtol=1e-2 if half else 1e-5, atol=0)
    for (name, ours), theirs in zip(traced.named_parameters(), eager.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None, name
        scale = float(theirs.grad.abs().max())
        assert float((ours.grad - theirs.grad).abs().max()) <= (3e-2 if half else 1e-4) * max(scale, 1e-3), name


def test_a_compiled_loss_runs_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph cannot switch it off for its derivatives alone."""
    monkeypatch.setattr("torch.compile", lambda loss, **_: loss)
    monkeypatch.setattr("shutil.which", lambda name: name)
    tf32 = torch.backends.cudnn.allow_tf32
    assert tf32 and compiled(lambda *_: torch.backends.cudnn.allow_tf32, CPU)(None, None) is False  # type: ignore
    assert torch.backends.cudnn.allow_tf32 == tf32


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match=r"install g\+\+"):
        compiled(lambda batch, generator: None, CPU)  # pyright: ignore[reportArgumentType, reportReturnType]
