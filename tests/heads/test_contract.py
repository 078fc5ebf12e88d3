"""What every head of the catalogue does with every net of it: the yaml files are the list, nobody keeps another."""

from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import flowpolicy.heads
from flowpolicy.checkpoint import create_policy, load_policy, save_policy
from flowpolicy.cli import config, main, own_hydra
from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.flow.path import expand
from flowpolicy.heads.base import Head
from flowpolicy.nets.base import VelocityNet
from flowpolicy.normalizer import NormalizerMode
from flowpolicy.paths import config_dir
from flowpolicy.policy import FlowPolicy
from flowpolicy.samplers import as_sampler
from flowpolicy.seeding import stream
from flowpolicy.trainers.fitting import fit_normalizers
from flowpolicy.types import Batch
from tests.helpers import EMBODIMENT, observation, write_store

CATALOGUE = config_dir() / "policy"
HEADS = sorted(file.stem for file in (CATALOGUE / "head").glob("*.yaml"))
NETS = sorted(file.stem for file in (CATALOGUE / "net").glob("*.yaml"))
SMALL = {"width": 32, "dims": [16, 32], "time_dim": 16, "dim": 32, "depth": 2, "heads": 2}
BATCH, HORIZON = 48, 8


@cache
def _composed(*choices: str) -> dict[str, Any]:
    shapes = [f"policy.horizon={HORIZON}", "policy.obs_horizon=2", "policy.action_horizon=4"]
    return config.plain(config.load("train", ["dataset.path=demos.zarr", *shapes, *choices]))["policy"]


def _config(head: str, net: str, **changes: str) -> dict[str, Any]:
    """The `policy` node for these two yaml files, the net at a size for tests; `changes` go to build_policy."""
    whole = _composed(f"policy/net={net}")
    small = {key: value for key, value in SMALL.items() if key in whole["net"]}
    return {**whole, "net": {**whole["net"], **small}, "head": _composed(f"policy/head={head}")["head"], **changes}


def _policy(head: str, net: str, **changes: str) -> FlowPolicy:
    torch.manual_seed(0)
    policy = create_policy(_config(head, net, **changes), EMBODIMENT)
    with torch.no_grad():  # layers that start at zero hide what is behind them
        for parameter in policy.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return policy


def _batch() -> Batch:
    action = torch.randn(BATCH, HORIZON, 3, generator=stream(0, "action"))
    return Batch(observation(BATCH), action, torch.ones(BATCH, HORIZON))


def _weights_of_the_chunk(policy: FlowPolicy) -> set[str]:
    """Parameters that multiply the noisy chunk and nothing else: a head that shows the net none never trains them."""
    zero, one = torch.zeros(BATCH, HORIZON, 3), torch.ones(BATCH)
    policy.zero_grad()
    policy.head.net(zero, one, 0 * one, policy.encode(observation(BATCH))).square().sum().backward()
    named = policy.named_parameters()
    return {name for name, value in named if value.grad is None or not value.grad.any()}


everywhere = pytest.mark.parametrize("net", NETS)
every_head = pytest.mark.parametrize("head", HEADS)


@every_head
@everywhere
def test_loss_is_finite_fixed_by_the_generator_and_moves_every_parameter(head: str, net: str) -> None:
    policy, batch = _policy(head, net), _batch()
    first, second = (policy.loss(batch, stream(1, "noise")) for _ in range(2))
    assert first.loss.shape == () and first.loss.isfinite() and torch.equal(first.loss, second.loss)
    assert all(not value.requires_grad and value.shape == () and value.isfinite() for value in first.metrics.values())
    first.loss.backward()
    trained = {name: value for name, value in policy.named_parameters() if value.requires_grad}
    still = {name for name, value in trained.items() if value.grad is None or not value.grad.any()}
    assert trained and still <= (_weights_of_the_chunk(policy) if head == "regression" else set()), still
    policy.head.after_step(0.5)
    assert policy.loss(batch, stream(1, "noise")).loss.isfinite()


