"""Laws of Hugging Face folders: shards are one model, what is read is what was written, nothing in one is trusted."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import llm
from llm.checkpoint import load_weights
from llm.interop import hf_config, huggingface, shards
from llm.interop.shards import INDEX, TensorFiles, write_tensors
from llm.models.build import build_model, empty_model
from llm.models.config import ModelConfig, QwenConfig
from tests.conftest import TINY, random_ids, random_model

transformers = pytest.importorskip("transformers")


def change(path: Path, **values: Any) -> None:
    table = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**table, **values}), encoding="utf-8")


def sharded(folder: Path, family: str = "qwen3") -> Path:
    llm.save(random_model(TINY[family]), folder, max_shard_bytes=4000)
    return folder


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors*"))


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_shards_are_one_model_for_us_and_for_transformers(tiny_config: ModelConfig, tmp_path: Path) -> None:
    model, ids = random_model(tiny_config), random_ids(2, 12)
    llm.save(model, tmp_path, max_shard_bytes=4000)
    names = files(tmp_path)
    assert len(names) > 3 and names[0] == f"model-00001-of-{len(names) - 1:05d}.safetensors" and names[-1] == INDEX
    sizes = [[tensor.nbytes for tensor in safetensors.torch.load_file(tmp_path / name).values()] for name in names[:-1]]
    assert all(sum(shard) <= 4000 or len(shard) == 1 for shard in sizes)   # a tensor is never cut
    assert json.loads((tmp_path / INDEX).read_text())["metadata"]["total_size"] == sum(map(sum, sizes))
    assert equal(llm.load(tmp_path)[0], model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert torch.allclose(theirs(ids).logits, model(ids).logits, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="5KB")
    assert (tmp_path / "theirs" / INDEX).is_file()
    assert equal(llm.load(tmp_path / "theirs")[0], model)


def test_saving_again_leaves_no_older_weights_behind(tmp_path: Path) -> None:
    old, new = random_model(TINY["qwen3"]), random_model(TINY["qwen3"], seed=1)
    for first, second in ((4000, 10**9), (10**9, 4000), (4000, 20_000)):
        llm.save(old, tmp_path, max_shard_bytes=first)
        llm.save(new, tmp_path, max_shard_bytes=second)
        assert equal(llm.load(tmp_path)[0], new)
        count = len([name for name in files(tmp_path) if name != INDEX])
        assert (INDEX in files(tmp_path)) == (count > 1)


def test_a_model_can_be_saved_into_the_folder_that_it_came_from(tmp_path: Path) -> None:
    """Its weights are its own, not a view of the file that is being written over."""
    model = random_model(TINY["qwen3"])
    llm.save(model, tmp_path)
    loaded, _ = llm.load(tmp_path)
    with torch.no_grad():
        loaded.final_norm.weight.add_(1)
    llm.save(loaded, tmp_path)
    again, _ = llm.load(tmp_path)
    assert equal(again, loaded) and not equal(again, model)


def test_weights_larger_than_what_is_mapped_at_a_time_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "REOPEN_BYTES", 1000)
    model = random_model(TINY["qwen3_moe"])
    llm.save(model, tmp_path)
    assert equal(llm.load(tmp_path)[0], model)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells how much memory is resident now")
def test_no_second_copy_of_the_weights_is_held_while_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "REOPEN_BYTES", 1 << 20)   # mapped pages are resident too, until their file is closed
    config = QwenConfig(vocab_size=512, num_layers=8, num_heads=4, num_kv_heads=4, dim=256)
    llm.save(build_model(config), tmp_path)
    resident: list[int] = []

    class Watched(TensorFiles):
        def __getitem__(self, name: str) -> torch.Tensor:
            pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
            resident.append(int(pages) * os.sysconf("SC_PAGE_SIZE"))
            return super().__getitem__(name)

    state = huggingface.from_tensors(Watched(tmp_path), config, empty_model(config).state_dict())
    size = sum(tensor.nbytes for tensor in state.values())
    assert size > 25e6 and max(resident) - resident[0] < 1.4 * size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_read_and_written_in_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    model, name = random_model(TINY["qwen3"]), str(dtype).removeprefix("torch.")
    llm.save(model, tmp_path, dtype=name)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == name
    narrow, _ = llm.load(tmp_path, dtype=dtype)
    wide, _ = llm.load(tmp_path)
    assert {parameter.dtype for parameter in narrow.parameters()} == {dtype}
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
    for one, other in zip(narrow.parameters(), wide.parameters(), strict=True):
        assert torch.equal(one.float(), other)
    llm.save(narrow, tmp_path / "again")   # as they are
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_weights_are_filled_into_a_model_in_place(tmp_path: Path) -> None:
    model, other = random_model(TINY["gpt"]), random_model(TINY["gpt"], seed=1)
    places = [parameter.data_ptr() for parameter in other.parameters()]
    llm.save(model, tmp_path)
    load_weights(other, tmp_path)
    assert equal(other, model)
    assert [parameter.data_ptr() for parameter in other.parameters()] == places


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors",
                                  "model.bin", "..", "", 7])
def test_an_index_names_only_safetensors_files_beside_it(name: Any, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    safetensors.torch.save_file({"secret": torch.zeros(1)}, tmp_path / "secret.safetensors")
    homes = json.loads((folder / INDEX).read_text())["weight_map"]
    change(folder / INDEX, weight_map={**homes, "model.norm.weight": name})
    with pytest.raises(ValueError, match=r"is not a safetensors file beside it|no table of file names"):
        llm.load(folder)


@pytest.mark.parametrize("weight_map", [None, [], "x", {"a": {}}])
def test_an_index_without_a_table_is_damaged(weight_map: Any, tmp_path: Path) -> None:
    change(sharded(tmp_path) / INDEX, weight_map=weight_map)
    with pytest.raises(ValueError, match=r"index\.json is damaged: weight_map is no table"):
        llm.load(tmp_path)


@pytest.mark.parametrize("damage", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_an_index_that_is_no_table_is_named(damage: bytes, tmp_path: Path) -> None:
    (sharded(tmp_path) / INDEX).write_bytes(damage)
    with pytest.raises(ValueError, match=r"index\.json is damaged: .*copy it again"):
        llm.load(tmp_path)


@pytest.mark.parametrize("name", [INDEX, "config.json"])
def test_a_table_too_large_to_be_one_is_not_read(name: str, tmp_path: Path) -> None:
    with open(sharded(tmp_path) / name, "ab") as file:
        file.truncate(shards.MAX_JSON_BYTES + 1)   # a hole; it takes no room on the disk
    with pytest.raises(ValueError, match=r"has 104,857,601 bytes; a file of its kind has at most 104,857,600"):
        llm.load(tmp_path)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    names = files(sharded(tmp_path))
    for name in names[:2]:
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=re.escape(f"lacks {names[0]}; {names[1]}, named by {INDEX}")):
        llm.load(tmp_path)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    name = files(sharded(tmp_path))[1]
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        llm.load(tmp_path)


def test_tensors_twice_unlisted_and_missing_are_all_named(tmp_path: Path) -> None:
    first, second, *_ = files(sharded(tmp_path))
    ours = safetensors.torch.load_file(tmp_path / first)
    twice, gone = list(ours)[:2]
    theirs = safetensors.torch.load_file(tmp_path / second)
    safetensors.torch.save_file({**theirs, twice: ours[twice], "stray": torch.zeros(1)}, tmp_path / second)
    safetensors.torch.save_file({name: tensor for name, tensor in ours.items() if name != gone}, tmp_path / first)
    with pytest.raises(ValueError) as caught:
        llm.load(tmp_path)
    message = str(caught.value)
    assert f"{twice} stands in {first} and in {second}" in message
    assert f"stray stands in {second}, but the index says nothing of it" in message
    assert f"{gone} is not in {first}" in message


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"num_hidden_layers": 10**9}, "asks for 1000000000 layers, but the weights are"),
    ({"num_hidden_layers": 10**12}, "num_layers=1000000000000 must be at most"),
    ({"hidden_size": 2**31}, "has shape"),
    ({"hidden_size": 2**31, "intermediate_size": 2**32 - 1}, "asks for impossible sizes|has shape"),
    ({"vocab_size": 2**32 - 1}, "has shape"),
    ({"vocab_size": 0}, "vocab_size=0 is not set"),
    ({"num_attention_heads": 0}, "num_heads=0 must be at least 1"),
    ({"hidden_size": "16"}, "hidden_size = '16' must be of type int"),
    ({"hidden_size": 16.5}, "hidden_size = 16.5 must be of type int"),
    ({"hidden_size": True}, "hidden_size = True must be of type int"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps = 'small' must be of type float"),
    ({"rope_theta": [1]}, r"rope_theta = \[1\] must be of type float"),
    ({"sliding_window": "a"}, "sliding_window = 'a' must be of type int"),
    ({"hidden_size": None}, "lacks 'hidden_size'"),
    ({"model_type": ["qwen3"]}, "is not supported"),
    ({"model_type": "mamba"}, "model_type 'mamba' is not supported; choose from gpt2, llama, mistral, qwen2"),
])
def test_a_config_that_makes_no_sense_is_refused_in_a_line(
    changes: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    llm.save(random_model(TINY["qwen3"]), tmp_path)
    change(tmp_path / "config.json", **changes)
    with pytest.raises(ValueError, match=complaint) as caught:
        llm.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["gpt", "mistral", "qwen3", "qwen2_moe"])
def test_no_value_of_any_key_makes_anything_but_a_configuration_or_a_complaint(family: str) -> None:
    table = hf_config.to_config(TINY[family], eos_id=None)
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "mscale": 1.0,
            "mscale_all_dim": 1.0, "beta_fast": 32.0, "attention_factor": 1.0, "truncate": True}
    others = {"rope_parameters": yarn, "layer_types": ["full_attention"], "partial_rotary_factor": 1.0}
    odd = [None, "x", "", -1, 0, 10**30, 0.5, float("nan"), float("inf"), True, [], ["x"], [[]], {}, {"rope_type": []}]
    tables = [{**table, key: value} for key in {**table, **others} for value in odd]
    tables += [{**table, "rope_scaling": {**yarn, key: value}} for key in yarn for value in odd]
    refused = 0
    for changed in tables:
        try:
            assert isinstance(hf_config.from_config(changed), ModelConfig)
        except (ValueError, KeyError):   # the caller turns a KeyError into "lacks"
            refused += 1
    assert 0.3 < refused / len(tables) < 0.9


def test_more_experts_than_tensors_are_refused_before_a_model_is_built(tmp_path: Path) -> None:
    llm.save(random_model(TINY["qwen3_moe"]), tmp_path)
    change(tmp_path / "config.json", num_experts=10**9)
    with pytest.raises(ValueError, match="asks for 2 layers of 1000000000 experts, but the weights are"):
        llm.load(tmp_path)


def test_an_untied_config_without_a_head_in_the_file_is_refused(tmp_path: Path) -> None:
    llm.save(random_model(TINY["qwen3"]), tmp_path)
    change(tmp_path / "config.json", tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"lm_head\.weight is missing"):
        llm.load(tmp_path)


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    llm.save(random_model(TINY["qwen3"]), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        llm.load(tmp_path)
    for name in ("pytorch_model.bin", "model.pt"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=r"a pickle, which can run any code.*safetensors"):
            llm.load(tmp_path)


def test_a_link_into_a_cache_is_followed_as_hugging_face_s_cache_needs(tmp_path: Path) -> None:
    llm.save(random_model(TINY["qwen3"]), tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert equal(llm.load(tmp_path / "snapshot")[0], random_model(TINY["qwen3"]))


def test_a_shard_holds_something(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_shard_bytes=0 must be at least 1"):
        write_tensors({}, tmp_path, max_shard_bytes=0)
    write_tensors({"large": torch.zeros(100), "small": torch.zeros(1)}, tmp_path, max_shard_bytes=8)
    assert {name: tensor.numel() for name, tensor in TensorFiles(tmp_path).items()} == {"large": 100, "small": 1}
