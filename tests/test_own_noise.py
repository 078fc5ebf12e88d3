"""`predict(obs)` needs nothing else: plain, prepared and exported policies draw noise of their own."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowpolicy.checkpoint import load_policy
from flowpolicy.deploy.runtime import OnnxPolicy
from flowpolicy.heads.diffusion import DiffusionHead
from flowpolicy.inference import prepare
from flowpolicy.policy import FlowPolicy
from flowpolicy.seeding import stream
from tests.catalogue import toy_run
from tests.helpers import observation, small_policy

KINDS = ("plain", "prepared", "exported")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `small_policy` exports."""
    export = pytest.importorskip("flowpolicy.deploy.export")
    folder = tmp_path_factory.mktemp("bundle")
    export.write_bundle(small_policy().eval(), folder)
    return folder


@pytest.fixture(params=KINDS)
def policy(request: pytest.FixtureRequest) -> Any:
    if request.param == "exported":
        return OnnxPolicy(request.getfixturevalue("bundle"))
    return small_policy().eval() if request.param == "plain" else prepare(small_policy().eval())


def seen(policy: Any) -> Any:
    obs = observation()
    return {key: value.numpy() for key, value in obs.items()} if isinstance(policy, OnnxPolicy) else obs


def explicit(policy: Any, seed: int) -> dict[str, Any]:
    """Words of `predict` that leave nothing to the policy's own noise."""
    return {"rng": np.random.default_rng(seed)} if isinstance(policy, OnnxPolicy) else {"generator": stream(seed, "n")}


def draw(policy: Any, count: int = 3, **words: Any) -> np.ndarray:
    """Chunks of one observation after another, (count, Ta, A)."""
    return np.concatenate([np.asarray(policy.predict(seen(policy), **words)) for _ in range(count)])


def test_an_observation_is_enough_and_every_call_draws_anew(policy: Any) -> None:
    chunks = draw(policy)
    assert chunks.shape == (3, 4, 3) and len({chunk.tobytes() for chunk in chunks}) == 3


def test_reset_starts_the_noise_of_a_seed(policy: Any) -> None:
    first = draw(policy)
    policy.reset(0)
    np.testing.assert_array_equal(draw(policy), first)  # what it was made with
    policy.reset(1)
    other = draw(policy)
    assert (other != first).any()
    policy.reset(1)
    np.testing.assert_array_equal(draw(policy), other)
    with pytest.raises(ValueError, match="seed must be between 0 and .*, got -1"):
        policy.reset(-1)


def test_what_is_passed_comes_first_and_leaves_the_own_noise_where_it_was(policy: Any) -> None:
    first = draw(policy)
    policy.reset(0)
    given = draw(policy, 1, **explicit(policy, 7))
    np.testing.assert_array_equal(draw(policy, 1, **explicit(policy, 7)), given)
    zeros = np.zeros((1, 8, 3), np.float32)
    noise = zeros if isinstance(policy, OnnxPolicy) else torch.from_numpy(zeros)
    np.testing.assert_array_equal(draw(policy, 1, noise="zero"), draw(policy, 1, noise=noise))
    np.testing.assert_array_equal(draw(policy), first)


def test_zero_noise_gives_one_observation_one_action(policy: Any) -> None:
    chunks = draw(policy, noise="zero")
    assert len({chunk.tobytes() for chunk in chunks}) == 1
    np.testing.assert_allclose(chunks, draw(small_policy().eval(), noise="zero"), rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="noise must be float32 .* got str 'none'"):
        policy.predict(seen(policy), noise="none")


def test_two_loads_of_a_checkpoint_draw_the_same_and_the_global_state_stays(tmp_path: Path) -> None:
    folder = toy_run(tmp_path / "run")
    before = torch.get_rng_state()
    one, two = load_policy(folder), load_policy(folder)
    obs = {key: torch.zeros(1, one.obs_horizon, *one.embodiment.obs[key].shape) for key in one.obs_keys}
    assert all(torch.equal(one.predict(obs), two.predict(obs)) for _ in range(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_prepared_policy_draws_what_the_policy_draws() -> None:
    policy = small_policy().eval()
    prepared = prepare(policy, batch=3)
    for _ in range(2):
        torch.testing.assert_close(prepared.predict(observation(3)), policy.predict(observation(3)), rtol=0, atol=1e-6)


def test_a_copy_takes_the_noise_along_and_shares_none_of_it() -> None:
    policy = small_policy().eval()
    policy.predict(observation())
    copied, stored = copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))
    np.testing.assert_array_equal(draw(copied), wanted := draw(policy))
    np.testing.assert_array_equal(draw(stored), wanted)
    assert not [name for name in policy.state_dict() if "generator" in name or "noise" in name]


@pytest.mark.parametrize("words", [{"sampler": "hybrid", "num_steps": 2}, {"sampler": "heun", "num_steps": 2}])
def test_samplers_that_draw_on_the_way_use_the_same_generator(words: dict) -> None:
    policy = small_policy().eval()
    first = draw(policy, **words)
    policy.reset(0)
    np.testing.assert_array_equal(draw(policy, **words), first)
    generator = torch.Generator().manual_seed(0)
    np.testing.assert_array_equal(draw(policy, generator=generator, **words), first)


def test_ancestral_sampling_has_noise_of_its_own_too_but_is_never_deterministic() -> None:
    policy = small_policy(head=DiffusionHead).eval()
    assert isinstance(policy, FlowPolicy)
    first = draw(policy, sampler="ancestral", num_steps=2)
    policy.reset(0)
    np.testing.assert_array_equal(draw(policy, sampler="ancestral", num_steps=2), first)
    with pytest.raises(ValueError, match="ancestral draws noise at every step: pass generator="):
        policy.predict(observation(), noise="zero", sampler="ancestral", num_steps=2)
