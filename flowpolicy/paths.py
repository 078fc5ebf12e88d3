"""Where the yaml files are: beside the package in a checkout, inside it when installed from a wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def config_dir() -> Path:
    """Absolute path of the folder with train.yaml, evaluate.yaml and the config groups.

    The copy inside the package wins: next to an installed package, a folder named configs is somebody else's.

    Raises:
        FileNotFoundError: Naming both places when neither holds train.yaml.
    """
    places = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    for place in places:
        if (place / "train.yaml").is_file():
            return place
    raise FileNotFoundError(
        f"config_dir: wanted a folder with train.yaml, found none at {places[0]} or {places[1]}; reinstall flowpolicy"
    )
