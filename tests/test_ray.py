"""The engine `ray`: the same bytes, actors that die, a cluster without room, and a cluster that goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hardneg import MineOptions, RunError, mine
from hardneg.tasks import mine_with

from .test_mine import files
from .test_tasks import slow, small, wait_for  # noqa: F401 - `slow` is a fixture

ray: Any = pytest.importorskip("ray", reason="no ray: pip install 'hardneg[ray]'")

pytestmark = pytest.mark.slow  # a cluster takes ten seconds to start


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One local cluster for all tests, with two processors."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_the_bytes_are_those_of_mine(cluster: None, tmp_path: Path) -> None:
    pairs, options = small(600), MineOptions(depth=20, filters=("shared-neighbors:max=0.9",))
    mine(pairs, tmp_path / "whole", options)
    for shards in (1, 2, 7):
        _, losses = mine_with("ray:2", pairs, tmp_path / f"{shards}", options, shards=shards)
        assert files(tmp_path / f"{shards}") == files(tmp_path / "whole")
        assert losses.said() == []


def test_an_actor_that_dies_is_replaced_and_counted(
    cluster: None,
    slow: MineOptions,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The encoder hangs in the first actor, which is killed meanwhile."""
    from hardneg.tasks.ray_crew import RayCrew

    pairs = small(200)
    mine(pairs, tmp_path / "whole", slow)
    (tmp_path / "slow_encoder.py").write_text(
        (tmp_path / "slow_encoder.py").read_text().replace('os.environ.get("HANG")', "True")
    )
    before = RayCrew.news

    def news(self: RayCrew, timeout: float) -> Any:
        flag = tmp_path / "flag"
        if flag.exists() and flag.read_text() and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(int(flag.read_text()), signal.SIGKILL)
        return before(self, timeout)

    monkeypatch.setattr(RayCrew, "news", news)
    _, losses = mine_with("ray:1", pairs, tmp_path / "run", slow)
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    (said,) = losses.said()
    assert said.startswith("1 workers died: encode-00000-")


def test_a_cluster_without_room_says_so(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardneg.tasks.ray_crew._STARTS", 3.0)
    with pytest.raises(RunError, match="no actor has started for 3 s: .*each needs 64 processors"):
        mine_with("ray:1", small(50), tmp_path / "run", MineOptions(depth=10), threads=64)


DRIVER = """
import sys
import ray
from hardneg import MineOptions
from hardneg.tasks import mine_with
from tests.test_tasks import small
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
try:
    mine_with("ray:1", small(200), sys.argv[1], MineOptions(encoder="module:slow_encoder:make", depth=20))
finally:
    print("ended", flush=True)
"""


def test_a_cluster_that_goes_away_loses_nothing(slow: MineOptions, tmp_path: Path) -> None:  # noqa: F811
    """Driver and cluster are killed in the middle of a task; another engine goes on with the files."""
    pairs = small(200)
    mine(pairs, tmp_path / "whole", slow)
    root = str(Path(__file__).parent.parent)
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "run")], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "HANG": "1", "PYTHONPATH": f"{root}{os.pathsep}{os.environ['PYTHONPATH']}"}, start_new_session=True,
    )  # fmt: skip
    wait_for(tmp_path / "flag")
    os.killpg(driver.pid, signal.SIGKILL)  # the driver, and the cluster that it started
    driver.wait(60)
    _, losses = mine_with("local", pairs, tmp_path / "run", slow, resume=True)
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert losses.said() == []
