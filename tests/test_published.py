"""The recipes that say "as published": every setting they compose, against the line of paper or code it comes from."""

from typing import Any, NamedTuple

import pytest

from flowpolicy.cli import config
from flowpolicy.provenance import flat


class Row(NamedTuple):
    """value: what the recipe must hold.   source: where it stands, or why it stands nowhere.

    A source that begins with "ours" has no published counterpart or departs from it and says how; one that begins with
    "no part" is a setting that the recipe's other choices leave without effect.
    """

    value: Any
    source: str


DP3 = "YanjieZe/3D-Diffusion-Policy, diffusion_policy_3d/"
YAML = f"{DP3}config/dp3.yaml: "
TASK = f"{DP3}config/task/metaworld_assembly.yaml: "
MP1 = "LogSSim/MP1 at 929d4dd, MP1/"
DEMOS = "YanjieZe/3D-Diffusion-Policy, third_party/Metaworld/gen_demonstration_expert.py: "
HEAD = f"{MP1}mp1/policy/meanpolicy_dis.py:"
FLOW = "zql-kk/FlowPolicy at ff3b3fe, FlowPolicy/flow_policy_3d/"
OF_MACHINE = "ours: how a run is kept, watched and spread over a machine"
NO_IMAGES = "no part: there are no images"

