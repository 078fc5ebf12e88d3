"""flowpolicy info: versions, device, processors, extras and renderer libraries; nothing is tried, it takes a second.

  flowpolicy info
  flowpolicy info > machine.txt
  python -m flowpolicy info

No options. `flowpolicy doctor` tries what is listed here.
"""

from flowpolicy.deploy.diagnostics import PROBES, describe_machine, missing


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
    return 0
