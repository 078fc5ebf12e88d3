"""flowpolicy: one-step flow policies for robots."""

__version__ = "0.1.0"
