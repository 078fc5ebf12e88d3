"""A prepared policy predicts what the policy predicts, says what it was not prepared for, and leaves no trace."""

import pytest
import torch

from flowpolicy.inference import prepare
from flowpolicy.policy import FlowPolicy
from flowpolicy.seeding import stream
from tests.catalogue import catalogue_policy, observations, options


def difference(policy: FlowPolicy, *, batch: int = 1, num_steps: int = 1) -> float:
    """Largest deviation from `predict`, robot units, over observations that the preparation has not seen."""
    prepared = prepare(policy, batch=batch, num_steps=num_steps)
    worst = 0.0
    for seed in range(3):
        obs = observations(policy, batch, seed=seed)
        wanted = policy.predict(obs, num_steps=num_steps, generator=stream(seed, "n"))
        got = prepared.predict(obs, generator=stream(seed, "n"))
        assert got.shape == wanted.shape and float(wanted.std()) > 0.01
        worst = max(worst, float((got - wanted).abs().max()))
    return worst


@pytest.mark.parametrize("net", options("net"))
@pytest.mark.parametrize("encoder", options("encoder"))
def test_every_encoder_and_net_predicts_the_same(encoder: str, net: str) -> None:
    assert difference(catalogue_policy(encoder=encoder, net=net)) < 1e-6


@pytest.mark.parametrize("num_steps", [1, 2, 4])
@pytest.mark.parametrize("head", options("head"))
def test_every_head_predicts_the_same_in_every_number_of_steps(head: str, num_steps: int) -> None:
    policy = catalogue_policy(head=head)
    if policy.head.max_steps is not None and num_steps > policy.head.max_steps:
        with pytest.raises(ValueError, match="samples in at most"):
            prepare(policy, num_steps=num_steps)
    else:
        assert difference(policy, num_steps=num_steps) < 1e-6


@pytest.mark.parametrize("head", ["diffusion", "dp3"])
def test_a_head_that_clamps_on_its_way_keeps_its_range(head: str) -> None:
    """Where the net goes beyond it, in two steps: the second one sees what the first one's clamp left."""
    policy = catalogue_policy(head=head, action_representation="absolute")
    with torch.no_grad():
        policy.head.net.output.weight.mul_(30.0)  # type: ignore[union-attr, operator]
    assert difference(policy, num_steps=2) < 1e-5
    obs, noise = observations(policy), torch.randn(1, 8, 3, generator=stream(0, "n"))
    own = policy.predict(obs, num_steps=2, noise=noise)
    policy.head.set_action_range(-torch.ones(3), torch.ones(3))
    assert not torch.allclose(policy.predict(obs, num_steps=2, noise=noise), own, atol=1e-2)


@pytest.mark.parametrize("kind", ["absolute", "relative", "delta"])
@pytest.mark.parametrize("net", options("net"))
def test_every_action_representation_and_batch_predicts_the_same(net: str, kind: str) -> None:
    assert difference(catalogue_policy(net=net, action_representation=kind), batch=3) < 1e-6


def test_noise_can_be_given_and_the_chunk_be_written_to() -> None:
    policy = catalogue_policy()
    obs, noise = observations(policy), torch.randn(1, 8, 3, generator=stream(0, "n"))
    chunk = prepare(policy).predict(obs, noise=noise)
    torch.testing.assert_close(chunk, policy.predict(obs, noise=noise), rtol=0, atol=1e-6)
    chunk += 1.0
    assert not torch.equal(chunk, prepare(policy).predict(obs, noise=noise))


def test_noise_can_be_zero() -> None:
    policy = catalogue_policy()
    obs = observations(policy)
    chunk = prepare(policy).predict(obs, noise="zero")
    torch.testing.assert_close(chunk, policy.predict(obs, noise="zero"), rtol=0, atol=1e-6)


def test_the_weights_are_those_of_the_moment_of_preparing() -> None:
    policy = catalogue_policy()
    obs, noise = observations(policy), torch.randn(1, 8, 3, generator=stream(0, "n"))
    prepared = prepare(policy)
    before = prepared.predict(obs, noise=noise)
    changed = catalogue_policy(seed=1)
    policy.load_state_dict(changed.state_dict())
    assert torch.equal(prepared.predict(obs, noise=noise), before)
    torch.testing.assert_close(prepare(policy).predict(obs, noise=noise), changed.predict(obs, noise=noise))


def test_preparing_changes_neither_mode_nor_threads_nor_the_global_random_state() -> None:
    policy = catalogue_policy(encoder="vit", net="unet1d").train()
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    prepared = prepare(policy, threads=threads + 1)
    prepared.predict(observations(policy), generator=stream(0, "n"))
    assert policy.training and torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_are_the_wanted_ones_during_a_call() -> None:
    policy, seen = catalogue_policy(), []
    prepared = prepare(policy, threads=torch.get_num_threads() + 1)
    run = prepared._run
    prepared._run = lambda *inputs: seen.append(torch.get_num_threads()) or run(*inputs)
    prepared.predict(observations(policy), generator=stream(0, "n"))
    assert seen == [torch.get_num_threads() + 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent_pos": torch.zeros(2, 2, 4)}, r"'agent_pos' must be float32 \(1, 2, 4\), got float32 \(2, 2, 4\)"),
        ({"agent_pos": torch.zeros(1, 2, 4, dtype=torch.float64)}, "got float64"),
        ({"agent_pos": None}, "'agent_pos' is missing"),
    ],
)
def test_other_observations_are_refused(changes: dict, message: str) -> None:
    policy = catalogue_policy()
    obs = {key: value for key, value in {**observations(policy), **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        prepare(policy).predict(obs, generator=stream(0, "n"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"num_steps": 2, "generator": stream(0, "n")}, "prepared for num_steps=1, got num_steps=2"),
        ({"noise": torch.zeros(1, 4, 3)}, r"noise must be float32 \(1, 8, 3\), got float32 \(1, 4, 3\)"),
    ],
)
def test_other_calls_are_refused(words: dict, message: str) -> None:
    policy = catalogue_policy()
    with pytest.raises(ValueError, match=message):
        prepare(policy).predict(observations(policy), **words)


@pytest.mark.parametrize("words", [{"batch": 0}, {"threads": 0}, {"num_steps": 0}])
def test_impossible_preparations_are_refused(words: dict) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        prepare(catalogue_policy(), **words)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cuda_graph_predicts_the_same() -> None:
    policy = catalogue_policy(encoder="point_cloud", net="unet1d").cuda()
    prepared = prepare(policy, "cuda")
    for seed in range(3):
        obs, noise = observations(policy, seed=seed), torch.randn(1, 8, 3, generator=stream(seed, "n"))
        wanted = policy.predict({key: value.cuda() for key, value in obs.items()}, noise=noise.cuda())
        torch.testing.assert_close(prepared.predict(obs, noise=noise), wanted, rtol=0, atol=1e-5)
