"""Which files were written together: SHA-256 of each, kept in one of them, so that a change by hand is noticed.

No signature: it finds damage and edits, not malice. JSON counts by what it says, in its order, not by its layout.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

ENTRY = "fingerprint"  # of the record that keeps it


def fingerprint(record: Mapping[str, Any], file: Path, others: Iterable[Path]) -> dict[str, str]:
    """File name -> SHA-256 of `record`, which is or will be `file`, without its own fingerprint, and of `others`.

    Args:
        record: What `file` holds.
        file: The record's own file.
        others: Files whose content counts too.
    """
    own = _content_hash({name: value for name, value in record.items() if name != ENTRY})
    return {file.name: own} | {other.name: _file_hash(other) for other in others}


def require_unedited(record: Mapping[str, Any], file: Path, needed: Collection[str], *, edited: bool) -> None:
    """Raise ValueError naming the files beside `file`, itself included, that are not as `record` says they were saved.

    Args:
        record: Content of `file`. One from before there were fingerprints says nothing, and passes.
        file: The file of the record.
        needed: Names without which a fingerprint covers too little.
        edited: The reader knows, and nothing is compared.

    Raises:
        FileNotFoundError: For one that is missing.
    """
    if edited or ENTRY not in record:
        return
    saved = record[ENTRY]
    if not isinstance(saved, dict) or any(Path(name).name != name for name in saved) or not set(needed) <= set(saved):
        raise ValueError(
            f"{file}: {ENTRY}: wanted file name -> SHA-256 of {', '.join(needed)}, got {str(saved)[:60]}; "
            "take another copy"
        )
    if missing := [name for name in saved if not (file.parent / name).is_file()]:
        raise FileNotFoundError(f"{file.parent}: {', '.join(missing)} is missing; take another copy of all its files")
    now = fingerprint(record, file, [file.parent / name for name in saved if name != file.name])
    if changed := [name for name in saved if now[name] != saved[name]]:
        raise ValueError(
            f"{file.parent}: {', '.join(changed)} {'is' if len(changed) == 1 else 'are'} not as saved: edited by hand, "
            "damaged, or of another copy; take another copy, or pass `edited=True` if you did it"
        )


def _content_hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    if path.suffix == ".json":
        try:
            return _content_hash(json.loads(path.read_text()))
        except ValueError:  # damaged; whoever reads it says how
            pass
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
