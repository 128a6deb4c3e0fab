"""What a command says at its end: how to go on, what went with an overwrite, which file could not be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hardneg_cli.main import _go_on

import hardneg

from .conftest import run_here


@pytest.fixture
def run(tmp_path: Path, beir: Path) -> Path:
    hardneg.mine(str(beir), tmp_path / "run", hardneg.MineOptions(negatives=1, depth=8))
    return tmp_path / "run"


def test_an_interrupted_command_says_how_to_go_on() -> None:
    assert _go_on(["mine", "my file.csv", "--out", "run", "--overwrite"]) == (
        "interrupted. To go on where it stopped: hardneg mine 'my file.csv' --out run --resume"
    )
    assert _go_on(["train", "x", "--resume"]).endswith("hardneg train x --resume")
    assert _go_on(["export", "run"]) == _go_on([]) == "interrupted"


def test_a_training_that_was_interrupted_while_it_read_is_not_to_be_resumed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words in (["--out", str(out)], [f"--out={out}"]):
        assert _go_on(["train", "x", *words]) == "interrupted before the training began: nothing was written"
        assert _go_on(["train", "x", *words, "--resume"]).endswith("--resume")
    out.mkdir()
    (out / "train.json").write_text('{"finished": false}')
    assert _go_on(["train", "x", "--out", str(out)]).endswith(f"hardneg train x --out {out} --resume")
    assert _go_on(["train", "x", "--out", str(out)]).startswith(
        "interrupted. There is no checkpoint yet (--save-every N"
    )
    for step in (40, 7):
        (out / "checkpoints" / f"step-{step:08}").mkdir(parents=True)
    said = _go_on(["train", "x", "--out", str(out), "--resume"])
    assert said.startswith("interrupted. To go on from its last checkpoint, of step 40: hardneg train")
    (out / "train.json").write_text('{"finished": true}')  # an older one, which was to be replaced
    assert "nothing was written" in _go_on(["train", "x", "--out", str(out), "--overwrite"])


def test_a_finished_run_says_that_it_was_finished(run: Path, beir: Path) -> None:
    command = ["mine", beir, "--out", run, "--negatives", "1", "--depth", "8", "--resume"]
    done = run_here(*command)
    assert done.returncode == 0
    assert "was finished before: nothing was mined" in done.stderr


def test_what_becomes_of_the_posterior_of_a_run_that_is_replaced(run: Path, beir: Path, tmp_path: Path) -> None:
    """One that the new run uses stays; another one goes with its run, and that is said."""
    posterior = run / "posterior.json"
    hardneg.Posterior(("score",), (1.0,), -9.0, 0.5, "known positives").save(posterior)
    using = hardneg.MineOptions(negatives=1, depth=8, filters=(f"posterior:{posterior}",))
    kept = hardneg.mine(str(beir), run, using, overwrite=True, force=True)
    assert posterior.is_file()
    assert not any("posterior.json" in each for each in kept.info["warnings"])
    hardneg.select(run, hardneg.SelectOptions(negatives=1), out=tmp_path / "selected", force=True)
    again = hardneg.mine(str(beir), run, hardneg.MineOptions(negatives=1, depth=8), overwrite=True)
    assert not posterior.exists()
    assert any(
        "posterior.json was removed with the run that this one replaces" in each for each in again.info["warnings"]
    )
    once_more = hardneg.mine(str(beir), run, hardneg.MineOptions(negatives=1, depth=8), overwrite=True)
    assert not any("posterior" in each for each in once_more.info["warnings"])


def test_a_reader_that_leaves_early_is_no_error(run: Path, tmp_path: Path) -> None:
    error = tmp_path / "error"
    script = (
        f"{sys.executable} -m hardneg_cli export {run} --format triplet --out - 2>{error}; echo $? >{tmp_path}/code"
    )
    subprocess.run(["bash", "-c", f"({script}) | true"], check=True, timeout=60)
    assert (tmp_path / "code").read_text().strip() == "0", error.read_text()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The error of a write that fails names no file by itself."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from hardneg.storage.files import atomic_path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with atomic_path(Path(sys.argv[1])) as path, open(path, 'wb', buffering=0) as file:\n"
        "        [file.write(bytes(600)) for _ in range(9)]\n"
        "except OSError as error: print(error.strerror, error.filename)\n"
    )
    target = tmp_path / "out.jsonl"
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"File too large {target}"
    assert not list(tmp_path.iterdir())
