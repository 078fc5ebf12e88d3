"""Both images, built from their own files and tried, where root, buildah and mmdebstrap are: see scripts/images."""

import os
import shutil
import subprocess

import pytest

from tests.test_architecture import ROOT


@pytest.mark.slow  # half an hour on 2 shared cores
def test_both_images_build_and_work():
    absent = [tool for tool in ("buildah", "mmdebstrap") if shutil.which(tool) is None]
    if os.getuid() or absent:
        pytest.skip(f"needs root and {' and '.join(absent) or 'a chroot'}; scripts/images says how to get them")
    done = subprocess.run([ROOT / "scripts" / "images"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.endswith("to try: passed")]
    assert rows == ["train", "robot"]
