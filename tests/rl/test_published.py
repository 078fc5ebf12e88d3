"""The recipe after π_RL: its numbers are those of the published code, and its head names every point that differs."""

from pathlib import Path

from flowpolicy.cli import config
from flowpolicy.paths import config_dir
from flowpolicy.trainers.finetune_settings import FinetuneSettings

# RLinf, examples/embodiment/config/maniskill_ppo_openpi.yaml at a3816b59
PUBLISHED = {
    "gamma": 0.99,
    "lam": 0.95,
    "clip_low": 0.2,
    "clip_high": 0.2,
    "value_clip": 0.2,
    "huber": 10.0,
    "epochs": 4,
    "minibatches": 1,
    "actor_lr": 7.91e-6,
    "critic_lr": 1.55e-4,
    "entropy_weight": 0.005,
    "grad_clip": 1.0,
    "target_kl": 0.0,
    "warmup": 0,
    "bc_weight": 0.0,
    "scale_rewards": False,
    "discount": "per_chunk",
}
DIFFERENCES = (
    "policy",
    "log-density",
    "entropy",
    "noise net",
    "reward",
    "bootstrap",
    "critic",
    "optimiser",
    "guard",
    "length",
)


def test_the_recipe_after_pi_rl_has_the_numbers_of_its_code() -> None:
    cfg = config.load("finetune", ["checkpoint=x", "experiment=pi_rl_maniskill"])
    settings = FinetuneSettings.from_dict(config.plain(cfg))
    assert {name: getattr(settings.ppo, name) for name in PUBLISHED} == PUBLISHED
    assert (settings.envs, settings.loop.iterations, 5 * settings.loop.decisions) == (320, 150, 80)
    assert (cfg.exploration.num_steps, cfg.exploration.std_min, cfg.exploration.std_max) == (4, 0.08, 0.16)
    assert settings.actor.rows == "executed"  # their code drops the other rows in every step


def test_the_recipe_after_pi_rl_names_every_difference() -> None:
    """It named one: the bootstrap."""
    lines = Path(config_dir(), "experiment", "pi_rl_maniskill.yaml").read_text().splitlines()
    named = [line[4:17].strip() for line in lines if line.startswith("#   ") and line[4] != " "]
    assert tuple(named) == DIFFERENCES
    head = " ".join(line for line in lines if line.startswith("#"))
    for word in ("token level", "grasp", "starting noise", "weight decay 0.01"):
        assert word in head
