"""Hydra on our yaml files, inside a program that may have one of its own; and the jobs of `-m`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathElement
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from flowpolicy.cli.words import path_words
from flowpolicy.paths import config_dir
from flowpolicy.plugins import Configs, config_sources


def expand(argv: list[str]) -> list[list[str]]:
    """The jobs of `-m` / `--multirun`: every combination of comma-separated values; without the flag one job."""
    flags = [argument for argument in argv if argument in ("-m", "--multirun")]
    overrides = [argument for argument in argv if argument not in flags]
    if not flags:
        return [overrides]
    with own_hydra() as loader:  # which knows what glob(...) may find
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(path_words(overrides, sweep=True))
        return [list(job) for job in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]]


@contextmanager
def own_hydra() -> Iterator[ConfigLoader]:
    """Hydra on our yaml files while the block runs; that of a program around this one is put back after."""
    whole = GlobalHydra.instance()
    others, whole.hydra = whole.hydra, None
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            if added := config_sources()[1:]:
                _search(added)
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = others


def _search(added: Sequence[Configs]) -> None:
    """Let Hydra look there too, behind ours."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    path = hydra.config_loader.get_search_path()
    for source in added:
        path.get_path().insert(-1, SearchPathElement(source.origin, str(source.folder)))  # its schemas stay the last
    hydra.config_loader = ConfigLoaderImpl(path)
