"""What `flowpolicy data` does with a store that is there: inspect, validate, view, finish, trim."""

from pathlib import Path

from flowpolicy.cli.remedies import speaker


def inspect(argv: list[str]) -> int:
    """Print what is in a store."""
    from flowpolicy.data.inspect import describe_store
    from flowpolicy.data.store import EpisodeStore

    print(describe_store(EpisodeStore.open(_path("inspect", argv))))
    return 0


def validate(argv: list[str]) -> int:
    """Print the findings; 1 where one is an error."""
    from flowpolicy.data.validate import validate_store

    path = _path("validate", argv)
    findings, say = validate_store(path), speaker("data")
    for finding in findings:
        say(f"{finding.severity}: {finding.message}")
    errors = sum(finding.severity == "error" for finding in findings)
    print(f"{errors} errors, {len(findings) - errors} warnings\n{path.absolute()}")
    return 1 if errors else 0


def view(argv: list[str]) -> int:
    """Write the contact sheet."""
    from flowpolicy.data.store import EpisodeStore
    from flowpolicy.report.contact_sheet import MAX_EPISODES, write_contact_sheet

    options = dict(word.split("=", 1) for word in argv if word.startswith(("out=", "episodes=")))
    path = _path("view", [word for word in argv if not word.startswith(("out=", "episodes="))])
    episodes = options.get("episodes", str(MAX_EPISODES))
    if not episodes.isdigit():
        raise ValueError(f"view: episodes must be a whole number, got {episodes!r}")
    out = Path(options["out"]).expanduser() if options.get("out") else path.with_suffix(".html")
    print(write_contact_sheet(EpisodeStore.open(path), out, episodes=int(episodes)))
    return 0


def finish(argv: list[str]) -> int:
    """Make a store of what was accepted."""
    from flowpolicy.data.store import finish_store

    path = _path("finish", [word for word in argv if word != "overwrite=true"])
    print(f"{finish_store(path, overwrite='overwrite=true' in argv)} episodes\n{path.absolute()}")
    return 0


def trim(argv: list[str]) -> int:
    """Write a store again without its idle starts."""
    from flowpolicy.data.store import trim_store

    outs = [word.partition("=")[2] for word in argv if word.startswith("out=")]
    if len(outs) != 1:
        raise ValueError("trim: where to? pass one out=NEW")
    out = Path(outs[0]).expanduser()
    steps, episodes = trim_store(_path("trim", [word for word in argv if not word.startswith("out=")]), out)
    print(f"{steps} idle steps left out at the start of {episodes} episodes\n{out.absolute()}")
    return 0


def _path(verb: str, argv: list[str]) -> Path:
    if len(argv) != 1 or ("=" in argv[0] and not Path(argv[0]).exists()):
        raise ValueError(f"{verb}: wanted one PATH, got {argv}; for example: flowpolicy data {verb} demos.zarr")
    return Path(argv[0]).expanduser()
