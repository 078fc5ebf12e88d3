"""flowpolicy doctor: try every extra and renderer in a process of its own and print the fix for what fails.

  flowpolicy doctor
  flowpolicy doctor only=metaworld
  flowpolicy doctor only=EGL

  only=TEXT   just the checks whose name contains TEXT

A simulator is imported, built and stepped once; a renderer draws one picture.
Exit codes: 0 nothing installed is broken (a missing optional extra or renderer is fine), 1 something is, 2 usage.
"""

from flowpolicy.diagnostics import PROBES, run_probe


def main(argv: list[str]) -> int:
    """Print one line per check; the exit code."""
    options = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if len(options) != len(argv) or set(options) - {"only"}:
        raise ValueError(f"doctor takes only=TEXT, got {' '.join(argv)}")
    chosen = [probe for probe in PROBES if options.get("only", "").lower() in probe.name.lower()]
    if not chosen:
        raise ValueError(f"no check is named like {options['only']!r}; there are: {', '.join(p.name for p in PROBES)}")
    broken = 0
    for probe in chosen:
        finding = run_probe(probe)
        broken += finding.status == "broken"
        print(f"{finding.status:<9}{finding.name:<20}{finding.detail}", flush=True)
        if finding.fix:
            print(f"{'':<29}{finding.fix}", flush=True)
    print(f"{broken} broken" if broken else "nothing installed is broken")
    return 1 if broken else 0
