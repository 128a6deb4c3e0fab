"""The folder of a run: what it may hold, how it is recognized, and how a new run takes its place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from hardneg import renamed
from hardneg.encoders.precomputed import vector_files, vectors_digest
from hardneg.errors import RUN_DAMAGED, DataError, RunError
from hardneg.storage.arrow import check_regular
from hardneg.storage.files import remove_temporary_files, sha256_file
from hardneg.storage.folders import entries, marker, output_folder, recover, remove_folder, staging
from hardneg.storage.json_files import MAX_BYTES, decode_json, read_json
from hardneg.storage.outputs import OWN_FILES
from hardneg.storage.remote import copy_of, fetch, holds_copies, is_url, refuse_url

SCHEMA_VERSION = 2  # of run.json; 1 had no checksum of its own
WITH_SOURCES = 3  # that of runs whose candidates come from several sources, and have columns for each

VOLATILE = ("timings", "command", "environment")  # the entries of run.json that differ from run to run

_REPLACES = ".hardneg-replaces"  # in a run that is to replace another one: the hash of that one's run.json

KNOWN = (*OWN_FILES["run"], "posterior.json")  # the last one is there by the user's own choice

_GIVEN = "given"  # the folder of copies of vectors at URLs

FETCHED = Path("progress", "fetched")  # copies of what is at URLs, until the dataset is read
_LASTING = ("run.json", "embeddings", "candidates")  # what took long to make

Count = Annotated[int, Meta(ge=0)]


class CountsInfo(TypedDict):
    """The counts of a part or of a run, see `Counts`."""

    queries: Count
    candidates: Count
    widened: Count
    without_positives: Count
    verdicts: dict[str, Count]
    negatives: dict[Annotated[str, Meta(pattern="^[0-9]{1,9}$")], Count]
    sources: NotRequired[dict[str, Count]]


class PartInfo(TypedDict):
    """The record of a finished part."""

    start: Count
    stop: Count
    files: dict[str, str]
    counts: CountsInfo


class _Config(TypedDict):
    """The options of a run that later commands use."""

    encoder: str
    query_embeddings: str | None
    corpus_embeddings: str | None
    metric: str
    precision: str
    negatives: Annotated[int, Meta(ge=1, le=1 << 31)]
    filters: list[str]
    default_filters: bool
    sampler: str
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
    query_prompt: str | None
    document_prompt: str | None
    read: dict[str, Any]
    candidates: NotRequired[list[str]]
    fusion: NotRequired[str]


class _Recall(TypedDict):
    measured: float
    k: Count
    queries: Count


class _Resolved(TypedDict):
    depth: Annotated[int, Meta(ge=1, le=1 << 31)]
    max_depth: Annotated[int, Meta(ge=1, le=1 << 31)]
    index: str
    dimension: Count
    recall: _Recall
    encoder: NotRequired[dict[str, Any] | None]
    sources: NotRequired[dict[Annotated[str, Meta(pattern="^[a-z][a-z0-9_-]{0,39}$")], str]]
    fusion: NotRequired[str]


class RunInfo(TypedDict):
    """What later commands use of `run.json`."""

    schema_version: int
    command: list[str] | None
    config: _Config
    resolved: _Resolved
    fingerprints: dict[str, str | None]
    counts: CountsInfo
    scores: dict[str, dict[str, float] | None]
    files: dict[str, str]
    warnings: list[str]
    timings: dict[str, float]
    environment: dict[str, Any]
    selections: list[dict[str, Any]]
    paths: NotRequired[dict[str, str]]
    reading: NotRequired[dict[str, Any]]
    hardneg_version: NotRequired[str]
    relabelled: NotRequired[dict[str, int]]


def read_run_json(folder: Path) -> dict[str, Any]:
    """The content of `run.json`; RunError if it is missing, damaged or of another version."""
    path = folder / "run.json"
    value = decode_json(path, RUN_DAMAGED)
    if value.get("schema_version") not in (1, SCHEMA_VERSION, WITH_SOURCES):
        raise RunError(
            f"{path} has schema version {value.get('schema_version')!r}, but this version of hardneg reads 1 to "
            f"{WITH_SOURCES}: mine again, or use the version of hardneg that wrote it"
        )
    remedy = "the run is damaged, or was written by an older version: mine again"
    info = read_json(path, RunInfo, checksum=value["schema_version"] > 1, volatile=VOLATILE, remedy=remedy)
    verdicts = info["counts"]["verdicts"]
    info["counts"]["verdicts"] = {renamed.verdict(name): count for name, count in verdicts.items()}
    return info


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not.

    Our marker says so. Runs of version 0.2 and older have none; they are recognized by what their JSON files hold.
    """
    if marker(folder, "run").exists():
        return True
    return any(
        _holds(folder / name, keys)
        for name, keys in (
            ("run.json", ("schema_version", "config", "files")),
            ("progress/config.json", ("encoder", "filters", "sampler")),
        )
    )


