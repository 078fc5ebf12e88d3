"""The mathematics of flow policies as plain functions on tensors, without global randomness; and where flows start."""
