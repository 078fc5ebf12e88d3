"""The protocol's loop: what is there is skipped, what a kill interrupted is done again, and the two conventions."""

import json
from pathlib import Path

import pytest

from flowpolicy.cli.main import main
from flowpolicy.evaluation.protocol import Cell, Stages, cell_row, format_protocol, require_same, run_protocol
from flowpolicy.json_files import write_json

SUMMARY = {
    "task": "toy",
    "num_steps": 1,
    "n": 50,
    "success_once": 0.5,
    "ci_low": 0.37,
    "ci_high": 0.63,
    "start_seed": 100000,
    "policy_params": 7,
    "latency_ms": {"p50": 1.0},
}
CELLS = [Cell("a-v3", 0), Cell("a-v3", 1), Cell("b-v3", 0)]


class Recorder:
    """Stages that write what the real ones leave behind, and die when they are told to."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.die_at = ""

    def _note(self, name: str) -> None:
        if name == self.die_at:
            raise KeyboardInterrupt(name)
        self.done.append(name)

    def collect(self, cell: Cell, store: Path) -> None:
        """An empty folder."""
        self._note(f"collect {cell.task_id}")
        store.mkdir(parents=True)

    def train(self, cell: Cell, store: Path, run: Path) -> None:
        """Six evaluations and a last checkpoint."""
        assert store.exists()
        self._note(f"train {cell.task_id} {cell.seed}")
        write_json(run / "checkpoints/last/state/step.json", {"step": 60})
        lines = [{"step": 10 * i, "time_s": i, "eval/success_once": i / 10} for i in range(1, 7)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def evaluate(self, cell: Cell, run: Path, folder: Path) -> None:
        """A summary."""
        self._note(f"evaluate {cell.task_id} {cell.seed}")
        write_json(folder / "summary.json", SUMMARY)

    def stages(self) -> Stages:
        """As the loop wants them."""
        return Stages(self.collect, self.train, self.evaluate, steps=60)


@pytest.mark.parametrize("die_at", ["collect b-v3", "train a-v3 0", "evaluate a-v3 1", "nowhere"])
def test_a_second_call_does_only_what_the_first_did_not(tmp_path: Path, die_at: str) -> None:
    recorder = Recorder()
    recorder.die_at = die_at
    if die_at != "nowhere":
        with pytest.raises(KeyboardInterrupt):
            run_protocol(CELLS, tmp_path, recorder.stages(), words=["x=1"])
    recorder.die_at = ""
    rows = run_protocol(CELLS, tmp_path, recorder.stages(), words=["x=1"])
    assert len(recorder.done) == len(set(recorder.done)) == 2 + 3 + 3  # the seeds of a task share its demonstrations
    assert [(row["task_id"], row["seed"]) for row in rows] == [(cell.task_id, cell.seed) for cell in CELLS]
    assert [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()] == rows


def test_a_line_cut_short_is_written_again(tmp_path: Path) -> None:
    recorder = Recorder()
    rows = run_protocol(CELLS, tmp_path, recorder.stages(), words=[])
    file = tmp_path / "results.jsonl"
    file.write_text(file.read_text()[:-20])
    assert run_protocol(CELLS, tmp_path, recorder.stages(), words=[]) == rows
    assert len(file.read_text().splitlines()) == 3 and len(recorder.done) == 8


def test_other_words_need_another_folder(tmp_path: Path) -> None:
    run_protocol(CELLS[:1], tmp_path, Recorder().stages(), words=["b=2", "a=1"])
    run_protocol(CELLS, tmp_path, Recorder().stages(), words=["a=1", "b=2"])  # more cells, words in another order
    with pytest.raises(ValueError, match='was begun with words\\.a "1", now "3" \\(and 1 more: words\\.b\\)'):
        run_protocol(CELLS, tmp_path, Recorder().stages(), words=["a=3"])


def test_the_same_words_with_other_numbers_behind_them_need_another_folder(tmp_path: Path) -> None:
    run_protocol(CELLS[:1], tmp_path, Recorder().stages(), words=[], recipe="1")
    run_protocol(CELLS[:1], tmp_path, Recorder().stages(), words=[], recipe="1")
    with pytest.raises(ValueError, match='begun with recipes. "1", now "2"; all numbers count'):
        run_protocol(CELLS[:1], tmp_path, Recorder().stages(), words=[], recipe="2")
    file = tmp_path / "protocol.json"
    require_same(file, [], {"dm1": "1"})
    require_same(file, [], {"mse": "1"})
    with pytest.raises(ValueError, match='begun with recipes.mse "1", now "2"'):
        require_same(file, [], {"dm1": "1", "mse": "2"})


def test_top_five_is_the_mean_of_the_best_five_evaluations(tmp_path: Path) -> None:
    (row,) = run_protocol(CELLS[:1], tmp_path, Recorder().stages(), words=[])
    assert row["top5"] == pytest.approx((0.2 + 0.3 + 0.4 + 0.5 + 0.6) / 5) and row["steps"] == 60
    assert row["success_once"] == 0.5 and row["train_s"] == 6
    run = tmp_path / "a-v3/seed_0"
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "time_s": 1.0}) + "\n")
    with pytest.raises(ValueError, match=r"`eval_every`"):
        cell_row(CELLS[0], run, run / "evaluation/last")


def test_table_pools_the_seeds_and_averages_the_tasks(tmp_path: Path) -> None:
    rows = run_protocol(CELLS, tmp_path, Recorder().stages(), words=[])
    rows[0] = {**rows[0], "top5": 1.0, "success_once": 1.0}
    text = format_protocol(rows, lambda task: "hard" if task == "a-v3" else "").splitlines()
    assert len(text) == 5
    assert text[1].split() == ["a-v3", "hard", "2", "0.700", "±", "0.300", "0.750", "0.657", "-", "0.825", "100"]
    assert text[3].split() == ["mean", "of", "1", "hard", "0.700", "0.750"]
    assert text[4].split() == ["mean", "of", "2", "all", "0.550", "0.625"]


WORDS = ["task=toy", "demonstrations=3", "episodes=3", "envs=1", "policy.net.width=32", "trainer.steps=4"]
WORDS += ["trainer.batch_size=8", "trainer.eval_every=2", "trainer.log_every=2", "eval.episodes=1"]


def test_the_verb_runs_a_cell_from_nothing_and_again_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path = tmp_path / "a, b"  # Hydra's grammar would take it for two words
    argv = ["protocol", *WORDS, f"out='{tmp_path}'", "seeds=[3]"]
    assert main(argv) == 0
    last = capsys.readouterr().out.splitlines()[-3:]
    assert last[0].startswith("task ") and last[1].startswith("two-ways") and last[2] == str(tmp_path / "results.jsonl")
    (row,) = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert row["task_id"] == "two-ways" and row["seed"] == 3 and row["n"] == 3 and len(row["evaluations"]) == 2
    assert (tmp_path / "demonstrations/two-ways.zarr").is_dir()

    def never(argv: list[str]) -> int:
        raise AssertionError(argv)

    monkeypatch.setattr("flowpolicy.cli.train.main", never)
    monkeypatch.setattr("flowpolicy.cli.evaluate.main", never)
    assert main([*argv, "threads=2"]) == 0
    assert main([*argv, "trainer.lr=0.1"]) == 2 and "begun with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"), [(["trainer.eval_every=2"], "out=DIR"), (["out=x"], "trainer.eval_every")]
)
def test_what_is_missing_is_said_before_anything_runs(words, message, capsys) -> None:
    assert main(["protocol", "task=toy", *words]) == 2
    assert message in capsys.readouterr().err
