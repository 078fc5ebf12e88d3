"""The command line: one file per verb, each a config and one library call."""
