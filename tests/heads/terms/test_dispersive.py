"""Which features are spread, by which loss; and that DM1's released one moves next to nothing."""

import math
import warnings

import pytest
import torch

from flowpolicy.flow.losses import DISPERSIVE_KINDS, DispersiveKind, dispersive_loss
from flowpolicy.heads.terms.dispersive import DispersiveRegularizer
from flowpolicy.heads.terms.dispersive_legacy import LegacyDispersive
from flowpolicy.nets.joint_transformer import JointTransformer
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.nets.unet1d import UNet1D
from flowpolicy.seeding import stream

NETS = {
    "mlp": lambda: ResidualMLP(action_dim=2, horizon=4, cond_dim=3, width=32),
    "unet1d": lambda: UNet1D(action_dim=2, horizon=4, cond_dim=3, dims=(16, 32), time_dim=16),
    "joint_transformer": lambda: JointTransformer(action_dim=2, horizon=4, cond_dim=3, dim=32, depth=3, heads=2),
}


@pytest.mark.parametrize("kind", DISPERSIVE_KINDS)
@pytest.mark.parametrize("taps", ["early", "second", "mid", "late", "all", "cond"])
@pytest.mark.parametrize("net", NETS)
def test_every_kind_at_every_tap_spreads_what_it_looks_at(kind: DispersiveKind, taps: str, net: str) -> None:
    """A small step against its gradient lowers it; "all" moves what "late" alone does too; the output layer rests."""
    torch.manual_seed(0)
    built = NETS[net]()
    regularizer = DispersiveRegularizer(kind=kind, taps=taps, margin=50.0)
    generator = stream(0, "x")
    x_t, t = torch.randn(16, 4, 2, generator=generator), torch.rand(16, generator=generator)
    cond = torch.randn(16, 3, generator=generator).requires_grad_()
    watched = [cond] if taps == "cond" else [p for n, p in built.named_parameters() if not n.startswith("output")]

    def value() -> torch.Tensor:
        return regularizer(built.forward_with_features(x_t, t, 0.5 * t, cond)[1], cond)

    before = value()
    gradients = torch.autograd.grad(before, watched, allow_unused=True)
    found = [(p, g) for p, g in zip(watched, gradients, strict=True) if g is not None]
    norm = torch.stack([g.norm() for _, g in found]).norm()
    assert float(norm) > 1e-5
    with torch.no_grad():
        for parameter, gradient in found:
            parameter -= 1e-2 * gradient / norm
    assert float(value().detach()) < float(before.detach())


def test_released_form_is_inert_on_features_as_far_apart_as_its_encoders() -> None:
    """Pair distances of 61 to 122, as measured on the released encoder: no gradient at all, a constant value."""
    z = torch.randn(256, 137, generator=stream(0, "z"))
    z = (5.5 * z).requires_grad_()
    distance = torch.pdist(z.detach())
    assert float(distance.min()) > 50 and float(distance.max()) < 130
    for kind, wanted in (("infonce_l2", -(10 + math.log(256))), ("hinge", 0.0)):
        loss = LegacyDispersive(kind=kind)({}, z)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(loss, z)
        assert float(loss.detach()) == pytest.approx(wanted, abs=1e-3) and not gradient.any(), kind
    assert -(10 + math.log(256)) == pytest.approx(-15.545, abs=1e-3)
    (gradient,) = torch.autograd.grad(LegacyDispersive(kind="infonce_cosine")({}, z), z)
    assert 0 < float(gradient.norm()) < 1e-4
    (gradient,) = torch.autograd.grad(DispersiveRegularizer(taps="cond", temperature=20.0)({}, z), z)
    assert float(gradient.norm()) > 1e-3, "the correct loss does have a gradient there"


@pytest.mark.parametrize("kind", DISPERSIVE_KINDS)
def test_released_form_survives_one_sample_and_equal_rows(kind: DispersiveKind) -> None:
    assert float(LegacyDispersive(kind=kind)({}, torch.ones(1, 3))) == 0.0
    same = torch.ones(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(LegacyDispersive(kind=kind)({}, same), same)
    assert bool(gradient.isfinite().all())


def test_unknown_released_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="infonce_l2"):
        LegacyDispersive(kind="l2")  # type: ignore[arg-type]


@pytest.mark.parametrize("regularizer", [DispersiveRegularizer(taps=["mid", "cond"]), LegacyDispersive()])
def test_a_term_without_a_gradient_says_once_that_it_is_inert(
    regularizer: DispersiveRegularizer | LegacyDispersive,
) -> None:
    """As with states, whose encoder has no weights."""
    features, cond = {"mid": torch.randn(4, 8, requires_grad=True)}, torch.randn(4, 3)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # a validation loss trains nothing anyway
        regularizer(features, cond)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regularizer(features, cond.clone().requires_grad_())
    with pytest.warns(UserWarning, match="cond has no gradient .* changes no weight") as given:
        for _ in range(3):
            regularizer(features, cond)
    assert len(given) == 1


def test_divided_by_the_largest_only_proportions_count() -> None:
    """MP1's form: log mean exp(-D / max D), between -1 and 0 whatever the scale."""
    z = torch.randn(12, 6, generator=stream(0, "z"))
    distance = torch.cdist(z, z).square()
    wanted = torch.exp(-distance / distance.max()).mean().log()
    for scale in (1.0, 100.0):
        found = dispersive_loss(scale * z, temperature=1.0, divide_by="largest")
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert float(dispersive_loss(torch.ones(4, 3), divide_by="largest")) == 0.0
    for build in (dispersive_loss, lambda z, **words: DispersiveRegularizer(**words)):
        with pytest.raises(ValueError, match="divide_by must be one of width, largest"):
            build(z, divide_by="max")
