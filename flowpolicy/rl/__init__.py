"""Reinforcement learning of flow policies: one decision is one chunk."""
