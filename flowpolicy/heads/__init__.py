"""Heads: what is the velocity, what is the loss. A new method is one file here and one yaml."""
