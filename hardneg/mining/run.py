"""A finished run folder, opened for reading.

run.json               the options, inputs and results, and a SHA-256 of every file; written last
negatives.parquet      one row for each query
candidates/part-*      one row for each candidate, with its verdict
relabels.parquet       candidates that were found relevant, and what was done with them; only if there are any
source/                the dataset as it was read
embeddings/            the vectors, unless they were given or cached elsewhere
features/              features that commands computed for the posterior, see `kept_features`
teacher/               scores of teachers (`hardneg score`), see `teachers`
progress/              only while the run is unfinished: one record for each finished part, see `parts`
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from hardneg import registry
from hardneg.data.pairs import Pairs, open_pairs
from hardneg.errors import RUN_DAMAGED, RunError, UsageError
from hardneg.mining.parts import PART_ROWS
from hardneg.mining.relabels import FILE as RELABELS
from hardneg.mining.relabels import Relabels
from hardneg.mining.run_folder import is_run, read_run_json
from hardneg.mining.run_tables import read_negatives
from hardneg.storage.files import sha256_file
from hardneg.storage.folders import recover

LARGE = 1 << 26  # bytes of a file of texts or vectors that is not hashed whenever the run is opened

_ATTEMPTS = 10  # to open a run that other processes replace meanwhile

_FILE = re.compile(r"(negatives|relabels)\.parquet|candidates/part-[0-9]{5,}\.parquet|(source|embeddings)/[\w./-]+")


class Run:
    """A finished run, opened for reading.

    Args:
        folder: the run folder.
        verify: True: check the SHA-256 of every file, but of texts and vectors of more than 64 MB only that they are there. Vectors
            are checked when they are opened, shard by shard. `all`: check those as well (`hardneg verify`). False: check nothing.

    Raises:
        RunError: there is no run, it is unfinished or from another version, or a file does not match its checksum.
    """

    def __init__(self, folder: str | Path, *, verify: bool | Literal["all"] = True) -> None:
        self.folder = Path(folder)
        recover(self.folder)
        if not (self.folder / "run.json").exists():
            if is_run(self.folder):
                raise RunError(f"{folder} is an unfinished run: go on with 'hardneg mine ... --out {folder} --resume'")
            raise RunError(f"{folder} is no run folder (no run.json)")
        for attempt in range(_ATTEMPTS):
            self.info = read_run_json(self.folder)
            try:
                self._check_files(verify)
                return
            except RunError:
                # Another process may have put another run in its place after run.json was read.
                if attempt == _ATTEMPTS - 1 or read_run_json(self.folder) == self.info:
                    raise

    def _check_files(self, verify: bool | Literal["all"]) -> None:
        """RunError if run.json names files that are not those of a run, or, with `verify`, if one has another content."""
        folder, parts = self.folder, -(-self.info["counts"]["queries"] // PART_ROWS)
        for name, sha in self.info["files"].items():
            path = (folder / name).resolve()
            if not _FILE.fullmatch(name) or not path.is_relative_to(folder.resolve()):
                raise RunError(f"{folder}/run.json names the file {name!r}, which is not one of a run")
            if not verify:
                continue
            if not path.is_file():
                raise RunError(f"{folder}/{name} is missing: {RUN_DAMAGED}")
            large = name.startswith(("source/", "embeddings/")) and path.stat().st_size > LARGE
            if (verify == "all" or not large) and sha256_file(path) != sha:
                raise RunError(f"{folder}/{name} does not fit its checksum in run.json: {RUN_DAMAGED}")
        for name in ("negatives.parquet", *(f"candidates/part-{i:05d}.parquet" for i in range(min(parts, 1 << 24)))):
            if name not in self.info["files"]:
                raise RunError(f"{folder}/run.json does not name {name}: {RUN_DAMAGED}")
        if sum(name.startswith("candidates/") for name in self.info["files"]) != parts:
            raise RunError(f"{folder}/run.json names more candidates than those of its queries: {RUN_DAMAGED}")

    def check_unchanged(self) -> None:
        """RunError if another run has taken the place of this one since it was opened."""
        if read_run_json(self.folder) != self.info:
            raise RunError(f"{self.folder} has been changed by another process since it was opened: try again")

    def relabels(self, pairs: Pairs) -> Relabels | None:
        """What was relabelled in this run, as rows of its dataset; None if nothing."""
        return Relabels.read(self.folder / RELABELS, pairs) if RELABELS in self.info["files"] else None

    def relabelled(self, pairs: Pairs) -> Pairs:
        """A dataset with the same queries and documents, with the labels of this run; UsageError if it has others."""
        own = self.info["fingerprints"]
        if any(own.get(name, pairs.digests.get(name)) != pairs.digests.get(name) for name in ("queries", "documents")):
            how = "" if pairs.mixed is None else ": mine the mixture itself, hardneg.mine(hardneg.mixture(...), RUN)"
            raise UsageError(f"the run {self.folder} was mined from another dataset than {pairs.name}{how}")
        found = self.relabels(pairs)
        if found is None:
            return pairs
        labels = hashlib.sha256(f"{pairs.digests.get('labels')} relabelled {found.digest()}".encode()).hexdigest()
        return replace(found.of(pairs), digests={**pairs.digests, "labels": labels})

    def pairs(self, *, relabelled: bool = True) -> Pairs:
        """The dataset that was mined, with what was relabelled; RunError if it is not the one that run.json names.

        Args:
            relabelled: False: with the labels of the source alone.
        """
        pairs = open_pairs(self.folder / "source")
        for name, digest in pairs.digests.items():
            if self.info["fingerprints"].get(name, digest) != digest:
                raise RunError(f"{self.folder}/source holds other {name} than the run was mined with: {RUN_DAMAGED}")
        if len(pairs) != self.info["counts"]["queries"]:
            raise RunError(
                f"{self.folder}/source holds {len(pairs):,} queries, but run.json counts "
                f"{self.info['counts']['queries']:,}: {RUN_DAMAGED}"
            )
        found = self.relabels(pairs) if relabelled else None
        return pairs if found is None else found.of(pairs)

    def negatives(self, pairs: Pairs | None = None, *, positives_only: bool = False) -> pa.Table:
        """The table `negatives.parquet`, with one row for each query.

        Args:
            pairs: the dataset of the run, if it is already in memory.
            positives_only: True: only the columns `query_id`, `positive_ids` and `positive_scores`.
        """
        self.check_unchanged()
        pairs = self.pairs() if pairs is None else pairs
        path, ids = self.folder / "negatives.parquet", pairs.document_rows_of
        return read_negatives(path, pairs.query_ids, ids, positives_only=positives_only)

    def candidate_files(self) -> list[Path]:
        """The Parquet files with the candidates, one for each part, in order."""
        return [self.folder / name for name in sorted(self.info["files"]) if name.startswith("candidates/")]

    @property
    def sources(self) -> tuple[str, ...]:
        """The labels of the sources that the candidates come from; empty if the search by the encoder was the only one."""
        return tuple(self.info["resolved"].get("sources", {}))

    def to_dataset(
        self,
        format: str = "triplet",
        *,
        ids: bool = False,
        scores: bool | str = False,
        false_probability: bool = False,
        short: str = "skip",
        max_positives: int | None = None,
    ) -> Any:
        """The negatives as a `datasets.Dataset`, in one of the formats of `hardneg.export` that are tables.

        Queries that a format cannot hold are left out; the logger `hardneg` says how many.

        Args:
            format: `triplet`, `n-tuple`, `labeled-pair`, `labeled-list`, `margin-mse`, `flagembedding`, `tevatron` or `ms-swift`.
            ids: whether to add columns with the ids beside those of the texts.
            scores, false_probability, short, max_positives: see `hardneg.export`.

        Raises:
            MissingDependencyError: the package datasets is not installed. UsageError: an option cannot be used.
        """
        return registry.verb("to_dataset")(
            self,
            format,
            ids=ids,
            scores=scores,
            false_probability=false_probability,
            short=short,
            max_positives=max_positives,
        )

    def diagnose(self, **options: Any) -> Any:
        """The diagnosis of the negatives, see `hardneg.diagnose`."""
        return registry.verb("diagnose")(self, **options)

    def select(self, out: str | Path | None = None, **options: Any) -> Run:
        """Filter and sample the candidates again, as `hardneg.select` does; options by name, such as `negatives=3`.

        Without `out`, the run itself becomes the selection, in its folder as well as here.
        """
        chosen: Run = registry.verb("select")(self, out=out, **options)
        if out is None:
            self.info = chosen.info
        return chosen

    def score(self, scorer: str | None = None, **options: Any) -> Any:
        """Score positives and candidates with a teacher, or by a file (`scores=`), and keep that in the run, see `hardneg.score`."""
        return registry.verb("score")(self, scorer, **options)

    def export(self, format: str, out: str | Path, **options: Any) -> Any:
        """Write the negatives in an export format, see `hardneg.export`."""
        return registry.verb("export")(self, format, out, **options)

    def _facts(self) -> Sequence[tuple[str, str]]:
        """What the run is, in a few words each."""
        counts, config = self.info["counts"], self.info["config"]
        short = sum(n for k, n in counts["negatives"].items() if int(k) < config["negatives"])
        return (
            ("queries", f"{counts['queries']:,}"),
            ("candidates", f"{counts['candidates']:,}"),
            ("negatives", f"{config['negatives']} a query" + (f", fewer for {short:,}" if short else "")),
            ("filters", ", ".join(config["filters"]) or "the defaults"),
            ("sampler", str(config["sampler"])),
        )

    def __repr__(self) -> str:
        facts = "; ".join(f"{name}: {value}" for name, value in self._facts())
        return f"<Run {str(self.folder)!r}; {facts}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in (("run", str(self.folder)), *self._facts())
        )
        return f"<table>{rows}</table>"
