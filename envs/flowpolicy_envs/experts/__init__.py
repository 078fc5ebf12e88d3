"""Where demonstrations come from: one file per simulator with `make_expert(...)`.

An expert has `embodiment`, `episode(seed) -> Episode` and `close()`: the `Expert` of `flowpolicy.data.collect`.
"""
