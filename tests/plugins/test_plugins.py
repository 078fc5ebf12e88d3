"""Each thing that can be added is one file and one yaml: those of docs/extend/, through --config-dir and as a plug-in.

The package `my_pkg` is what the pages print. It is put on the path as a folder, and then installed as pip would do it:
beside a .dist-info that holds an entry point.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from flowpolicy import plugins
from flowpolicy.checkpoint import create_policy
from flowpolicy.cli import config
from flowpolicy.cli.main import main
from flowpolicy.cli.makers import maker
from flowpolicy.cli.tasks import with_task
from flowpolicy.contracts import require_expert
from flowpolicy.data import EpisodeStore
from flowpolicy.data.convert.base import convert
from flowpolicy.rollout.vector_env import make_vector_env
from flowpolicy.samplers.choose import create_sampler
from tests.docs.pages import ROOT, steps
from tests.helpers import EMBODIMENT, POLICY_CONFIG

pytest.importorskip("gymnasium")

PAGES = sorted((ROOT / "docs" / "extend").glob("*.md"))
PARTS = ["policy/head=huber", "policy/net=conv", "policy/encoder=waves"]
SMALL = ["policy.net.width=16", "policy.net.depth=1", "trainer.steps=2", "trainer.eval_every=2", "eval.episodes=1"]
FLOW = {"_target_": "flowpolicy.heads.flow_matching.FlowMatchingHead", "_partial_": True}
ROLL = ["episodes=1", "envs=1"]
OWN = ["task=own", "task.id=rail", "task.env._target_=my_pkg.cart.make_env", "+task.env.length_m=3.0"]
EXPERT = ["task.expert._target_=my_pkg.cart.make_expert", "+task.expert.length_m=3.0"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, empty; beside it site/, on the path, with the package that the pages print."""
    site, here = tmp_path / "site", tmp_path / "here"
    for page in PAGES:
        for step in steps(page):
            if step.kind == "file" and step.title.startswith("my_pkg/"):
                file = site / step.title
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(step.text)
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(site)
    plugins.installed.cache_clear()
    yield here
    plugins.installed.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_pkg"]:
        del sys.modules[name]


def install(site: Path, package: str = "my_pkg") -> None:
    """What pip leaves of a distribution that declares the package."""
    info = site / "my_plugin-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[flowpolicy.plugins]\nmine = {package}\n")
    plugins.installed.cache_clear()


def flowpolicy(capsys: pytest.CaptureFixture, *words: str, code: int = 0) -> str:
    """Run the command; what it printed."""
    found = main(list(words))
    said = capsys.readouterr()
    assert found == code, said.err
    return said.out + said.err


def test_every_kind_of_part_has_a_page(here: Path) -> None:
    groups = {"policy/head", "policy/net", "policy/encoder", "sampler", "task"}
    assert {file.parent.relative_to(here.parent / "site/my_pkg/configs").as_posix() for file in yamls(here)} >= groups
    assert len(list((here.parent / "site/my_pkg/formats").iterdir())) == 1


def yamls(here: Path) -> list[Path]:
    return sorted((here.parent / "site/my_pkg/configs").rglob("*.yaml"))


def test_a_folder_of_yaml_files_adds_parts_and_a_simulator(here: Path, capsys: pytest.CaptureFixture) -> None:
    configs = ["--config-dir", str(here.parent / "site/my_pkg/configs")]
    flowpolicy(capsys, "data", "collect", *configs, "task=cart", "episodes=2", "out=cart.zarr")
    flowpolicy(capsys, *configs, "train", "dataset.path=cart.zarr", *PARTS, *SMALL, "out=run")
    recorded = json.loads((here / "run/checkpoints/000002/policy/config.json").read_text())
    assert recorded["task"]["env"]["_target_"] == "my_pkg.cart.make_env"
    assert recorded["policy"]["head"]["_target_"] == "my_pkg.huber.HuberHead"
    assert "my_pkg" in flowpolicy(capsys, "evaluate", "checkpoint=run", *ROLL, "out=a", code=2)
    # the folder is needed no more: the checkpoint's config is whole
    flowpolicy(capsys, "evaluate", "checkpoint=run", *ROLL, "out=b", "trusted=[my_pkg]")
    assert json.loads((here / "b/summary.json").read_text())["task"] == "cart"
    # and a run goes on with the words that began it
    words = ["train", "dataset.path=cart.zarr", *PARTS, *SMALL, "out=run", "resume=true", "trainer.steps=3"]
    flowpolicy(capsys, *words, *configs)
    assert (here / "run/checkpoints/000003").is_dir()


