"""Collecting: the first N successes in seed order, the same store for any number of workers and kills."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from flowpolicy.data.collect import collect_episodes
from flowpolicy.data.store import Episode, EpisodeStore
from flowpolicy.embodiment import Embodiment, KeySpec

EMBODIMENT = Embodiment(
    robot="dice",
    obs={"agent_pos": KeySpec((2,))},
    action=KeySpec((1,)),
    action_kind="number",
    control_hz=1.0,
    action_low=(-1.0,),
    action_high=(1.0,),
)


class Dice:
    """Succeeds on seeds not divisible by `fails_on`; episode length and content follow from the seed."""

    embodiment = EMBODIMENT

    def __init__(self, *, fails_on=3, action=0.5, dies_at=(), seconds=0.0):
        self.fails_on, self.action, self.dies_at, self.seconds = fails_on, action, dies_at, seconds
        self.closed = False

    def episode(self, seed):
        time.sleep(self.seconds)
        if seed in self.dies_at:
            os._exit(9)
        rng, steps = np.random.default_rng(seed), 2 + seed % 5
        obs = {"agent_pos": rng.random((steps, 2), np.float32)}
        action = np.full((steps, 1), self.action, np.float32)
        return Episode(obs, action, np.zeros(steps, np.float32), seed % self.fails_on != 0, seed)

    def close(self):
        self.closed = True


def test_keeps_the_first_successes_in_seed_order(tmp_path):
    report = collect_episodes(Dice, tmp_path / "a.zarr", episodes=5, seed=6, attrs={"task": "dice"}, progress=False)
    store = EpisodeStore.open(tmp_path / "a.zarr")
    assert store.episode_seeds.tolist() == [7, 8, 10, 11, 13] and store.attrs["task"] == "dice"
    assert (report.episodes, report.attempts, report.success_rate) == (5, 8, 5 / 8)
    assert report.path == tmp_path / "a.zarr"


def test_the_store_is_the_same_for_one_and_three_workers(tmp_path):
    stores = []
    for workers in (1, 3):
        path = tmp_path / f"{workers}.zarr"
        report = collect_episodes(Dice, path, episodes=11, seed=2, workers=workers, progress=False)
        stores.append((EpisodeStore.open(path).content_hash(), report.attempts))
    assert stores[0] == stores[1]


def test_a_hopeless_expert_is_given_up_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"solved 0 of 60 seeds"):
        collect_episodes(partial(Dice, fails_on=1), tmp_path / "a.zarr", episodes=5, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("action", [1.5, float("nan")])
def test_an_action_outside_the_action_space_is_an_error(tmp_path, action):
    with pytest.raises(ValueError, match=r"step 0: action\[0\] .* outside \[-1.0, 1.0\]"):
        collect_episodes(partial(Dice, action=action), tmp_path / "a.zarr", episodes=1, seed=1, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_seed_on_which_a_worker_dies_is_named_and_left_out(tmp_path, capfd):
    make, path = partial(Dice, dies_at=(4, 8)), tmp_path / "a.zarr"
    report = collect_episodes(make, path, episodes=6, seed=1, workers=2, progress=False)
    assert EpisodeStore.open(path).episode_seeds.tolist() == [1, 2, 5, 7, 10, 11]
    assert (report.attempts, report.crashed) == (11, (4, 8)) and [file.name for file in tmp_path.iterdir()] == [
        "a.zarr"
    ]
    said = capfd.readouterr().err
    assert "died on seed 4, which is left out" in said and "died on seed 8" in said


def test_workers_that_keep_dying_end_the_command_and_what_is_finished_is_kept(tmp_path):
    make, path = partial(Dice, dies_at=range(4, 100), fails_on=99), tmp_path / "a.zarr"
    with pytest.raises(RuntimeError, match=r"worker process died on each of the seeds ([\d, ]+) .*workers=1") as raised:
        collect_episodes(make, path, episodes=9, seed=1, workers=2, progress=False)
    named = [int(word) for word in re.findall(r"\d+", str(raised.value).split("seeds")[1].split("(")[0])]
    assert len(named) == 6 and named[0] == 4 and named == sorted(set(named))  # two workers: 10 may end before 9
    assert [file.name for file in tmp_path.iterdir()] == [".a.zarr.journal"]
    assert any("3 finished episodes are kept in" in note for note in raised.value.__notes__)
    assert collect_episodes(Dice, tmp_path / "b.zarr", episodes=1, seed=1, progress=False).crashed == ()


def test_an_expert_that_cannot_be_made_says_why_and_leaves_nothing(tmp_path):
    for workers in (1, 2):
        with pytest.raises(TypeError, match="unexpected keyword"):
            collect_episodes(partial(Dice, luck=1), tmp_path / "a.zarr", episodes=1, workers=workers, progress=False)
    with pytest.raises(ZeroDivisionError, match="zero"):  # an error of the expert comes through as it is
        collect_episodes(partial(Dice, fails_on=0), tmp_path / "a.zarr", episodes=1, workers=2, progress=False)
    assert not list(tmp_path.iterdir())


def test_the_expert_is_closed_even_after_an_error(tmp_path):
    made = []

    def make():
        made.append(Dice(action=2.0))
        return made[0]

    with pytest.raises(ValueError, match="outside"):
        collect_episodes(make, tmp_path / "a.zarr", episodes=1, seed=1, progress=False)
    assert made[0].closed


@pytest.mark.parametrize("bad", [{"episodes": 0}, {"workers": 0}, {"seed": -1}])
def test_counts_out_of_range_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="episodes >= 1, workers >= 1, seed >= 0"):
        collect_episodes(Dice, tmp_path / "a.zarr", **{"episodes": 1, **bad})


def files(path):
    """Name and content of every file of a store."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def start(make, path, **options):
    """Collect in a process that has begun to. A forked one would share tqdm's lock, which a kill can leave held."""
    began = path.with_suffix(".began")
    process = multiprocessing.get_context("spawn").Process(target=_begin, args=(began, make, path), kwargs=options)
    process.start()
    wait_for(began.exists)
    began.unlink()
    return process


