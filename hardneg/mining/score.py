"""Score: a teacher rates the positives and candidates of a run once, for filters, posteriors and distillation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg import registry
from hardneg.ambient import own_settings
from hardneg.encoders.embed import fit
from hardneg.errors import UsageError, suggestion
from hardneg.mining.cross_encoder import load_cross_encoder, text_pairs
from hardneg.mining.reopen import Part, Reopened
from hardneg.mining.run import Run
from hardneg.mining.score_file import FileCounts, read_score_file, scores_by_part
from hardneg.mining.spec_options import SpecOptions, split_spec
from hardneg.mining.teachers import FROM_FILE, TEACHER, TeacherScores, check_name, start
from hardneg.mining.warnings import tell
from hardneg.progress import Progress, with_progress
from hardneg.storage.arrays import Float, Int, Mask, pair_keys
from hardneg.storage.files import fingerprint
from hardneg.storage.folders import locked, no_links

_CHUNK = 128  # queries that are scored between two writes: what a killed process loses

Rate = Callable[[NDArray[np.int64], NDArray[np.int64]], Float]  # rows of m queries and documents -> their scores


@dataclass(frozen=True)
class Scored:
    """What `score` did.

    Attributes:
        folder: where the scores are.
        scorer: the spec of the teacher; of scores from a file, `scores:` and its path.
        fingerprint: the hash of its weights and settings, or of the scores in the file.
        pairs: number of pairs that were asked for; of a file, those that it has scores of.
        new: how many of them were scored now; the others were there before.
        file: what was found in the file; None: a model scored.
    """

    folder: Path
    scorer: str
    fingerprint: str
    pairs: int
    new: int
    file: FileCounts | None = None

    def to_json(self) -> dict[str, Any]:
        """The values as JSON."""
        value = {**vars(self), "folder": str(self.folder)}
        if self.file is None:
            del value["file"]
            return value
        return {**value, "file": self.file.to_json()}


@with_progress
@own_settings()
def score(
    run: str | Path | Run,
    scorer: str | None = None,
    *,
    scores: str | Path | None = None,
    only: str = "all",
    name: str = TEACHER,
    overwrite: bool = False,
    batch_size: int = 32,
    device: str | None = None,
    progress: Progress | bool = False,
    command: list[str] | None = None,
) -> Scored:
    """Score the positives and the candidates of a run with a teacher, and keep the scores in the run.

    Pairs that were scored before are not scored again, so an interrupted call goes on where it stopped, with the same result. The
    scores are bound to the hash of the scorer and of the texts.

    Args:
        run: a finished run.
        scorer: `cross-encoder:NAME_OR_PATH[,batch=N]`, or `encoder:SPEC` (the cosine by another encoder).
        scores: instead of a scorer, a file with scores of another system, by the ids of queries and documents: JSON lines, CSV, TSV or
            Parquet with `query_id`, `document_id` and `score` (or their other usual names), lines of a TREC run, or FlagEmbedding's
            rows with `pos_scores`, `neg_scores` and ids; one file, a pattern or a folder. Scores of other pairs are counted.
        only: which candidates: `all`; `kept`, those that no filter rejects; or `first:K`, the first K. Positives always.
        name: the name of the teacher in this run.
        overwrite: replace the scores of this name.
        batch_size: pairs, or texts, that the model reads at once.
        device: its device; None: the one that torch finds.
        progress: True for bars, or a callback that reports the progress.
        command: the command line, which prints what is to be known of a file itself; None: each note is a `HardnegWarning`.

    Raises:
        UsageError: the scorer cannot be loaded, has no hash, or this name has the scores of another one. DataError: the file is empty
            or malformed, has two scores of one pair, or none of a pair of the run. RunError: the run or its scores are damaged.
    """
    assert callable(progress)  # see `with_progress`
    if (scorer is None) == (scores is None):
        raise UsageError("give either a model that scores (--scorer SPEC) or a file of scores (--scores FILE)")
    run = run if isinstance(run, Run) else Run(run)
    check_name(name)
    chosen = _chosen(only)
    folder = run.folder / "teacher" / name
    if scorer is None:
        assert scores is not None
        reopened = Reopened(run, progress=progress)
        done = _from_file(folder, Path(scores), reopened, chosen, only, overwrite, progress)
        assert done.file is not None
        tell(done.file.notes, command)
        return done
    kind, model, batch = _parsed(scorer, batch_size)
    reopened = Reopened(run, batch_size=batch, device=device, progress=progress)
    rate, hashed = _scorer(kind, model, reopened, batch, device)
    with _opened(folder, reopened, f"{kind}:{model}", hashed, overwrite) as taught:
        advance = progress("score", len(reopened.pairs))
        asked = new = 0
        for part in reopened:
            wanted, made = _score_part(taught, part, chosen, rate, advance)
            asked, new = asked + wanted, new + made
    return Scored(folder, f"{kind}:{model}", hashed, asked, new)


@contextmanager
def _opened(folder: Path, run: Reopened, scorer: str, hashed: str, overwrite: bool) -> Iterator[TeacherScores]:
    """The scores of a teacher, while the run is locked."""
    with locked(run.run.folder, "run"):
        no_links(run.run.folder, ["teacher"])
        run.run.check_unchanged()
        if overwrite and folder.is_dir():
            shutil.rmtree(folder)
        yield start(folder, run.pairs, scorer, hashed)


def _from_file(
    folder: Path,
    path: Path,
    run: Reopened,
    chosen: Callable[[Part], Mask],
    only: str,
    overwrite: bool,
    progress: Progress,
) -> Scored:
    """Keep the scores of a file as those of a teacher."""
    found = read_score_file(path, run.pairs)
    parts, counts = scores_by_part(found, run, chosen, only, progress("match scores", len(run.pairs)))
    hashed, new = found.fingerprint(run.pairs), 0
    with _opened(folder, run, f"{FROM_FILE}{path}", hashed, overwrite) as taught:
        for number, keys, scores in parts:
            missing = ~np.isin(keys, taught.part(number)[0])
            if missing.any():
                taught.add(number, keys[missing], scores[missing])
            new += int(missing.sum())
            taught.forget()
    return Scored(folder, f"{FROM_FILE}{path}", hashed, counts.candidates + counts.positives, new, counts)


def _chosen(only: str) -> Callable[[Part], Mask]:
    """A function that says which candidates of a part are to be scored, bool `[n, K]`."""
    if only == "all":
        return lambda part: part.candidates.real
    if only == "kept":
        return lambda part: part.kept
    kind, _, count = str(only).partition(":")
    if kind == "first" and count.isascii() and count.isdigit() and int(count) > 0:
        most = int(count)
        return lambda part: part.candidates.real & (part.candidates.ranks <= most)
    raise UsageError(f"only={only!r} must be all, kept or first:K, as in first:20")


def _parsed(scorer: str, batch_size: int) -> tuple[str, str, int]:
    """(kind, model, pairs at once) of the spec of a scorer."""
    if not isinstance(scorer, str):
        raise UsageError(f"a scorer is written as a spec (cross-encoder:NAME), not {scorer!r}")
    kind, words, options = split_spec(scorer, "scorer")
    if kind not in ("cross-encoder", "encoder"):
        raise UsageError(f"unknown scorer {kind!r}.{suggestion(kind, ('cross-encoder', 'encoder'))}")
    values = SpecOptions(scorer, "scorer", words, options)
    model = values.word("the model, as in cross-encoder:NAME")
    batch = values.integer("batch", batch_size, 1)
    values.done()
    assert batch is not None
    return kind, model, batch


def _scorer(kind: str, model: str, run: Reopened, batch_size: int, device: str | None) -> tuple[Rate, str]:
    """(the function that scores pairs, the hash of the model)."""
    pairs = run.pairs
    if kind == "cross-encoder":
        loaded = load_cross_encoder(model, device, batch_size)
        if loaded.fingerprint is None:
            raise UsageError(
                f"the scorer {model} has no fingerprint(), so its scores could not be told from those of another one: add a method "
                f"that returns a text which changes whenever the scores would"
            )
        return lambda queries, documents: loaded(text_pairs(pairs, queries, documents)), loaded.fingerprint
    if model.partition(":")[0] not in registry.names("encoder"):
        raise UsageError(
            f"scorer encoder:{model}: the encoder is unknown.{suggestion(model, registry.names('encoder'))}"
        )
    assert run.context.embed is not None
    vectors, index = run.context.embed(model)
    encoder = run.resources.encoder(model, run.run.info["config"]["seed"])
    fit(encoder, pairs, run.resources.progress)

    def rate(queries: NDArray[np.int64], documents: NDArray[np.int64]) -> Float:
        scores: Float = index.pair_scores(np.asarray(vectors[queries], np.float32), documents[:, None])[:, 0]
        return scores

    return rate, fingerprint(["encoder", encoder.fingerprint()])


def _score_part(
    taught: TeacherScores, part: Part, chosen: Callable[[Part], Mask], rate: Rate, advance: Callable[[int], None]
) -> tuple[int, int]:
    """Score what is missing of a part. Returns the number of pairs that were asked for, and of new ones."""
    keys = taught.part(part.number)[0]
    missing = [np.setdiff1d(wanted, keys) for wanted in _wanted(taught, part, chosen(part))]
    asked = sum(len(wanted) for wanted in _wanted(taught, part, chosen(part)))
    made: list[tuple[Int, Float]] = []
    for number, wanted in enumerate(missing):
        if len(wanted):
            made.append(_chunk(taught, taught.folder / f"chunk-{part.number:05d}-{number:03d}.parquet", wanted, rate))
        advance(min(_CHUNK, len(part.candidates.queries) - number * _CHUNK))
    new = sum(len(each) for each, _ in made)
    if new:
        taught.add(part.number, np.concatenate([each for each, _ in made]), np.concatenate([each for _, each in made]))
    for left in taught.folder.glob(f"chunk-{part.number:05d}-*.parquet"):
        left.unlink()
    taught.forget()
    return asked, new


def _wanted(taught: TeacherScores, part: Part, chosen: Mask) -> Iterator[Int]:
    """The keys of the pairs to score, ascending, of `_CHUNK` queries at a time."""
    pairs, candidates = taught.pairs, part.candidates
    size = len(pairs.document_ids)
    for at in range(0, len(candidates.queries), _CHUNK):
        rows = np.arange(at, min(at + _CHUNK, len(candidates.queries)))
        queries = candidates.queries[rows]
        known = pairs.positives.take(queries)
        row, column = np.nonzero(chosen[rows])
        found = pair_keys(queries[row], candidates.documents[rows][row, column], size)
        yield np.union1d(found, pair_keys(queries[known.row_numbers()], known.values, size))


def _chunk(taught: TeacherScores, path: Path, wanted: Int, rate: Rate) -> tuple[Int, Float]:
    """The scores of these pairs: those that an interrupted call wrote, or new ones, which are written."""
    if path.exists():
        keys, scores = taught.read(path)
        if np.array_equal(keys, wanted):
            return keys, scores
    queries, documents = np.divmod(wanted, len(taught.pairs.document_ids))
    scores = rate(queries, documents)
    taught.write(path, wanted, scores)
    return wanted, scores
