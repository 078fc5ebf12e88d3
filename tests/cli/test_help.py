"""The help of every verb shows examples; that of train names all there is to choose from."""

import re

import pytest

from flowpolicy.cli.main import VERBS, main
from flowpolicy.paths import config_dir


def _help(capsys: pytest.CaptureFixture, *words: str) -> str:
    assert main([*words, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_an_example(capsys: pytest.CaptureFixture, verb: str) -> None:
    assert re.search(rf"^  flowpolicy {verb}", _help(capsys, verb), re.MULTILINE)


@pytest.mark.parametrize("group", ["head", "net", "encoder"])
def test_train_names_every_part_that_can_be_chosen(capsys: pytest.CaptureFixture, group: str) -> None:
    words = set(re.findall(r"\w+", _help(capsys, "train")))
    assert not {file.stem for file in (config_dir() / "policy" / group).glob("*.yaml")} - words


@pytest.mark.parametrize("words", [["train"], ["data", "collect"]])
def test_what_can_be_observed_is_named(capsys: pytest.CaptureFixture, words: list[str]) -> None:
    text = _help(capsys, *words)
    assert "task.view." in text and all(f"task.obs={kind}" in text for kind in ("point_cloud", "rgb"))


@pytest.mark.parametrize("verb", ["collect", "inspect", "validate", "view"])
def test_each_part_of_data_shows_an_example(capsys: pytest.CaptureFixture, verb: str) -> None:
    assert re.search(rf"^  flowpolicy data {verb} (task=\w+ .*)?\S+\.zarr", _help(capsys, "data", verb), re.MULTILINE)


def test_the_protocol_names_every_recipe_of_a_published_comparison(capsys: pytest.CaptureFixture) -> None:
    text = _help(capsys, "protocol")
    recipes = {file.stem.removesuffix("_small") for file in (config_dir() / "experiment").glob("*_metaworld*.yaml")}
    recipes -= {"dm1_metaworld", "rl_metaworld"}  # no published comparison of imitation from clouds
    assert {"mp1_metaworld", "dp3_metaworld", "flowpolicy_metaworld"} <= recipes
    assert not {name for name in recipes if name not in text}
