"""Files that are mapped into memory to be written to: on a full disk they are an error, and never the end of the process."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardneg.storage.files import atomic_path, mapped_array


def test_it_is_a_file_of_zeros_to_be_written_to(tmp_path: Path) -> None:
    array = mapped_array(tmp_path / "a.npy", (3000, 5), np.int32)
    assert not array.any()
    array[2999] = 7
    array.flush()  # type: ignore[attr-defined]
    assert np.array_equal(np.load(tmp_path / "a.npy")[2999], [7] * 5)
    assert os.stat(tmp_path / "a.npy").st_blocks * 512 >= array.nbytes  # no holes


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_without_a_way_to_take_space_it_is_written(
    code: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any) -> None:
        assert code is not None
        raise OSError(code, os.strerror(code))

    if code is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refused)
    array = mapped_array(tmp_path / "a.npy", (700_000,), np.int64)
    array[-1] = 5
    array.flush()  # type: ignore[attr-defined]
    found = np.load(tmp_path / "a.npy")
    assert found[-1] == 5
    assert not found[:-1].any()
    assert os.stat(tmp_path / "a.npy").st_blocks * 512 >= array.nbytes


def test_a_full_disk_is_named_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left.*big\.npy"), atomic_path(tmp_path / "big.npy") as temporary:
        mapped_array(temporary, (100,), np.int64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="mounting a small disk needs root on Linux"
)
def test_on_a_disk_that_is_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting a small disk is not allowed here: allow it, or run with the right to")
    code = (
        "import numpy as np, pathlib, sys; from hardneg.storage.files import mapped_array\n"
        "try:\n    mapped_array(pathlib.Path(sys.argv[1]), (1 << 20,), np.int64)[:] = 1\n"
        "except OSError as error:\n    sys.exit(error.strerror)\n"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code, disk / "a.npy"], capture_output=True, text=True, check=False)
    finally:
        subprocess.run(["umount", disk], check=True)
    assert (done.returncode, done.stderr.strip()) == (1, "No space left on device")
