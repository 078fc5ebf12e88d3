"""Exploration: stochastic ways to walk from noise to an action chunk, with exact densities."""
