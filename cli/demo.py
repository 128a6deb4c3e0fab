"""hardneg demo"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .main import print_json
from .show import LiveNumbers, print_diagnosis, print_summary, print_training, progress_bars, say, summary, warn


@click.command()
@click.option("--out", default="hardneg-demo", show_default=True, metavar="DIR", help="The folder to write.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--quick", is_flag=True, help="Train on a tenth of the functions, evaluate on the others.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier demo left in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print what was reached as one JSON object on stdout.")
def demo(out: str, seed: int, quick: bool, overwrite: bool, as_json: bool) -> None:
    """The whole shape in a few minutes, on real data: mine, train with refresh, evaluate, diagnose.

    The data are the functions of the Python installation and their docstrings (builtin:pycode).

    \b
    Example:
      hardneg demo --out hardneg-demo
    """
    from hardneg.data.options import ReadOptions
    from hardneg.data.read import read_pairs
    from hardneg.diagnostics.diagnose import diagnose
    from hardneg.encoders.hashed import HashedEncoder
    from hardneg.errors import RunError
    from hardneg.evaluation.retrieval import evaluate
    from hardneg.mining.mine import mine
    from hardneg.mining.options import MineOptions
    from hardneg.training.options import TrainOptions
    from hardneg.training.train import train

    folder = Path(out)
    for name, mark in (("run", "run.json"), ("trained", "train.json")):
        if (folder / name / mark).exists() and not overwrite:
            raise RunError(f"{folder / name} is there already: --overwrite replaces it")
    with progress_bars() as progress:
        say("1. Mine hard negatives: hardneg mine builtin:pycode --out run")
        few, many = ReadOptions(split="test"), ReadOptions(split="train")
        seen, unseen = (few, many) if quick else (many, few)
        mined = MineOptions(seed=seed, read=seen)
        run = mine("builtin:pycode", folder / "run", mined, overwrite=overwrite, progress=progress)
        say("2. How well the encoder retrieves that was mined with: hardneg evaluate builtin:pycode")
        test = read_pairs("builtin:pycode", unseen)
        model, names = HashedEncoder(seed=seed), ("ndcg@10", "mrr@10", "recall@100")
        before = evaluate(test, model, names, progress=progress)
        say("3. Train it, with negatives that are mined anew as it learns: hardneg train builtin:pycode --out trained")
        options = TrainOptions(
            epochs=2, batch_size=128, learning_rate=0.01, bank=2048, bank_age=20, measures=names, seed=seed,
            refresh="epoch" if quick else "steps:44", negative_sampling="simans", filters=("posterior:learned",),
        )  # fmt: skip
        trained = train(
            run.pairs(), HashedEncoder(seed=seed), folder / "trained", options, evaluation=test, overwrite=overwrite,
            callbacks=[LiveNumbers()], warn=lambda message: warn([message]), progress=progress,
        )  # fmt: skip
        say("4. What is wrong with negatives of the trained encoder: hardneg mine, then hardneg diagnose")
        encoder = HashedEncoder.load(folder / "trained" / "best")
        again = mine(
            run.pairs(),
            folder / "run2",
            MineOptions(seed=seed),
            encoder=encoder,
            overwrite=overwrite,
            progress=progress,
        )
        diagnosis = diagnose(again, progress=progress).to_json()
    best = trained["best"]
    reached: dict[str, Any] = {name: {"before": before.means[name], "after": best[name]} for name in names}
    if as_json:
        print_json(
            {
                "mined": summary(run.info, str(folder / "run")),
                "measures": reached,
                "trained": str(folder / "trained"),
                "diagnosis": diagnosis,
            }
        )
        return
    print_summary(summary(run.info, str(folder / "run")))
    print_diagnosis(diagnosis)
    print_training(trained, str(folder / "trained"), "builtin:pycode", "hashed")
    say(
        "On functions that it never saw: "
        + ", ".join(f"{n} {v['before']:.3f} -> {v['after']:.3f}" for n, v in reached.items())
    )
