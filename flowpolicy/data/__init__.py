"""Demonstrations: the episode store on disk, the in-RAM dataset of windows, and the checks on both."""
