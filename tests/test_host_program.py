"""What the program around it has set in torch changes nothing about a policy: dtype, device, autocast, gradients."""

import ast
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import flowpolicy
from flowpolicy.checkpoint import create_policy, load_policy, save_policy
from flowpolicy.deploy.runtime import OnnxPolicy
from flowpolicy.heads.diffusion import DiffusionHead
from flowpolicy.inference import prepare
from flowpolicy.policy import FlowPolicy
from flowpolicy.rollout.episodes import run_episodes
from flowpolicy.rollout.vector_env import make_vector_env
from flowpolicy.seeding import stream
from flowpolicy.types import Batch, Observation
from flowpolicy_envs.toy import make_env
from tests.catalogue import SEEING, catalogue_policy, observations, options, policy_config, toy_run


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def all_at_once() -> Iterator[None]:
    with default_dtype(torch.float64), default_device("meta"), torch.autocast("cpu"), torch.inference_mode():
        yield


Host = Callable[[], AbstractContextManager[object]]
DEFAULTS: dict[str, Host] = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "default_device": lambda: default_device("meta"),  # the only other one that every machine has
    "device_context": lambda: torch.device("meta"),
}
MODES: dict[str, Host] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "all_at_once": all_at_once,
}
HOSTS = DEFAULTS | MODES
hosts = pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)