def _holds(path: Path, keys: tuple[str, ...]) -> bool:
    try:
        return set(keys) <= set(decode_json(path))
    except RunError:
        return False


@contextmanager
def run_output(
    target: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    config: Mapping[str, Any] | None = None,
    purpose: str = "new",
    resumable: bool = True,
) -> Iterator[Path]:
    """Lock the folder of a run, and give the folder to write the run to.

    If a run is replaced, that folder is beside `target`, and takes its place if the block ends without an error. If the
    block fails before anything lasting is written, or cannot be resumed, what it wrote is removed.

    Args:
        target: the run folder.
        resume: continue a run in `target`, or one that was interrupted before it could replace the one in `target`.
        overwrite: replace the run in `target`.
        config: the options of the run to resume.
        purpose: a word for the name of the folder beside `target`.
        resumable: whether `resume` can go on with what a block wrote that failed.

    Raises:
        RunError: `target` holds a run and neither `resume` nor `overwrite` is set, or it holds something else; or
            another process writes to it.
    """
    refuse_url(target, "a run")
    recover(target)
    _to_be_replaced(
        target, resume, overwrite, config is not None
    )  # before anything is made in a folder that is not ours
    beside = staging(Path(os.path.realpath(target)))
    pending = resume and _started(beside, config) and not _started(target, config)
    if pending:
        _check_replaced(beside, target)
    replace = (overwrite and bool(entries(target))) or pending
    with output_folder(
        target,
        "run",
        replace=replace,
        known=KNOWN,
        purpose=purpose,
        restart=not pending,
    ) as folder:
        if not pending:
            _to_be_replaced(target, resume, overwrite, config is not None)  # again, now that nobody else can change it
            if replace:
                (folder / _REPLACES).write_text(_hash_of_run(target))
            elif not resume:
                remove_folder(beside)  # of a run that was there before
        remove_temporary_files(folder)
        try:
            yield folder
            (folder / _REPLACES).unlink(missing_ok=True)
        except Exception:
            if not resume and not (resumable and _lasting(folder)):
                remove_folder(folder)
            raise


def _lasting(folder: Path) -> bool:
    """Whether a folder holds what a resumed run goes on with."""
    return any((folder / name).exists() for name in _LASTING) or holds_copies(folder / FETCHED)


def _hash_of_run(folder: Path) -> str:
    """The SHA-256 of `run.json`; "" for an unfinished run."""
    path = folder / "run.json"
    return sha256_file(path) if path.is_file() else ""


def _check_replaced(beside: Path, target: Path) -> None:
    """RunError if an interrupted run was to replace another run than the one that is in `target` now."""
    path = beside / _REPLACES
    if path.is_file() and path.read_text("utf-8", errors="replace")[:64] != _hash_of_run(target):
        raise RunError(
            f"{target} is not the run that the interrupted one in {beside} was to replace: to keep {target}, remove "
            f"{beside}; to replace it, use --overwrite"
        )


def _to_be_replaced(target: Path, resume: bool, overwrite: bool, resumable: bool) -> None:
    """RunError if `target` may not be written to. `resumable`: whether the command could continue a run there."""
    if target.exists() and not target.is_dir():
        raise RunError(f"{target} is a file: --out takes a folder")
    if not entries(target):
        return
    if not is_run(target):
        raise RunError(f"{target} exists, is not empty and is no hardneg run: choose another --out")
    if not (resume or overwrite):
        finished = (target / "run.json").exists()
        go_on = "go on with --resume, " if resumable and not finished else ""
        raise RunError(
            f"{target} holds {'a finished' if finished else 'an unfinished'} run: {go_on}replace it with --overwrite, or "
            f"choose another --out"
        )


def _started(folder: Path, config: Mapping[str, Any] | None) -> bool:
    """Whether the folder holds a run with these options, finished or not."""
    for path in (folder / "progress" / "config.json", folder / "run.json"):
        try:
            found = decode_json(path)
        except RunError:
            continue
        options = found.get("config") if path.name == "run.json" else found
        return isinstance(options, dict) and not changed_options(options, config or {})
    return False


def changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of the options that differ. Paths of files do not count: their contents are compared elsewhere."""
    before, now = renamed.with_new_filters(dict(before)), renamed.with_new_filters(dict(now))
    for name in ("query_prompt", "document_prompt"):
        if before.get(name) == "" and now.get(name) is None:
            before[name] = (
                None  # version 0.1 wrote "" where nothing was asked for; the vectors' hashes know the prompts
            )
    if str(now.get("encoder")).startswith("object:") and before.get("encoder") == "hashed":
        before["encoder"] = now[
            "encoder"
        ]  # what version 0.2 wrote for an object; the hash of its weights is compared elsewhere
    names = [name for name in {**now, **before} if name != "checksum"]
    return [name for name in names if _content(name, before.get(name)) != _content(name, now.get(name))]


def _content(name: str, value: Any) -> Any:
    """The value of an option without the paths in it, and with the names of today."""
    if name in ("query_embeddings", "corpus_embeddings"):
        return value is not None
    if name == "read" and isinstance(value, dict):
        return {**value, "corpus": value.get("corpus") is not None}
    if name == "filters" and isinstance(value, list | tuple):
        return [_without_path(str(spec)) for spec in value]
    if name == "candidates" and isinstance(value, list | tuple):
        return [_without_file(str(spec)) for spec in value]
    return value


def _without_path(spec: str) -> str:
    """The spec of a filter without the file of its posterior."""
    kind, _, rest = spec.partition(":")
    if kind != "posterior" or rest.startswith("learned"):
        return spec
    return ",".join([kind, *(part for part in rest.split(",") if part.startswith("threshold="))])


def _without_file(spec: str) -> str:
    """The spec of candidates without the file of a TREC run."""
    kind, _, rest = spec.partition(":")
    return (
        spec if kind != "trec" else ",".join([kind, *(part for part in rest.split(",") if part.startswith("label="))])
    )


def relative_paths(folder: Path, paths: list[str]) -> dict[str, str]:
    """The paths as a run records them: each as it was given, with its place as seen from the run folder, if that is UTF-8."""
    target = os.path.realpath(folder)
    places = {path: Path(os.path.relpath(os.path.realpath(path), target)).as_posix() for path in paths}
    return {path: place for path, place in places.items() if place == place.encode("utf-8", "ignore").decode()}


def posterior_files(fingerprints: Mapping[str, Any]) -> list[str]:
    """The files of posteriors among the fingerprints of a run."""
    names = (name.removeprefix("posterior:") for name in fingerprints if name.startswith("posterior:"))
    return [name for name in names if os.path.isfile(name)]


def located_filters(folder: Path, info: Mapping[str, Any]) -> tuple[str, ...]:
    """The filters of a run, with the paths where the files of their posteriors are now.

    Raises:
        RunError: such a file is missing or has changed.
    """
    located = []
    for spec in info["config"]["filters"]:
        kind, _, rest = spec.partition(":")
        if kind == "posterior" and _without_path(spec) != spec:
            words = rest.split(",")
            place = locate(folder, info, words[0], info["fingerprints"].get(f"posterior:{words[0]}"))
            spec = ",".join([f"{kind}:{place}", *words[1:]])
        located.append(spec)
    return tuple(located)


def given_vectors(place: str, folder: Path, notes: list[str]) -> Path:
    """Where vectors that a user named are: the place itself, or the copy of what is at a URL, which the run keeps.

    Args:
        place: a path, a pattern or a URL.
        folder: the run folder.
        notes: a sentence is added if the connection broke.
    """
    return fetch(place, folder / "embeddings" / _GIVEN, notes) if is_url(place) else Path(place)


def locate(folder: Path, info: Mapping[str, Any], path: str, sha256: str | None) -> Path:
    """Find a file that a run was mined with: by its place as seen from the run, or else by the path as it was given.

    Args:
        folder: the run folder.
        info: the content of its `run.json`.
        path: the path as it was given.
        sha256: the hash of the file's content.

    Raises:
        RunError: no file is there, or all that are there have other contents.
    """
    if is_url(path):
        places = [copy_of(path, folder / "embeddings" / _GIVEN)]
    else:
        places = [Path(path)]
    if path in info.get("paths", {}):
        places.insert(0, Path(os.path.realpath(folder)) / info["paths"][path])
    found = [place for place in places if "\0" not in str(place) and _there(place)]
    for place in found:
        if sha256 is None or vectors_digest(place, sha256) == sha256:
            return place
    if found:
        raise RunError(f"{found[0]} has changed since {folder} was mined with it: restore it, or mine again")
    looked = " and ".join(dict.fromkeys(os.path.normpath(place) for place in places))
    raise RunError(
        f"{path}, which {folder} was mined with, is missing (looked for {looked}): restore it, or mine again"
    )


def _there(place: Path) -> bool:
    """Whether there is such a file, or some that fit the pattern."""
    try:
        return all(each.is_file() for each in vector_files(place))
    except DataError:
        return False


def copy_posterior(source: Path, target: Path) -> None:
    """Copy the posterior in a run folder, if there is one; RunError if it is no file, or too large for one."""
    if not os.path.lexists(source):
        return
    if check_regular(source, RunError) > MAX_BYTES:
        raise RunError(f"{source} is larger than a posterior can be: remove it")
    shutil.copy2(source, target)
