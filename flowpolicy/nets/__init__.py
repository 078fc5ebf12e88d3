"""Networks f(x_t, t, r, cond) -> (B, H, A) that heads read as a velocity or an action."""