@every_head
def test_training_in_bfloat16_is_finite_and_moves_every_parameter(head: str) -> None:
    policy, batch = _policy(head, "mlp"), _batch()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    trained = {name: value for name, value in policy.named_parameters() if value.requires_grad}
    start = {name: value.detach().clone() for name, value in trained.items()}
    untrained = _weights_of_the_chunk(policy) if head == "regression" else set()
    for step in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = policy.loss(batch, stream(step, "noise"))
        optimizer.zero_grad()
        output.loss.backward()
        still = {name for name, value in trained.items() if value.grad is None or not value.grad.any()}
        assert still <= untrained, still
        assert output.loss.isfinite() and all(value.isfinite() for value in output.metrics.values())
        optimizer.step()
        policy.head.after_step((step + 1) / 3)
    assert all(value.isfinite().all() and not torch.equal(value, start[name]) for name, value in trained.items())


LEAST = {
    **dict.fromkeys(("meanflow", "dm1", "mp1_small", "idp"), 3),
    **dict.fromkeys(("mp1", "mp1_released", "omp", "dm1_legacy", "shortcut", "shortcut_published"), 2),
}


@every_head
def test_a_batch_in_which_a_term_has_no_rows_is_refused(head: str) -> None:
    policy, (obs, action, mask) = _policy(head, "mlp"), _batch()
    names = policy.loss(_batch(), stream(1, "noise")).metrics.keys()
    assert policy.head.min_batch == LEAST.get(head, 1)
    for size in (1, 2, 3):
        batch = Batch({key: value[:size] for key, value in obs.items()}, action[:size], mask[:size])
        if size < LEAST.get(head, 1):
            with pytest.raises(ValueError, match=rf"at least {LEAST[head]} rows .* got {size}; raise `batch_si"):
                policy.loss(batch, stream(1, "noise"))
        else:
            output = policy.loss(batch, stream(1, "noise"))
            assert output.loss.isfinite() and output.metrics.keys() == names
            assert all(value.isfinite() for value in output.metrics.values())


