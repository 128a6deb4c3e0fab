"""Folders of saved encoders: damaged in every way, on a full disk, replaced as a whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

from hardneg.demo_data.glyph_encoder import GlyphEncoder
from hardneg.encoders.hashed import HashedEncoder
from hardneg.encoders.saved import replaced_folder
from hardneg.errors import RunError, UsageError

from .damage import json_values, mutate, tree

Made = HashedEncoder | GlyphEncoder


def made(kind: str, seed: int = 0) -> Made:
    return HashedEncoder(6, buckets=20, seed=seed) if kind == "hashed" else GlyphEncoder(16, width=4, seed=seed)


def same(a: Made, b: Made) -> bool:
    if isinstance(a, HashedEncoder) and isinstance(b, HashedEncoder) and a.dropout != b.dropout:
        return False
    return a.fingerprint() == b.fingerprint() and (a.encode(["a", "b c"]) == b.encode(["a", "b c"])).all()


@pytest.mark.parametrize("kind", ["hashed", "glyphs"])
def test_a_folder_without_a_checksum_is_of_an_earlier_version_and_read(tmp_path: Path, kind: str) -> None:
    encoder = made(kind)
    encoder.save(tmp_path / "e")
    path = tmp_path / "e" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: v for name, v in config.items() if name not in ("sha256", "checksum")}))
    assert same(type(encoder).load(tmp_path / "e"), encoder)


def test_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    """Same shape, other values: without the checksum this was another encoder under the name of the first."""
    for seed in (0, 1):
        made("hashed", seed).save(tmp_path / str(seed))
    shutil.copy(tmp_path / "1" / "table.npy", tmp_path / "0" / "table.npy")
    with pytest.raises(RunError, match=r"table\.npy is missing, damaged or of another encoder.*save the encoder again"):
        HashedEncoder.load(tmp_path / "0")


@pytest.mark.parametrize("damage", [b"", b"not an array", None])
@pytest.mark.parametrize("old", [False, True])
def test_a_damaged_table_is_refused(tmp_path: Path, damage: bytes | None, old: bool) -> None:
    """None: the file is missing. Old: config.json has no checksum."""
    HashedEncoder(8, buckets=16).save(tmp_path)
    if old:
        config = json.loads((tmp_path / "config.json").read_text())
        config = {name: value for name, value in config.items() if name not in ("sha256", "checksum")}
        (tmp_path / "config.json").write_text(json.dumps(config))
    table = tmp_path / "table.npy"
    table.unlink() if damage is None else table.write_bytes(damage)
    with pytest.raises(RunError, match=r"table\.npy (cannot be read|is missing)"):
        HashedEncoder.load(tmp_path)
    with pytest.raises(UsageError, match="no saved encoder"):
        HashedEncoder.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    "table",
    [
        np.full((17, 8), np.nan, np.float32),
        np.zeros((17, 8), np.int64),
        np.zeros((17, 8), np.complex64),
        np.zeros(17 * 8, np.float32),
        np.zeros((17, 9), np.float32),
    ],
)
def test_old_folders_with_a_wrong_table_are_refused(tmp_path: Path, table: np.ndarray) -> None:
    config = {"kind": "hashed", "dimension": 8, "buckets": 16, "sample": 100, "seed": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    np.save(tmp_path / "table.npy", table, allow_pickle=False)
    with pytest.raises(RunError, match=r"table\.npy"):
        HashedEncoder.load(tmp_path)


def _opened(folder: Path, kind: str) -> Made | None:
    """The encoder in the folder; None if it is refused, by a message that names the folder."""
    try:
        return HashedEncoder.load(folder) if kind == "hashed" else GlyphEncoder.load(folder)
    except (RunError, UsageError) as error:
        said = str(error)
    assert str(folder) in said
    return None


def _fuzz(tmp_path: Path, kind: str, seeds: range) -> None:
    encoder, other = made(kind), made(kind, 1)
    encoder.save(tmp_path / "whole")
    other.save(tmp_path / "other")
    for seed in seeds:
        shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
        mutate(tmp_path / "damaged", np.random.default_rng(seed), tmp_path / "other")
        found = _opened(tmp_path / "damaged", kind)
        assert found is None or same(found, encoder)
        shutil.rmtree(tmp_path / "damaged")


@pytest.mark.parametrize("kind", ["hashed", "glyphs"])
def test_damaged_encoders_are_refused(tmp_path: Path, kind: str) -> None:
    _fuzz(tmp_path, kind, range(60))


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["hashed", "glyphs"])
def test_damaged_encoders_are_refused_many(tmp_path: Path, kind: str) -> None:
    _fuzz(tmp_path, kind, range(60, 3000))


@pytest.mark.parametrize("kind", ["hashed", "glyphs"])
@pytest.mark.parametrize("old", [False, True])
def test_every_entry_of_config_json_is_checked(tmp_path: Path, kind: str, old: bool) -> None:
    """Old folders have no checksum: a number that fits may be another one, but nothing fails with a raw error."""
    encoder = made(kind)
    encoder.save(tmp_path / "e")
    path = tmp_path / "e" / "config.json"
    config = json.loads(path.read_text())
    if old:
        config = {name: value for name, value in config.items() if name not in ("sha256", "checksum")}
    for name in config:
        for text in json_values():
            rest = json.dumps({n: v for n, v in config.items() if n != name})
            path.write_text(f"{rest[:-1]}, {json.dumps(name)}: {text}}}")
            found = _opened(tmp_path / "e", kind)
            assert old or found is None or same(found, encoder)


def _full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _full_safetensors(*args: Any, **kwargs: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("kind", "function", "fails"),
    [
        ("hashed", "hardneg.encoders.hashed.write_array", _full),
        ("hashed", "hardneg.encoders.saved.write_json", _full),
        ("hashed", "hardneg.encoders.saved.os.fsync", _full),
        ("glyphs", "hardneg.demo_data.glyph_encoder.save_file", _full_safetensors),
        ("glyphs", "hardneg.encoders.saved.write_json", _full),
    ],
)
def test_a_full_disk_leaves_the_encoder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, function: str, fails: Callable[..., None]
) -> None:
    before = made(kind)
    before.save(tmp_path / "e")
    files = tree(tmp_path)
    monkeypatch.setattr(function, fails)
    for name in ("e", "new"):
        with pytest.raises(
            RunError, match=rf"{name} cannot be written \(.*No space left on device.*Free space on the disk"
        ):
            made(kind, 1).save(tmp_path / name)
    monkeypatch.undo()
    assert tree(tmp_path) == files
    assert same(type(before).load(tmp_path / "e"), before)


def test_a_folder_is_replaced_and_keeps_what_others_put_there(tmp_path: Path) -> None:
    made("hashed").save(tmp_path / "e")
    (tmp_path / "e" / "notes.txt").write_text("mine")
    (tmp_path / "e" / "more").mkdir()
    (tmp_path / "e" / "more" / "a").write_text("a")
    made("hashed", 1).save(tmp_path / "e")
    assert same(HashedEncoder.load(tmp_path / "e"), made("hashed", 1))
    assert set(tree(tmp_path)) == {f"e/{name}" for name in ("config.json", "table.npy", "notes.txt", "more/a")}
    with replaced_folder(tmp_path / "e", keep_others=False) as new:
        made("hashed").save(new)
    assert set(tree(tmp_path)) == {"e/config.json", "e/table.npy"}


def test_killed_between_the_two_renames_the_old_encoder_is_found(tmp_path: Path) -> None:
    made("hashed").save(tmp_path / "e")
    os.rename(tmp_path / "e", tmp_path / ".e.hardneg-old")
    assert same(HashedEncoder.load(tmp_path / "e"), made("hashed"))


def test_a_mount_point_is_written_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made("hashed").save(tmp_path / "e")
    monkeypatch.setattr("hardneg.encoders.saved.os.path.ismount", lambda path: True)
    made("hashed", 1).save(tmp_path / "e")
    monkeypatch.undo()
    assert same(HashedEncoder.load(tmp_path / "e"), made("hashed", 1))
    assert set(tree(tmp_path)) == {"e/config.json", "e/table.npy"}