def _begin(began, make, path, **options):
    began.touch()
    collect_episodes(make, path, progress=False, **options)


def test_killed_at_any_moment_the_same_command_goes_on_to_the_same_store(tmp_path, capfd):
    slow = partial(Dice, seconds=0.002)
    collect_episodes(slow, tmp_path / "whole.zarr", episodes=12, seed=2, attrs={"task": "dice"}, progress=False)
    path, kills, delay = tmp_path / "a.zarr", 0, 0.02
    while not path.exists():
        process = start(slow, path, episodes=12, seed=2, attrs={"task": "dice"})
        time.sleep(delay := 1.2 * delay)  # a little further each time, however slow the machine
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 3
    if (tmp_path / ".a.zarr.journal").exists():  # killed between the two: the store is whole
        with pytest.raises(FileExistsError):
            collect_episodes(slow, path, episodes=12, seed=2, attrs={"task": "dice"}, progress=False)
    assert files(path) == files(tmp_path / "whole.zarr")


def kept(tmp_path, make=Dice, **options):
    """Fails at seed 11 with seven episodes in the journal."""
    with pytest.raises(ValueError, match="seed 11, .*outside"):
        collect_episodes(partial(Stubborn, make), tmp_path / "a.zarr", episodes=8, seed=1, progress=False, **options)
    return tmp_path / ".a.zarr.journal"


class Stubborn:
    """Another expert until somebody mends it: at seed 11 its action is outside."""

    mended = False

    def __init__(self, make):
        self.expert, self.embodiment, self.tried = make(), EMBODIMENT, []

    def episode(self, seed):
        self.tried.append(seed)
        episode = self.expert.episode(seed)
        return episode if self.mended or seed != 11 else episode._replace(action=episode.action + 3)

    def close(self):
        self.expert.close()


def test_what_was_tried_is_not_tried_again(tmp_path, monkeypatch, capfd):
    kept(tmp_path)
    monkeypatch.setattr(Stubborn, "mended", True)
    made = []

    def make():
        made.append(Stubborn(Dice))
        return made[0]

    monkeypatch.setattr("flowpolicy.data.collect._describe", lambda make: {"target": "the same"})
    (tmp_path / ".a.zarr.journal/settings.json").unlink()
    report = collect_episodes(make, tmp_path / "a.zarr", episodes=9, seed=1, progress=False)
    assert made[0].tried == [11, 12, 13] and report.attempts == 13
    assert EpisodeStore.open(tmp_path / "a.zarr").episode_seeds.tolist() == [1, 2, 4, 5, 7, 8, 10, 11, 13]
    assert "7 episodes of 10 attempts are there already" in capfd.readouterr().err