def slow(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


@cache
def the_policy(**parts: Any) -> FlowPolicy:
    """Of the catalogue, to be asked only."""
    return catalogue_policy(**parts)


the_config = cache(policy_config)


def noise(batch: int = 1) -> Tensor:
    return torch.randn(batch, 8, 3, generator=stream(0, "n"))


def questions(policy: FlowPolicy) -> list[dict[str, Any]]:
    """Words of `predict` for every way to sample that the head has."""
    steps = min(3, policy.head.max_steps or 3)
    words: list[dict[str, Any]] = [{"num_steps": steps, "whole": True}, {"num_steps": steps, "noise": noise(3)}]
    words += [{"num_steps": 3, "sampler": name} for name in ("heun", "hybrid") if policy.head.has_velocity]
    words += [{"noise": "zero", "start": torch.zeros(3, 8, 3), "start_time": 0.85}] * (policy.head.max_steps is None)
    return words + [{"num_steps": 3, "sampler": "ancestral"}] * isinstance(policy.head, DiffusionHead)


def answers(policy: FlowPolicy, obs: Observation, words: Sequence[dict[str, Any]]) -> list[Tensor]:
    return [policy.predict(obs, generator=stream(i, "n"), **word) for i, word in enumerate(words)]


def assert_untouched(policy: FlowPolicy, wanted: FlowPolicy) -> None:
    """Every number is where it was, in float32 on the CPU, and can be trained."""
    for (name, value), (_, other) in zip(tensors(policy), tensors(wanted), strict=True):
        assert value.device.type == "cpu" and not value.is_inference(), name
        assert not value.is_floating_point() or value.dtype == torch.float32, (name, value.dtype)
        assert torch.equal(value, other.expand_as(value)), name  # of a head that was told no range yet: one for all


def tensors(policy: FlowPolicy) -> list[tuple[str, Tensor]]:
    return [*policy.named_parameters(), *policy.named_buffers()]


@hosts
@pytest.mark.parametrize("parts", [{}, {"encoder": "vit", "head": "diffusion", "net": "joint_transformer"}])
def test_a_policy_made_saved_and_loaded_inside_is_the_same(host: Host, parts: dict, tmp_path: Path) -> None:
    config = the_config(**parts)
    torch.manual_seed(0)
    wanted = create_policy(config, SEEING)
    obs, given = observations(wanted, 3), noise(3)
    with host():
        torch.manual_seed(0)
        made = create_policy(config, SEEING)
        save_policy(made, tmp_path / "policy")
        loaded = load_policy(tmp_path)
        inside = loaded.predict(obs, noise=given)
    assert_untouched(made, wanted)
    assert_untouched(loaded, wanted)
    assert torch.equal(inside, wanted.eval().predict(obs, noise=given))
    made.train().loss(Batch(obs, given, torch.ones(3, 8)), stream(0, "l")).loss.backward()


def assert_same_inside(host: Host, policy: FlowPolicy, words: Sequence[dict[str, Any]]) -> None:
    obs = observations(policy, 3)
    wanted = answers(policy, obs, words)
    with host():
        got = answers(policy, obs, words)
    for chunk, other in zip(got, wanted, strict=True):
        assert chunk.dtype == torch.float32 and chunk.device.type == "cpu" and torch.equal(chunk, other)


@hosts
@pytest.mark.parametrize("head", options("head"))
def test_every_head_and_sampler_answers_the_same_inside(host: Host, head: str) -> None:
    policy = the_policy(head=head)
    assert_same_inside(host, policy, questions(policy))


@pytest.mark.parametrize("name", ["float64", "bfloat16", "all_at_once"])
@pytest.mark.parametrize(
    "parts",
    [{"encoder": encoder, "net": "unet1d"} for encoder in options("encoder")]
    + [{"net": net, "action_representation": "delta"} for net in options("net")],
    ids=lambda parts: "-".join(parts.values()),
)
def test_every_encoder_and_net_answers_the_same_inside(name: str, parts: dict) -> None:
    assert_same_inside(HOSTS[name], the_policy(**parts), [{}])


@pytest.mark.parametrize("host", DEFAULTS.values(), ids=DEFAULTS)
@pytest.mark.parametrize("head", options("head"))
def test_the_loss_is_the_same_inside(host: Host, head: str) -> None:
    policy = the_policy(head=head)
    batch = Batch(observations(policy, 16), torch.randn(16, 8, 3, generator=stream(0, "a")), torch.ones(16, 8))
    wanted = policy.loss(batch, stream(0, "l")).loss
    with host():
        assert torch.equal(policy.loss(batch, stream(0, "l")).loss, wanted)


@hosts
@pytest.mark.parametrize("parts", [{}, {"net": "unet1d", "encoder": "point_cloud"}, {"net": "joint_transformer"}])
def test_a_prepared_policy_answers_the_same_made_or_asked_inside(host: Host, parts: dict) -> None:
    policy = the_policy(**parts)
    obs = observations(policy)
    wanted = policy.predict(obs, num_steps=2, generator=stream(0, "n"))
    outside = prepare(policy, num_steps=2)
    with host():
        prepared = prepare(policy, num_steps=2)
        got = [one.predict(obs, generator=stream(0, "n")) for one in (prepared, outside)]
        zero = outside.predict(obs, noise="zero")
    got.append(prepared.predict(obs, generator=stream(0, "n")))
    torch.testing.assert_close(torch.cat(got), wanted.expand(3, -1, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(zero, policy.predict(obs, num_steps=2, noise="zero"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["all_at_once", *(slow(name) for name in HOSTS if name != "all_at_once")])
def test_a_policy_exported_inside_is_the_same(name: str, tmp_path: Path) -> None:
    export = pytest.importorskip("flowpolicy.deploy.export")
    policy = the_policy(net="unet1d", encoder="vit")
    obs, given = observations(policy), noise()
    with HOSTS[name]():
        export.write_bundle(policy, tmp_path, num_steps=2)
        got = OnnxPolicy(tmp_path).predict({key: value.numpy() for key, value in obs.items()}, noise=given.numpy())
    wanted = policy.predict(obs, num_steps=2, noise=given).numpy()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)


@hosts
def test_episodes_go_the_same_inside(host: Host, tmp_path: Path) -> None:
    folder, env = toy_run(tmp_path / "run"), make_vector_env(make_env, 2)
    wanted = [row._replace(infer_ms=[]) for row in run_episodes(load_policy(folder), env, range(3))]
    with host():
        got = [row._replace(infer_ms=[]) for row in run_episodes(load_policy(folder), env, range(3))]
    assert got == wanted


def test_torch_is_afterwards_as_the_program_had_set_it() -> None:
    config, policy = the_config(), the_policy()
    with all_at_once():
        create_policy(config, SEEING)
        prepare(policy)
        assert torch.get_default_dtype() == torch.float64 and torch.get_default_device() == torch.device("meta")
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")


def test_policies_made_in_many_threads_leave_the_default_dtype_alone() -> None:
    config = policy_config()
    with default_dtype(torch.float64), ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: create_policy(config, SEEING), range(40)))
        assert torch.get_default_dtype() == torch.float64
    assert {value.dtype for policy in made for value in policy.parameters()} == {torch.float32}


ANY = {
    "arange",
    "empty",
    "eye",
    "full",
    "Generator",
    "linspace",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "tensor",
    "zeros",
}
WHOLE = {"arange", "Generator", "randint", "randperm"}


def unsaid(path: Path) -> list[str]:
    """Tensors that are made where the host's defaults hold: not in what `build_policy` calls, nor in programs."""
    if path.name == "parts.py" or path.parent.name == "probes":
        return []
    tree, built = ast.parse(path.read_text()), set()
    if path.parent.name in ("encoders", "heads", "terms", "nets") or path.name == "policy.py":
        constructors = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        built = {id(node) for constructor in constructors for node in ast.walk(constructor)}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or id(node) in built or not ast.unparse(node.func).startswith("torch."):
            continue
        name, words = ast.unparse(node.func).removeprefix("torch."), {word.arg for word in node.keywords}
        if name in ANY and not ({"device"} if name in WHOLE else {"device", "dtype"}) <= words:
            found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)[:80]}")
    return found


def test_every_tensor_of_the_library_says_its_device_and_dtype() -> None:
    package = Path(flowpolicy.__file__).parent
    assert not [line for path in sorted(package.rglob("*.py")) for line in unsaid(path)]
