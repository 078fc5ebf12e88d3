"""The mathematics of flow policies as plain functions on tensors: no modules, no global randomness."""
