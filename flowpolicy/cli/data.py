"""flowpolicy data: collect, convert, look at and check demonstrations.

  flowpolicy data collect task=… episodes=N out=PATH [seed=0] [workers=1] [overwrite=true]
  flowpolicy data convert SRC DST [format=NAME] [to=NAME] [overwrite=true] [OPTION=VALUE …]
  flowpolicy data inspect PATH
  flowpolicy data validate PATH
  flowpolicy data view PATH [out=FILE] [episodes=20]
  flowpolicy data finish PATH [overwrite=true]
  flowpolicy data trim PATH out=NEW

Examples:
  flowpolicy data collect task=maniskill task.id=PickCube-v1 episodes=100 out=pick.zarr workers=2
  flowpolicy data collect task=metaworld task.id=assembly-v3 task.obs=point_cloud episodes=10 out=assembly.zarr
  flowpolicy data collect task=maniskill task.obs=rgb task.view.image_size=96 episodes=100 out=pick_rgb.zarr workers=2
  flowpolicy data convert theirs.zarr own.zarr format=dp3 robot=franka control_hz=10 action_kind=eef_delta task=pour
  flowpolicy data convert pick.zarr dp3_pick.zarr to=dp3
  flowpolicy data inspect pick.zarr
  flowpolicy data validate pick.zarr
  flowpolicy data view assembly.zarr out=assembly.html episodes=5
  flowpolicy data finish own.zarr

collect runs the task's expert and keeps the successful episodes, actions clipped to the action space.
  task, task.id   the environment and its expert (configs/task)      task.obs=state|point_cloud|rgb   what is recorded
                  your own: task=own task.id=NAME task.expert._target_=my_package.make_expert +task.expert.ARGUMENT=…
                  task.env._target_=my_package.make_env, which the store then names to `train`
  task.view.points, crop_low, crop_high, color, voxel_m, depth_size, image_size   of clouds and pictures
  episodes    successful episodes to keep [100]       out        store to write; must not exist [required]
  seed        first episode's seed; then seed+1, …    workers    processes [1]
  overwrite   replace an existing store, once the new one is complete [false]
  Killed, crashed or interrupted, the same command goes on: what was tried lies in the hidden folder .OUT.journal until
  the store is whole. A seed on which a worker process dies is named and left out.
convert reads one file format and writes another, episode by episode; DST appears whole. Endings tell the formats
  (.zarr: the store of this library), else format= that of SRC and to= that of DST: store, dp3 (diffusion_policy's and
  DP3's zarr), those of installed plug-ins, or a module of your own: format=my_package.my_format.
  Options of dp3: robot control_hz action_kind [task task_id keys action_low action_high], which its files do not say.
inspect prints counts, shapes, episode lengths and statistics per dimension.
validate prints findings: NaN, damaged chunks, frozen or duplicate episodes, clipped actions, wrong shapes, …
finish makes the store of what an EpisodeWriter, or a collect that is not to go on, had accepted when it ended.
trim writes the store again without the steps at the start of its episodes in which nothing moves.
view writes one offline HTML page [PATH with .html]: per episode its outcome, actions, camera frames, turning clouds.
Exit codes: 0 done, 1 validate found an error, 2 bad input.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from flowpolicy import __version__
from flowpolicy.cli import stored
from flowpolicy.cli.convert import convert

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(argv: list[str]) -> int:
    """Run one of them; the exit code."""
    verbs = {
        "collect": _collect,
        "convert": convert,
        "inspect": stored.inspect,
        "validate": stored.validate,
        "view": stored.view,
        "finish": stored.finish,
        "trim": stored.trim,
    }
    if not argv or argv[0] not in verbs:
        raise ValueError(f"wanted one of {', '.join(verbs)}, got {argv[0] if argv else 'nothing'!r}; see --help")
    return verbs[argv[0]](argv[1:])


def _collect(argv: list[str]) -> int:
    from flowpolicy.cli import config
    from flowpolicy.data.store import refuse_existing

    cfg = config.load("collect", argv)
    if cfg.out is None:
        raise ValueError("collect: where to? pass out=PATH, for example out=demos.zarr")
    refuse_existing(Path(cfg.out), overwrite=cfg.overwrite)  # before a simulator starts
    record(cfg.task, Path(cfg.out), episodes=cfg.episodes, seed=cfg.seed, workers=cfg.workers, overwrite=cfg.overwrite)
    return 0


def record(task: "DictConfig", path: Path, *, episodes: int, seed: int, workers: int, overwrite: bool = False) -> None:
    """Collect with the expert of a composed task; print the success rate and the path."""
    from flowpolicy.cli import config
    from flowpolicy.cli.makers import maker
    from flowpolicy.cli.recorded import store_facts
    from flowpolicy.data.collect import collect_episodes

    make = maker(task, "expert")
    attrs = {**store_facts(config.plain(task)), "seed": seed, "flowpolicy_version": __version__}
    report = collect_episodes(
        make,
        path,
        episodes=episodes,
        seed=seed,
        workers=workers,
        attrs=attrs,
        overwrite=overwrite,
    )
    rate = f"expert success rate {report.success_rate:.3f}, {report.seconds:.1f} s"
    crashed = f", {len(report.crashed)} seeds left out after a crash: {report.crashed}" if report.crashed else ""
    print(f"{report.episodes} episodes from {report.attempts} attempts, {rate}{crashed}\n{report.path}")
