"""Models in GGUF: what is written comes back, transformers reads the same model, damaged files end in one line."""

import dataclasses
import logging
import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf as peer
import numpy as np
import pytest
import torch

import llm
from llm.checkpoint import find_checkpoint, read_config
from llm.interop import gguf, hf_config
from llm.interop.gguf import architectures, container, rope
from llm.interop.gguf.blocks import FORMATS
from llm.models.config import ModelConfig, QwenConfig
from llm.models.scaling import RopeScaling
from tests.conftest import TINY, random_ids, random_model

SCALED = {
    "linear": RopeScaling(kind="linear", factor=2.0, trained_context=16),
    "yarn": RopeScaling(kind="yarn", factor=2.0, trained_context=16, beta_fast=4.0),
    "llama3": RopeScaling(kind="llama3", factor=8.0, trained_context=64),
}
MODELS: dict[str, ModelConfig] = {
    **{name: config for name, config in TINY.items() if name != "qwen2_moe"},
    "gpt, own head": dataclasses.replace(TINY["gpt"], tie_embeddings=False),
    **{name: dataclasses.replace(TINY["llama"], rope_scaling=scaling) for name, scaling in SCALED.items()},
}


def logits(model: Any, seed: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return model(random_ids(2, 20, seed=seed)).logits


def described(config: ModelConfig) -> dict[str, Any]:
    """A configuration with its defaults filled in."""
    widths = {"head_dim": config.head_width, "num_kv_heads": config.kv_heads}
    return vars(config) | widths | ({} if config.expert_count else {"mlp_dim": config.mlp_width})


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_to_the_bit(name: str, tmp_path: Path) -> None:
    model = random_model(MODELS[name])
    gguf.save(model, tmp_path / "model.gguf", kind="f32")
    again, tokenizer = llm.load(tmp_path / "model.gguf")
    assert described(again.config) == described(model.config) and tokenizer is None
    state = model.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    assert not again.training and all(p.requires_grad for p in again.parameters())
    assert read_config(find_checkpoint(tmp_path / "model.gguf")) == again.config
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


PEERS = {   # transformers' reader takes the head width of every qwen3 for 128, and that of a qwen2 for dim / heads
    "gpt": TINY["gpt"], "gpt, own head": MODELS["gpt, own head"], "llama": TINY["llama"], "qwen2": dataclasses.replace(
        TINY["qwen2"], dim=32),
    "llama, grouped and tied": QwenConfig(vocab_size=61, context_length=32, num_layers=2, num_heads=4, num_kv_heads=2,
                                          dim=32, use_qk_norm=False),
    "qwen3": dataclasses.replace(TINY["qwen3"], head_dim=128),
    "qwen3_moe": TINY["qwen3_moe"],
}


@pytest.mark.parametrize("name", PEERS)
def test_transformers_reads_the_same_model(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = random_model(PEERS[name])
    gguf.save(model, tmp_path / "model.gguf", kind="f16")
    config = None
    if name.startswith(("gpt", "qwen3_moe")):   # whose context it takes for 1024, whose experts for 768 wide
        config = transformers.AutoConfig.for_model(**hf_config.to_config(model.config, eos_id=None))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32,
                                                               config=config)
    ours, _ = llm.load(tmp_path / "model.gguf")
    torch.testing.assert_close(logits(ours), logits(theirs), atol=2e-5, rtol=1e-5)


def test_no_second_copy_of_the_model_is_held_while_it_is_read(tmp_path: Path) -> None:
    config = QwenConfig(vocab_size=512, num_layers=8, num_heads=4, num_kv_heads=4, dim=128, use_qk_norm=False)
    gguf.save(random_model(config), tmp_path / "model.gguf", kind="q8_0")
    file = gguf.GGUFFile(tmp_path / "model.gguf")
    shapes = {name: tuple(tensor.shape) for name, tensor in random_model(config).state_dict().items()}
    tracemalloc.start()
    try:
        state = architectures.read_state(file, config, shapes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    sizes = [values.nbytes for values in state.values()]
    assert peak < sum(sizes) + 5 * max(sizes) < 1.4 * sum(sizes)


def test_rows_that_are_not_put_back_in_order_change_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(TINY["llama"])
    gguf.save(model, tmp_path / "model.gguf", kind="f32")
    monkeypatch.setattr(architectures, "unpaired", lambda rows, heads: rows)
    wrong, _ = llm.load(tmp_path / "model.gguf")
    assert (logits(wrong) - logits(model)).abs().max() > 0.1


def test_the_order_of_rows_is_that_of_llama_cpp() -> None:
    rows = np.arange(2 * 6)[:, None]   # two heads of width 6
    assert architectures.paired(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", ["gpt", "qwen2", "qwen3_moe"])
def test_what_is_written_is_what_the_peer_reads(name: str, kind: str, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY[name], dim=64, **{"moe_dim" if "moe" in name else "mlp_dim": 48})   # not 32 n
    gguf.save(random_model(config), tmp_path / "model.gguf", kind=kind)
    reader = peer.GGUFReader(tmp_path / "model.gguf")
    file = gguf.GGUFFile(tmp_path / "model.gguf")
    assert [tensor.name for tensor in reader.tensors] == list(file.tensors)
    assert reader.fields["general.file_type"].contents() == peer.LlamaFileType[
        {"f32": "ALL_F32"}.get(kind, f"MOSTLY_{kind.upper()}")]
    for tensor in reader.tensors:
        theirs = peer.dequantize(np.array(tensor.data), tensor.tensor_type).reshape(tuple(reversed(tensor.shape)))
        assert np.array_equal(theirs, file.read(tensor.name))
        is_small = len(tensor.shape) == 1 or tensor.name.endswith(("position_embd.weight", "ffn_gate_inp.weight"))
        is_odd = kind == "q8_0" and tensor.shape[0] % 32
        assert tensor.tensor_type.name == ("F32" if is_small else "F16" if is_odd else kind.upper())


def test_what_the_peer_writes_is_read(tmp_path: Path) -> None:
    """Its own layout: version 3, another alignment, every type of value, a quantized matrix, a copied head."""
    model = random_model(TINY["qwen3"])
    model_file, peer_file = tmp_path / "model.gguf", tmp_path / "peer.gguf"
    gguf.save(model, model_file, kind="f32")
    ours = gguf.GGUFFile(model_file)
    writer = peer.GGUFWriter(peer_file, "qwen3")
    writer.add_custom_alignment(64)
    for key, value in ours.metadata.items():
        if key.startswith("qwen3."):
            (writer.add_uint64 if type(value) is int else writer.add_float64)(key, value)
    for name, value in (("u8", 1), ("int16", -2), ("bool", True)):
        getattr(writer, {"u8": "add_uint8"}.get(name, f"add_{name}"))(f"my.{name}", value)
    writer.add_array("my.floats", [0.5, 1.5])
    writer.add_array("my.words", ["a", "é"])
    for name in ours.tensors:
        writer.add_tensor(name, ours.read(name))
    writer.add_tensor("output.weight", ours.read("token_embd.weight"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    again, _ = llm.load(peer_file)
    assert torch.equal(logits(again), logits(model)) and again.config.tie_embeddings
    metadata = gguf.GGUFFile(peer_file).metadata
    assert (metadata["my.u8"], metadata["my.int16"], metadata["my.bool"]) == (1, -2, True)
    assert metadata["my.floats"].tolist() == [0.5, 1.5] and metadata["my.words"] == ["a", "é"]


def rewritten(path: Path, *, values: dict[str, Any] | None = None, drop: str = "", rename: dict[str, str] | None = None,
              changed: dict[str, np.ndarray] | None = None) -> Path:
    """A copy of a file with other values, fewer values, other names or other tensors."""
    file = gguf.GGUFFile(path)
    metadata = {key: value for key, value in (file.metadata | (values or {})).items()
                if key != drop and value is not None}
    content = {(rename or {}).get(name, name): file.read(name) for name in file.tensors if name != drop}
    content |= changed or {}
    target = path.with_name("rewritten.gguf")
    container.write(target, metadata, {name: (value.shape, FORMATS[0]) for name, value in content.items()},
                    content.__getitem__)
    return target


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    gguf.save(random_model(TINY["llama"]), tmp_path / "model.gguf", kind="f32")
    return tmp_path / "model.gguf"


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        llm.load(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("change", "message"), [
    ({"values": {"general.architecture": "mamba"}}, "its architecture 'mamba' is not supported; choose a model of gp"),
    ({"values": {"general.type": "adapter"}}, "it holds a 'adapter', not a model"),
    ({"drop": "general.architecture"}, "it has no 'general.architecture'; convert the model anew"),
    ({"drop": "llama.block_count"}, "it has no 'llama.block_count'"),
    ({"values": {"llama.block_count": 2**31}}, "it has no tensor 'blk.2147483647.attn_norm.weight'"),
    ({"values": {"llama.block_count": 0}}, "'llama.block_count' = 0 must be at least 1"),
    ({"values": {"llama.block_count": "two"}}, "'llama.block_count' is 'two', not of type int"),
    ({"values": {"llama.block_count": 1}}, "'blk.1.attn_k.weight' is not part of such a model"),
    ({"values": {"llama.embedding_length": 2**32 - 2}}, "'token_embd.weight' has shape (61, 16), and by its settings"),
    ({"values": {"llama.attention.head_count": 3}}, "num_kv_heads=2 does not divide num_heads=3"),
    ({"values": {"llama.attention.head_count": np.array([2, 2], dtype="<u4")}}, "is an array of 2, not of type int"),
    ({"values": {"llama.rope.dimension_count": 4}}, "'llama.rope.dimension_count' = 4 is not supported; only 8 is"),
    ({"values": {"llama.rope.freq_base": -1.0}}, "'llama.rope.freq_base' = -1.0 must be positive"),
    ({"values": {"llama.rope.freq_base": float("nan")}}, "'llama.rope.freq_base' is nan, which is no number"),
    ({"values": {"llama.attention.layer_norm_rms_epsilon": 0.0}}, "must be positive"),
    ({"values": {"llama.rope.scaling.type": "longrope"}}, "'llama.rope.scaling.type' = 'longrope' is not supported"),
    ({"values": {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 0.5}}, "factor=0.5 must be at least"),
    ({"values": {"llama.rope.scaling.attn_factor": 2.0}}, "'llama.rope.scaling.attn_factor' = 2.0 is not supported,"),
    ({"values": {"llama.expert_count": 8}}, "'llama.expert_count' = 8 is not supported, and may change what the model"),
    ({"changed": {"rope_freqs.weight": np.array([1, 2, 3, 3], dtype="f4")}}, "bends RoPE in another way than Llama 3"),
    ({"changed": {"rope_freqs.weight": np.ones(5, dtype="f4")}}, "'rope_freqs.weight' has shape (5,), not (4,)"),
    ({"changed": {"rope_freqs.weight": np.zeros(4, dtype="f4")}}, "every number in it must be 1 or more"),
    ({"values": {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0},
      "changed": {"rope_freqs.weight": np.ones(4, dtype="f4")}}, "it has both rope_freqs.weight and rope scaling 'ya"),
    ({"drop": "blk.1.ffn_up.weight"}, "blk.1.ffn_up.weight is missing"),
    ({"drop": "token_embd.weight"}, "it has no tensor 'token_embd.weight'; it is damaged, or one part of several"),
    ({"changed": {"blk.1.ffn_up.weight": np.zeros((48, 8), dtype="f4")}}, "has shape (48, 8), not (48, 16)"),
    ({"changed": {"blk.0.ffn_up.weight": np.zeros((24, 16), dtype="f4")}}, "has shape (24, 16), and by its settings"),
    ({"rename": {"blk.0.attn_q.weight": "../../../../etc/passwd"}}, "'../../../../etc/passwd' is not part of such a"),
    ({"changed": {"blk.0.attn_q.bias": np.zeros(16, dtype="f4")}}, "'blk.0.attn_q.bias' is not part of such a model"),
    ({"values": {"general.alignment": 3}}, "'general.alignment' = 3 must be a power of two"),
])
def test_a_file_that_is_no_model_of_ours_is_refused(change: dict[str, Any], message: str, tiny_file: Path) -> None:
    assert message in refusal(rewritten(tiny_file, **change))


def test_numbers_come_back_as_the_decimals_they_were(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY["llama"], norm_eps=1e-5, rope_theta=500_000.0)
    gguf.save(random_model(config), tmp_path / "model.gguf", kind="f16")
    found = read_config(tmp_path / "model.gguf")
    assert isinstance(found, QwenConfig) and (found.norm_eps, found.rope_theta) == (1e-5, 500_000.0)


@pytest.mark.parametrize("scaling", [
    RopeScaling(kind="dynamic", factor=2.0, trained_context=16),
    RopeScaling(kind="yarn", factor=2.0, trained_context=16, attention_factor=2.0),
    RopeScaling(kind="llama3", factor=2.0, trained_context=16, high_freq_factor=8.0),
])
def test_a_scaling_that_gguf_has_no_words_for_is_refused(scaling: RopeScaling, tmp_path: Path) -> None:
    model = random_model(dataclasses.replace(TINY["llama"], rope_scaling=scaling))
    with pytest.raises(ValueError, match=r"GGUF has no words for .* as a Hugging Face folder instead"):
        gguf.save(model, tmp_path / "model.gguf", kind="f32")
    assert not list(tmp_path.iterdir())


def test_the_factors_of_llama_3_are_those_of_the_converter() -> None:
    """One pair per region: kept, blended, slowed; by the formula in its words, wavelengths instead of turns."""
    factors = rope.llama3_factors(RopeScaling(kind="llama3", factor=8.0, trained_context=8192), head_dim=128,
                                  theta=500_000.0)
    for pair, found in enumerate(factors):
        wavelength = 2 * np.pi * 500_000.0 ** (2 * pair / 128)
        smooth = (8192 / wavelength - 1) / 3
        expected = 1 if wavelength < 2048 else 8 if wavelength > 8192 else 1 / ((1 - smooth) / 8 + smooth)
        assert found == pytest.approx(expected, rel=1e-5)
    assert {1.0, 8.0} < {round(float(factor), 4) for factor in factors}


def test_a_window_that_llama_cpp_does_not_know_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        gguf.save(random_model(TINY["mistral"]), tmp_path / "model.gguf", kind="f32")
    assert "llama.cpp does not know a sliding window for llama: after 5 tokens" in caplog.text


def test_a_weight_that_cannot_be_written_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    model = random_model(TINY["llama"])
    with torch.no_grad():
        model.blocks[1].mlp.up_proj.weight[3, 4] = 1e5
    (tmp_path / "model.gguf").write_text("before", encoding="utf-8")
    with pytest.raises(ValueError, match=r"blk\.1\.ffn_up\.weight: it holds 1e\+05, which F16 cannot"):
        gguf.save(model, tmp_path / "model.gguf", kind="f16")
    assert (tmp_path / "model.gguf").read_text(encoding="utf-8") == "before" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="type 'q4_0' cannot be written; choose from f32, f16, q8_0, bf16"):
        gguf.save(model, tmp_path / "model.gguf", kind="q4_0")


# --- damaged files ----------------------------------------------------------------------------------------------------

HEAD = b"GGUF" + struct.pack("<I", 3)


def file_of(*parts: bytes, tensors: int = 0, values: int = 0) -> bytes:
    return HEAD + struct.pack("<QQ", tensors, values) + b"".join(parts)


def text(words: str | bytes) -> bytes:
    data = words if isinstance(words, bytes) else words.encode()
    return struct.pack("<Q", len(data)) + data


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims) + struct.pack("<IQ", kind, offset)


SPACE = bytes(256)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "has 0 bytes; a GGUF file begins with 24"),
    (HEAD, "has 8 bytes"),
    (b"PK\3\4" + bytes(60), "begins with b'PK\\x03\\x04', not with b'GGUF'; it is no GGUF file"),
    (b"GGUF" + struct.pack("<I", 1) + bytes(60), "is GGUF version 1; only little-endian 2 and 3 are read"),
    (b"GGUF" + struct.pack(">I", 3) + bytes(60), "is GGUF version 50331648 (a big-endian file)"),
    (file_of(SPACE, values=2**60), f"{2**60:,} named values are announced where only 256 bytes are left"),
    (file_of(SPACE, tensors=2**60), f"{2**60:,} tensors are announced where only 256 bytes are left"),
    (file_of(struct.pack("<Q", 2**60), SPACE, values=1), f"a value's name has {2**60:,} bytes, more than 65,536"),
    (file_of(struct.pack("<Q", 2**60), SPACE, tensors=1), f"a tensor's name has {2**60:,} bytes, more than 65,536"),
    (file_of(text("k"), struct.pack("<IQ", 8, 2**60), SPACE, values=1), f"{2**60:,} bytes of 'k' are announced"),
    (file_of(text("k"), struct.pack("<IIQ", 9, 8, 2**60), SPACE, values=1), f"{2**60:,} strings of 'k' are announced"),
    (file_of(text("k"), struct.pack("<IIQ", 9, 4, 2**61), SPACE, values=1), f"{2**61:,} numbers of 'k' are announced"),
    (file_of(text("k"), struct.pack("<IIQ", 9, 9, 1), SPACE, values=1), "'k' has the type 9, which is none"),
    (file_of(text("k"), struct.pack("<I", 77), SPACE, values=1), "'k' has the type 77, which is none of a value"),
    (file_of(text("k"), struct.pack("<IB", 7, 2), SPACE, values=1), "'k' is 2, and a truth value is 0 or 1"),
    (file_of(text(b"\xff\xfe"), SPACE, values=1), "a value's name is not UTF-8 (b'\\xff\\xfe')"),
    (file_of(text(""), SPACE, values=1), "a value's name is empty"),
    (file_of(*[text("k") + struct.pack("<II", 4, 1)] * 2, SPACE, values=2), "'k' stands in it twice"),
    (file_of(tensor("t", [4]) * 2, SPACE, tensors=2), "the tensor 't' stands in it twice"),
    (file_of(tensor("t", [4], offset=2**40), SPACE, tensors=1), "it was cut short or is damaged: fetch it anew"),
    (file_of(tensor("t", [4], offset=2**64 - 32), SPACE, tensors=1), "it was cut short or is damaged"),
    (file_of(tensor("t", [4], offset=5), SPACE, tensors=1), "in steps of 32; it was cut short or is damaged"),
    (file_of(tensor("t", [2**63, 2**63]), SPACE, tensors=1), "takes 340,282,366,920,938,463,463,374,607,431,768,211,"),
    (file_of(tensor("t", [4, 0]), SPACE, tensors=1), "dimensions [4, 0]; for F32 the first must be a multiple of 1,"),
    (file_of(tensor("t", [33], kind=8), SPACE, tensors=1), "dimensions [33]; for Q8_0 the first must be a multiple o"),
    (file_of(tensor("t", [256], kind=10), SPACE, tensors=1), "is stored in format 10, which is not known; choose a f"),
    (file_of(tensor("t", [1] * 5), SPACE, tensors=1), "the tensor 't' has 5 dimensions; 1 to 4 are possible"),
    (file_of(text("t"), struct.pack("<I", 2**32 - 1), SPACE, tensors=1), "has 4294967295 dimensions"),
], ids=lambda value: value[:40].strip() if isinstance(value, str) else "")
def test_a_damaged_file_is_refused_in_one_line_and_little_memory(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            llm.load(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("kept", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_refused(kept: float, tiny_file: Path) -> None:
    content = tiny_file.read_bytes()
    tiny_file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="bytes"):
        llm.load(tiny_file)


def test_a_file_that_is_not_there_or_called_otherwise_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no\.gguf does not exist; name a run folder, .* or a \.gguf file"):
        llm.load(tmp_path / "no.gguf")


@pytest.fixture(scope="module")
def file_with_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = llm.Tokenizer.train(["low lower lowest, newer newest"] * 9, vocab_size=300, pattern="qwen2")
    config = dataclasses.replace(TINY["llama"], vocab_size=304)
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    gguf.save(random_model(config), path, kind="q8_0", tokenizer=tokenizer)
    return path


@pytest.mark.parametrize("seed", [0, *[pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2)]])
def test_random_damage_ends_in_a_value_error_or_none(
    seed: int, file_with_tokenizer: Path, tmp_path: Path, recwarn: Any
) -> None:
    source = random.Random(seed)
    content = file_with_tokenizer.read_bytes()
    head = len(content) - sum(info.size for info in gguf.GGUFFile(file_with_tokenizer).tensors.values())
    path = tmp_path / "damaged.gguf"
    refused = 0
    tracemalloc.start()
    try:
        for _ in range(100):
            damaged = bytearray(content)
            for _ in range(source.choice([1, 1, 4])):
                damaged[source.randrange(head)] = source.randrange(256)
            path.write_bytes(damaged)
            try:
                llm.load(path)
            except ValueError as error:
                refused += 1
                assert str(error) and len(str(error)) < 2000
        assert tracemalloc.get_traced_memory()[1] < 20 * len(content) + 5_000_000
    finally:
        tracemalloc.stop()
    assert refused > 10


@pytest.mark.parametrize("config", [TINY["qwen2_moe"], dataclasses.replace(TINY["qwen3_moe"], norm_topk_prob=False)])
def test_experts_that_llama_cpp_would_mix_otherwise_are_refused(config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_experts=.: .* only those of Qwen3-MoE with norm_topk_prob are"):
        gguf.save(random_model(config), tmp_path / "model.gguf", kind="f32")


def test_experts_are_held_against_the_file_before_a_model_is_made(tmp_path: Path) -> None:
    gguf.save(random_model(TINY["qwen3_moe"]), tmp_path / "model.gguf", kind="f32")
    for key in ("qwen3moe.expert_count", "qwen3moe.expert_feed_forward_length"):
        message = refusal(rewritten(tmp_path / "model.gguf", values={key: 2**31}))
        assert "'blk.0.ffn_up_exps.weight' has shape (4, 12, 16), and by its settings it must be" in message
    assert "experts_per_token=5 must lie between 1" in refusal(
        rewritten(tmp_path / "model.gguf", values={"qwen3moe.expert_used_count": 5}))
