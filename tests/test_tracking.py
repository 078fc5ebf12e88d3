"""Trackers and run.json: every line survives a kill, resuming forgets what comes again, nothing needs wandb."""

import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from flowpolicy.provenance import git_commit, versions, wandb_run, write_run_record
from flowpolicy.tracking import CompositeTracker, JsonlTracker, WandbTracker, _answers, wandb_mode


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_line_is_on_disk_before_close(tmp_path: Path):
    tracker = JsonlTracker(tmp_path / "deep" / "metrics.jsonl")
    tracker.log(10, {"train/loss": 0.5})
    (line,) = lines(tracker.path)
    assert list(line) == ["step", "time_s", "train/loss"]
    assert (line["step"], line["train/loss"]) == (10, 0.5) and line["time_s"] >= 0
    tracker.close()


def test_a_tracker_that_nobody_closes_leaves_no_file_open(tmp_path: Path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tracker = JsonlTracker(tmp_path / "metrics.jsonl")
        tracker.log(1, {"a": 1.0})
        tracker.truncate_after(0)
        tracker.log(1, {"a": 2.0})
        del tracker
        gc.collect()
    assert not said and [line["a"] for line in lines(tmp_path / "metrics.jsonl")] == [2.0]


def test_values_that_are_not_finite_become_null_and_the_line_stays_json(tmp_path: Path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log(1, {"a": float("nan"), "b": float("inf"), "c": 2})
    tracker.close()
    text = tracker.path.read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert {k: v for k, v in json.loads(text).items() if k in "abc"} == {"a": None, "b": None, "c": 2.0}


def test_resuming_drops_later_lines_and_goes_on_with_the_clock(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "time_s": s * 10.0, "x": s}) + "\n" for s in (1, 2, 3, 4)))
    tracker = JsonlTracker(path)
    tracker.truncate_after(2)
    assert [line["step"] for line in lines(path)] == [1, 2]
    tracker.log(3, {"x": 30})
    tracker.close()
    assert [(line["step"], line["x"]) for line in lines(path)] == [(1, 1), (2, 2), (3, 30)]
    assert 20.0 <= lines(path)[-1]["time_s"] < 25.0
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_cut_by_a_kill_does_not_swallow_the_next_one(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time_s": 1.0}\n{"step": 2, "ti')
    tracker = JsonlTracker(path)
    tracker.log(2, {"x": 1.0})
    tracker.close()
    assert [line["step"] for line in lines(path)] == [1, 2]


def test_a_process_killed_with_signal_9_keeps_its_lines(tmp_path: Path):
    code = (
        "import os, signal\nfrom flowpolicy.tracking import JsonlTracker\n"
        f"t = JsonlTracker({str(tmp_path / 'm.jsonl')!r})\n"
        "for step in range(5): t.log(step, {'x': 1.0})\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60)
    assert done.returncode == -9
    assert [line["step"] for line in lines(tmp_path / "m.jsonl")] == [0, 1, 2, 3, 4]


def test_a_composite_passes_every_call_on(tmp_path: Path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    tracker = CompositeTracker([JsonlTracker(path) for path in paths])
    for step in (1, 2):
        tracker.log(step, {"x": 1.0})
    tracker.truncate_after(1)
    tracker.close()
    assert [[line["step"] for line in lines(path)] for path in paths] == [[1], [1]]
    with pytest.raises(ValueError, match="closed"):
        tracker.log(3, {})


@pytest.fixture
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without any wandb login."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_wandb_is_offline_without_a_key_and_online_with_one(no_login: Path, monkeypatch: pytest.MonkeyPatch):
    assert wandb_mode() == "offline"
    (no_login / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    (no_login / ".netrc").chmod(0o600)
    assert wandb_mode() == "online"
    (no_login / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode() == "disabled"
    monkeypatch.setenv("WANDB_MODE", "of line")
    with pytest.raises(ValueError, match="got 'of line'"):
        wandb_mode()


def test_wandb_records_offline(no_login: Path):
    pytest.importorskip("wandb")
    tracker = WandbTracker(no_login / "run", config={"seed": 0})
    assert tracker.mode == "offline"
    tracker.log(1, {"train/loss": 0.5})
    tracker.close()
    assert list((no_login / "run" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    ("key", "server", "reason"),
    [("0" * 40, "http://127.0.0.1:9", "http://127.0.0.1:9 does not answer"), ("abc", "", "API key must have 40")],
)
def test_with_a_key_that_is_of_no_use_wandb_goes_offline_and_says_so_in_one_line(
    no_login: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, key: str, server: str, reason: str
):
    pytest.importorskip("wandb")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("WANDB_API_KEY", key)
        monkeypatch.setenv("WANDB_BASE_URL", server or f"http://127.0.0.1:{listening.getsockname()[1]}")
        tracker = WandbTracker(no_login / "run")
    tracker.log(1, {"train/loss": 0.5})
    tracker.close()
    assert tracker.mode == "offline" and tracker.run_id
    (line,) = capfd.readouterr().err.splitlines()
    assert reason in line and line.endswith(f"wandb sync {no_login / 'run' / 'wandb'}/offline-run-*")
    (record,) = (no_login / "run" / "wandb").glob("offline-run-*/*.wandb")
    end = time.monotonic() + 30  # its own process writes it, and on a busy machine is not done yet
    while record.stat().st_size <= 500 and time.monotonic() < end:
        time.sleep(0.05)
    assert record.stat().st_size > 500  # what `wandb sync` sends


def test_a_proxy_is_asked_in_the_place_of_a_server(monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        place = f"127.0.0.1:{listening.getsockname()[1]}"
        assert _answers(f"http://{place}") and _answers(f"https://{place}") and not _answers("http://127.0.0.1:9")
        for proxy in (f"http://{place}", place):
            monkeypatch.setenv("https_proxy", proxy)
            assert _answers("https://nowhere.invalid") and not _answers("http://127.0.0.1:9")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert not _answers("https://127.0.0.1:9")


def test_a_home_is_found_for_wandb_where_there_is_none(tmp_path: Path):
    """A user without HOME that /etc/passwd does not know."""
    pytest.importorskip("wandb")
    nameless = ["unshare", "--user", "--map-user=54321", "--"]
    if not shutil.which("unshare") or subprocess.run([*nameless, "true"], capture_output=True).returncode:
        pytest.skip("needs user namespaces")
    code = "from flowpolicy.tracking import WandbTracker as T; t = T('run'); t.log(1, {'x': 1.0}); t.close()"
    unset = ("HOME", "XDG_", "WANDB_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    own["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [*nameless, sys.executable, "-c", code], cwd=tmp_path, env=own, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_wandb_that_fails_in_between_stops_nothing(no_login: Path, capfd: pytest.CaptureFixture):
    pytest.importorskip("wandb")
    tracker = WandbTracker(no_login / "run")
    tracker._run.finish()
    capfd.readouterr()
    for step in range(3):
        tracker.log(step, {"x": 1.0})
    tracker.close()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("wandb: Run ") and line.endswith("; no longer used, metrics.jsonl has everything")


def test_without_wandb_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r'pip install -e ".*\[wandb\]"'):
        WandbTracker(tmp_path)


def test_the_run_record_says_what_made_the_numbers(tmp_path: Path):
    path = write_run_record(
        tmp_path / "run", argv=["train", "seed=3"], config_hash="ab", seeds={"seed": 3}, device="cpu", dataset_hash=None
    )
    assert path == tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    assert record["argv"] == ["train", "seed=3"] and record["seeds"] == {"seed": 3}
    assert (record["config_hash"], record["dataset_hash"], record["device"]) == ("ab", None, "cpu")
    assert record["versions"] == versions() and {"python", "torch", "numpy"} <= set(record["versions"])
    assert record["git_commit"] == git_commit()
    assert list(path.parent.iterdir()) == [path]


def test_outside_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from flowpolicy import provenance

    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "flowpolicy" / "provenance.py"))
    assert git_commit() is None


def test_a_checkout_names_its_commit_and_whether_it_was_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from flowpolicy import provenance

    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *identity, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "flowpolicy" / "provenance.py"))
    git("init", "-q")
    assert git_commit() is None  # no commit yet
    (tmp_path / "a.txt").write_text("1")
    git("add", "a.txt")
    git("commit", "-q", "-m", "first")
    assert git_commit() == git("rev-parse", "HEAD")
    (tmp_path / "a.txt").write_text("2")
    assert git_commit() == git("rev-parse", "HEAD") + "-dirty"


def test_every_start_of_a_run_is_kept_and_the_first_stays_on_top(tmp_path: Path) -> None:
    def start(argv: list[str], wandb_run_id: str | None) -> dict:
        words = {"config_hash": "c", "seeds": {}, "device": "cpu", "dataset_hash": None}
        return json.loads(write_run_record(tmp_path, argv=argv, wandb_run_id=wandb_run_id, **words).read_text())

    first = start(["train"], None)
    old = {name: value for name, value in first.items() if name != "starts"}
    (tmp_path / "run.json").write_text(json.dumps(old))  # as an older flowpolicy wrote it
    start(["train", "resume=true"], "abc")
    third = start(["train", "resume=true", "trainer.steps=9"], "abc")
    assert third["argv"] == ["train"] and third["started_at"] == first["started_at"]
    assert third["wandb_run_id"] == "abc" == wandb_run(tmp_path)
    assert [one["argv"] for one in third["starts"]] == [
        ["train"],
        ["train", "resume=true"],
        ["train", "resume=true", "trainer.steps=9"],
    ]
    assert all(one.keys() == old.keys() for one in third["starts"])
    (tmp_path / "run.json").write_text("")
    with pytest.raises(ValueError, match="run.json is damaged .*; remove it"):
        start(["train"], None)
