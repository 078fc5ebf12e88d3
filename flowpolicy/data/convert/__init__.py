"""File formats of demonstrations: one file for each, with `read`, `write` or both; `base` says how they are used."""
