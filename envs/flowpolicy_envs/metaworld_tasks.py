"""The tasks on which DP3, FlowPolicy and MP1 compare: 34 of Meta-World, by difficulty, and 3 of Adroit."""

METAWORLD = {
    "easy": (
        "button-press-v3",
        "button-press-wall-v3",
        "dial-turn-v3",
        "door-close-v3",
        "door-open-v3",
        "door-unlock-v3",
        "drawer-close-v3",
        "faucet-close-v3",
        "faucet-open-v3",
        "handle-press-v3",
        "handle-pull-v3",
        "lever-pull-v3",
        "peg-unplug-side-v3",
        "plate-slide-v3",
        "plate-slide-back-v3",
        "plate-slide-back-side-v3",
        "plate-slide-side-v3",
        "reach-v3",
        "reach-wall-v3",
        "window-close-v3",
        "window-open-v3",
    ),
    "medium": ("coffee-pull-v3", "hammer-v3", "peg-insert-side-v3", "soccer-v3"),
    "hard": ("assembly-v3", "hand-insert-v3", "pick-place-v3", "push-v3"),
    "very_hard": ("disassemble-v3", "pick-place-wall-v3", "shelf-place-v3", "stick-pull-v3", "stick-push-v3"),
}
"""Difficulty (Seo et al. 2023, "Masked World Models for Visual Control") -> task ids; the published ones end in -v2."""

ADROIT = ("AdroitHandHammer-v1", "AdroitHandDoor-v1", "AdroitHandPen-v1")
"""Gymnasium-Robotics' names. No scripted expert exists: their demonstrations come from a file."""


def difficulty(task_id: str) -> str:
    """easy, medium, hard or very_hard; adroit for its three; empty for a task outside the comparison.

    Args:
        task_id: E.g. "push-v3".
    """
    if task_id in ADROIT:
        return "adroit"
    return next((name for name, ids in METAWORLD.items() if task_id in ids), "")


def expand(names: list[str]) -> list[str]:
    """Task ids, each once and in this order: a difficulty stands for its tasks, all for the 34 of Meta-World.

    Args:
        names: Tasks, difficulties, or "all".
    """
    groups = {**METAWORLD, "all": tuple(task for ids in METAWORLD.values() for task in ids)}
    return list(dict.fromkeys(task for name in names for task in groups.get(name, (name,))))
