"""What makes a simulator or an expert: built from its node of a composed config, and looked at before it is called."""

from collections.abc import Callable
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig

from flowpolicy.cli import config
from flowpolicy.cli.failures import one_line
from flowpolicy.contracts import require_maker
from flowpolicy.plugins import how_to_import


def maker(task: DictConfig, part: str, **given: Any) -> Callable[..., Any]:
    """The function that `task.env` or `task.expert` names, with its arguments.

    Args:
        task: The composed node.
        part: "env" or "expert".
        given: Keyword arguments that it is called with later.

    Raises:
        ValueError: Where there is none, it cannot be imported, or it does not take its arguments.
    """
    node = task.get(part)
    if not node or node.get("_target_") is None:
        what = "simulator" if part == "env" else "expert"
        raise ValueError(
            f"task={task.name} has no {what} (task.{part}); pass another task=… task.id=…, or "
            f"task.{part}._target_=my_package.make_{part}"
        )
    target = str(node._target_)
    try:
        made = config.instantiate(node)
    except InstantiationException as error:
        raise ValueError(f"task.{part}._target_={target}: {one_line(error)}{how_to_import(target)}") from error
    require_maker(made, f"task.{part}", **given)
    return made
