"""hardneg demo"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .main import print_json
from .show import LiveNumbers, print_diagnosis, print_summary, print_training, progress_bars, say, summary, warn

if TYPE_CHECKING:
    from hardneg.mining.run import Run
    from hardneg.progress import Progress

MEASURES = ("ndcg@10", "mrr@10", "recall@100")


@click.command()
@click.option("--out", default="hardneg-demo", show_default=True, metavar="DIR", help="The folder to write.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--quick", is_flag=True, help="Train on a tenth of the functions and evaluate on the others.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier demo wrote to --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object on stdout.")
def demo(out: str, seed: int, quick: bool, overwrite: bool, as_json: bool) -> None:
    """Run everything on real data in a few minutes: mine, train with refresh, evaluate, diagnose.

    The data are the functions of the Python installation and their docstrings (builtin:pycode).

    \b
    Example:
      hardneg demo --out hardneg-demo
    """
    from hardneg.errors import RunError

    folder = Path(out)
    for name, mark in (("run", "run.json"), ("trained", "train.json")):
        if (folder / name / mark).exists() and not overwrite:
            raise RunError(f"{folder / name} is there already: --overwrite replaces it")
    with progress_bars() as progress:
        run, before, trained = _mine_and_train(folder, seed, quick, overwrite, progress)
        diagnosis = _diagnose_the_trained(run, folder, seed, overwrite, progress)
    reached = {name: {"before": before[name], "after": trained["best"][name]} for name in MEASURES}
    mined = summary(run.info, str(folder / "run"))
    if as_json:
        print_json({"mined": mined, "measures": reached, "trained": str(folder / "trained"), "diagnosis": diagnosis})
        return
    print_summary(mined)
    print_diagnosis(diagnosis)
    print_training(trained, str(folder / "trained"), "builtin:pycode", "hashed")
    say(
        "On functions that it never saw: "
        + ", ".join(f"{n} {v['before']:.3f} -> {v['after']:.3f}" for n, v in reached.items())
    )


def _mine_and_train(
    folder: Path, seed: int, quick: bool, overwrite: bool, progress: Progress
) -> tuple[Run, dict[str, float], dict[str, Any]]:
    """The run, the measures of the encoder that it was mined with, and what `hardneg.train` returned."""
    from hardneg.data.options import ReadOptions
    from hardneg.data.read import read_pairs
    from hardneg.encoders.hashed import HashedEncoder
    from hardneg.evaluation.retrieval import evaluate
    from hardneg.mining.mine import mine
    from hardneg.mining.options import MineOptions
    from hardneg.training.options import TrainOptions
    from hardneg.training.train import train

    say("1. Mine hard negatives: hardneg mine builtin:pycode --out run")
    few, many = ReadOptions(split="test"), ReadOptions(split="train")
    seen, unseen = (few, many) if quick else (many, few)
    options = MineOptions(seed=seed, read=seen)
    run = mine("builtin:pycode", folder / "run", options, overwrite=overwrite, progress=progress)
    say("2. How well the encoder retrieves that was mined with: hardneg evaluate builtin:pycode")
    test = read_pairs("builtin:pycode", unseen)
    before = evaluate(test, HashedEncoder(seed=seed), MEASURES, progress=progress)
    say("3. Train it, with negatives that are mined anew as it learns: hardneg train builtin:pycode --out trained")
    how = TrainOptions(
        epochs=2, batch_size=128, learning_rate=0.01, bank=2048, bank_age=20, measures=MEASURES, seed=seed,
        refresh="epoch" if quick else "steps:44", negative_sampling="simans", filters=("posterior:learned",),
    )  # fmt: skip
    trained = train(
        run.pairs(), HashedEncoder(seed=seed), folder / "trained", how, evaluation=test, overwrite=overwrite,
        callbacks=[LiveNumbers()], warn=lambda message: warn([message]), progress=progress,
    )  # fmt: skip
    return run, before.means, trained


def _diagnose_the_trained(run: Run, folder: Path, seed: int, overwrite: bool, progress: Progress) -> dict[str, Any]:
    """Mine again with the trained encoder, and diagnose those negatives."""
    from hardneg.diagnostics.diagnose import diagnose
    from hardneg.encoders.hashed import HashedEncoder
    from hardneg.mining.mine import mine
    from hardneg.mining.options import MineOptions

    say("4. What is wrong with negatives of the trained encoder: hardneg mine, then hardneg diagnose")
    encoder, options = HashedEncoder.load(folder / "trained" / "best"), MineOptions(seed=seed)
    again = mine(run.pairs(), folder / "run2", options, encoder=encoder, overwrite=overwrite, progress=progress)
    return diagnose(again, progress=progress).to_json()
