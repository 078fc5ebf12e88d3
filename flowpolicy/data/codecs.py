"""What a store's metadata may ask the decoder to do: known compressions of plain numbers, and nothing else.

A codec is named by the store, so by whoever wrote it, and some run code of the store's choosing (`pickle`) or make
Python objects. All metadata is therefore read as JSON and checked here before zarr sees any of it.
"""

import json
import re
from pathlib import Path
from typing import Any

# bytes to bytes or numbers to numbers, and no more; by numcodecs' names
HARMLESS = frozenset(
    {
        "blosc",
        "zstd",
        "zlib",
        "gzip",
        "lz4",
        "lzma",
        "bz2",
        "base64",
        "shuffle",
        "delta",
        "fixedscaleoffset",
        "quantize",
        "bitround",
        "packbits",
        "astype",
        "crc32",
        "crc32c",
        "adler32",
        "fletcher32",
        "jenkins_lookup3",
    }
)
_NUMBER = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|c(?:8|16)|[SU]\d+)|bool|u?int(?:8|16|32|64)|float(?:16|32|64)")
_PLACES = ("", "*/", "*/*/")  # the root, its groups data and meta, and their arrays: nothing deeper is ever opened


def require_harmless(store: Path) -> None:
    """Read every metadata file of the store. Raises ValueError naming the first file that asks for more, or is damaged.

    Files of zarr v3 are refused wherever they lie: their codecs have another registry, and no store of ours has any.

    Args:
        store: Its folder.
    """
    for place in _PLACES:
        for file in sorted(store.glob(f"{place}zarr.json")):
            raise ValueError(f"{file} is metadata of zarr v3; wanted zarr v2 throughout (write it with zarr_format=2)")
        for file in sorted((*store.glob(f"{place}.zgroup"), *store.glob(f"{place}.zattrs"))):
            _record(file)
        for file in sorted(store.glob(f"{place}.zarray")):
            array_metadata(file.parent)
        for file in sorted(store.glob(f"{place}.zmetadata")):
            entries = _record(file).get("metadata")
            if not isinstance(entries, dict):
                raise ValueError(f"{file} is damaged (no record 'metadata'); copy or write the store again")
            for name, meta in entries.items():
                if name.split("/")[-1] in (".zarray", "zarr.json"):
                    _require_harmless_array(meta, f"{file}: {name}")


def array_metadata(folder: Path) -> dict[str, Any]:
    """The checked record .zarray of one array. Raises ValueError naming the file.

    Args:
        folder: Of the array, which holds .zarray.
    """
    file = folder / ".zarray"
    meta = _record(file)
    _require_harmless_array(meta, str(file))
    return meta


def _record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); copy or write the store again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{file} is damaged (wanted a JSON record, got {_short(record)}); copy or write it again")
    return record


def _require_harmless_array(meta: Any, where: str) -> None:
    """Raise ValueError unless `meta` describes numbers under known codecs, with shape and chunks that fit."""
    if not isinstance(meta, dict):
        raise ValueError(f"{where} is damaged (wanted a JSON record, got {_short(meta)}); copy or write it again")
    dtype = meta.get("dtype")
    if not (isinstance(dtype, str) and _NUMBER.fullmatch(dtype)):
        raise ValueError(
            f"{where}: dtype is {_short(dtype)}; wanted numbers, for example '<f4' or '|u1': arrays of Python objects "
            "can run code when they are read, so this store is not opened"
        )
    filters = meta.get("filters")
    codecs = [*(filters if isinstance(filters, list) else [filters]), meta.get("compressor")]
    for codec in codecs:
        if codec is None:
            continue
        name = codec.get("id") if isinstance(codec, dict) else codec
        if not (isinstance(name, str) and name in HARMLESS and isinstance(codec, dict)):
            raise ValueError(
                f"{where}: codec {_short(name)} is not among the known harmless ones ({', '.join(sorted(HARMLESS))}); "
                "some others can run code when they are read, so this store is not opened. If you trust it, rewrite "
                "it without that codec"
            )
        for key, value in codec.items():  # astype and delta name a type to view the bytes as
            if key.endswith("type") and not (isinstance(value, str) and _NUMBER.fullmatch(value)):
                raise ValueError(f"{where}: codec {name}: {key} is {_short(value)}; wanted a type of numbers")
    _require_grid(meta, where)


def _require_grid(meta: dict[str, Any], where: str) -> None:
    grid: list[list[int]] = []
    for name, least in (("shape", 0), ("chunks", 1)):
        sizes = meta.get(name)
        if not isinstance(sizes, list) or not all(type(size) is int and size >= least for size in sizes):
            raise ValueError(f"{where}: {name} is {_short(sizes)}; wanted whole numbers of at least {least}")
        grid.append(sizes)
    if len(grid[0]) != len(grid[1]):
        raise ValueError(f"{where}: shape {grid[0]} and chunks {grid[1]} must have the same length")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
