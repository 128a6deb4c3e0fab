"""Encoding with sentence-transformers models: the same bytes whatever threads, devices and interruptions; precision; failures."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hardneg
from hardneg.encoders import device_pool, number_format
from hardneg.encoders.batches import arrange, batches
from hardneg.encoders.budget import search
from hardneg.encoders.device_pool import DeviceProcess
from hardneg.encoders.devices import parse_devices
from hardneg.encoders.embed import embed
from hardneg.encoders.forward import Forward
from hardneg.encoders.number_format import Chosen, choose
from hardneg.encoders.sentence_transformers import SentenceTransformersEncoder
from hardneg.errors import RunError, UsageError
from hardneg.progress import silent

from .conftest import WORDS, run_here


def some_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of very different lengths; some are equal, some empty."""
    rng = np.random.default_rng(seed)
    made = [" ".join(rng.choice(WORDS, int(rng.integers(0, 40)))) for _ in range(count)]
    return [made[int(i)] for i in rng.integers(0, count, count)]


@pytest.fixture(scope="session")
def encoder(tiny_model: Path) -> SentenceTransformersEncoder:
    return SentenceTransformersEncoder(str(tiny_model), device="cpu")


@pytest.fixture(autouse=True)
def _as_before(request: pytest.FixtureRequest) -> Any:
    """Tests change the shared encoder's precision and counts."""
    yield
    if "encoder" in request.fixturenames:
        made = request.getfixturevalue("encoder")
        made.precision, made.batch_size = "float32", None
        made.said()


def test_vectors_are_those_of_sentence_transformers_and_the_same_bytes_for_any_threads(
    encoder: SentenceTransformersEncoder,
) -> None:
    texts, before = some_texts(700), torch.get_num_threads()
    found = encoder.encode(texts, prompt="query: ")
    np.testing.assert_allclose(found, encoder.model.encode(texts, prompt="query: "), atol=2e-6)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert encoder.encode(texts, prompt="query: ").tobytes() == found.tobytes()
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    encoder.batch_size = 7
    np.testing.assert_allclose(encoder.encode(texts, prompt="query: "), found, atol=2e-6)


def test_equal_texts_are_encoded_once_and_nothing_is_padded_in_vain(
    encoder: SentenceTransformersEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    model = Forward._model
    monkeypatch.setattr(
        Forward, "_model", lambda self, features: seen.append(features["attention_mask"]) or model(self, features)
    )
    texts = some_texts(500)
    encoder.encode(texts)
    assert sum(len(mask) for mask in seen) == len(set(texts)) < len(texts)
    arranged = arrange(texts)
    assert [arranged.texts[i] for i in arranged.places.tolist()] == texts
    assert all(mask.numel() <= max(arranged.tokens, mask.shape[1]) for mask in seen)
    assert sum(int(mask.sum()) for mask in seen) > 0.95 * sum(mask.numel() for mask in seen)


@pytest.mark.parametrize("side", ["right", "left"])
def test_cutting_a_piece_keeps_every_token(side: str) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 50)
    place = np.arange(9)
    mask = torch.from_numpy(
        (place < lengths[:, None] if side == "right" else place >= 9 - lengths[:, None]).astype(np.int64)
    )
    features = {"attention_mask": mask, "input_ids": mask * torch.arange(1, 51)[:, None], "prompt_length": 2}
    found = batches(features, 50, 24)
    assert sorted(np.concatenate([each.rows for each in found]).tolist()) == list(range(50))
    for each in found:
        assert each.features["prompt_length"] == 2
        ids, its = each.features["input_ids"], each.features["attention_mask"]
        assert ids.numel() <= 24
        assert its.sum(1).tolist() == lengths[each.rows].tolist()
        assert ids.sum(1).tolist() == ((each.rows + 1) * lengths[each.rows]).tolist()
    whole = batches({"input_ids": torch.arange(70), "offsets": torch.arange(50)}, 50, 24)
    assert len(whole) == 1
    assert not whole[0].splits


def test_a_prompt_that_pooling_leaves_out_is_left_out(tiny_model: Path) -> None:
    made = SentenceTransformersEncoder(str(tiny_model), device="cpu")
    made.model.set_pooling_include_prompt(False)
    texts = some_texts(60)
    np.testing.assert_allclose(made.encode(texts, prompt="a b: "), made.model.encode(texts, prompt="a b: "), atol=2e-6)