def test_an_installed_plugin_needs_no_words_at_all(here: Path, capsys: pytest.CaptureFixture) -> None:
    install(here.parent / "site")
    listed = flowpolicy(capsys, "info")
    assert not [name for name in ("huber", "conv", "waves", "cart", "npz") if f"{name} (my-plugin 0.1)" not in listed]
    assert "my_pkg" not in sys.modules, "looking for plug-ins must not import them"
    flowpolicy(capsys, "data", "collect", "task=cart", "episodes=2", "out=cart.zarr")
    flowpolicy(capsys, "data", "convert", "cart.zarr", "cart_npz")
    flowpolicy(capsys, "data", "convert", "cart_npz", "again.zarr", "only_successes=true")
    assert EpisodeStore.open("again.zarr").content_hash() == EpisodeStore.open("cart.zarr").content_hash()
    flowpolicy(capsys, "train", "dataset.path=again.zarr", *PARTS, *SMALL, "out=run")
    flowpolicy(capsys, "sweep", "checkpoints=[run]", "tasks=[cart/cart]", "episodes=1", "workers=2", "out=swept")


def test_a_sampler_is_trusted_with_the_plugin_that_brings_it(here: Path) -> None:
    node = {"_target_": "my_pkg.midpoint.Midpoint", "num_steps": 2}
    with pytest.raises(ValueError, match=r"trusted_modules=\['my_pkg'\]"):
        create_sampler(node)
    install(here.parent / "site")
    sampler, policy = create_sampler(node), create_policy(POLICY_CONFIG | {"head": FLOW}, EMBODIMENT)
    assert sampler.to_dict() == node and sampler.evaluations == 4
    obs = {key: torch.zeros(1, 2, *spec.shape) for key, spec in EMBODIMENT.obs.items()}
    by_hand = policy.predict(obs, num_steps=4, noise="zero")
    assert policy.predict(obs, sampler=sampler, noise="zero").shape == by_hand.shape


