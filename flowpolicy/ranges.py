"""Between which bounds each number of the yaml files lies: held against a composed config, before anything runs."""

from collections.abc import Iterator, Mapping
from typing import Any

from flowpolicy.checks import require_number

_COUNT: dict[str, Any] = {"least": 0, "whole": True}
_SOME: dict[str, Any] = {"least": 1, "whole": True}
_SEED: dict[str, Any] = {"least": 0, "most": 2**31 - 1, "whole": True}  # every simulator takes those
_NOT_NEGATIVE, _POSITIVE, _ANY = {"least": 0}, {"above": 0}, {}
_SHARE, _BELOW_1, _PART = {"least": 0, "most": 1}, {"least": 0, "below": 1}, {"above": 0, "most": 1}
_TABLE: tuple[tuple[dict[str, Any], str, str], ...] = (  # bounds, what the keys begin with, the keys
    (_SEED, "", "seed seeds start_seed demonstration_seed eval.start_seed receipt.start_seed"),
    (
        _SOME,
        "",
        "episodes envs workers threads observations repeats max_episodes demonstrations num_steps "
        "eval.num_steps eval.envs rl.total_steps",
    ),
    (_COUNT, "", "warmup video cpus eval.episodes preflight.episodes receipt.episodes dataset.val_episodes"),
    (_POSITIVE, "", "hz tolerance"),
    (_SHARE, "", "margin preflight.min_success dataset.max_outside"),
    ({"above": 0, "below": 1}, "", "alpha"),
    (_ANY, "reward.", "env success"),
    (_SOME, "loop.", "iterations decisions checkpoint_every"),
    (_COUNT, "loop.", "eval_every keep_best"),
    (_NOT_NEGATIVE, "loop.", "max_hours"),
    (_SOME, "actor.", "critic_width critic_depth"),
    (_SOME, "ppo.", "group_size epochs minibatches"),
    (_COUNT, "ppo.", "warmup min_success_episodes"),
    (_SHARE, "ppo.", "gamma lam"),
    (_POSITIVE, "ppo.", "grad_clip"),
    (_ANY, "ppo.", "entropy_weight"),
    (
        _NOT_NEGATIVE,
        "ppo.",
        "clip_low clip_high value_clip huber actor_lr critic_lr final_lr target_kl bc_weight bc_final",
    ),
    (_SOME, "trainer.", "steps batch_size"),
    (_COUNT, "trainer.", "warmup_steps cosine_steps log_every eval_every checkpoint_every keep_best"),
    (_NOT_NEGATIVE, "trainer.", "weight_decay obs_noise max_hours"),
    (_POSITIVE, "trainer.", "lr grad_clip ema_power"),
    (_BELOW_1, "trainer.", "betas ema_max_decay"),
    (_COUNT, "trainer.augment.", "image_shift train_points"),
    (_PART, "trainer.augment.", "image_crop"),
    (_BELOW_1, "trainer.augment.", "image_color point_dropout"),
    (_NOT_NEGATIVE, "trainer.augment.", "point_jitter_m rotation_deg"),
    (_ANY, "trainer.augment.", "rotation_x rotation_y"),
    (_SOME, "task.", "max_episode_steps action_horizon view.image_size view.depth_size view.points"),
    (_COUNT, "task.", "expert.hold_steps"),
    (_NOT_NEGATIVE, "task.", "view.voxel_m expert.noise"),
    (_ANY, "task.", "view.crop_low view.crop_high"),
    (_SOME, "policy.", "horizon obs_horizon action_horizon"),
    (
        _SOME,
        "policy.encoder.",
        "point.widths point.feature_dim image.keypoints image.feature_dim image.width "
        "image.depth image.num_heads state_widths",
    ),
    (_SOME, "policy.net.", "dim depth heads mlp_ratio time_tokens interval_tokens width dims kernel_size groups"),
    ({"least": 4, "whole": True}, "policy.net.", "time_dim"),
    (_POSITIVE, "policy.net.", "min_time_frequency max_time_frequency"),
    (_SHARE, "policy.head.", "consistency_share kappa_end p_start p_equal mse_until guidance.t_start guidance.t_end"),
    (_BELOW_1, "policy.head.", "cond_dropout t_min guidance.cond_dropout"),
    (
        _NOT_NEGATIVE,
        "policy.head.",
        "consistency_weight guidance_weight velocity_weight time_std loss_power loss_eps "
        "delta eps direction.weight dispersive.weight dispersive.margin",
    ),
    (_POSITIVE, "policy.head.", "dispersive.temperature temperatures guidance.omega"),
    ({"above": 0, "below": 1}, "policy.head.", "noise_level"),
    ({"below": 1}, "policy.head.", "guidance.kappa"),
    (_SOME, "policy.head.", "segments train_steps num_samples halvings"),
    (_PART, "policy.head.", "teacher_decay"),
    (_ANY, "policy.head.", "time_mean"),
    (_SHARE, "policy.times.", "p_start"),
    (_NOT_NEGATIVE, "policy.times.", "time_std"),
    (_ANY, "policy.times.", "time_mean"),
    (_NOT_NEGATIVE, "policy.weighting.", "loss_power loss_eps"),
    (_BELOW_1, "sampler.", "tau"),
    (_PART, "sampler.", "time"),
    (_SOME, "exploration.", "num_steps hidden window"),
    (_NOT_NEGATIVE, "exploration.", "std_min std_max noise_level"),
    (_SHARE, "exploration.", "time"),
)
RANGES: dict[str, dict[str, Any]] = {start + key: bounds for bounds, start, keys in _TABLE for key in keys.split()}
"""Dotted key -> bounds as `require_number` takes them; of a list, those of each entry."""
_EXCEPTIONS: dict[str, dict[str, dict[str, Any]]] = {"export": {"episodes": _COUNT}}  # yaml -> what a key means there


def require_ranges(name: str, content: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the key, for a number of the config `name` that is out of its range.

    Args:
        name: "train", "finetune", ….
        content: Plain containers; words, interpolations and keys that the yaml files do not have are no affair of this.
    """
    known = RANGES | _EXCEPTIONS.get(name, {})
    for key, value in _leaves(content, ""):
        if key in known and isinstance(value, int | float) and not isinstance(value, bool):
            require_number(key, value, **known[key])


def _leaves(content: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list):
        for value in content:
            yield from _leaves(value, key)
    else:
        yield key, content