@every_head
def test_what_the_loss_takes_for_constant_is_computed_in_float32(head: str) -> None:
    """Nets without a graph run outside autocast: there torch before 2.10 remembers weights that were cast without one,
    the graph that follows uses them, and they get no gradient.
    """
    policy, seen = _policy(head, "mlp"), set()

    def spied(forward):
        def spy(*inputs):
            seen.add((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
            return forward(*inputs)

        return spy

    for net in (module for module in policy.modules() if isinstance(module, VelocityNet)):
        net.forward_with_features = spied(net.forward_with_features)  # type: ignore[method-assign]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        policy.loss(_batch(), stream(1, "noise"))
    assert {grad for grad, _ in seen} >= {True} and (False, True) not in seen


@every_head
@everywhere
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_prediction_takes_that_many_evaluations_and_a_generator_decides_it(head: str, net: str, num_steps: int) -> None:
    policy, obs, calls = _policy(head, net), observation(3), []
    policy.head.net.register_forward_hook(lambda *_: calls.append(1))
    if policy.head.max_steps is not None and num_steps > policy.head.max_steps:
        with pytest.raises(ValueError, match=f"at most {policy.head.max_steps} step"):
            policy.predict(obs, num_steps=num_steps, noise="zero")
        return
    chunks = [policy.predict(obs, num_steps=num_steps, generator=stream(2, "noise")) for _ in range(2)]
    assert chunks[0].shape == (3, 4, 3) and torch.equal(*chunks) and len(calls) == 2 * num_steps


@every_head
def test_flows_take_warm_starts_and_those_with_a_velocity_every_sampler(head: str) -> None:
    policy, obs = _policy(head, "mlp"), observation(3)
    start = policy.predict(obs, noise="zero", whole=True)
    for sampler in ("jump", "heun", "hybrid"):
        words = {"num_steps": 2, "sampler": sampler, "noise": "zero", "start": start, "start_time": 0.85}
        if policy.head.max_steps is not None or (sampler != "jump" and not policy.head.has_velocity):
            with pytest.raises(ValueError, match=type(policy.head).__name__):
                policy.predict(obs, **words)
        else:
            chunk = policy.predict(obs, **words)
            assert chunk.shape == (3, 4, 3) and bool(chunk.isfinite().all())


@every_head
def test_a_flow_says_what_it_has(head: str) -> None:
    """A velocity at r = t is trained, for a flow map r matters, and nothing else claims to be a flow."""
    policy, trained = _policy(head, "mlp"), []
    inner = policy.head.net.forward_with_features

    def spy(x_t, t, r, cond):
        if torch.is_grad_enabled():
            trained.append(t - r)
        return inner(x_t, t, r, cond)

    policy.head.net.forward_with_features = spy  # type: ignore[method-assign]
    policy.loss(_batch(), stream(1, "noise"))
    lengths = torch.cat(trained)
    equal, apart = bool((lengths == 0).any()), int((lengths > 0).sum()) > BATCH / 10
    assert not policy.head.has_velocity or equal
    assert not policy.head.has_flow_map or (apart and policy.head.has_velocity)
    assert policy.head.max_steps is None or not policy.head.has_flow_map
    assert policy.head.parameterization in ("u", "x") or not policy.head.has_flow_map


@every_head
def test_masked_steps_do_not_count(head: str) -> None:
    """x_t carries padded steps into the net, so a net that answers nothing shows the target's side alone."""
    policy, (obs, action, mask) = _policy(head, "mlp"), _batch()
    for net in (module for module in policy.modules() if isinstance(module, VelocityNet)):
        net.forward_with_features = lambda x_t, t, r, cond: (  # type: ignore[method-assign]
            x_t * 0,
            dict.fromkeys(("early", "second", "mid", "late"), cond),
        )
    mask[:, -1] = 0.0

    def terms(action: torch.Tensor) -> torch.Tensor:
        output = policy.loss(Batch(obs, action, mask), stream(1, "noise"))
        return torch.stack([output.loss.detach(), *output.metrics.values()])

    before, changed = terms(action), action.clone()
    changed[:, -1] += 5.0
    torch.testing.assert_close(terms(changed), before)
    changed[:, 0] += 5.0
    assert not torch.allclose(terms(changed), before, rtol=1e-3), "a step that counts must count"


def _demonstrations() -> SequenceDataset:
    """400 steps in robot units, a few far beyond the others and so beyond both quantiles and three deviations."""
    action = 0.2 * torch.randn(400, 3, generator=stream(0, "a"))
    action[::50] *= 4.0
    obs = {key: torch.randn(400, *spec.shape, generator=stream(0, key)) for key, spec in EMBODIMENT.obs.items()}
    return SequenceDataset(obs, action.clamp(-1.0, 1.0), [400], horizon=HORIZON, obs_horizon=2)


def _answer_always(policy: FlowPolicy, target: torch.Tensor) -> None:
    """Give the net the weights, so to say, that know the chunks."""

    def forward(x_t, t, r, cond):
        if policy.head.parameterization != "u":
            return target, {}
        return (x_t - target) / expand(torch.where(t < 0.98, t, 1.0), x_t), {}  # the consistency head starts at 0.99

    policy.head.net.forward_with_features = forward  # type: ignore[method-assign]


@every_head
@pytest.mark.parametrize("mode", get_args(NormalizerMode))
def test_every_demonstrated_action_can_be_predicted_and_none_beyond_them(
    head: str, mode: NormalizerMode, tmp_path: Path
) -> None:
    """The head is the real one, as it is trained and as it is loaded; its net knows the answer."""
    fitted, dataset = _policy(head, "mlp", action_representation="absolute"), _demonstrations()
    fit_normalizers(fitted, dataset, action_mode=mode)
    if mode == "minmax":
        assert fitted.chunk_low.tolist() == [-1.0] * 3 and fitted.chunk_high.tolist() == [1.0] * 3
    save_policy(fitted, tmp_path / "policy")
    chunks = dataset.action.unflatten(0, (-1, HORIZON))
    low, high = dataset.action.amin(dim=0), dataset.action.amax(dim=0)
    noise, cond = torch.randn(chunks.shape, generator=stream(1, "n")), torch.zeros(len(chunks), 10)
    most = fitted.head.max_steps or 10
    ways = [(1, "jump"), (min(most, 10), "jump"), *([(10, "ancestral")] if most > 10 else [])]
    for policy in (fitted, load_policy(tmp_path)):
        for wanted in (chunks, 100.0 * chunks):
            _answer_always(policy, policy.action_normalizer(wanted))
            for num_steps, sampler in ways:
                chunk = policy.sample(cond, noise, as_sampler(sampler, num_steps), generator=stream(2, "n"))
                reached = policy.action_normalizer.inverse(chunk)
                torch.testing.assert_close(reached, wanted.clamp(low, high), rtol=0, atol=1e-3)


@every_head
@everywhere
def test_a_checkpoint_predicts_and_trains_on_as_its_policy_does(head: str, net: str, tmp_path: Path) -> None:
    policy, batch = _policy(head, net), _batch()
    policy.head.after_step(0.25)
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path)
    one, other = (p.predict(batch.obs, generator=stream(2, "n")) for p in (policy, loaded))
    assert torch.equal(one, other)
    assert torch.equal(*(p.loss(batch, stream(1, "noise")).loss.detach() for p in (policy, loaded)))


@pytest.mark.parametrize(
    ("head", "weight"),
    [
        ("dm1", ("dispersive", "weight")),
        ("mp1", ("dispersive", "weight")),
        ("omp", ("direction", "weight")),
        ("imf_dual", ("velocity_weight",)),
        ("alpha_flow", ("consistency_weight",)),
        ("ofp", ("guidance_weight",)),
        ("consistency", ("velocity_weight",)),
        ("mip", ("second_weight",)),
    ],
)
def test_every_weighted_term_moves_the_net(head: str, weight: tuple[str, ...]) -> None:
    """The gradient of a term is what a larger weight adds."""
    gradients, policy = [], _policy(head, "mlp")
    owner: Any = policy.head
    for name in weight[:-1]:
        owner = getattr(owner, name)
    for value in (1.0, 2.0):
        setattr(owner, weight[-1], value)
        policy.zero_grad()
        policy.loss(_batch(), stream(1, "noise")).loss.backward()
        gradients.append([p.grad.clone() for p in policy.head.net.parameters() if p.grad is not None])
    moved = [float((two - one).norm()) for one, two in zip(*gradients, strict=True)]
    assert sum(value > 1e-7 for value in moved) > len(moved) // 2, moved


DUMMY_HEAD = '''"""A head for a test: every action is the constant that it learns."""

from typing import final

import torch
from torch import Tensor, nn

from flowpolicy.flow.losses import masked_mean_square
from flowpolicy.heads.base import Head
from flowpolicy.types import LossOutput


@final
class DummyHead(Head):
    """x_t - constant."""

    max_steps = 1

    def __init__(self, net, *, first: float = 0.0) -> None:
        super().__init__()
        self.net, self.constant = net, nn.Parameter(torch.tensor(first))

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        return x_t - self.constant

    def loss(self, action: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator) -> LossOutput:
        error = masked_mean_square(self.constant - action, mask).mean()
        return LossOutput(error, {"loss_constant": error.detach()})
'''
DUMMY_YAML = "_target_: flowpolicy.heads.dummy.DummyHead\n_partial_: true\nfirst: 0.25\n"


def test_a_new_head_is_one_class_and_one_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both into the two folders, and it trains, logs, saves and loads by its name."""
    configs, classes = tmp_path / "configs", tmp_path / "heads"
    classes.mkdir()
    for file in config_dir().rglob("*.yaml"):
        copy = configs / file.relative_to(config_dir())
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    (classes / "dummy.py").write_text(DUMMY_HEAD)
    (configs / "policy" / "head" / "dummy.yaml").write_text(DUMMY_YAML)
    monkeypatch.setattr(flowpolicy.heads, "__path__", [*flowpolicy.heads.__path__, str(classes)])
    monkeypatch.setattr(own_hydra, "config_dir", lambda: configs)

    store, run = write_store(tmp_path / "demos.zarr"), tmp_path / "run"
    words = [
        f"dataset.path={store}",
        f"out={run}",
        "policy/head=dummy",
        "policy.head.first=0.5",
        "policy.horizon=8",
        "policy.action_horizon=4",
        "policy.net.width=16",
        "trainer.steps=20",
        "task=toy",
        "task.env=null",
    ]
    assert main.main(["train", *words]) == 0
    policy = load_policy(run)
    assert isinstance(policy.head, Head) and type(policy.head).__name__ == "DummyHead"
    assert float(policy.head.constant) != 0.5  # type: ignore[arg-type]
    assert policy.predict(observation(2, 1), generator=stream(0, "n")).shape == (2, 4, 3)
    assert "loss_constant" in (run / "metrics.jsonl").read_text()
