"""After fine-tuning: the same unseen seeds before and after, an exact paired test, and one page that shows them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from flowpolicy.checkpoint import load_policy
from flowpolicy.files import write_atomic
from flowpolicy.json_files import read_object, read_objects, write_json
from flowpolicy.report.axes import number
from flowpolicy.report.page import Section, facts, page, pairs, table
from flowpolicy.report.svg import Line, Row, interval_chart, line_chart
from flowpolicy.rollout.episodes import left_to_solve, run_episodes
from flowpolicy.rollout.vector_env import make_vector_env
from flowpolicy.statistics.pairs import paired_outcomes, success_rate

_CURVES = (
    "env/success_once",
    "env/return",
    "rl/approx_kl",
    "rl/clip_fraction",
    "rl/std",
    "rl/explained_variance",
    "rl/value_loss",
    "rl/grad_norm_actor",
    "time/env_fps",
)


def write_receipt(
    run: Path,
    make_env: Callable[[], Any],
    *,
    before: Path,
    after: Path,
    best: Path | None = None,
    num_steps: int,
    episodes: int = 100,
    start_seed: int = 100_000,
    envs: int = 1,
    device: torch.device | str = "cpu",
    trusted_modules: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate checkpoints without noise on the same seeds; write run/receipt.json and run/receipt.html.

    Args:
        run: Folder of the fine-tuning.
        make_env: Makes one simulator.
        before: The checkpoint that it began with.
        after: The last checkpoint, which the test is about: nothing has been selected.
        best: The one that evaluations on other seeds chose, when it is not the last; shown beside it, since
            `checkpoint=RUN` means it elsewhere.
        num_steps: Network evaluations per chunk, of all. Returns what receipt.json holds.
        episodes: How many to run.
        start_seed: Seed of the first episode; the others follow it.
        envs: Parallel simulators; results do not depend on it.
        device: Where torch computes, e.g. "cpu" or "cuda".
        trusted_modules: Packages outside flowpolicy whose classes a checkpoint may name.
    """
    outcomes = {}
    env = make_vector_env(make_env, min(envs, episodes))
    try:
        for name, folder in (("before", before), ("after", after), ("best", best)):
            if folder is None:
                continue
            policy = load_policy(folder, device=device, trusted_modules=trusted_modules)
            results = run_episodes(policy, env, range(start_seed, start_seed + episodes), num_steps=num_steps)
            counted = left_to_solve(results)
            outcomes[name] = [result.success_once for result in counted]
    finally:
        env.close()
    solved = episodes - len(outcomes["before"])
    found: dict[str, Any] = {
        "episodes": episodes - solved,
        "solved_at_reset": solved,
        "start_seed": start_seed,
        "num_steps": num_steps,
    }
    found |= {"weights": "last", "checkpoint": str(after), **paired_test(outcomes["before"], outcomes["after"])}
    if best is not None:
        found["best"] = {**success_rate(outcomes["best"]), "checkpoint": str(best)}
    write_json(run / "receipt.json", found)
    write_atomic(run / "receipt.html", _page(run, found))
    return found


def paired_test(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """Successes, intervals, and the exact test of the seeds that changed, see `paired_outcomes`.

    verdict: "better", "worse" or "no difference" at 5 %.

    Args:
        before: Success on each seed.
        after: Success on the same seeds.
    """
    found = paired_outcomes({"before": before, "after": after})
    gained, lost, p = found.pop("only_after"), found.pop("only_before"), found.pop("mcnemar_p")
    verdict = "no difference" if p >= 0.05 else "better" if gained > lost else "worse"
    return found | {"gained": gained, "lost": lost, "p_value": p, "verdict": verdict}


def _page(run: Path, found: dict[str, Any]) -> str:
    lines = read_objects(run / "metrics.jsonl")
    preflight = read_object(run / "preflight.json") if (run / "preflight.json").is_file() else {}
    before, after = found["before"], found["after"]
    changed = f"{found['gained']} gained, {found['lost']} lost"
    cards = [
        (title, f"{one['success_once']:.3f}", f"95 % interval {one['ci_low']:.3f} to {one['ci_high']:.3f}")
        for title, one in (("Before", before), ("After", after))
    ]
    cards.append(("Paired test", found["verdict"], f"p = {found['p_value']:.2g}, {changed}"))
    seen = f"seeds from {found['start_seed']}, {found['num_steps']} network evaluation(s)"
    cards.append(("Episodes", str(found["episodes"]), seen))
    rows = [
        Row(name, found[name]["success_once"], found[name]["ci_low"], found[name]["ci_high"], colour)
        for colour, name in enumerate(("before", "after", "best"))
        if name in found
    ]
    curve = line_chart(
        _lines(lines, "eval/success_once"),
        title="success without noise",
        x_label="iteration",
        width=1000,
        height=260,
        y_range=(0.0, 1.0),
    )
    small = "".join(
        f"<div>{line_chart(_lines(lines, name), title=name, width=330, height=180)}</div>"
        for name in _CURVES
        if any(name in line for line in lines)
    )
    places = [["after", found["checkpoint"]]]
    if "best" in found:
        places.append(["best, chosen on other seeds", found["best"]["checkpoint"]])
    sections = [
        Section("Success on unseen seeds", interval_chart(rows), "After: the last checkpoint, nothing selected."),
        Section("Learning", curve + f"<div class='grid3'>{small}</div>", "Evaluated on other seeds than those above."),
        Section("Before the start", pairs({name: number(value) for name, value in preflight.items()})),
        Section("Checkpoints", table(["which", "folder"], places, text_columns=2)),
    ]
    return page(
        "Fine-tuning",
        subtitle=run.name,
        head=facts(cards),
        sections=sections,
        footer="flowpolicy",
    )


def _lines(lines: Sequence[dict[str, Any]], name: str) -> list[Line]:
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [Line(name, [x for x, _ in points], [y for _, y in points], dots=len(points) < 30)] if points else []
