"""What a ManiSkill task needs before it can be made: the package, its assets, something that draws."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from flowpolicy.extras import how_to_install
from flowpolicy_envs.rendering import maniskill as rendering

_DRAWN = ("PushT-v1",)  # tasks that look into their own pictures' shapes while they are made


@contextlib.contextmanager
def makable(id: str, *, draws: bool) -> Iterator[None]:
    """While a task is made: what draws is there where it is wanted, assets too, and what it cannot is one line.

    Raises as `assets_at_hand`, RuntimeError where nothing can draw, ValueError for a task without absolute joint
    targets, or that ManiSkill cannot make otherwise.

    Args:
        id: The task, by its name in the simulator.
        draws: Whether pictures will be drawn.
    """
    with assets_at_hand(id), rendering.device() if draws or id in _DRAWN else rendering.no_device():
        try:
            yield
        except (AssertionError, AttributeError, LookupError, TypeError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{id}: ManiSkill cannot make it on the CPU with absolute joint targets: {text:.200}; "
                "try another `id`, for example PickCube-v1"
            ) from error


@contextlib.contextmanager
def assets_at_hand(id: str) -> Iterator[None]:
    """While it is made, a task whose objects or robot must be downloaded first says so; ManiSkill would ask on stdin.

    MS_SKIP_ASSET_DOWNLOAD_PROMPT=1 is ManiSkill's own way to answer yes beforehand.

    Args:
        id: The task, by its name in the simulator.

    Raises:
        FileNotFoundError: Naming what is missing, the place it is looked for, and the command that fetches it.
    """
    from mani_skill import ASSET_DIR
    from mani_skill.utils import assets, download_asset
    from mani_skill.utils.registration import REGISTERED_ENVS

    def refuse(message: str) -> bool:  # reached for a robot: "Robot NAME has assets available ..."
        raise _missing(id, [message.split()[1]], Path(ASSET_DIR, "robots"))

    ask = download_asset.prompt_yes_no
    if os.environ.get("MS_SKIP_ASSET_DOWNLOAD_PROMPT") != "1":
        needed: set[str] = set()
        for name in REGISTERED_ENVS[id].asset_download_ids or []:
            group = name in assets.DATA_GROUPS
            needed |= set(assets.expand_data_group_into_individual_data_source_ids(name)) if group else {name}
        if missing := sorted(name for name in needed if not assets.is_data_source_downloaded(name)):
            first = assets.DATA_SOURCES[missing[0]]
            raise _missing(id, missing, Path(first.output_dir, str(first.target_path)))
        download_asset.prompt_yes_no = refuse
    try:
        yield
    finally:
        download_asset.prompt_yes_no = ask


def _missing(id: str, names: list[str], place: Path) -> FileNotFoundError:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return FileNotFoundError(
        f"{id} needs assets that ManiSkill does not bring: {', '.join(names[:3])}{more}, looked for at {place}; "
        f"`python -m mani_skill.utils.download_asset {names[0] if len(names) == 1 else id}` fetches them; without a "
        "network unpack them there, or set MS_ASSET_DIR to the folder whose data/ holds them"
    )


def import_mani_skill() -> list[str]:
    """Import it without the warnings it prints where no Vulkan library is installed. Returns the ids it registered."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mani_skill.envs  # noqa: F401  registers the tasks with gymnasium
            import sapien
            from mani_skill.utils.logging_utils import logger
            from mani_skill.utils.registration import REGISTERED_ENVS
    except ImportError as error:
        raise ImportError(f"ManiSkill is not installed; {how_to_install('maniskill')}") from error
    sapien.set_log_level("error")
    logger.setLevel(logging.ERROR)
    return sorted(REGISTERED_ENVS)