# The protocol of DP3, whose lines FlowPolicy's flowpolicy.yaml repeats; MP1's departures from it follow below.
COMMON = {
    "seed": Row(0, "scripts of all three: seeds 0, 1, 2 "),
    "dataset.val_episodes": Row(1, f"{TASK}dataset.val_ratio 0.02, at least one of 10 episodes"),
    "dataset.max_outside": Row(0.01, "ours: a check; scripted actions are clipped when they are recorded"),
    "dataset.in_memory": Row("auto", OF_MACHINE),
    "dataset.cache": Row(None, OF_MACHINE),
    "dataset.mask_padding": Row(False, f"{DP3}policy/dp3.py: compute_loss averages over all steps of a window"),
    "normalization.obs": Row("minmax", f"{DP3}dataset/metaworld_dataset.py: get_normalizer, mode limits"),
    "normalization.action": Row("minmax", f"{DP3}dataset/metaworld_dataset.py: get_normalizer, mode limits"),
    "eval.episodes": Row(20, f"{TASK}env_runner.eval_episodes"),
    "eval.start_seed": Row(50000, "ours: theirs are not seeded"),
    "eval.envs": Row(1, OF_MACHINE),
    "eval.sampler": Row(None, "ours: null is the jumps that the head defines, here theirs"),
    "trainer.steps": Row(15000, "MP1's paper: 1,000 epochs on Meta-World (15 batches of 9 episodes with 200 steps)"),
    "trainer.cosine_steps": Row(0, f"{YAML}training.num_epochs, 3,000: the schedule's length; here that of the run"),
    "trainer.batch_size": Row(128, f"{YAML}dataloader.batch_size"),
    "trainer.lr": Row(1e-4, f"{YAML}optimizer.lr"),
    "trainer.warmup_steps": Row(500, f"{YAML}training.lr_warmup_steps"),
    "trainer.betas": Row([0.95, 0.999], f"{YAML}optimizer.betas"),
    "trainer.weight_decay": Row(1e-6, f"{YAML}optimizer.weight_decay"),
    "trainer.grad_clip": Row(1e9, f"{DP3}../train.py: run clips nothing; nor do the others apply max_grad_norm"),
    "trainer.ema_power": Row(0.75, f"{YAML}ema.power"),
    "trainer.ema_max_decay": Row(0.9999, f"{YAML}ema.max_value"),
    "trainer.obs_noise": Row(0.0, f"{DP3}../train.py: run adds none"),
    "trainer.augment.image_shift": Row(0, NO_IMAGES),
    "trainer.augment.image_crop": Row(1.0, NO_IMAGES),
    "trainer.augment.image_color": Row(0.0, NO_IMAGES),
    "trainer.augment.point_jitter_m": Row(0.0, f"{DP3}policy/dp3.py: compute_loss takes clouds as they are"),
    "trainer.augment.point_dropout": Row(0.0, f"{DP3}policy/dp3.py: compute_loss takes clouds as they are"),
    "trainer.augment.train_points": Row(0, f"{DP3}policy/dp3.py: compute_loss takes clouds as they are"),
    "trainer.augment.rotation_deg": Row(0.0, f"{DP3}policy/dp3.py: compute_loss takes clouds as they are"),
    "trainer.augment.rotation_x": Row(0.0, "no part: nothing is rotated"),
    "trainer.augment.rotation_y": Row(0.0, "no part: nothing is rotated"),
    "trainer.log_every": Row(50, OF_MACHINE),
    "trainer.eval_every": Row(3000, f"{YAML}training.rollout_every, 200 epochs"),
    "trainer.checkpoint_every": Row(1000, OF_MACHINE),
    "trainer.keep_best": Row(2, OF_MACHINE),
    "trainer.max_hours": Row(None, OF_MACHINE),
    "trainer.precision": Row("fp32", f"{DP3}../train.py: run has no autocast"),
    "trainer.compile": Row(False, OF_MACHINE),
    "task.obs": Row("point_cloud", f"{TASK}shape_meta"),
    "task.max_episode_steps": Row(200, f"{DP3}env/metaworld/metaworld_wrapper.py: episode_length"),
    "task.action_representation": Row("absolute", f"{DP3}policy/dp3.py: actions are normalised as they are stored"),
    "task.action_horizon": Row(3, f"{YAML}n_action_steps (MP1, FlowPolicy: 4, of which the slice leaves 3)"),
    "task.obs_keys": Row(None, f"{TASK}shape_meta: cloud and agent_pos, all that the task gives"),
    "task.view.image_size": Row(128, NO_IMAGES),
    "task.view.depth_size": Row(128, f"{DP3}env/metaworld/metaworld_wrapper.py: image_size"),
    "task.view.points": Row(512, f"{TASK}shape_meta.obs.point_cloud.shape"),
    "task.view.crop_low": Row([-0.5, 0.3, 0.002], "ours: theirs is (-0.5, -1.5, -0.795) in a frame 130 degrees askew"),
    "task.view.crop_high": Row([0.5, 0.95, 0.35], "ours: theirs is (1, -0.4, 100) there; both leave out the table"),
    "task.view.color": Row(False, f"{YAML}policy.use_pc_color"),
    "task.view.voxel_m": Row(0.0, f"{DP3}env/metaworld/metaworld_wrapper.py: farthest points of the whole cloud"),
    "task.view.renderer": Row("auto", OF_MACHINE),
    "task.expert.hold_steps": Row(200, f"{DEMOS}until the wrapper ends it, after 200 steps"),
    "task.expert.scripts": Row("metaworld", f"{DEMOS}Meta-World's own (of version 2)"),
    "policy.horizon": Row(4, f"{YAML}horizon"),
    "policy.obs_horizon": Row(2, f"{YAML}n_obs_steps"),
    "policy.encoder.point.widths": Row([64, 128, 256], f"{DP3}model/vision/pointnet_extractor.py: block_channel"),
    "policy.encoder.point.feature_dim": Row(64, f"{YAML}policy.encoder_output_dim"),
    "policy.encoder.point.color": Row(False, f"{YAML}policy.use_pc_color"),
    "policy.encoder.point.relative": Row(False, f"{DP3}model/vision/pointnet_extractor.py: coordinates only"),
    "policy.encoder.image.keypoints": Row(32, NO_IMAGES),
    "policy.encoder.image.feature_dim": Row(64, NO_IMAGES),
    "policy.encoder.image.weights": Row(None, NO_IMAGES),
    "policy.encoder.state_widths": Row([64, 64], f"{DP3}model/vision/pointnet_extractor.py: state_mlp_size"),
    "policy.net.dims": Row([512, 1024, 2048], f"{YAML}policy.down_dims"),
    "policy.net.time_dim": Row(128, f"{YAML}policy.diffusion_step_embed_dim"),
    "policy.net.second_time": Row("r", "ours: DP3 and FlowPolicy have no second time; here it is the first once more"),
    "policy.net.kernel_size": Row(5, f"{YAML}policy.kernel_size"),
    "policy.net.groups": Row(8, f"{YAML}policy.n_groups"),
    "policy.net.min_time_frequency": Row(0.01, "as the next: exp(-ln 10000) for each of 100 levels"),
    "policy.net.max_time_frequency": Row(
        100.0, f"{DP3}model/diffusion/conditional_unet1d.py, of 0 to 99; here 1 to 100"
    ),
}
BY_RECIPE = {
    "dp3_metaworld": {
        "eval.num_steps": Row(10, f"{YAML}policy.num_inference_steps"),
        "policy.head.prediction": Row("sample", f"{YAML}policy.noise_scheduler.prediction_type"),
        "policy.head.train_steps": Row(100, f"{YAML}policy.noise_scheduler.num_train_timesteps"),
        "policy.head.spacing": Row("leading", f"{YAML}policy.noise_scheduler: the default of diffusers' DDIMScheduler"),
        "policy.head.loss_power": Row(0.0, f"{DP3}policy/dp3.py: compute_loss, mse_loss"),
        "policy.head.loss_eps": Row(1e-3, "no part: loss_power is 0"),
    },
    "mp1_metaworld": {
        "eval.num_steps": Row(1, f"{HEAD}196-207"),
        "trainer.cosine_steps": Row(45000, f"{MP1}train.py:188 sets 1,005 epochs after a schedule for 3,000 was made"),
        "policy.net.second_time": Row("r", f"{MP1}mp1/model/diffusion/conditional_unet1d_meanflow_dis.py:329-383"),
        "policy.net.min_time_frequency": Row(1e-4, "MP1 feeds t in [0, 1] to the embedding below as it is"),
        "policy.net.max_time_frequency": Row(
            1.0, f"{DP3}model/diffusion/conditional_unet1d.py: the embedding that MP1 shares"
        ),
        "policy.head.objective": Row("meanflow", f"{HEAD}304"),
        "policy.head.parameterization": Row("u", f"{HEAD}196-207: the net's output is the velocity"),
        "policy.head.p_equal": Row(0.5, f"{HEAD}348-366, flow_ratio"),
        "policy.head.p_start": Row(0.0, f"{HEAD}348-366: no share at t = 1"),
        "policy.head.time_law": Row("logit_normal", f"{HEAD}348-366"),
        "policy.head.time_mean": Row(-0.4, f"{HEAD}348-366"),
        "policy.head.time_std": Row(1.0, f"{HEAD}348-366"),
        "policy.head.loss_power": Row(0.5, f"{HEAD}380-395: 1 - gamma, gamma 0.5"),
        "policy.head.loss_eps": Row(1e-3, f"{HEAD}380-395"),
        "policy.head.t_min": Row(0.05, "no part: the net predicts the velocity"),
        "policy.head.derivative": Row("jvp", f"{HEAD}304"),
        "policy.head.direction": Row(None, "OMP's, not MP1's"),
        "policy.head.dispersive.kind": Row("infonce_l2", f"{HEAD}317-346"),
        "policy.head.dispersive.taps": Row(["early", "second"], f"{HEAD}317-346: the first two levels, summed"),
        "policy.head.dispersive.weight": Row(1.0, f"{HEAD}317-346: 0.5 times a sum of two, here 1 times their mean"),
        "policy.head.dispersive.temperature": Row(1.0, f"{HEAD}317-346"),
        "policy.head.dispersive.margin": Row(1.0, "no part: hinge's"),
        "policy.head.dispersive.divide_by": Row("largest", f"{HEAD}341"),
        "policy.head.guidance.omega": Row(2.0, f"{HEAD}133-136"),
        "policy.head.guidance.kappa": Row(-1.0, f"{HEAD}290-298: the conditional net stands in for the null condition"),
        "policy.head.guidance.cond_dropout": Row(0.0, f"{HEAD}132: cfg_ratio is set and never used"),
        "policy.head.guidance.t_start": Row(0.0, f"{HEAD}290-298: at all times"),
        "policy.head.guidance.t_end": Row(1.0, f"{HEAD}290-298: at all times"),
    },
    "flowpolicy_metaworld": {
        "eval.num_steps": Row(1, f"{FLOW}config/flowpolicy.yaml: Conditional_ConsistencyFM.num_inference_step"),
        "policy.net.min_time_frequency": Row(9.9e-3, f"{FLOW}policy/flowpolicy.py:241-355: the net sees 99 t"),
        "policy.net.max_time_frequency": Row(
            99.0, f"{FLOW}policy/flowpolicy.py:241-355: the net sees 99 t, t = 1 - ours"
        ),
        "policy.head.parameterization": Row("u", f"{FLOW}policy/flowpolicy.py:241-355"),
        "policy.head.segments": Row(2, f"{FLOW}config/flowpolicy.yaml: Conditional_ConsistencyFM.num_segments"),
        "policy.head.delta": Row(1e-2, f"{FLOW}config/flowpolicy.yaml: Conditional_ConsistencyFM.delta"),
        "policy.head.eps": Row(1e-2, f"{FLOW}config/flowpolicy.yaml: Conditional_ConsistencyFM.eps"),
        "policy.head.velocity_weight": Row(1e-5, f"{FLOW}config/flowpolicy.yaml: Conditional_ConsistencyFM.alpha"),
        "policy.head.target": Row("gradient", f"{FLOW}policy/flowpolicy.py:241-355; its paper writes an averaged copy"),
        "policy.head.teacher_decay": Row(0.999, "no part: there is no averaged copy"),
        "policy.head.p_start": Row(0.0, f"{FLOW}policy/flowpolicy.py:241-355: t uniform above eps"),
        "policy.head.time_law": Row("uniform", f"{FLOW}policy/flowpolicy.py:241-355: t uniform above eps"),
        "policy.head.time_mean": Row(1.0, "no part: times are uniform"),
        "policy.head.time_std": Row(1.5, "no part: times are uniform"),
        "policy.head.loss_power": Row(0.0, f"{FLOW}policy/flowpolicy.py:241-355: squared errors"),
        "policy.head.loss_eps": Row(1e-3, "no part: loss_power is 0"),
        "policy.head.t_min": Row(0.05, "no part: the net predicts the velocity"),
    },
}
# Names and switches that say where, not what; and copies of task.* that the parts of a task are given.
ELSEWHERE = (
    "out",
    "device",
    "threads",
    "resume",
    "trusted",
    "debug",
    "dataset.path",
    "wandb.",
    "task.name",
    "task.id",
    "task.env.",
)
COPIED = ("policy.action_horizon", "policy.action_representation", "policy.obs_keys", "task.expert.")


