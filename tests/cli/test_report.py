"""`flowpolicy report`: one offline file from whatever the folders hold; a line for what they lack."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flowpolicy.cli.main import main
from flowpolicy.inference.latency import percentiles
from flowpolicy.results.folders import find_folders
from flowpolicy.statistics.tests import wilson_interval

VOID = {"meta", "link", "br", "img", "hr"}


class Tags(HTMLParser):
    """Every tag with its attributes, and whether they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags(html: str) -> list[tuple[str, dict[str, str | None]]]:
    """All tags of a page that nests properly."""
    parser = Tags()
    parser.feed(html)
    assert parser.open == []
    return parser.found


def write_evaluation(folder: Path, *, successes: int = 9, n: int = 10, num_steps: int = 1, whole: bool = True) -> Path:
    """What `flowpolicy evaluate` writes, or only summary.json."""
    folder.mkdir(parents=True)
    samples = [1.0 + 0.01 * i for i in range(100)]
    times = percentiles(samples)
    low, high = wilson_interval(successes, n)
    facts = {"task": "toy", "task_id": "Toy-v0", "checkpoint": "run/checkpoints/000010", "num_steps": num_steps}
    summary: dict[str, Any] = facts | {
        "n": n,
        "success_once": successes / n,
        "ci_low": low,
        "ci_high": high,
        "success_at_end": successes / n,
        "return_mean": 0.5,
        "latency_ms": {p: times[p] for p in ("p50", "p95", "p99")},
        "env_steps_per_s": 123.0,
        "policy_params": 1_500_000,
        "versions": {"python": "3.11.7"},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    if not whole:
        return folder
    rows = [
        facts
        | {
            "seed": 100_000 + i,
            "success_once": i < successes,
            "success_at_end": i < successes,
            "return": 0.0,
            "episode_len": 7,
            "failure": "" if i < successes else "<timeout>",
        }
        for i in range(n)
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    latency = {
        "device": "cpu",
        "threads": 1,
        "num_steps": num_steps,
        "predict": times,
        "floor": times,
        "overhead": 0.25,
        "stages": dict.fromkeys(("encode", "head", "decode"), times),
        "samples_ms": samples,
    }
    (folder / "latency.json").write_text(json.dumps(latency))
    panel = {
        "title": "evaluation episode, seed 100000",
        "line": "executed",
        "actions": [[0.0, 1.0], [1.0, 0.0]],
        "chunks": [{"step": 0, "actions": [[[0.0, 1.0], [0.9, 0.1]]] * 3}],
    }
    (folder / "chunks.json").write_text(
        json.dumps({"num_steps": num_steps, "control_hz": 10.0, "names": ["x", "gripper<1>"], "panels": [panel]})
    )
    (folder / "videos").mkdir()
    (folder / "videos" / "100000_success.mp4").write_bytes(b"small video")
    return folder


def write_run(folder: Path, *, record: bool = True) -> Path:
    """What `flowpolicy train` writes, without checkpoints."""
    (folder / ".hydra").mkdir(parents=True)
    rows = [{"step": i, "time_s": i, "train/loss": 1.0 / (i + 1), "train/lr": 1e-4} for i in range(50)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if record:
        (folder / ".hydra" / "config.yaml").write_text("head: <dm1>\nseed: 3\n")
        record_json = {
            "argv": ["train", "seed=3"],
            "config_hash": "abc",
            "seeds": {"seed": 3},
            "device": "cpu",
            "dataset_hash": "d1",
            "git_commit": None,
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
        }
        (folder / "run.json").write_text(json.dumps(record_json))
    return folder


def report(*arguments: str) -> str:
    assert main(["report", *arguments]) == 0
    out = next((a.removeprefix("out=") for a in arguments if a.startswith("out=")), None)
    return Path(out or Path(arguments[0]) / "report.html").read_text()


def test_the_page_loads_nothing_from_anywhere(tmp_path: Path):
    run = write_run(tmp_path / "run")
    write_evaluation(run / "evaluation" / "000010" / "steps_1")
    html = report(str(run))
    assert "http://" not in html and "https://" not in html
    assert "@import" not in html and "url(" not in html
    for tag, attributes in tags(html):
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for name, value in attributes.items():
            assert name not in ("href", "xlink:href", "srcset", "poster", "action", "background")
            if name == "src":
                assert (value or "").startswith("data:")
    assert "src='data:video/mp4;base64," in html


def test_the_page_shows_success_chunks_latency_curves_and_versions(tmp_path: Path):
    run = write_run(tmp_path / "run")
    write_evaluation(run / "evaluation" / "000010" / "steps_1", successes=9)
    write_evaluation(run / "evaluation" / "000010" / "steps_4", successes=7, num_steps=4)
    html = report(str(run))
    low, high = wilson_interval(9, 10)
    assert f"0.900  [{low:.3f}, {high:.3f}]" in html and "· 4 steps" in html
    assert "p50 1.5" in html and "p99 1.98" in html  # marks of the histogram
    assert "train/loss" in html and "train/lr" in html
    assert html.count("<svg") >= 2 + 2 * 2 + 2 + 1  # two curves, two dimensions twice, two histograms, one forest plot
    assert "2.13.0" in html and "3.11.7" in html and "not a git checkout" in html
    assert html.count("class=bad") == 1 + 3  # one square per failed episode


def test_text_from_files_is_escaped(tmp_path: Path):
    run = write_run(tmp_path / "run")
    write_evaluation(run / "evaluation")
    html = report(str(run), "title=<b>mine</b>")
    assert "head: &lt;dm1&gt;" in html and "gripper&lt;1&gt;" in html and "&lt;timeout&gt;" in html
    assert "<dm1>" not in html and "<b>mine" not in html


def test_training_seeds_are_averaged_never_the_best_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for seed, successes in enumerate((10, 7, 4)):
        write_evaluation(tmp_path / f"seed{seed}" / "evaluation" / "000010" / "steps_1", successes=successes)
    html = report(*(f"seed{seed}" for seed in range(3)), "out=all.html")
    assert "<b>0.700</b>" in html and "mean of 3: 0.40 to 1.00" in html
    for seed in range(3):
        assert f"seed{seed}/000010 · 1 step" in html


@pytest.mark.parametrize("whole", [True, False])
def test_an_evaluation_alone_is_enough_and_what_is_missing_is_said(tmp_path: Path, whole: bool):
    html = report(str(write_evaluation(tmp_path / "eval", whole=whole)))
    tags(html)
    assert "No training run among the folders" in html
    for missing in ("No chunks.json", "No latency.json", "No results.jsonl", "No recordings"):
        assert (missing in html) == (not whole)


@pytest.mark.parametrize("record", [True, False])
def test_a_training_run_alone_is_enough(tmp_path: Path, record: bool):
    html = report(str(write_run(tmp_path / "run", record=record)))
    tags(html)
    assert "No evaluation among the folders" in html and "train/loss" in html
    assert ("No run.json" in html) == (not record) and ("No .hydra/config.yaml" in html) == (not record)


def test_a_run_that_is_still_writing_can_be_looked_at(tmp_path: Path):
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "train/lo')
    assert "train/loss" in report(str(run))


def test_a_large_video_is_named_not_embedded(tmp_path: Path):
    folder = write_evaluation(tmp_path / "eval")
    (folder / "videos" / "100001_failure.mp4").write_bytes(b"0" * 5_000_000)
    html = report(str(folder))
    assert html.count("data:video/mp4") == 1 and len(html) < 1_000_000
    assert re.search("Too large to embed: .*100001_failure.mp4", html)


def test_labels_tell_the_folders_apart(tmp_path: Path):
    for seed in (0, 1):
        run = write_run(tmp_path / f"seed{seed}")
        for k in (1, 2):
            write_evaluation(run / "evaluation" / "000010" / f"steps_{k}", num_steps=k)
    evaluations, runs = find_folders([tmp_path])
    assert [run.label for run in runs] == ["seed0", "seed1"]
    assert [(e.label, e.summary["num_steps"]) for e in evaluations] == [
        ("seed0/000010", 1),
        ("seed0/000010", 2),
        ("seed1/000010", 1),
        ("seed1/000010", 2),
    ]
    alone, _ = find_folders([tmp_path / "seed0" / "evaluation"])
    assert [e.label for e in alone] == ["seed0/000010"] * 2
    twice, _ = find_folders([tmp_path, tmp_path / "seed0"])
    assert len(twice) == 4  # a folder reached by two ways is one


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("summary.json", {}, "summary.json is damaged: num_steps is missing"),
        ("summary.json", [1], "summary.json is damaged: wanted an object"),
        ("latency.json", {"predict": {}}, "latency.json is damaged: threads is missing"),
        ("chunks.json", {"names": []}, "chunks.json is damaged: panels is missing"),
        ("results.jsonl", 3, "results.jsonl, line 1 is damaged: wanted an object, got '3'"),
    ],
)
def test_a_file_of_the_right_name_and_foreign_content_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, content: Any, said: str
):
    (write_evaluation(tmp_path / "eval") / name).write_text(json.dumps(content) + "\n")
    assert main(["report", str(tmp_path / "eval")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0] and "leave" in lines[0]
    assert not (tmp_path / "eval" / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "wanted at least one DIR"),
        (["nowhere"], "nowhere is not a folder"),
        (["empty"], "nothing to report"),
        (["empty", "ouput=a.html"], "unknown option ouput=a.html"),
        (["damaged"], "no JSON"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: list[str], said: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "summary.json").write_text('{"n": 1')
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("flowpolicy report: ") and said in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_the_last_line_printed_is_the_path(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_evaluation(tmp_path / "eval")
    report(str(tmp_path / "eval"), f"out={tmp_path / 'deep' / 'page.html'}")
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "deep" / "page.html")