def test_a_simulator_needs_no_yaml_and_is_named_once(here: Path, capsys: pytest.CaptureFixture) -> None:
    flowpolicy(capsys, "data", "collect", *OWN, *EXPERT, "episodes=2", "out=rail.zarr")
    small = ["policy.net.width=16", *SMALL[2:]]
    assert "trusted=[my_pkg]" in flowpolicy(capsys, "train", "dataset.path=rail.zarr", *small, "out=run", code=2)
    flowpolicy(capsys, "train", "dataset.path=rail.zarr", "trusted=[my_pkg]", *small, "out=run")
    recorded = json.loads((here / "run/checkpoints/000002/policy/config.json").read_text())["task"]
    assert recorded["env"] == {"_target_": "my_pkg.cart.make_env", "_partial_": True, "length_m": 3.0}
    patient = ["evaluate", "checkpoint=run", *ROLL, "out=a", "+task.env.max_episode_steps=5"]
    assert "trusted=[my_pkg]" in flowpolicy(capsys, *patient, code=2)
    for words in (
        patient,
        ["compare", "run:1", "run:2", *ROLL, "out=b"],
        ["bench", "checkpoint=run", "task.env.length_m=2.0", "repeats=2", "warmup=1", "observations=2", "out=c"],
        ["finetune", "checkpoint=run", "debug=true", "exploration=renoise", "workers=1", "out=f"],
    ):
        flowpolicy(capsys, *words, "trusted=[my_pkg]")
    (row,) = map(json.loads, (here / "a/results.jsonl").read_text().splitlines())
    assert (row["task"], row["task_id"], row["episode_len"]) == ("own", "rail", 5)
    # named by the words, nothing of the file is used
    flowpolicy(capsys, "bench", "checkpoint=run", *OWN, "repeats=2", "warmup=1", "observations=2", "out=d")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("my_pkg.cart.final", "wanted a function or class that my_pkg itself defines"),
        ("my_pkg.cart.nothing", "which is not there"),
        ("os.system", "pass `trusted_modules=['os']`"),
        ("flowpolicy_envs.toy.final", "wanted a function or class that flowpolicy_envs itself defines"),
        ("${oc.env:HOME}", "must be resolved"),
    ],
)
def test_a_checkpoint_cannot_call_what_nobody_trusts(here: Path, target: str, said: str) -> None:
    own = {"name": "own", "id": "x", "env": {"_target_": target, "_partial_": True}}
    with pytest.raises(ValueError, match=said.replace("[", r"\[")):
        with_task([], own, trusted=["my_pkg"])


@pytest.mark.parametrize("words", [["--config-dir", "none"], ["--config-dir=a.yaml"], ["--config-dir", "empty"]])
def test_a_folder_that_is_none_is_refused(here: Path, capsys: pytest.CaptureFixture, words: list[str]) -> None:
    (here / "empty").mkdir()
    (here / "a.yaml").touch()
    assert "--config-dir: " in flowpolicy(capsys, "info", *words, code=2)


def test_no_yaml_file_takes_the_place_of_another(
    here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, name in (("a", "task/toy"), ("b", "task/mine"), ("c", "task/mine")):
        file = here / folder / f"{name}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text("name: mine\n")
    assert "a/task/toy.yaml has the name of a file of flowpolicy" in flowpolicy(
        capsys, "data", "collect", "--config-dir", "a", "out=x.zarr", code=2
    )
    monkeypatch.setenv(plugins.FOLDERS, "c")
    assert "c/task/mine.yaml has the name of a file of" in flowpolicy(capsys, "info", "--config-dir", "b", code=2)
    assert os.environ[plugins.FOLDERS] == "c"
    assert "mine (c)" in " ".join(flowpolicy(capsys, "info").split()).replace(str(here) + os.sep, "")


@pytest.mark.parametrize("package", ["flowpolicy", "no_such_package", "my_pkg.cart"])
def test_a_plugin_that_names_no_package_of_its_own_is_told(
    here: Path, capsys: pytest.CaptureFixture, package: str
) -> None:
    install(here.parent / "site", package)
    assert "the plug-in my-plugin 0.1: " in flowpolicy(capsys, "info", code=2)


def test_the_working_folder_is_not_searched(here: Path) -> None:
    code = "from flowpolicy.cli.main import main; import sys; sys.path.remove(''); sys.exit(main(sys.argv[1:]))"
    words = ["data", "collect", *OWN, "task.expert._target_=made_here.make", "out=x.zarr"]
    (here / "made_here.py").write_text("raise SystemExit(9)")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "envs")])}
    done = subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "PYTHONPATH=. flowpolicy" in done.stderr


