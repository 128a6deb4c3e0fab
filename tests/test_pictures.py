"""Pictures: the sources, what is hostile in them, and that they stay what they were from reading to the report."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import hardneg
from hardneg.data.picture import MOST_PIXELS, Picture, decoded
from hardneg.data.readers.files import expand_braces
from hardneg.diagnostics.estimates import Estimate, Measurements
from hardneg.diagnostics.findings.rules import find
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.report.page import write_report
from hardneg.errors import DataError, UsageError
from tests.conftest import run_here

COLORS = ("red", "lime", "blue", "yellow", "black", "white")


def png(color: str, size: int = 8, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), color).save(out, kind)
    return out.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes | tarfile.TarInfo]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(colors: tuple[str, ...] = COLORS) -> list[tuple[str, bytes | tarfile.TarInfo]]:
    out: list[tuple[str, bytes | tarfile.TarInfo]] = []
    for i, color in enumerate(colors):
        out += [(f"{i:03}.png", png(color)), (f"{i:03}.txt", f"a {color} square\nall {color}".encode())]
    return out


def colors_of(pairs: hardneg.Pairs) -> list[tuple[int, ...]]:
    """The color of the first pixel of every document."""
    items = pairs.documents.take(np.arange(len(pairs.document_ids)))
    return [each.decode().getpixel((0, 0)) for each in items if isinstance(each, Picture)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures with a table; each has two captions, and one caption is that of two pictures."""
    place = tmp_path / "squares"
    place.mkdir()
    rows = []
    for color in COLORS:
        (place / f"{color}.png").write_bytes(png(color))
        shared = "without a hue" if color in ("black", "white") else f"all {color}"
        rows.append({"file_name": f"{color}.png", "text": [f"a {color} square", shared], "label": color})
    (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def test_a_folder_with_a_table(folder: Path, tmp_path: Path) -> None:
    pairs = hardneg.read_pairs(folder)
    assert (len(pairs), pairs.document_ids.to_pylist()) == (11, [f"{color}.png" for color in COLORS])
    first = pairs.documents.take(np.array([1]))[0]
    assert first == "lime.png"
    assert isinstance(first, Picture)
    assert first.decode().getpixel((3, 3)) == (0, 255, 0)
    assert pickle.loads(pickle.dumps(first)).sha256 == first.sha256  # noqa: S301 (as workers get it)
    shared = pairs.queries.take(np.arange(11)).index("without a hue")
    assert pairs.positives.take(np.array([shared])).values.tolist() == [4, 5]
    # Two captions of one picture: neither may get the other as a negative.
    turned = hardneg.read_pairs(folder, hardneg.ReadOptions(images="queries"))
    assert (len(turned), turned.query_ids[0].as_py()) == (6, "red.png")
    assert turned.known_positives().lengths.tolist() == [2] * 6
    # The fingerprint is made of what is in the pictures; where they are is not part of it.
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert hardneg.read_pairs(tmp_path / "elsewhere").digests == pairs.digests
    (tmp_path / "elsewhere" / "red.png").write_bytes(png("pink"))
    assert hardneg.read_pairs(tmp_path / "elsewhere").digests["documents"] != pairs.digests["documents"]


def test_captions_beside_pictures_and_folders_of_classes(tmp_path: Path) -> None:
    for color in COLORS:
        place = tmp_path / "beside" / f"{color}.jpg"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(png(color, kind="JPEG"))
        if color != "white":
            place.with_suffix(".txt").write_text(f"\ufeffa {color} square\n\nall {color}\n", "utf-8")
        shade = tmp_path / "classes" / "train" / ("no_hue" if color in ("black", "white") else "hue") / f"{color}.png"
        shade.parent.mkdir(parents=True, exist_ok=True)
        shade.write_bytes(png(color))
    pairs = hardneg.read_pairs(tmp_path / "beside")
    assert (len(pairs), len(pairs.document_ids), pairs.notes["pictures_without_caption"]) == (10, 6, 1)
    assert pairs.queries.take(np.array([0])) == ["a black square"]
    options = hardneg.ReadOptions(caption_template="a square with {}")
    pairs = hardneg.read_pairs(tmp_path / "classes", options)
    assert pairs.queries.take(np.arange(2)) == ["a square with hue", "a square with no hue"]
    assert pairs.document_groups is not None
    assert pairs.document_groups.tolist() == [0, 0, 0, 0, 1, 1]
    with pytest.raises(DataError, match="no split 'test'; it has: train"):
        hardneg.read_pairs(tmp_path / "classes", hardneg.ReadOptions(split="test"))
    with pytest.raises(UsageError, match="must hold {}"):
        hardneg.ReadOptions(caption_template="a square")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_shards(tmp_path: Path, mode: str) -> None:
    suffix = f".tar{mode[1:].replace(':', '.')}"
    whole = samples()
    write_tar(tmp_path / f"s-00{suffix}", whole[:6], mode)
    last: list[tuple[str, bytes | tarfile.TarInfo]] = [
        ("a/x.json", b'{"caption": ["one", "two"], "label": 3}'), ("a/x.jpg", png("red", kind="JPEG")),
        ("a/x.__key__", b"x"), ("only.txt", b"no picture"),
    ]  # fmt: skip
    write_tar(tmp_path / f"s-01{suffix}", whole[6:] + last, mode)
    pairs = hardneg.read_pairs(tmp_path / ("s-{00..01}" + suffix))
    assert pairs.document_ids.to_pylist() == [
        *(f"s-00/{i:03}" for i in range(3)), *(f"s-01/{i:03}" for i in range(3, 6)), "s-01/a/x",
    ]  # fmt: skip
    assert pairs.notes["samples_without_picture"] == 1
    assert colors_of(pairs)[:3] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert pairs.queries.take(np.array([12, 13])) == ["one", "two"]
    assert hardneg.read_pairs(f"{tmp_path}/s-*{suffix}").digests == pairs.digests
    assert hardneg.read_pairs(tmp_path).digests == pairs.digests
    found = run_here("inspect", tmp_path / ("s-{00..01}" + suffix), "--json")
    assert json.loads(found.stdout)["format"] == "webdataset"


def test_what_webdataset_writes_is_read_and_the_other_way_round(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"{tmp_path}/w-%02d.tar", maxcount=4, verbose=0) as sink:
        for i, color in enumerate(COLORS):
            sink.write({"__key__": f"{i:03}", "png": Image.new("RGB", (8, 8), color), "txt": color, "cls": i % 2})
    pairs = hardneg.read_pairs(tmp_path / "w-{00..01}.tar")
    theirs = [
        (row["__key__"], row["txt"], row["png"].convert("RGB").getpixel((0, 0)))
        for row in webdataset.WebDataset(f"{tmp_path}/w-{{00..01}}.tar", shardshuffle=False).decode("pil")
    ]
    ours = zip(
        (id.rpartition("/")[2] for id in pairs.document_ids.to_pylist()), pairs.queries.take(np.arange(6)),
        colors_of(pairs), strict=True,
    )  # fmt: skip
    assert list(ours) == theirs
    assert pairs.document_groups is not None
    assert len(set(pairs.document_groups.tolist())) == 2


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_shard_cut_between_two_members_is_refused(tmp_path: Path, mode: str) -> None:
    path = write_tar(tmp_path / ("s.tar" + mode[1:].replace(":", ".")), samples(), mode)
    plain = gzip.decompress(path.read_bytes()) if mode == "w:gz" else path.read_bytes()
    assert len(hardneg.read_pairs(path).document_ids) == len(COLORS)
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        ends = [member.offset for member in archive.getmembers()][2::2]  # after 1, 2, ... whole samples
    for end in (*ends, archive.offset):
        short = plain[:end]
        path.write_bytes(gzip.compress(short) if mode == "w:gz" else short)
        with pytest.raises(
            DataError, match=rf"s\.tar.* ends after byte {end:,}, between two members.*not completely written"
        ):
            hardneg.read_pairs(path)


def test_image_columns(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    images = [Image.new("RGB", (8, 8), color) for color in COLORS]
    table = datasets.Dataset.from_dict({"image": images, "caption": [[f"a {c}", f"all {c}"] for c in COLORS]})
    table = table.cast_column("image", datasets.Image())
    pairs = hardneg.read_pairs(table)
    assert (len(pairs), len(pairs.document_ids)) == (12, 6)
    table.to_parquet(str(tmp_path / "p.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    for source in (
        tmp_path / "p.parquet",
        tmp_path / "saved",
        {"image": images, "caption": [f"a {c}" for c in COLORS]},
    ):
        again = hardneg.read_pairs(source)
        assert again.digests["documents"] == pairs.digests["documents"], source
        assert colors_of(again) == [image.getpixel((0, 0)) for image in images]
    # Bytes in a table are kept once beside the dataset, also when it is saved to a run from memory.
    run = hardneg.mine(pairs, tmp_path / "run", vectors=vectors_of(pairs), negatives=2, filters=("known",))
    assert colors_of(run.pairs()) == colors_of(pairs)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert colors_of(hardneg.mining.Run(tmp_path / "moved").pairs()) == colors_of(pairs)


def vectors_of(pairs: hardneg.Pairs) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    documents = rng.normal(size=(len(pairs.document_ids), 16)).astype(np.float32)
    return documents[pairs.positives.values[pairs.positives.offsets[:-1]]] + 0.1, documents


def test_columns_of_paths(folder: Path, tmp_path: Path) -> None:
    rows = [{"image_path": f"squares/{color}.png", "caption": color, "id": i} for i, color in enumerate(COLORS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    pairs = hardneg.read_pairs(tmp_path / "rows.parquet")
    assert (pairs.document_ids.to_pylist()[:2], pairs.reading["format"]) == (["0", "1"], "images")
    with pytest.raises(DataError, match=r"has no folder: make it absolute, or give ReadOptions\(image_root="):
        hardneg.read_pairs(rows)
    assert hardneg.read_pairs(rows, hardneg.ReadOptions(image_root=tmp_path)).digests == pairs.digests
    whole = [{**row, "image_path": str(tmp_path / str(row["image_path"]))} for row in rows]
    assert colors_of(hardneg.read_pairs(whole)) == colors_of(pairs), "absolute paths need no folder"
    for wrong in ("/dev/null.png", f"{tmp_path}/missing.png", "/a\0b.png"):
        with pytest.raises(DataError):
            hardneg.read_pairs([{**rows[0], "image_path": wrong}])
    asked = [{"query": "which is red?", "positive": "none of these"}]
    mixed = hardneg.read_pairs(asked, hardneg.ReadOptions(corpus=folder))
    assert [isinstance(each, Picture) for each in mixed.documents.take(np.arange(7))] == [False] + [True] * 6
    with pytest.raises(UsageError, match="are pictures, and the encoder HashedEncoder takes texts"):
        hardneg.mine(mixed, tmp_path / "run")
    with pytest.raises(UsageError, match="reads texts, and the dataset has pictures"):
        hardneg.mine(mixed, tmp_path / "run", vectors=vectors_of(mixed), filters=("cross-encoder:x,max=0",))


@pytest.mark.parametrize("how", ["..", "absolute", "link", "linked folder"])
def test_paths_stay_in_the_folder(folder: Path, tmp_path: Path, how: str) -> None:
    (tmp_path / "secret.png").write_bytes(png("pink"))
    name = {
        "..": "../secret.png",
        "absolute": str(tmp_path / "secret.png"),
        "link": "a.png",
        "linked folder": "up/secret.png",
    }[how]
    if how == "link":
        (folder / "a.png").symlink_to(tmp_path / "secret.png")
    if how == "linked folder":
        (folder / "up").symlink_to(tmp_path)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "a"}) + "\n")
    with pytest.raises(DataError, match=r"metadata.jsonl, line 1: the picture .* is outside of .*--outside-images"):
        hardneg.read_pairs(folder)
    with pytest.raises(DataError, match="is outside of"):
        hardneg.read_pairs(folder, hardneg.ReadOptions(skip_broken=True))
    assert colors_of(hardneg.read_pairs(folder, hardneg.ReadOptions(outside_images=True))) == [(255, 192, 203)]


def huge_png() -> bytes:
    """A PNG of a few bytes that says it has 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


BROKEN: dict[str, tuple[bytes, str]] = {
    "text": (b"this is no picture", "not a picture that can be read"),
    "empty": (b"", "a picture of 0 bytes"),
    "huge": (huge_png(), f"more than {MOST_PIXELS:,}"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture that can be read"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("container", ["folder", "tar", "gz"])
def test_broken_pictures(tmp_path: Path, kind: str, container: str) -> None:
    data, message = BROKEN[kind]
    if container == "folder":
        source = tmp_path / "c"
        for name, content in (("x/bad.jpg", data), ("y/good.png", png("red"))):
            (source / name).parent.mkdir(parents=True)
            (source / name).write_bytes(content)
        place = "bad.jpg"
    else:
        members: list[Any] = [("bad.jpg", data), ("bad.txt", b"x"), ("good.png", png("red")), ("good.txt", b"y")]
        source = write_tar(
            tmp_path / ("s.tar" if container == "tar" else "s.tar.gz"), members, "w" if container == "tar" else "w:gz"
        )
        place = r"s\.tar.*key 'bad' at byte 0"
    with pytest.raises(DataError, match=f"(?s){place}.*{message}"):
        hardneg.read_pairs(source)
    pairs = hardneg.read_pairs(source, hardneg.ReadOptions(skip_broken=True))
    assert (len(pairs.document_ids), pairs.notes["broken_pictures"]) == (1, 1)


def test_a_cut_picture_is_named_when_it_is_decoded(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG")
    place = tmp_path / "c" / "x" / "cut.jpg"
    place.parent.mkdir(parents=True)
    place.write_bytes(out.getvalue()[:900])
    (place.parent / "whole.jpg").write_bytes(out.getvalue())
    pairs = hardneg.read_pairs(tmp_path / "c")
    cut, whole = pairs.documents.take(np.arange(2))
    assert isinstance(cut, Picture)
    assert isinstance(whole, Picture)
    with pytest.raises(DataError, match=r"x/cut.jpg: the picture cannot be decoded .*not completely written"):
        cut.decode()
    assert len(hardneg.read_pairs(tmp_path / "c", hardneg.ReadOptions(skip_broken=True)).document_ids) == 1
    (place.parent / "whole.jpg").write_bytes(out.getvalue()[:-1] + b"x")
    with pytest.raises(DataError, match="not the one that the dataset was read with"):
        whole.decode()
    (place.parent / "whole.jpg").unlink()
    with pytest.raises(DataError, match="does not exist"):
        whole.decode()


def member(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


HOSTILE: dict[str, tuple[list[Any], str]] = {
    "..": ([("../../x.png", png("red"))], "its name leads out of the shard"),
    "absolute": ([("/tmp/x.png", png("red"))], "its name leads out of the shard"),
    "symlink": ([("", member("x.png", tarfile.SYMTYPE))], "it is a link"),
    "hard link": ([("", member("x.png", tarfile.LNKTYPE))], "it is a link"),
    "device": ([("", member("x.png", tarfile.CHRTYPE))], "no regular file"),
    "key again": (
        [*samples()[:2], *samples()[2:4], *samples()[:2]],
        "key '000' at byte [0-9,]+: the key was there before",
    ),
    "field again": ([("a.txt", b"x"), ("a.txt", b"y")], "a field 'txt' twice"),
    "not UTF-8": (
        [("a.png", png("red")), ("a.txt", b"caf\xe9")],
        r"key 'a' at byte 0: the caption is not valid UTF-8 .* at byte 3",
    ),
    "no JSON": ([("a.png", png("red")), ("a.json", b"{")], "the field json is no JSON"),
    "two pictures": ([("a.png", png("red")), ("a.jpg", png("red"))], r"several pictures \(png, jpg\)"),
    "no captions": ([("a.png", png("red"))], "no picture has a caption"),
    "nothing": ([("a.txt", b"x")], "there are no pictures"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_shards(tmp_path: Path, kind: str) -> None:
    members, message = HOSTILE[kind]
    shard = write_tar(tmp_path / "in" / "s.tar", members)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=message):
        hardneg.read_pairs(shard)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_cut_shard(tmp_path: Path, suffix: str) -> None:
    whole = write_tar(tmp_path / f"s{suffix}", samples(), "w" if suffix == ".tar" else "w:gz").read_bytes()
    (tmp_path / f"s{suffix}").write_bytes(whole[: 512 * 11 if suffix == ".tar" else len(whole) // 2])
    with pytest.raises(DataError, match=rf"s{suffix}.*(cut off|not completely written)"):
        hardneg.read_pairs(tmp_path / f"s{suffix}")


def test_pictures_of_all_kinds_are_decoded_alike() -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    for kind in ("PNG", "BMP", "GIF", "TIFF", "WEBP"):
        out = io.BytesIO()
        Image.fromarray(red).save(out, kind, **({"lossless": True} if kind == "WEBP" else {}))
        assert np.asarray(decoded(out.getvalue(), kind)).tolist() == red.tolist(), kind
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(out, "PNG")  # 16 bits a pixel
    assert decoded(out.getvalue(), "x").getpixel((0, 0)) == (128, 128, 128)
    out, turned = io.BytesIO(), Image.new("RGB", (8, 4), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(out, "JPEG", exif=exif)
    assert decoded(out.getvalue(), "x").size == (4, 8)


def test_braces() -> None:
    assert expand_braces("a{0..2}b{x,y}") == ["a0bx", "a0by", "a1bx", "a1by", "a2bx", "a2by"]
    for text in ("{5..2}", "{0..999999}", "{0..99999}{0..9}"):
        with pytest.raises(DataError, match=r"must rise|more than"):
            expand_braces(text)


def test_copies_are_told_by_content(folder: Path, tmp_path: Path) -> None:
    (folder / "again.png").write_bytes(png("red"))
    with open(folder / "metadata.jsonl", "a") as table:
        table.write(json.dumps({"file_name": "again.png", "text": "another one"}) + "\n")
    pairs = hardneg.read_pairs(folder)
    assert pairs.document_keys[0] == pairs.document_keys[6]
    vectors = vectors_of(pairs)
    run = hardneg.mine(pairs, tmp_path / "run", vectors=vectors, negatives=2, filters=("group",))
    assert run.info["counts"]["verdicts"]["duplicate"] > 0
    negatives = {row["query_id"]: row["negative_ids"] for row in run.negatives().to_pylist()}
    assert "red.png" not in negatives[pairs.query_ids[pairs.queries.take(np.arange(12)).index("another one")].as_py()]


def sha(path: Path) -> dict[str, str]:
    return {
        each.relative_to(path).as_posix(): hashlib.sha256(each.read_bytes()).hexdigest()
        for each in sorted(path.rglob("*")) if each.is_file() and each.name != "run.json"
    }  # fmt: skip


def test_the_same_bytes_from_any_container_and_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: Callable[[], Any]
) -> None:
    shard = write_tar(tmp_path / "s.tar.gz", samples(), "w:gz")
    options: dict[str, Any] = {"negatives": 2, "filters": ("known",), "precision": "float32"}
    whole = hardneg.mine(shard, tmp_path / "whole", encoder=clip(), **options)
    assert colors_of(whole.pairs()) == [Image.new("RGB", (1, 1), color).getpixel((0, 0)) for color in COLORS]
    killed = clip()
    encode, calls = killed.encode, []

    def dies(items: Any, *, prompt: str = "") -> Any:
        calls.append(len(items))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(items, prompt=prompt)

    monkeypatch.setattr(killed, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        hardneg.mine(shard, tmp_path / "again", encoder=killed, **options)
    again = hardneg.mine(shard, tmp_path / "again", encoder=clip(), resume=True, **options)
    assert sha(tmp_path / "again") == sha(tmp_path / "whole")
    assert again.info["fingerprints"] == whole.info["fingerprints"]
    write_tar(tmp_path / "plain.tar", samples())
    plain = hardneg.mine(tmp_path / "plain.tar", tmp_path / "plain", encoder=clip(), **options)
    assert plain.negatives().equals(whole.negatives())


def test_a_run_shows_its_pictures(folder: Path, tmp_path: Path, clip: Callable[[], Any]) -> None:
    run = hardneg.mine(folder, tmp_path / "run", encoder=clip(), negatives=2, filters=("group",))
    hardneg.export(run, "triplet", tmp_path / "t.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert {row["positive"] for row in rows} == {f"{color}.png" for color in COLORS}
    found = run.diagnose()
    write_report(found, run, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(COLORS)
    assert "6 pictures are shown" in page
    assert "Open one to see its pictures and texts" in page
    os.remove(folder / "red.png")
    (folder / "blue.png").write_bytes(png("pink"))
    write_report(found, run, tmp_path / "r2.html")
    page = (tmp_path / "r2.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(COLORS) - 2
    assert "2 cannot be read any more" in page


def test_findings_of_pictures_speak_of_pictures(folder: Path, tmp_path: Path, clip: Callable[[], Any]) -> None:
    """And no number is made of their names: no words in common, no BM25, no lengths."""
    run = hardneg.mine(folder, tmp_path / "run", encoder=clip(), negatives=2)
    measured = run.diagnose().measured
    assert measured.numbers["items"] == "pictures"
    assert "copied_equal" in measured.numbers
    assert not {"copied_near", "chunk_overlap", "translations", "bm25_also", "surface_auc"} & set(measured.numbers)
    bad = {"beats_random": 0.5, "near_duplicates": 0.5, "copied_equal": 0.5, "mislabelled": 0.5, "searched_depth": 9}
    bad["hit_rate"] = Estimate(0.1, 0.1, 0.1, 9)
    for items, other in (("pictures", "text"), ("texts", "picture")):
        found = find(Measurements({**bad, "items": items}), Thresholds(), "run")
        said = " ".join(f"{each.text} {each.fix}" for each in found)
        assert {"positives-like-random", "duplicates", "copied", "mislabelled", "positives-lost"} <= {
            f.code for f in found
        }
        assert said.count(items[:-1]) >= 5, said
        assert other not in said, said


def test_an_export_of_pictures_without_files_says_so(
    tmp_path: Path, small_clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their names open nothing; those of a folder do."""
    rows = [{"image": Image.new("RGB", (8, 8), (40 * i, 0, 0)), "caption": f"red of {40 * i}"} for i in range(6)]
    run = hardneg.mine(rows, tmp_path / "run", hardneg.MineOptions(encoder=f"st:{small_clip}", depth=5, negatives=2))
    run.to_dataset("triplet")
    assert [record.message for record in caplog.records if "the export has only their names" in record.message]