@pytest.mark.parametrize("recipe", BY_RECIPE)
def test_every_setting_of_a_published_recipe_has_its_source(recipe: str) -> None:
    composed = config.plain(config.load("train", ["dataset.path=demos.zarr", f"experiment={recipe}"]))
    table = COMMON | BY_RECIPE[recipe]
    found = {
        key: value
        for key, value in flat(composed)
        if not key.startswith(ELSEWHERE) and not key.endswith(("_target_", "_partial_"))
    }
    copies = {key for key in found if key.startswith(COPIED) and key not in table}
    for key in copies:
        name = key.rpartition(".")[2]
        assert found[key] == (composed["task"]["view"] if ".view." in key else composed["task"])[name], key
    settings = {key: value for key, value in found.items() if key not in copies}
    assert settings.keys() == table.keys(), "a setting without a row: say where its number stands, or that it is ours"
    assert settings == {key: row.value for key, row in table.items()}
    assert all(len(row.source) > 8 for row in table.values())


@pytest.mark.parametrize("recipe", BY_RECIPE)
def test_a_published_recipe_builds(recipe: str) -> None:
    """On no memory: 255 million parameters."""
    from torch._subclasses import FakeTensorMode

    from flowpolicy.checkpoint import create_policy
    from tests.catalogue import SEEING

    composed = config.plain(config.load("train", ["dataset.path=demos.zarr", f"experiment={recipe}"]))
    with FakeTensorMode():
        policy = create_policy({**composed["policy"], "obs_keys": ["agent_pos", "point_cloud"]}, SEEING)
    assert 250e6 < policy.num_parameters < 260e6
