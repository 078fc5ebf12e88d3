"""FlowPolicy: what it predicts, what it refuses, what it leaves alone."""

from dataclasses import replace

import pytest
import torch

from flowpolicy.actions import REPRESENTATIONS, ActionRepresentation
from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.embodiment import KeySpec
from flowpolicy.heads.alpha_flow import AlphaFlowHead
from flowpolicy.heads.diffusion import DiffusionHead
from flowpolicy.heads.regression import RegressionHead
from flowpolicy.inference import prepare
from flowpolicy.normalizer import LinearNormalizer
from flowpolicy.samplers import shift_chunk
from flowpolicy.seeding import stream
from flowpolicy.trainers.fitting import fit_normalizers
from tests.helpers import EMBODIMENT, observation, small_policy


@pytest.mark.parametrize("kind", REPRESENTATIONS)
def test_decoding_undoes_encoding(kind: str) -> None:
    representation = ActionRepresentation(kind, EMBODIMENT)  # type: ignore[arg-type]
    action, obs = torch.randn(4, 8, 3, generator=stream(0, "a")), observation(4)
    torch.testing.assert_close(representation.decode(representation.encode(action, obs), obs), action)


def test_relative_subtracts_the_measured_state_only_where_there_is_one() -> None:
    action, obs = torch.zeros(1, 8, 3), observation()
    state = obs["agent_pos"][0, -1]
    encoded = ActionRepresentation("relative", EMBODIMENT).encode(action, obs)[0]
    torch.testing.assert_close(encoded, torch.stack([-state[1], -state[0], torch.tensor(0.0)]).expand(8, 3))


def test_delta_is_the_difference_of_neighbouring_steps() -> None:
    action, obs = torch.randn(1, 8, 3, generator=stream(0, "a")), observation()
    encoded = ActionRepresentation("delta", EMBODIMENT).encode(action, obs)
    torch.testing.assert_close(encoded[:, 1:, :2], action.diff(dim=1)[..., :2])
    torch.testing.assert_close(encoded[..., 2], action[..., 2])


def test_predict_gives_the_executed_slice_in_robot_units_within_the_bounds() -> None:
    policy = small_policy()
    policy.action_normalizer = LinearNormalizer(torch.full((3,), 0.1), torch.zeros(3))
    chunk = policy.predict(observation(5), generator=stream(0, "n"))
    assert chunk.shape == (5, 4, 3)
    assert bool((chunk <= policy.action_high).all() and (chunk >= policy.action_low).all())
    assert float(chunk.abs().max()) == 2.0


def test_predict_is_fixed_by_its_generator_and_touches_neither_mode_nor_global_randomness() -> None:
    policy, obs = small_policy().train(), observation()
    before = torch.get_rng_state()
    first, second = (policy.predict(obs, generator=stream(0, "n")) for _ in range(2))
    assert torch.equal(first, second) and policy.training
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, policy.predict(obs, generator=stream(1, "n")))


def test_missing_or_misshapen_observations_are_refused_by_name() -> None:
    policy, obs = small_policy(), observation()
    with pytest.raises(ValueError, match="'env_state' is missing"):
        policy.predict({"agent_pos": obs["agent_pos"]}, generator=stream(0, "n"))
    with pytest.raises(ValueError, match=r"'agent_pos' must be float32 \(B, 2, 3\), got float32 \(1, 2, 4\)"):
        policy.predict({**obs, "agent_pos": torch.zeros(1, 2, 4)}, generator=stream(0, "n"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_horizon": 2, "action_horizon": 8}, "executed slice"),
        ({"action_horizon": 0}, "positive"),
        ({"obs_keys": ["agent_pos", "image"]}, "unknown \\['image'\\]"),
        ({"action_representation": "polar"}, "absolute, relative, delta"),
        ({"obs_keys": ["env_state"]}, "subtracts 'agent_pos', which is not among .'env_state'."),
        ({"obs_keys": ["env_state"], "action_representation": "delta"}, "add it to `obs_keys` or use absolute"),
        ({"obs_keys": ["agent_pos", "agent_pos"]}, r"obs_keys: \['agent_pos'\] are there twice"),
    ],
)
def test_impossible_policies_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_policy(**changes)


def test_a_key_that_torch_s_modules_have_as_a_method_is_one_like_others() -> None:
    embodiment = replace(EMBODIMENT, obs={**EMBODIMENT.obs, "type": KeySpec((2,))})
    assert small_policy(embodiment=embodiment).normalizer("type").scale.shape == (2,)


def test_unused_keys_need_not_be_given() -> None:
    policy = small_policy(obs_keys=["agent_pos"])
    assert policy.predict({"agent_pos": observation()["agent_pos"]}, generator=stream(0, "n")).shape == (1, 4, 3)


