"""Terms that heads add to their loss: dispersion, direction, guidance."""
