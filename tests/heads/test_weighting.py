"""Flow times and loss weighting: one law with one meaning for every head of the catalogue, chosen by name."""

import inspect
from functools import cache
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import get_class

from flowpolicy.checkpoint import create_policy
from flowpolicy.flow.losses import LossWeighting
from flowpolicy.flow.times import FlowTimes
from flowpolicy.heads.base import Head
from flowpolicy.paths import config_dir
from flowpolicy.policy import FlowPolicy
from flowpolicy.seeding import stream
from flowpolicy.types import Batch
from tests.catalogue import options, policy_config
from tests.helpers import EMBODIMENT, observation

NUMBERS = ("p_start", "time_law", "time_mean", "time_std", "loss_power", "loss_eps")
BATCH = 64


@cache
def _config(head: str, *words: str) -> dict[str, Any]:
    return policy_config(head=head, words=words, obs_keys=None)


@cache
def _group(name: str) -> dict[str, Any]:
    """The numbers of a group's file, e.g. "times/uniform"."""
    return yaml.safe_load((config_dir() / "policy" / f"{name}.yaml").read_text())


def _policy(head: str, **numbers: Any) -> FlowPolicy:
    """With these numbers of the head in place of its own."""
    torch.manual_seed(0)
    config = _config(head)
    policy = create_policy({**config, "head": {**config["head"], **numbers}}, EMBODIMENT)
    with torch.no_grad():  # else a net that starts at zero has the same loss everywhere
        for parameter in policy.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return policy


def _loss(policy: FlowPolicy) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    action = torch.randn(BATCH, 8, 3, generator=stream(0, "action"))
    output = policy.loss(Batch(observation(BATCH), action, torch.ones(BATCH, 8)), stream(1, "noise"))
    return output.loss.detach(), output.metrics


def _takes(head: str, number: str) -> bool:
    return number in _config(head)["head"]


HEADS = options("head")
TIMED = [head for head in HEADS if _takes(head, "p_start")]
WEIGHED = [head for head in HEADS if _takes(head, "loss_power")]


def test_every_velocity_is_trained_on_chosen_times_and_every_squared_error_is_weighed() -> None:
    """Without times are the heads that have no flow; without a weight, drift, whose field has a fixed length."""
    classes: dict[str, type[Head]] = {head: get_class(_config(head)["head"]["_target_"]) for head in HEADS}
    assert {head for head in HEADS if classes[head].has_velocity} <= set(TIMED)
    assert set(HEADS) - set(TIMED) == {"diffusion", "dp3", "drift", "dbp", "regression", "mip", "idp"}
    assert set(HEADS) - set(WEIGHED) == {"drift", "dbp"}


@pytest.mark.parametrize("group", ["times", "weighting"])
@pytest.mark.parametrize("head", ["shortcut", "mp1_released"])
def test_a_name_sets_the_numbers_of_its_file_and_nothing_else(group: str, head: str) -> None:
    for name in options(group):
        chosen = _config(head, f"policy/{group}={name}")["head"]
        assert chosen == {**_config(head)["head"], **_group(f"{group}/{name}")}
    last = _config(head, "policy/times=one_step", "policy.head.time_mean=0.25")["head"]
    assert last["time_mean"] == 0.25, "a number on the command line wins"


@pytest.mark.parametrize("head", TIMED)
def test_a_head_with_times_takes_every_law(head: str) -> None:
    losses = [_loss(_policy(head, **_group(f"times/{name}")))[0] for name in options("times")]
    assert all(loss.isfinite() for loss in losses) and len(set(map(float, losses))) == len(losses)


@pytest.mark.parametrize("head", WEIGHED)
def test_the_weighting_reaches_the_loss_and_changes_no_error(head: str) -> None:
    plain, adaptive = (_loss(_policy(head, **_group(f"weighting/{name}"))) for name in ("squared_error", "adaptive"))
    assert abs(plain[0] - adaptive[0]) > 1e-2 * abs(plain[0])
    assert all(torch.equal(value, adaptive[1][name]) for name, value in plain[1].items())


@pytest.mark.parametrize("head", sorted({*HEADS} - {*TIMED}))
def test_a_head_without_flow_times_refuses_them(head: str) -> None:
    with pytest.raises(ValueError, match="unexpected keyword argument '(p_start|time_law)'"):
        _policy(head, **_group("times/one_step"))


class _Times:
    """Notes the t of the rows that are trained."""

    def __init__(self, policy: FlowPolicy) -> None:
        self.policy, self.t, self.r = policy, torch.empty(0), torch.empty(0)
        self.inner = policy.head.net.forward_with_features
        policy.head.net.forward_with_features = self  # type: ignore[method-assign]

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, r: torch.Tensor, cond: torch.Tensor) -> Any:
        if torch.is_grad_enabled() and not len(self.t):
            self.t, self.r = t.detach(), r.detach()
        return self.inner(x_t, t, r, cond)