BROKEN = {
    "without embodiment": ("del Cart.embodiment", "without embodiment"),
    "another action": ("Cart.embodiment = replace(EMBODIMENT, action=KeySpec((2,)), **TWO)", "action_space: wanted"),
    "no environment": ("make_env = lambda **given: object()", "wanted a gymnasium.Env"),
    "no success": ("Cart.step = lambda self, action: (self._observe(), 0.0, False, True, {})", r"info\['success'\]"),
    "other results": ("Cart.step = lambda self, action: (self._observe(), 0.0, True, {})", "got 4 results"),
    "other shapes": ("Cart._observe = lambda self: dict.fromkeys(EMBODIMENT.obs, np.zeros(9))", r"'agent_pos': wanted"),
    "no info": ("Cart.reset = lambda self, seed=None, options=None: {'agent_pos': 1}", "reset: wanted .obs, info."),
    "no render": ("def make_env(*, length_m): return None", "unexpected keyword argument 'render'"),
    "no expert": ("Driver.episode = property()", "without episode"),
    "no maker": ("make_env = Cart", "missing a required"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_simulator_that_does_not_fit_says_what_is_missing(here: Path, fault: str) -> None:
    change, said = BROKEN[fault]
    module = here.parent / "site/my_pkg/cart.py"
    two = "from dataclasses import replace\nTWO = {'action_low': (0.0, 0.0), 'action_high': (1.0, 1.0)}\n"
    module.write_text(module.read_text() + f"\n\n{two}{change}\n")
    task = config.load("collect", [*OWN, *EXPERT]).task
    with pytest.raises(ValueError, match=said):
        if fault == "no expert":
            require_expert((make := maker(task, "expert"))(), make)
        env = make_vector_env(maker(task, "env", render=False), 1)
        env.reset([0])
        env.step(torch.zeros(1, 1))


def test_conversions_are_whole_or_not_there(here: Path, capsys: pytest.CaptureFixture) -> None:
    flowpolicy(capsys, "data", "collect", "task=toy", "episodes=2", "out=toy.zarr")
    flowpolicy(capsys, "data", "convert", "toy.zarr", "theirs.zarr", "to=dp3")
    theirs = EpisodeStore.open("theirs.zarr")
    assert theirs.embodiment is None and "state" in theirs.keys
    told = ["format=dp3", "robot=point", "control_hz=10", "action_kind=velocity", "task=toy", "task_id=two-ways"]
    flowpolicy(capsys, "data", "convert", "theirs.zarr", "back.zarr", *told)
    first, back = EpisodeStore.open("toy.zarr"), EpisodeStore.open("back.zarr")
    assert all(np.array_equal(first.load(key), back.load(key)) for key in (*first.obs_keys, "action"))
    for words, said in (
        (["theirs.zarr", "x.zarr"], "format=dp3"),
        (["theirs.zarr", "x.zarr", "format=dp3"], "pass robot="),
        (["theirs.zarr", "x.zarr", *told, "colour=3"], "no option colour"),
        (["theirs.zarr", "x.zarr", *told, "control_hz=x"], "control_hz"),
        (["toy.zarr", "toy.zarr"], "another place"),
        (["toy.zarr", "back.zarr"], "overwrite=true"),
        (["toy.zarr", "x.abc"], "its ending tells no format"),
        (["toy.zarr", "x.zarr", "to=parquet"], "there is no format parquet"),
        (["toy.zarr", "x.zarr", "format=no_such.module"], "PYTHONPATH"),
        (["toy.zarr"], "wanted SRC and DST"),
    ):
        assert said in flowpolicy(capsys, "data", "convert", *words, code=2)
    module = here.parent / "site/my_pkg/formats/npz.py"
    module.write_text(
        f"{module.read_text()}\n\ndef write(path, demonstrations):\n    path.mkdir()\n"
        "    next(iter(demonstrations.episodes))\n    raise OSError('full')\n"
    )
    with pytest.raises(OSError, match="full"):
        convert("toy.zarr", "x_npz", write_as="my_pkg.formats.npz")
    assert {file.name for file in here.iterdir()} == {"toy.zarr", "theirs.zarr", "back.zarr"}
    flowpolicy(capsys, "data", "convert", "toy.zarr", "back.zarr", "overwrite=true")
    assert EpisodeStore.open("back.zarr").content_hash() == first.content_hash()
