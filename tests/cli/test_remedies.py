"""What the library says in Python, as `flowpolicy VERB` prints it."""

import warnings

import pytest

from flowpolicy.cli.main import main
from flowpolicy.cli.remedies import on_the_command_line, warnings_said_for


@pytest.mark.parametrize(
    ("verb", "python", "typed"),
    [
        ("train", "raise `batch_size`", "raise trainer.batch_size"),
        ("train", "`eval_every=4` or `max_hours=None`", "trainer.eval_every=4 or trainer.max_hours=null"),
        ("train", "choose another `out=`", "choose another out="),
        ("train", "`resume=True` goes on", "resume=true goes on"),
        ("train", "pass `in_memory='auto'`, or `cache=FOLDER`", "pass dataset.in_memory=auto, or dataset.cache=FOLDER"),
        ("train", "take a `check.start_seed`", "take a eval.start_seed"),
        ("train", "`encoder='point_cloud'`, `ResidualMLP`", "policy/encoder=point_cloud, policy/net=mlp"),
        ("train", "`obs='rgb'` `image_size=96`", "task.obs=rgb task.view.image_size=96"),
        ("train", "`crop_low=(-0.5, 0.3, 0)`", "'task.view.crop_low=[-0.5,0.3,0]'"),
        ("train", "the group (`times`)", "the group (policy/times)"),
        ("finetune", "lower `actor_lr`, `num_steps`", "lower ppo.actor_lr, exploration.num_steps"),
        ("finetune", "`success` or `env`", "reward.success or reward.env"),
        ("finetune", "`preflight_episodes=0`, `receipt_seed=7`", "preflight.episodes=0, receipt.start_seed=7"),
        ("finetune", "use `FlowNoise`", "use exploration=flow_noise"),
        ("finetune", "`parameterization='u'`", "policy.head.parameterization=u"),  # of train, which made the policy
        ("finetune", "pass `trusted_modules=['mine']`", "pass 'trusted=[mine]'"),
        ("compare", "pass `task=...` `id=...` or `names=[...]`", "pass task=… task.id=… or names=[…]"),
        ("data", "`overwrite=True`, `workers=1`", "overwrite=true, workers=1"),
        ("data", "`trim_store('a b.zarr', out=NEW)`", "`flowpolicy data trim 'a b.zarr' out=NEW`"),
        ("evaluate", "look with `validate_store('a.zarr')`", "look with `flowpolicy data validate a.zarr`"),
        ("finetune", "`episodes=3`", "`episodes=3`"),  # which of three?
        ("train", "`add_record(path)`, `no_such=True`, `a b`", "`add_record(path)`, `no_such=True`, `a b`"),
        ("info", "`1 +`", "`1 +`"),
    ],
)
def test_code_becomes_what_one_types_and_what_nothing_stands_for_stays(verb: str, python: str, typed: str) -> None:
    assert on_the_command_line(python, verb) == typed


def test_warnings_are_said_so_too_and_only_while_the_verb_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: shown.append(str(message)))
    warnings.simplefilter("always")
    with warnings_said_for("finetune"):
        warnings.warn("lower `actor_lr`", stacklevel=1)
    warnings.warn("lower `critic_lr`", stacklevel=1)
    assert shown == ["lower ppo.actor_lr", "lower `critic_lr`"]


def test_a_verb_prints_the_command_line_of_an_error_that_the_library_raised(
    capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.zarr").mkdir()
    assert main(["data", "collect", "task=toy", "out=there.zarr"]) == 2
    assert "pass overwrite=true" in capsys.readouterr().err