@pytest.mark.parametrize("head", TIMED)
@pytest.mark.parametrize(("p_start", "wanted"), [(0.0, 0.6224593), (1.0, 1.0)])
def test_the_same_law_gives_every_head_the_same_times(head: str, p_start: float, wanted: float) -> None:
    """A law of one time: t is that time in every trained row of every head, in a jump of shortcut's the grid's next."""
    policy = _policy(head, p_start=p_start, time_law="logit_normal", time_mean=0.5, time_std=0.0)
    times = _Times(policy)
    _loss(policy)
    jumps = (times.t > times.r) & head.startswith("shortcut")
    stretch = 0.99 if head.startswith("consistency") else 1.0  # its paths end at 1 - eps
    assert (~jumps).any()
    torch.testing.assert_close(times.t[~jumps], torch.full_like(times.t[~jumps], stretch * wanted))
    length = (times.t - times.r)[jumps]
    torch.testing.assert_close(times.t[jumps], (wanted / length).ceil() * length)


def test_single_times_and_pairs_are_of_one_law() -> None:
    """Quantiles of single times and of both times of pairs, 40,000 each; a share of them at 1."""
    for times in (FlowTimes(), FlowTimes(mean=-0.4, std=1.0, p_start=0.3), FlowTimes("uniform")):
        single = times.single(40_000, stream(0, "single"))
        t, r = times.pairs(20_000, stream(0, "pairs"), p_equal=0.0)
        for drawn in (single, t):
            assert float((drawn == 1.0).float().mean()) == pytest.approx(times.p_start, abs=0.01)
        q = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
        free = FlowTimes(times.law, times.mean, times.std, 0.0)
        both = torch.cat(free.pairs(20_000, stream(1, "pairs"), p_equal=0.0))
        torch.testing.assert_close(both.quantile(q), single[single < 1].quantile(q), rtol=0, atol=0.015)
        assert bool((r <= t).all())


def test_defaults_are_those_of_meanflow_everywhere() -> None:
    """A head named after a method, not after a paper's or a code's version of it, starts from the same numbers."""
    published = {
        "flow_matching_published",
        "shortcut_published",
        "consistency_published",
        "dm1_legacy",
        "mp1",
        "mp1_released",
        "omp",
        "uca",
    }
    wanted = [0.1, "logit_normal", 1.0, 1.5, 0.5, 1e-3]
    for head in set(TIMED) - published:
        node = _config(head)["head"]
        assert [node[number] for number in NUMBERS] == wanted, head
        signature = inspect.signature(get_class(node["_target_"])).parameters
        assert [signature[number].default for number in NUMBERS] == wanted, head


# p_start, law, mean, std, power
PUBLISHED = {
    "flow_matching_published": (0.0, "uniform", None, None, 0.0),  # Lipman et al. 2023, equation 14; Liu et al. 2023
    "shortcut_published": (0.0, "uniform", None, None, 0.0),  # Frans et al. 2025, algorithm 1
    "consistency_published": (0.0, "uniform", None, None, 0.0),  # Zhang et al. 2025, FlowPolicy
    "dm1_legacy": (0.0, "logit_normal", -0.4, 1.0, 0.0),  # Zou et al. 2025, as released
    "mp1": (0.0, "logit_normal", -0.4, 1.0, 0.5),  # Sheng et al. 2025
    "mp1_released": (0.0, "logit_normal", -0.4, 1.0, 0.5),
    "omp": (0.0, "logit_normal", -0.4, 1.0, 0.5),  # MP1's
    "uca": (0.0, "logit_normal", -0.4, 1.0, 0.5),  # arXiv 2608.16153
}


@pytest.mark.parametrize("head", PUBLISHED)
def test_published_presets_hold_the_published_numbers(head: str) -> None:
    node = _config(head)["head"]
    for number, wanted in zip(NUMBERS, PUBLISHED[head], strict=False):
        assert wanted is None or node[number] == wanted, number


def test_published_times_and_weighting_can_be_said_by_name() -> None:
    for head in ("flow_matching", "shortcut", "consistency"):
        assert _config(head, "policy/times=uniform", "policy/weighting=squared_error") == _config(f"{head}_published")


@pytest.mark.parametrize("words", [{"law": "normal"}, {"std": -1.0}, {"p_start": 1.5}, {"std": float("nan")}])
def test_bad_times_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="time_law must be|time_std must be|must lie in"):
        FlowTimes(**words)


@pytest.mark.parametrize("words", [{"power": -0.5}, {"eps": -1e-3}, {"power": float("nan")}])
def test_bad_weightings_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="loss_power >= 0"):
        LossWeighting(**words)
