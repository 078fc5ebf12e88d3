"""What a policy sees and what is executed: histories of arrays of both kinds, and a robot without a simulator."""

import ast
from functools import partial

import numpy as np
import pytest
import torch

from flowpolicy.rollout.history import ChunkRunner, ObservationHistory
from tests.test_architecture import LIBRARY, fresh_interpreter, tree, where


@pytest.mark.parametrize(("array", "stack"), [(np.array, np.stack), (torch.tensor, torch.stack)])
@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_the_history_is_the_last_observations_with_the_first_one_repeated(array, stack, horizon):
    history = ObservationHistory(horizon)
    for step in range(5):
        history.append({"x": array([step, 10 * step]), "other": array([0])})
        stacked = history.stacked(stack, keys=["x"])
        wanted = [[past, 10 * past] for past in (max(0, k) for k in range(step - horizon + 1, step + 1))]
        assert list(stacked) == ["x"] and type(stacked["x"]) is type(array([0]))
        assert stacked["x"].tolist() == wanted
    history.begin({"x": array([7, 7]), "other": array([0])})
    assert history.stacked(stack)["x"].tolist() == [[7, 7]] * horizon
    history.clear()
    assert not history


def test_rows_of_a_batch_begin_and_advance_on_their_own():
    def mixed(rows, new, old):
        return {key: torch.where(torch.tensor(rows), value, old[key]) for key, value in new.items()}

    history = ObservationHistory(2)
    history.begin({"x": torch.tensor([0, 0])})
    history.append({"x": torch.tensor([1, 1])}, partial(mixed, [True, False]))
    assert history.stacked(torch.stack, axis=1)["x"].tolist() == [[0, 1], [0, 0]]
    history.begin({"x": torch.tensor([5, 5])}, partial(mixed, [True, False]))
    assert history.stacked(torch.stack, axis=1)["x"].tolist() == [[5, 5], [0, 0]]


def test_what_was_stacked_does_not_change_with_the_next_observation():
    history = ObservationHistory(1)
    seen = np.zeros(1)
    history.append({"x": seen})
    stacked = history.stacked(np.stack)
    seen += 1.0
    assert stacked["x"].tolist() == [[0.0]]


def test_one_robot_runs_chunk_after_chunk():
    runner, asked, sent = ChunkRunner[np.ndarray](2), [], []
    for step in range(7):
        runner.observe({"x": np.float32([step])})
        if runner.spent:
            seen = runner.seen(np.stack)["x"]
            asked.append(seen.tolist())
            runner.execute(100 * step + np.arange(3.0)[:, None])
        sent.append(runner.next_action().item())
    assert asked == [[[[0], [0]]], [[[2], [3]]], [[[5], [6]]]]
    assert sent == [0, 1, 2, 300, 301, 302, 600]


def test_a_new_chunk_replaces_the_rest_of_the_last_one_and_a_new_episode_forgets_both():
    runner = ChunkRunner[np.ndarray](2)
    runner.observe({"x": np.zeros(1)})
    runner.execute(np.arange(3.0)[:, None])
    runner.next_action()
    runner.execute(np.arange(10.0, 12.0)[:, None])
    assert runner.next_action() == 10.0
    runner.reset()
    assert runner.spent
    runner.observe({"x": np.ones(1)})
    assert runner.seen(np.stack)["x"].tolist() == [[[1.0], [1.0]]]
    with pytest.raises(IndexError):
        runner.next_action()


def test_a_history_of_nothing_is_refused():
    with pytest.raises(ValueError, match="obs_horizon must be at least 1, got 0"):
        ObservationHistory(0)


def own_history(node: ast.AST) -> bool:
    """Whether this is how somebody keeps the last observations on their own: a deque of that length, or a list of one
    thing as often as there are observed steps."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("deque", "appendleft"):
        return "appendleft" in ast.unparse(node.func) or any(word.arg == "maxlen" for word in node.keywords)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        sides = (node.left, node.right)
        return any(isinstance(side, ast.List) for side in sides) and "horizon" in ast.unparse(node)
    return False


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        ("history = deque(maxlen=obs_horizon)", True),
        ("history.appendleft(obs)", True),
        ("past = [first] * policy.obs_horizon", True),
        ("queue = deque(seeds)", False),
        ("zeros = [0] * num_envs", False),
    ],
)
def test_the_check_for_histories_sees_them(code, bad):
    assert any(own_history(node) for node in ast.walk(ast.parse(code))) == bad


def test_the_history_is_written_once():
    own = {where(path) for path in LIBRARY for node in ast.walk(tree(path)) if own_history(node)}
    assert own == {"flowpolicy/rollout/history.py"}


def test_it_needs_no_torch():
    assert "torch" not in fresh_interpreter("import flowpolicy.rollout.history")
