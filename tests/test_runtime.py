"""Laws of the machine: precision is a table, a device that is not there is named, and nothing is global."""

from typing import Any, NamedTuple

import pytest
import torch

from llm.launch import Launch, read_launch
from llm.runtime import World, peak_memory, resolve_precision, start


@pytest.mark.parametrize(("requested", "device", "has_bf16", "expected"), [
    ("auto", "cpu", True, "bf16"), ("auto", "cpu", False, "fp32"), ("auto", "cuda", True, "bf16"),
    ("auto", "cuda", False, "fp16"), ("auto", "mps", False, "fp32"), ("fp32", "cuda", True, "fp32"),
    ("fp16", "cpu", False, "fp16"), ("bf16", "cpu", False, "bf16"),
])
def test_the_table_of_precisions(requested: str, device: str, has_bf16: bool, expected: str) -> None:
    assert resolve_precision(requested, device, has_bf16=has_bf16) == expected


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match="precision='fp8'; choose from auto, fp32, bf16, fp16"):
        start(device="cpu", precision="fp8")
    with pytest.raises(ValueError, match="threads=0"):
        start(device="cpu", threads=0)
    with pytest.raises(ValueError, match="--device gpu: choose from auto, cpu"):
        start(device="gpu")
    with pytest.raises(ValueError, match=r"--device cuda:99: this torch sees \d+ CUDA devices"):
        start(device="cuda:99")
    with pytest.raises(ValueError, match="parallel='fdsp'; choose from auto, none, ddp"):
        start(device="cpu", parallel="fdsp")


@pytest.mark.parametrize(("settings", "message"), [
    ({"parallel": "none"}, "torchrun started 2 processes, and with parallel=none each would work for itself; use"),
    ({"device": "cuda:0"}, "--device cuda:0: each of 2 processes takes a GPU of its own; use --device cuda"),
    ({"device": "cuda"}, r"--device cuda:7: this torch sees \d CUDA devices; use another, fewer processes"),
])
def test_what_several_processes_cannot_have_is_named_before_they_meet(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        start(**{"device": "cpu", "parallel": "ddp", **settings}, launch=Launch(rank=7, local_rank=7, size=2))


@pytest.mark.parametrize(("environment", "message"), [
    ({"WORLD_SIZE": "2"}, "RANK=None beside WORLD_SIZE=2: both are numbers that torchrun sets"),
    ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE=two beside WORLD_SIZE=two: both are numbers"),
    ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 must be below WORLD_SIZE=2; start the command with torchrun"),
])
def test_an_environment_that_makes_no_sense_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_launch(environment)


def test_asking_one_process_to_work_together_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    assert start(device="cpu", parallel="ddp").size == 1
    assert "parallel=ddp has no effect on one process" in caplog.text


def test_threads_are_set_only_when_asked() -> None:
    start(device="cpu")
    assert torch.get_num_threads() == 1   # as the fixture of all tests left it
    start(device="cpu", threads=2)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_autocast_computes_in_the_precision_of_the_run(precision: str) -> None:
    world = start(device="cpu", precision=precision)
    with world.autocast():
        product = torch.nn.functional.linear(torch.ones(1, 2), torch.ones(2, 2))
    assert product.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def test_every_tensor_of_a_batch_moves_and_its_shape_stays() -> None:
    class Pair(NamedTuple):
        first: torch.Tensor
        second: str

    world = World(torch.device("meta"), "fp32")
    batch = {"ids": torch.ones(2), "more": [torch.ones(1), (torch.ones(1), 3)], "pair": Pair(torch.ones(1), "name")}
    moved = world.to_device(batch)
    assert moved["ids"].device.type == moved["more"][0].device.type == moved["more"][1][0].device.type == "meta"
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].first.device.type == "meta"
    assert (moved["more"][1][1], moved["pair"].second) == (3, "name")
    assert batch["ids"].device.type == "cpu"


def test_one_process_is_a_world_of_one() -> None:
    world = start(device="cpu")
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert world.total([1.0, 2.5]) == [1.0, 2.5]


def test_peak_memory_is_in_bytes() -> None:
    keep = torch.ones(8_000_000)   # 32 MB
    assert 32_000_000 < keep.numel() * 4 + 1 < peak_memory(torch.device("cpu")) < 2**40