def test_a_batch_of_one_agrees_with_the_batch_it_was_cut_from() -> None:
    policy, obs = small_policy(), observation(3)
    noise = torch.randn(3, 8, 3, generator=stream(0, "n"))
    whole = policy.predict(obs, noise=noise)
    parts = [policy.predict({k: v[i : i + 1] for k, v in obs.items()}, noise=noise[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", ["jump", "heun", "hybrid"])
def test_zero_noise_needs_no_generator_and_is_always_the_same(sampler: str) -> None:
    policy, obs = small_policy(), observation(3)
    first, second = (policy.predict(obs, num_steps=2, sampler=sampler, noise="zero") for _ in range(2))
    assert torch.equal(first, second)
    zeros = torch.zeros(3, 8, 3)
    assert torch.equal(first, policy.predict(obs, num_steps=2, sampler=sampler, noise=zeros))
    with pytest.raises(ValueError, match="noise must be float32 .* got str 'none'"):
        policy.predict(obs, noise="none")  # type: ignore[arg-type]


def test_whole_chunk_contains_the_executed_slice() -> None:
    policy, obs = small_policy(), observation(2)
    whole = policy.predict(obs, generator=stream(0, "n"), whole=True)
    assert whole.shape == (2, 8, 3)
    assert torch.equal(whole[:, 1:5], policy.predict(obs, generator=stream(0, "n")))


@pytest.mark.parametrize("kind", REPRESENTATIONS)
def test_warm_start_begins_at_the_chunk_that_it_is_given(kind: str) -> None:
    """A head that stays where it is gives the start back, in robot units, whatever the representation."""
    policy, obs = small_policy(action_representation=kind), observation(2)
    policy.head.velocity = lambda x, t, r, cond: torch.zeros_like(x)  # type: ignore[method-assign]
    policy.set_chunk_range(torch.full((3,), -10.0), torch.full((3,), 10.0))
    policy.action_normalizer = LinearNormalizer(torch.full((3,), 0.5), torch.zeros(3))
    last = torch.rand(2, 8, 3, generator=stream(0, "a")) - 0.5
    start = shift_chunk(last, 3)
    noise = torch.randn(2, 8, 3, generator=stream(1, "n"))
    kept = policy.predict(obs, noise=noise, start=start, start_time=1e-7, whole=True)
    torch.testing.assert_close(kept, start, rtol=0, atol=1e-5)
    cold = policy.predict(obs, noise=noise, whole=True)
    torch.testing.assert_close(policy.predict(obs, noise=noise, start=start, whole=True), cold, rtol=0, atol=1e-5)
    half = policy.predict(obs, noise=0 * noise, start=start, start_time=0.25, whole=True)
    assert not torch.allclose(half, start, atol=1e-3) and not torch.allclose(half, cold, atol=1e-3)


@pytest.mark.parametrize("head", [RegressionHead, DiffusionHead])
@pytest.mark.parametrize(
    ("words", "message"),
    [({"sampler": "heun"}, "no instantaneous velocity"), ({"start": torch.zeros(1, 8, 3)}, "cannot start between")],
)
def test_heads_without_a_flow_refuse_what_needs_one(head: type, words: dict, message: str) -> None:
    policy = small_policy(head=head)
    policy.predict(observation(), noise="zero")
    with pytest.raises(ValueError, match=f"{head.__name__}.*{message}"):
        policy.predict(observation(), noise="zero", **words)


def test_start_must_be_a_whole_chunk() -> None:
    with pytest.raises(ValueError, match=r"start must be float32 \(1, 8, 3\), got float32 \(1, 4, 3\)"):
        small_policy().predict(observation(), noise="zero", start=torch.zeros(1, 4, 3), start_time=0.85)


def test_a_teacher_is_no_parameter_of_what_runs() -> None:
    plain, taught = small_policy(), small_policy(head=AlphaFlowHead)
    assert taught.num_parameters == plain.num_parameters == sum(p.numel() for p in plain.parameters())
    assert sum(p.numel() for p in taught.parameters()) == 2 * plain.num_parameters


@pytest.mark.parametrize("mode", ["minmax", "quantile", "meanstd"])
@pytest.mark.parametrize("kind", REPRESENTATIONS)
def test_a_command_that_never_changed_comes_back_exactly(kind: str, mode: str) -> None:
    """It came back as 0.20 to 0.29. Here for one entry with a measured state, which moves, and one without."""
    policy = small_policy(action_representation=kind)
    fit_normalizers(policy, constant_commands(), action_mode=mode)  # type: ignore[arg-type]
    for num_steps in (1, 3):
        chunk = policy.predict(observation(64), num_steps=num_steps, generator=stream(0, "n"))
        assert set(chunk[..., 0].flatten().tolist()) == {float(torch.tensor(0.3))}
        assert set(chunk[..., 2].flatten().tolist()) == {0.25} and len(chunk[..., 1].unique()) > 50
    prepared = prepare(policy.eval(), batch=64).predict(observation(64), generator=stream(0, "n"))
    assert set(prepared[..., 2].flatten().tolist()) == {0.25}
    assert set(prepared[..., 0].flatten().tolist()) == {float(torch.tensor(0.3))}


def test_an_offset_to_the_measured_state_that_never_changed_comes_back_exactly() -> None:
    policy = small_policy(action_representation="relative")
    dataset = constant_commands()
    dataset.action[:, 1] = 0.125  # to the state below, which is always 0
    dataset.obs["agent_pos"][:, EMBODIMENT.reference_index[1]] = 0.0
    dataset.action[0, 1] += 1e-5  # hardly a range: it is kept, not stretched
    fit_normalizers(policy, dataset)
    seen = {key: value.clamp(-1, 1) for key, value in observation(64).items()}
    offset = policy.predict(seen, generator=stream(0, "n"))[..., 1] - seen["agent_pos"][:, -1:, 0]
    assert float(offset.min()) >= 0.125 - 1e-6 and float(offset.max()) <= 0.125 + 1.2e-5


def constant_commands() -> SequenceDataset:
    """Entries 0 and 2 of the action never change."""
    action = torch.randn(200, 3, generator=stream(0, "a")).clamp(-1, 1)
    action[:, 0], action[:, 2] = 0.3, 0.25
    obs = {key: torch.randn(200, *spec.shape, generator=stream(1, key)) for key, spec in EMBODIMENT.obs.items()}
    return SequenceDataset(obs, action, [200], horizon=8, obs_horizon=2)
