"""`python -m flowpolicy VERB ...` is the same as `flowpolicy VERB ...`."""

from flowpolicy.cli.main import entry

entry()
