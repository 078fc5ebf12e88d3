"""What a policy refuses to be given: the same line from predict, the prepared policy, the bundle and RL's actor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowpolicy.checkpoint import load_policy, save_policy
from flowpolicy.exploration.flow_noise import FlowNoise
from flowpolicy.inference import prepare
from flowpolicy.inputs import Inputs, NonFiniteError
from flowpolicy.policy import FlowPolicy
from flowpolicy.rl.actor_critic import ActorCritic
from flowpolicy.seeding import stream
from tests.catalogue import catalogue_policy, observations
from tests.helpers import EMBODIMENT

NAN, INF = float("nan"), float("inf")
WAYS = ["predict", "prepared", "exported"]
Predict = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def policy() -> FlowPolicy:
    """State, cloud and picture."""
    return catalogue_policy(encoder="vit")


@pytest.fixture(scope="module")
def ways(policy: FlowPolicy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = {"predict": policy, "prepared": prepare(policy)}
    try:
        from flowpolicy.deploy.export import require_export, write_bundle
        from flowpolicy.deploy.runtime import OnnxPolicy

        require_export()
    except ImportError:
        return found
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(policy, folder)
    return found | {"exported": OnnxPolicy(folder)}


def call(ways: dict[str, Any], way: str, obs: dict[str, Any], noise: Any = None, **words: Any) -> Any:
    """Predict in one of the ways, with the same noise."""
    if way not in ways:
        pytest.skip("needs the extra export")
    noise = torch.randn(1, 8, 3, generator=stream(0, "n")) if noise is None else noise
    if way != "exported":
        return ways[way].predict(obs, noise=noise, **words)
    arrays = {key: given(value) for key, value in obs.items()}
    return ways[way].predict(arrays, noise=given(noise), **{k: given(v) for k, v in words.items()})


def given(value: Any) -> Any:
    return value.numpy() if isinstance(value, torch.Tensor) else value


MISFITS: dict[str, tuple[str, Callable[[torch.Tensor], Any], str]] = {
    "int64": ("agent_pos", lambda v: v.long(), "'agent_pos' must be float32 (1, 2, 4), got int64 (1, 2, 4)"),
    "float16": ("agent_pos", lambda v: v.half(), "'agent_pos' must be float32 (1, 2, 4), got float16 (1, 2, 4)"),
    "float64": ("point_cloud", lambda v: v.double(), "'point_cloud' must be float32 (1, 2, 24, 3), got float64"),
    "float pixels": ("image_front", lambda v: v / 255, "'image_front' must be uint8 (1, 2, 40, 36, 3), 0 to 255, got"),
    "no history": ("agent_pos", lambda v: v[:, 0], "'agent_pos' must be float32 (1, 2, 4), got float32 (1, 4)"),
    "no batch": ("agent_pos", lambda v: v[0], "'agent_pos' must be float32 (1, 2, 4), got float32 (2, 4)"),
    "a number": ("agent_pos", lambda v: v.sum(), "'agent_pos' must be float32 (1, 2, 4), got float32 ()"),
    "a list": ("agent_pos", lambda v: v.tolist(), "'agent_pos' must be float32 (1, 2, 4), got list [[["),
    "nothing": ("agent_pos", lambda v: None, "'agent_pos' must be float32 (1, 2, 4), got NoneType None"),
    "no rows": ("agent_pos", lambda v: v[:0], "'agent_pos' must be float32 (1, 2, 4), got float32 (0, 2, 4)"),
    "mixed rows": ("point_cloud", lambda v: torch.cat([v, v]), "'point_cloud' must be float32 (1, 2, 24, 3), got"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_is_refused_in_the_same_words(policy: FlowPolicy, ways, way: str, misfit: str) -> None:
    key, change, said = MISFITS[misfit]
    obs = observations(policy)
    with pytest.raises(ValueError) as error:
        call(ways, way, {**obs, key: change(obs[key])})
    assert str(error.value).replace("(B, ", "(1, ").startswith(f"policy: observation {said}")


@pytest.mark.parametrize("way", WAYS)
def test_a_missing_key_is_named(policy: FlowPolicy, ways, way: str) -> None:
    obs = observations(policy)
    del obs["point_cloud"]
    with pytest.raises(ValueError, match=r"policy: observation 'point_cloud' is missing; got \['agent_pos', 'image"):
        call(ways, way, obs)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("noise", "got"),
    [
        (torch.zeros(1, 8, 4), r"float32 \(1, 8, 4\)"),
        (torch.zeros(2, 8, 3), r"float32 \(2, 8, 3\)"),
        (torch.zeros(1, 8, 3, dtype=torch.float64), r"float64 \(1, 8, 3\)"),
        ("none", "str 'none'"),
        (3.0, "float 3.0"),
    ],
)
def test_noise_that_does_not_fit_is_refused_in_the_same_words(policy, ways, way: str, noise: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"^policy: noise must be float32 \(1, 8, 3\), got {got}"):
        call(ways, way, observations(policy), noise)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("key", ["agent_pos", "point_cloud"])
def test_an_observation_that_is_not_finite_is_an_error_or_a_flag(
    policy, ways, way: str, key: str, value: float
) -> None:
    obs = observations(policy)
    obs[key].view(-1)[5] = value
    with pytest.raises(
        NonFiniteError, match=rf"^policy: observation '{key}' is NaN or infinite in row 0 of 1; stop"
    ) as e:
        call(ways, way, obs)
    assert e.value.what == "observation" and isinstance(e.value, ValueError)
    finite = torch.ones(1, dtype=torch.bool)
    action = call(ways, way, obs, finite=finite)
    assert not finite.any() and np.isnan(np.asarray(action)).all() and action.shape == (1, 4, 3)


@pytest.mark.parametrize("way", WAYS)
def test_an_action_that_is_not_finite_is_an_error_or_a_flag(policy: FlowPolicy, ways, way: str) -> None:
    noise = torch.zeros(1, 8, 3)
    noise[0, 2, 1] = NAN
    with pytest.raises(NonFiniteError, match="^policy: the action is NaN or infinite in row 0 of 1, the obs") as error:
        call(ways, way, observations(policy), noise)
    assert error.value.what == "action"
    finite = torch.ones(1, dtype=torch.bool)
    assert np.isnan(np.asarray(call(ways, way, observations(policy), noise, finite=finite))).all() and not finite.any()


@pytest.mark.parametrize("way", WAYS)
def test_a_good_observation_raises_the_flag_and_changes_nothing(policy: FlowPolicy, ways, way: str) -> None:
    obs, finite = observations(policy), torch.zeros(1, dtype=torch.bool)
    action = call(ways, way, obs, finite=finite)
    assert finite.all() and np.array_equal(np.asarray(action), np.asarray(call(ways, way, obs)))


@pytest.mark.parametrize("way", WAYS)
def test_large_numbers_whose_sum_overflows_are_finite(policy: FlowPolicy, ways, way: str) -> None:
    obs, finite = observations(policy), torch.zeros(1, dtype=torch.bool)
    obs["point_cloud"] = obs["point_cloud"].fill_(3e38)
    try:
        call(ways, way, obs, finite=finite)
        call(ways, way, obs)
    except NonFiniteError as error:  # the net may overflow; the observation is not what is wrong
        assert error.what == "action"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("finite", [torch.ones(2, dtype=torch.bool), torch.ones(1), True])
def test_a_flag_that_cannot_be_told_is_refused(policy: FlowPolicy, ways, way: str, finite: Any) -> None:
    with pytest.raises(ValueError, match=r"^policy: finite must be bool \(1,\), got"):
        call(ways, way, observations(policy), finite=finite)


def test_in_a_batch_the_row_is_named_and_the_others_are_kept(policy: FlowPolicy) -> None:
    obs, noise = observations(policy, 4), torch.randn(4, 8, 3, generator=stream(0, "n"))
    good = policy.predict(obs, noise=noise)
    bad = {**obs, "agent_pos": obs["agent_pos"].clone()}
    bad["agent_pos"][2, 1, 0], bad["agent_pos"][3, 0, 3] = INF, NAN
    for predictor in (policy, prepare(policy, batch=4)):
        with pytest.raises(ValueError, match="observation 'agent_pos' is NaN or infinite in row 2 of 4"):
            predictor.predict(bad, noise=noise)
        finite = torch.zeros(4, dtype=torch.bool)
        action = predictor.predict(bad, noise=noise, finite=finite)
        assert finite.tolist() == [True, True, False, False] and action[2:].isnan().all()
        torch.testing.assert_close(action[:2], good[:2], rtol=0, atol=1e-5)


def test_rows_of_a_batch_must_be_as_many_for_every_key(policy: FlowPolicy) -> None:
    obs = observations(policy, 3)
    with pytest.raises(ValueError, match=r"'point_cloud' must be float32 \(3, 2, 24, 3\), got float32 \(2, 2, 24, 3\)"):
        policy.predict({**obs, "point_cloud": obs["point_cloud"][:2]}, noise="zero")
    with pytest.raises(ValueError, match=r"start must be float32 \(3, 8, 3\), got float32 \(3, 4, 3\)"):
        policy.predict(obs, noise="zero", start=torch.zeros(3, 4, 3), start_time=0.5)


def test_the_actor_of_rl_names_key_and_environment(policy: FlowPolicy) -> None:
    actor = ActorCritic(catalogue_policy(), FlowNoise)
    obs, generator = observations(actor.policy, 3), stream(0, "rl")
    assert actor.act(obs, generator).chunk.shape == (3, 4, 3)
    obs["env_state"][1, 0, 1] = NAN
    with pytest.raises(ValueError, match="observation 'env_state' is NaN or infinite in row 1 of 3"):
        actor.act(obs, generator)
    with pytest.raises(ValueError, match=r"'env_state' must be float32 \(3, 2, 2\), got float64"):
        actor.act({**obs, "env_state": obs["env_state"].double()}, generator)


def test_a_copy_and_a_loaded_policy_check_too(policy: FlowPolicy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path / "policy")
    with pytest.raises(NonFiniteError, match="'agent_pos'"):
        load_policy(tmp_path).predict({**observations(policy), "agent_pos": torch.full((1, 2, 4), NAN)}, noise="zero")


def test_the_check_asks_a_sum_per_array_and_looks_at_entries_only_where_one_is_not_finite() -> None:
    class Entries(np.ndarray):
        def __abs__(self) -> Any:
            raise AssertionError("looked")

    inputs = Inputs(
        EMBODIMENT, ["agent_pos"], obs_horizon=1, horizon=8, array=np.ndarray, dtypes={"float32": np.dtype("float32")}
    )
    value = np.zeros((1, 1, 3), np.float32).view(Entries)
    inputs.judge({"agent_pos": value}, value, [0.0, 1.0])
    with pytest.raises(AssertionError, match="looked"):
        inputs.judge({"agent_pos": value}, value, [0.0, INF])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_check_is_part_of_the_graph(policy: FlowPolicy) -> None:
    prepared, obs = prepare(policy, "cuda"), observations(policy)
    there = {key: value.cuda() for key, value in obs.items()}
    for _ in range(2):  # replayed: a graph remembers nothing
        assert prepared.predict(there, noise="zero").isfinite().all()
        bad = {**there, "agent_pos": torch.full((1, 2, 4), NAN, device="cuda")}
        with pytest.raises(NonFiniteError, match="'agent_pos'"):
            prepared.predict(bad, noise="zero")
        finite = torch.ones(1, dtype=torch.bool, device="cuda")
        assert prepared.predict(bad, noise="zero", finite=finite).isnan().all() and not finite.any()