def test_a_model_cut_to_fewer_components(tiny_model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    made = SentenceTransformersEncoder(SentenceTransformer(str(tiny_model), device="cpu", truncate_dim=8))
    texts = some_texts(40)
    assert made.dimension == 8
    np.testing.assert_allclose(made.encode(texts), made.model.encode(texts), atol=2e-6)
    np.testing.assert_allclose(made.vectors(texts[:5]).detach().numpy(), made.model.encode(texts[:5]), atol=2e-6)


@pytest.mark.parametrize(
    ("rates", "bears", "name", "reason"),
    [
        ({"float32": 50.0, "bfloat16": 9.0}, True, "float32", "less than 1.25 times as fast"),
        ({"float32": 50.0, "bfloat16": 100.0}, True, "bfloat16", "2.0 times as fast"),
        ({"float32": 50.0, "bfloat16": 100.0}, False, "float32", "vectors change too much"),
        ({"float32": 50.0}, True, "float32", "no bfloat16 product"),
    ],
)
def test_bfloat16_is_taken_where_it_is_faster_and_exact_enough(
    rates: dict[str, float], bears: bool, name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(number_format, "product_rates", lambda device: rates)
    vectors = np.eye(3, dtype=np.float32)
    chosen = choose("cpu", lambda: (vectors, vectors if bears else vectors[::-1]))
    assert chosen.name == name
    assert reason in chosen.reason


def test_rates_are_measured_here() -> None:
    rates = number_format.product_rates("cpu")
    assert rates["float32"] > 0
    assert set(rates) <= {"float32", "bfloat16", "float16"}


def test_products_in_bfloat16_are_another_encoder_with_close_vectors(encoder: SentenceTransformersEncoder) -> None:
    texts, exact, before = some_texts(80), encoder.encode(some_texts(80)), encoder.fingerprint()
    encoder.precision = "bfloat16"
    coarse = encoder.encode(texts)
    assert encoder.fingerprint() != before
    assert coarse.dtype == np.float32
    assert not np.array_equal(coarse, exact)
    cosine = (coarse * exact).sum(1) / np.linalg.norm(coarse, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.999
    encoder.precision = "float32"
    assert encoder.fingerprint() == before
    with pytest.raises(UsageError, match="unknown encoder precision 'bfloat'"):
        encoder.precision = "bfloat"


def test_a_model_that_is_stored_in_bfloat16(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import SentenceTransformer

    given = SentenceTransformer(str(tiny_model), device="cpu").bfloat16()
    made = SentenceTransformersEncoder(given, precision="auto")
    assert made.number_format == Chosen("bfloat16", "the model is stored in bfloat16")
    assert np.isfinite(made.encode(some_texts(9))).all()
    given.save_pretrained(str(tmp_path / "model"))
    made.precision = "float32"
    with pytest.raises(UsageError, match=r"call its method .float\(\)"):
        made.encode(["a"])
    for rate, name in ((1.0, "float32"), (9.0, "bfloat16")):
        monkeypatch.setattr(
            number_format, "product_rates", lambda device, rate=rate: {"float32": 5.0, "bfloat16": rate}
        )
        loaded = SentenceTransformersEncoder(str(tmp_path / "model"), device="cpu", precision="auto")
        loaded.model.bfloat16()  # as versions of transformers load it that take the format of the file
        assert loaded.number_format.name == name
        assert str(next(loaded.model.parameters()).dtype) == f"torch.{name}"


def test_a_full_memory_halves_batches_and_says_so(
    encoder: SentenceTransformersEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, model = some_texts(300), Forward._model
    exact = encoder.encode(texts)
    limit = [8]

    def small(self: Forward, features: dict[str, Any]) -> torch.Tensor:
        if len(features["input_ids"]) > limit[0]:
            raise torch.OutOfMemoryError("out of memory")
        return model(self, features)

    monkeypatch.setattr(Forward, "_model", small)
    np.testing.assert_allclose(encoder.encode(texts), exact, atol=2e-6)
    (said,) = encoder.said()
    assert "did not fit into the memory of cpu and were cut in two" in said
    assert encoder.said() == []
    limit[0] = 0
    with pytest.raises(RunError, match=r"too small for a single text of \d+ tokens.*run the same command again"):
        encoder.encode(texts)


def test_what_overflows_in_a_low_format_is_encoded_again_in_float32(
    encoder: SentenceTransformersEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, model = some_texts(60), Forward._model
    exact = encoder.encode(texts)

    def overflowing(self: Forward, features: dict[str, Any]) -> torch.Tensor:
        made = model(self, features)
        return made.clone().fill_(torch.nan) if torch.is_autocast_enabled("cpu") and len(made) > 2 else made

    monkeypatch.setattr(Forward, "_model", overflowing)
    encoder.precision = "bfloat16"
    np.testing.assert_allclose(encoder.encode(texts), exact, atol=0.05)
    (said,) = encoder.said()
    assert "texts had NaN or infinite values in bfloat16 and were encoded again in float32" in said


def test_an_error_of_the_model_reaches_the_caller_and_ends_the_threads(
    encoder: SentenceTransformersEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Forward, features: dict[str, Any]) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    before = threading.active_count()
    monkeypatch.setattr(Forward, "_model", fail)
    with pytest.raises(RuntimeError, match="no such kernel"):
        encoder.encode(some_texts(600))
    with ThreadPoolExecutor(1) as new:
        assert new.submit(torch.get_num_threads).result() == torch.get_num_threads()
    assert threading.active_count() == before
    other = Forward(encoder.model, encoder.dimension)
    other.device = torch.device("meta")  # any that is not the processor
    with pytest.raises(RunError, match=r"the device meta failed while it encoded \(no such kernel\)"):
        other.run(["a", "b"], "", 256)


def test_the_budget_of_a_device_is_the_smallest_that_is_about_as_fast() -> None:
    def seconds(size: int) -> float:
        if size > 64:
            raise torch.OutOfMemoryError("out of memory")
        return {8: 4.0, 16: 2.0, 32: 1.0, 64: 0.98}[size]

    assert search(seconds, (8, 16, 32, 64, 128)) == 32
    assert search(lambda size: seconds(size * 100), (8, 16)) == 8
    with pytest.raises(RuntimeError, match="broken"):
        search(lambda size: (_ for _ in ()).throw(RuntimeError("broken")), (8, 16))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no device"), ("cpu:x", "is no device"), ("cpu:0", "1 to 256 are possible"), ("cpu,cuda:0", "different kinds"),
        ("cuda:0,cuda:0", "is named twice"), ("cuda:77", "cannot be used"), ("gpu:1", "cannot be used"),
    ],
)  # fmt: skip
def test_devices_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_devices(text)


def some_pairs(count: int = 3000) -> hardneg.Pairs:
    texts = some_texts(count)
    return hardneg.Pairs.from_columns(texts[:60], [f"{text} {i}" for i, text in enumerate(texts[:60])], corpus=texts)


def vectors_of(
    encoder: SentenceTransformersEncoder, pairs: hardneg.Pairs, folder: Path, **more: Any
) -> tuple[list[bytes], list[str]]:
    notes: list[str] = []
    queries, documents, _ = embed(
        encoder, pairs, folder, query_prompt=None, document_prompt=None, precision="float32",
        **{"progress": silent, "notes": notes, **more},
    )  # fmt: skip
    return [np.asarray(each[0 : each.shape[0]]).tobytes() for each in (queries, documents)], notes


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[hardneg.Pairs, list[bytes]]:
    made, pairs = SentenceTransformersEncoder(str(tiny_model), device="cpu"), some_pairs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hardneg.storage.vectors.SHARD_ROWS", 600)
        return pairs, vectors_of(made, pairs, tmp_path_factory.mktemp("alone"))[0]


@pytest.mark.faults
def test_several_processes_give_the_same_bytes_and_the_death_of_one_loses_nothing(
    encoder: SentenceTransformersEncoder,
    alone: tuple[hardneg.Pairs, list[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs, expected = alone
    monkeypatch.setattr("hardneg.storage.vectors.SHARD_ROWS", 600)
    monkeypatch.setattr(device_pool, "UNIT", 256)
    given, killed = DeviceProcess.encode, []

    def encode(self: DeviceProcess, unit: Any, *more: Any) -> Any:
        if unit.shard == 1 and not killed:  # in the middle of the work
            killed.append(self.label)
            os.kill(self.pid, signal.SIGKILL)
        return given(self, unit, *more)

    monkeypatch.setattr(DeviceProcess, "encode", encode)
    done: dict[str, int] = {}

    def progress(stage: str, total: int) -> Callable[[int], None]:
        done[stage] = -total
        return lambda count: done.update({stage: done[stage] + count})

    found, notes = vectors_of(encoder, pairs, tmp_path / "a", devices=("cpu", "cpu"), progress=progress)
    assert found == expected
    assert len(notes) == 1
    assert f"{killed[0]} stopped (killed by signal 9" in notes[0]
    assert set(done.values()) == {0}


@pytest.mark.slow
def test_when_every_process_dies_it_says_so_and_goes_on_later_from_what_was_written(
    encoder: SentenceTransformersEncoder,
    alone: tuple[hardneg.Pairs, list[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs, expected = alone
    monkeypatch.setattr("hardneg.storage.vectors.SHARD_ROWS", 600)
    given = DeviceProcess.encode

    def encode(self: DeviceProcess, unit: Any, *more: Any) -> Any:
        if unit.shard == 2:
            os.kill(self.pid, signal.SIGKILL)
        return given(self, unit, *more)

    with monkeypatch.context() as patch:
        patch.setattr(DeviceProcess, "encode", encode)
        with pytest.raises(
            RunError,
            match=r"no device is left to encode on \(cpu \(process 1\) stopped .*the same command goes on from there .*--resume",
        ):
            vectors_of(encoder, pairs, tmp_path, devices=("cpu",))
    kept = next(tmp_path.glob("documents-*/shards.jsonl")).read_text().splitlines()[1:]
    assert [json.loads(part)["start"] for part in kept] == [0, 600]
    encoded: list[int] = []
    forward = Forward.run
    monkeypatch.setattr(
        Forward, "run", lambda self, texts, *more: encoded.append(len(texts)) or forward(self, texts, *more)
    )
    assert vectors_of(encoder, pairs, tmp_path)[0] == expected
    assert len(encoded) == 2  # the shards that were missing, and no query


@pytest.mark.slow
def test_a_model_in_memory_goes_to_the_processes_through_a_folder(tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_model), device="cpu")
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    made, pairs = SentenceTransformersEncoder(copy.deepcopy(model)), some_pairs(200)
    here, _ = vectors_of(made, pairs, tmp_path / "a")
    assert vectors_of(made, pairs, tmp_path / "b", devices=("cpu",))[0] == here


def test_an_encoder_that_cannot_go_to_other_processes_is_refused(tmp_path: Path) -> None:
    pairs = some_pairs(20)
    with pytest.raises(
        UsageError, match="only encoders st:MODEL of texts run on several devices, not this HashedEncoder"
    ):
        vectors_of(hardneg.HashedEncoder(8), pairs, tmp_path / "c", devices=("cpu",))  # type: ignore[arg-type]


def test_a_full_disk_is_an_error_that_says_what_is_kept(
    encoder: SentenceTransformersEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hardneg.storage.vectors.SHARD_ROWS", 100)
    pairs = some_pairs(400)
    write, free = hardneg.storage.vectors.write_at, [True]

    def full(path: Path, offset: int, data: memoryview) -> None:
        if offset > 300 * encoder.dimension * 4 and free[0]:
            raise OSError(28, "No space left on device")
        write(path, offset, data)

    monkeypatch.setattr("hardneg.storage.vectors.write_at", full)
    with pytest.raises(
        RunError,
        match=r"No space left on device\). 300 of 303 vectors are kept: .*run the same command again.* .--resume",
    ):
        vectors_of(encoder, pairs, tmp_path)
    free[0] = False
    found = vectors_of(encoder, pairs, tmp_path)[0]
    assert found == vectors_of(encoder, pairs, tmp_path / "whole")[0]
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("usage", (), {"free": 10})())
    with pytest.raises(RunError, match=r"the vectors need 0.0 GB in .*, and the disk has 0.0 GB left"):
        vectors_of(encoder, pairs, tmp_path / "none")


def test_a_shard_is_written_while_the_next_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hardneg.storage.vectors import EmbeddingStore

    monkeypatch.setattr("hardneg.storage.vectors.SHARD_ROWS", 10)
    write, started = hardneg.storage.vectors.write_at, threading.Event()

    def waiting(path: Path, offset: int, data: memoryview) -> None:
        if offset == 128:
            assert started.wait(20), "the next shard was not begun before this one was written"
        write(path, offset, data)

    def encode(start: int, stop: int) -> np.ndarray:
        if start:
            started.set()
        return np.ones((stop - start, 2), np.float32)

    monkeypatch.setattr("hardneg.storage.vectors.write_at", waiting)
    store = EmbeddingStore(tmp_path / "s", "key", 20, 2)
    store.fill(encode, lambda count: None)
    assert store.complete


def test_the_closing_table_and_a_resumed_pass_keep_the_number_format(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_model), device="cpu", prompts={"query": "query: ", "document": ""})
    model.save_pretrained(str(tmp_path / "model"))
    source = tmp_path / "pairs.csv"
    source.write_text("query,positive\n" + "".join(f"what is {w},{w} is here\n" for w in WORDS))
    rates = {"float32": 50.0, "bfloat16": 100.0}
    monkeypatch.setattr(number_format, "product_rates", lambda device: rates)
    command = ["mine", source, "--out", tmp_path / "run", "--encoder", f"st:{tmp_path / 'model'}", "--negatives", "1"]
    done = run_here(*command, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    rows = [" ".join(line.replace("│", " ").split()) for line in done.stdout.splitlines()]
    assert "query prompt 'query: ' (the model's own)" in rows
    assert "encoder precision bfloat16 on cpu" in rows
    used = hardneg.Run(tmp_path / "run").info["resolved"]["encoder"]
    assert used["precision"] == "bfloat16"
    assert "2.0 times as fast" in used["precision_reason"]
    rates["bfloat16"] = 1.0  # a busy moment, or another machine: measured again, it would be float32
    assert run_here(*command, "--device", "cpu", "--resume").returncode == 0
    done = run_here(*command, "--device", "cpu", "--resume", "--encoder-precision", "float32")
    assert done.returncode == 1
    assert "encoder_precision" in done.stderr
    done = run_here("mine", source, "--out", tmp_path / "other", "--encoder-precision", "bfloat16")
    assert done.returncode == 2
    assert "has no choice of number formats" in done.stderr


def test_doctor_says_what_is_there_and_what_is_picked(tiny_model: Path) -> None:
    done = run_here("doctor", "--encoder", f"st:{tiny_model}", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (
        found["packages"]["torch"] == torch.__version__.split("+")[0] or found["packages"]["torch"] == torch.__version__
    )
    assert found["devices"]["cpu"]["gflops"]["float32"] > 0
    assert found["encoder"]["dimension"] == found["kernels"]["dimension"] == 16
    assert found["encoder"]["precision"] == found["picks"]["--encoder-precision"]["pick"]
    assert found["picks"]["kernel of exact search"]["pick"] in found["kernels"]["seconds"]
    assert found["picks"]["products of float32"]["pick"] in ("numpy", "torch")
    done = run_here("doctor")
    assert "products of matrices, GFLOP/s" in done.stdout
    assert "--encoder-precision" in done.stdout


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("st:MODEL,backend=onnx", "backend=onnx"), ("st:MODEL,backend=openvino", "backend=openvino"),
        ("st:MODEL,backend=onyx", "unknown back end 'onyx'. Did you mean 'onnx'"),
    ],
)  # fmt: skip
def test_a_back_end_that_is_not_there(spec: str, message: str, tiny_model: Path) -> None:
    from importlib.util import find_spec

    if find_spec("optimum") is not None and "onyx" not in spec:
        pytest.skip("optimum is installed: its back ends can be used here")
    with pytest.raises(UsageError, match=message):
        hardneg.make_encoder(spec.replace("MODEL", str(tiny_model)))


def test_openvino_gives_the_vectors_of_torch(tiny_model: Path, tmp_path: Path) -> None:
    from importlib.util import find_spec

    if find_spec("optimum") is None or find_spec("openvino") is None:
        pytest.skip("no openvino: pip install 'sentence-transformers[openvino]' (it needs an older transformers)")
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    made = hardneg.make_encoder(f"st:{folder},backend=openvino", device="cpu")
    texts = some_texts(50)
    np.testing.assert_allclose(made.encode(texts), SentenceTransformersEncoder(str(folder)).encode(texts), atol=1e-5)
    before = made.fingerprint()
    next(folder.rglob("*.safetensors")).write_bytes(b"other weights")
    assert made.fingerprint() != before


def test_a_large_batch_size_is_no_slower_on_the_processor() -> None:
    """Such a batch has more texts than the caches of a core hold, and a core is left with nothing to do."""
    from hardneg.encoders.batches import CPU_TOKENS, UNLIMITED, batches

    features = {"attention_mask": torch.ones(600, 100, dtype=torch.int64)}
    sizes = {(tokens, most): [len(b.rows) for b in batches(features, 600, tokens, most)]
             for tokens in (CPU_TOKENS, UNLIMITED) for most in (None, 7, 512)}  # fmt: skip
    assert sizes[CPU_TOKENS, 512] == sizes[CPU_TOKENS, None] == [20] * 30
    assert max(sizes[CPU_TOKENS, 7]) == max(sizes[UNLIMITED, 7]) == 7
    assert sizes[UNLIMITED, 512] == [512, 88]
