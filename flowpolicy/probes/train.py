"""Whether zarr stores an array and numba compiles a function."""


def main() -> None:
    """Raise whatever goes wrong."""
    import gymnasium  # noqa: F401
    import numba
    import numpy
    import zarr

    zarr.create_array({}, shape=(4,), dtype="f4", zarr_format=2)[:] = numpy.arange(4)
    assert numba.njit(lambda n: n + 1)(1) == 2


if __name__ == "__main__":
    main()
