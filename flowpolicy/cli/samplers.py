"""The samplers that the command line names, as in `sampler=heun num_steps=[1,8]`, or that training was checked with."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flowpolicy.cli import config

if TYPE_CHECKING:  # loads torch
    from flowpolicy.checkpoint import Checkpoint
    from flowpolicy.samplers.base import Sampler


def samplers_for(facts: Mapping[str, Any], checkpoint: "Checkpoint") -> "list[Sampler]":
    """One for every sampler and number of steps, in this order; what is not said is as in training.

    Args:
        facts: Of the composed config: sampler, num_steps, trusted; samplers where the verb takes several.
        checkpoint: Whose training said the rest.

    Raises:
        ValueError: For a sampler that is not there, or not in so many steps, and where both keys name one.
    """
    from flowpolicy.samplers.choose import create_sampler

    nodes = [facts.get("sampler") or checkpoint.record.get("sampler") or node_of("jump")]
    if facts.get("samplers"):
        if facts.get("sampler"):
            raise ValueError("sampler=… and samplers=[…] both name samplers; pass one of them")
        nodes = [node_of(word) for word in facts["samplers"]]
    steps = checkpoint.num_steps if facts["num_steps"] is None else facts["num_steps"]
    counts: Sequence[int] = steps if isinstance(steps, list) else [steps]
    return [
        create_sampler({**node, "num_steps": k}, trusted_modules=facts["trusted"]) for node in nodes for k in counts
    ]


def node_of(name: str) -> dict[str, Any]:
    """What configs/sampler/<name>.yaml says. Raises ValueError for one that is not there.

    Args:
        name: Of the file.
    """
    return config.plain(config.load("evaluate", [f"sampler={name}"]).sampler)


def sampler_named(name: str, num_steps: int) -> "Sampler":
    """That of configs/sampler/<name>.yaml, in num_steps.

    Args:
        name: Of the file.
        num_steps: K.
    """
    from flowpolicy.samplers.choose import create_sampler

    return create_sampler({**node_of(name), "num_steps": num_steps})
