"""`flowpolicy data convert`: from one file format to another."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flowpolicy.plugins import formats


def convert(argv: list[str]) -> int:
    """Convert, print how many episodes and where they are."""
    from flowpolicy.data.convert.base import convert

    places = [word for word in argv if "=" not in word or Path(word).expanduser().exists()]
    if len(places) != 2:
        every = ", ".join(formats())
        raise ValueError(f"convert: wanted SRC and DST, got {places}; formats (format=, to=) are {every}")
    words = _values([word for word in argv if word not in places])
    source, target = (Path(place).expanduser() for place in places)
    if words.get("overwrite", False) not in (True, False):
        raise ValueError(f"overwrite must be true or false, got {words['overwrite']!r}")
    episodes = convert(
        source,
        target,
        read_as=words.pop("format", None),
        write_as=words.pop("to", None),
        overwrite=words.pop("overwrite", False),
        settings=words,
    )
    print(f"{episodes} episodes\n{target.absolute()}")
    return 0


def _values(words: list[str]) -> dict[str, Any]:
    """KEY=VALUE as yaml reads the value. Raises ValueError for a key that is no name."""
    if bad := [word for word in words if not word.partition("=")[0].isidentifier()]:
        raise ValueError(f"convert: wanted OPTION=VALUE, got {bad[0]}")
    values = OmegaConf.to_container(OmegaConf.from_dotlist(words))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
