"""Policies in environments: one vector environment over gymnasium, seeded episodes, videos."""
