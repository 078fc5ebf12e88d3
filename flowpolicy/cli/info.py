"""flowpolicy info: versions, device, processors, extras and renderer libraries; nothing is tried, it takes a second.

  flowpolicy info
  flowpolicy info > machine.txt
  python -m flowpolicy info

No options. `flowpolicy doctor` tries what is listed here. Then what can be chosen, group by group: names of yaml files,
of this library, of --config-dir and FLOWPOLICY_CONFIGS, and of installed plug-ins, with where they come from.
"""

import textwrap
from collections.abc import Iterator
from itertools import groupby

from flowpolicy.diagnostics import PROBES, describe_machine, missing
from flowpolicy.plugins import OURS, formats, groups, options


def main(argv: list[str]) -> int:
    """Print the table."""
    if argv:
        raise ValueError(f"info takes no options, got {' '.join(argv)}")
    for name, value in describe_machine().items():
        print(f"{name:<20}{value}")
    for probe in PROBES:
        if probe.install and not probe.driver:
            absent = missing(probe)
            print(f"{probe.name:<20}{'not installed: ' + probe.install if absent else 'installed'}")
    for label, text in _choices():
        print(textwrap.fill(text, 118, initial_indent=f"{label:<20}", subsequent_indent=" " * 20))
    return 0


def _choices() -> Iterator[tuple[str, str]]:
    """(group, its names and whose they are)."""
    found = {group: options(group) for group in groups()} | {"data convert": formats()}
    for group, names in found.items():
        for origin, items in groupby(names.items(), key=lambda item: item[1].origin):
            yield group, ", ".join(name for name, _ in items) + ("" if origin == OURS else f" ({origin})")
