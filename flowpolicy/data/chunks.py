"""The chunk files of one zarr v2 array: what is missing, cut or damaged."""

import itertools
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from flowpolicy.data.codecs import array_metadata

DECODE_ERRORS = (ValueError, RuntimeError, OSError, EOFError, zlib.error)  # what the codecs raise for damaged bytes


def chunk_problems(folder: Path, *, decode: bool = False) -> list[str]:
    """Missing or damaged chunk files of one zarr v2 array, one sentence each.

    zarr reads a missing chunk as zeros without a word, and a cut Blosc buffer may crash the decoder; so both are
    looked for first. decode: also decompress every chunk.

    Args:
        folder: Of the array, which holds .zarray.
        decode: Also decompress every chunk.
    """
    meta = array_metadata(folder)
    grid = [math.ceil(size / chunk) for size, chunk in zip(meta["shape"], meta["chunks"], strict=True)]
    separator = meta.get("dimension_separator", ".")
    array = zarr.open_array(folder, mode="r", zarr_format=2) if decode else None
    wanted = math.prod(meta["chunks"]) * np.dtype(meta["dtype"]).itemsize
    problems = []
    for index in itertools.product(*(range(count) for count in grid)):
        name = separator.join(map(str, index)) or "0"
        file = folder / name
        if not file.is_file():
            problems.append(f"chunk {name} is missing (zarr would read it as {meta.get('fill_value')})")
        elif problem := _size_problem(file, meta, wanted):
            problems.append(f"chunk {name} is truncated: {problem}")
        elif array is not None:
            try:
                array.blocks[index]
            except DECODE_ERRORS as error:
                problems.append(f"chunk {name} is damaged: {error}")
    return problems


def _size_problem(file: Path, meta: dict[str, Any], wanted: int) -> str:
    """Wrong size of one chunk file as far as its name and header tell, or an empty string."""
    size = file.stat().st_size
    compressor = meta.get("compressor")
    if compressor is None and not meta.get("filters"):
        return "" if size == wanted else f"{size} bytes, wanted {wanted}"
    if compressor is not None and compressor["id"] == "blosc":
        with file.open("rb") as stream:
            header = stream.read(16)
        if len(header) < 16:
            return f"{size} bytes are less than a Blosc header"
        raw_size, _, stored = struct.unpack("<4xIII", header)
        if stored != size:
            return f"{size} bytes, its header says {stored}"
        if raw_size != wanted and not meta.get("filters"):
            return f"it holds {raw_size} bytes decompressed, wanted {wanted}"
    return "" if size else "0 bytes"
