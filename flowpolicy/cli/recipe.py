"""Digests of configs: what a run was made with, in a few letters."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest(facts: Mapping[str, Any]) -> str:
    """Of a resolved config or a part of it."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def recipe(facts: Mapping[str, Any]) -> str:
    """Digest of the numbers that `flowpolicy train` trains and evaluates with.

    Args:
        facts: Its config, resolved.
    """
    trainer = {name: value for name, value in facts["trainer"].items() if name != "max_hours"}
    own = {key: facts[key] for key in ("policy", "task", "normalization", "dataset", "eval")}
    return digest(own | {"trainer": trainer})
