"""Renderers that need no screen: for MuJoCo and for ManiSkill."""