def test_the_attempts_of_another_command_are_neither_used_nor_lost(tmp_path):
    journal = kept(tmp_path)
    before = files(journal)
    for change, said in (
        ({"seed": 2}, "seed 1, now 2"),
        ({"attrs": {"task": "coins"}}, "attrs[.]task nothing, now .coins"),
    ):
        with pytest.raises(ValueError, match=f"another collect command for this store and was begun with {said}"):
            options = {"episodes": 20, "seed": 1, "progress": False, **change}
            collect_episodes(partial(Stubborn, Dice), tmp_path / "a.zarr", **options)
    with pytest.raises(ValueError, match="begun with expert"):
        collect_episodes(Dice, tmp_path / "a.zarr", episodes=8, seed=1, progress=False)
    after = files(journal)
    assert {name: after[name] for name in before if name != ".lock"} == {
        n: v for n, v in before.items() if n != ".lock"
    }


@pytest.mark.parametrize("damage", ["cut episode", "cut line", "zeros", "missing episode"])
def test_a_damaged_journal_costs_only_what_is_damaged(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(Stubborn, "mended", True)
    make = partial(Stubborn, Dice)
    collect_episodes(make, tmp_path / "whole.zarr", episodes=8, seed=1, progress=False)
    monkeypatch.setattr(Stubborn, "mended", False)
    journal = kept(tmp_path)
    episode, lines = journal / "5.npz", journal / "attempts.jsonl"
    if damage == "cut episode":
        episode.write_bytes(episode.read_bytes()[:-40])
    elif damage == "missing episode":
        episode.unlink()
    else:
        lines.write_bytes(lines.read_bytes()[:-9] + (b"\0" * 300 if damage == "zeros" else b""))
    monkeypatch.setattr(Stubborn, "mended", True)
    collect_episodes(make, tmp_path / "a.zarr", episodes=8, seed=1, progress=False)
    assert files(tmp_path / "a.zarr") == files(tmp_path / "whole.zarr")


def test_a_second_collector_is_refused_before_it_makes_an_expert(tmp_path):
    process = start(partial(Dice, seconds=0.05), tmp_path / "a.zarr", episodes=400)
    try:
        wait_for(lambda: (tmp_path / ".a.zarr.journal/attempts.jsonl").exists())
        with pytest.raises(ValueError, match="is being written by another command"):
            collect_episodes(lambda: pytest.fail("made"), tmp_path / "a.zarr", episodes=1, progress=False)
        assert process.is_alive()  # the first one goes on
    finally:
        process.kill()
        process.join()


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def running(pid):
    """Whether the process exists and has not ended."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


CODE = """
from functools import partial
from pathlib import Path
import sys
from flowpolicy.data.collect import collect_episodes
from tests.data.test_collect import Dice
collect_episodes(partial(Dice, seconds=float(sys.argv[2])), Path(sys.argv[1]), episodes=8, workers=2, progress=False)
"""


def test_the_workers_of_a_killed_collector_end_with_it_and_another_number_goes_on(tmp_path):
    """They sleep in an attempt, as one that computes in a simulator, and listen to nobody."""
    path = tmp_path / "a.zarr"
    command = [sys.executable, "-c", CODE, path, "0.3"]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}) as collector:
        wait_for(lambda: b"success" in read(tmp_path / ".a.zarr.journal/attempts.jsonl"))
        children = Path(f"/proc/{collector.pid}/task/{collector.pid}/children").read_text().split()
        workers = [pid for pid in children if b"spawn_main" in read(Path(f"/proc/{pid}/cmdline"))]
        assert len(workers) == 2
        collector.kill()
    wait_for(lambda: not any(running(pid) for pid in workers), seconds=10.0)
    collect_episodes(partial(Dice, seconds=0.3), path, episodes=8, progress=False)
    collect_episodes(partial(Dice, seconds=0.0), tmp_path / "whole.zarr", episodes=8, progress=False)
    assert files(path) == files(tmp_path / "whole.zarr")


def read(path):
    return path.read_bytes() if path.exists() else b""
