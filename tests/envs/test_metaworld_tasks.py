"""The comparison's task list."""

import pytest

from flowpolicy_envs.metaworld_tasks import ADROIT, METAWORLD, difficulty, expand


def test_there_are_34_and_3_tasks_each_once() -> None:
    assert {name: len(ids) for name, ids in METAWORLD.items()} == {"easy": 21, "medium": 4, "hard": 4, "very_hard": 5}
    assert len(set(expand(["all"]))) == 34 and len(ADROIT) == 3


def test_words_stand_for_their_tasks_and_ids_for_themselves() -> None:
    assert expand(["hard", "push-v3", "coffee-pull-v3"]) == [*METAWORLD["hard"], "coffee-pull-v3"]
    assert difficulty("shelf-place-v3") == "very_hard" and difficulty("AdroitHandPen-v1") == "adroit"
    assert difficulty("basketball-v3") == ""


def test_meta_world_has_every_one_of_them() -> None:
    known = pytest.importorskip("metaworld.env_dict").ALL_V3_ENVIRONMENTS
    assert set(expand(["all"])) <= set(known)
