"""The command `hardneg demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .main import print_json
from .options import SEED_OF_MODELS
from .show import LiveNumbers, print_summary, print_training, progress_bars, say, summary, warn
from .show_diagnosis import print_diagnosis
from .train_next import mine_command

if TYPE_CHECKING:
    from hardneg.mining.run import Run
    from hardneg.progress import Progress

MEASURES = ("ndcg@10", "mrr@10", "recall@100")


@click.command()
@click.option("--out", default="hardneg-demo", show_default=True, metavar="DIR", help="Folder to write to.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier demo wrote to --out.")
@click.option("--quick", is_flag=True, help="Train on a tenth of the functions and evaluate on the others.")
@click.option(
    "--seed", type=SEED_OF_MODELS, default=0, show_default=True, metavar="N", help="Seed of all random choices."
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object on stdout.")
def demo(out: str, seed: int, quick: bool, overwrite: bool, as_json: bool) -> None:
    """Try everything on built-in data in a few minutes: mine, train, evaluate, diagnose.

    The queries are docstrings, and the documents are the functions that they belong to, from this Python installation
    (builtin:pycode). The command writes a run, a trained encoder, and a run of that encoder to DIR/run, DIR/trained and
    DIR/run2.

    \b
    Example:
      hardneg demo --out hardneg-demo
    """
    from hardneg.errors import RunError

    folder = Path(out)
    for name, mark in (("run", "run.json"), ("trained", "train.json")):
        if (folder / name / mark).exists() and not overwrite:
            raise RunError(f"{folder / name} exists already: --overwrite replaces it")
    with progress_bars() as progress:
        run, before, trained = _mine_and_train(folder, seed, quick, overwrite, progress)
        diagnosis = _diagnose_the_trained(run, folder, seed, overwrite, progress)
    measures = {name: {"before": before[name], "after": trained["best"][name]} for name in MEASURES}
    mined = summary(run.info, str(folder / "run"))
    if as_json:
        print_json({"mined": mined, "measures": measures, "trained": str(folder / "trained"), "diagnosis": diagnosis})
        return
    print_summary(mined)
    print_diagnosis(diagnosis)
    made = folder / "trained"
    print_training(trained, str(made), [mine_command("builtin:pycode", (), f"hashed:{made}/best", f"{made}-run")])
    say(
        "On functions that it was not trained on (before: the untrained encoder, fitted on these functions themselves): "
        + ", ".join(f"{n} {v['before']:.3f} -> {v['after']:.3f}" for n, v in measures.items())
    )


def _mine_and_train(
    folder: Path, seed: int, quick: bool, overwrite: bool, progress: Progress
) -> tuple[Run, dict[str, float], dict[str, Any]]:
    """Steps 1 to 3. Returns the run, the measures of the encoder before training, and the result of `hardneg.train`."""
    from hardneg.data.options import ReadOptions
    from hardneg.data.read import read_pairs
    from hardneg.encoders.hashed import HashedEncoder
    from hardneg.evaluation.retrieval import evaluate
    from hardneg.mining.mine import mine
    from hardneg.mining.options import MineOptions
    from hardneg.training.options import TrainOptions
    from hardneg.training.train import train

    say("1. Mine hard negatives: hardneg mine builtin:pycode --out run")
    small, large = ReadOptions(split="test"), ReadOptions(split="train")
    train_split, test_split = (small, large) if quick else (large, small)
    options = MineOptions(seed=seed, read=train_split)
    run = mine("builtin:pycode", folder / "run", options, overwrite=overwrite, progress=progress)
    say("2. Measure how well the encoder retrieves before training: hardneg evaluate builtin:pycode")
    test = read_pairs("builtin:pycode", test_split)
    before = evaluate(test, HashedEncoder(seed=seed), MEASURES, progress=progress)
    say("3. Train it with negatives that are mined again as it learns: hardneg train builtin:pycode --out trained")
    train_options = TrainOptions(
        epochs=2, batch_size=128, learning_rate=0.01, bank=2048, bank_age=20, measures=MEASURES, seed=seed,
        refresh="epoch" if quick else "steps:44", negative_sampling="simans", filters=("posterior:learned",),
    )  # fmt: skip
    trained = train(
        run.pairs(), HashedEncoder(seed=seed), folder / "trained", train_options, evaluation=test, overwrite=overwrite,
        callbacks=[LiveNumbers()], warn=lambda message: warn([message]), progress=progress,
    )  # fmt: skip
    return run, before.means, trained


def _diagnose_the_trained(run: Run, folder: Path, seed: int, overwrite: bool, progress: Progress) -> dict[str, Any]:
    """Step 4: mine again with the trained encoder, and diagnose the negatives."""
    from hardneg.diagnostics.diagnose import diagnose
    from hardneg.encoders.hashed import HashedEncoder
    from hardneg.mining.mine import mine
    from hardneg.mining.options import MineOptions

    say("4. Mine with the trained encoder, and check the negatives: hardneg mine, then hardneg diagnose")
    encoder, options = HashedEncoder.load(folder / "trained" / "best"), MineOptions(seed=seed)
    again = mine(run.pairs(), folder / "run2", options, encoder=encoder, overwrite=overwrite, progress=progress)
    return diagnose(again, progress=progress).to_json()
