"""Which yaml file of a group a word chooses; and words that have another name now."""

import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser

from flowpolicy.plugins import groups as every

# (yaml, first part of a key) -> what it is called now
_RENAMED = {("finetune", "sampler"): "how fine-tuning explores is exploration=…, as in exploration=flow_noise"}


def group_choices(name: str, argv: Sequence[str]) -> list[str]:
    """The words of `argv` that choose an option of a group, for the yaml `name`.

    Raises:
        ValueError: For one whose value is no name (for several, `-m` runs each), and for a word that is called
            otherwise now.
    """
    for word in argv:
        if said := _RENAMED.get((name, re.split(r"[=./]", word.lstrip("+~"), maxsplit=1)[0])):
            raise ValueError(f"{word}: {said}")
    groups = [argument for argument in argv if argument.partition("=")[0] in every()]
    for choice in OverridesParser.create().parse_overrides(groups):
        if choice.is_sweep_override():
            raise ValueError(f"{choice.input_line}: one at a time; `flowpolicy train -m` takes several and runs each")
        if not isinstance(choice.value(), str | None):
            raise ValueError(f"{choice.key_or_group} must be the name of one yaml file, got {choice.value()!r}")
    return groups
