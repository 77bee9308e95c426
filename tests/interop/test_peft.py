"""Adapters here and in peft: equal logits, equal gradients, folders that open both ways, and what is refused."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import llm
from llm.checkpoint import load_classifier, load_weights, weights_hash
from llm.interop import gguf
from llm.interop.peft import adapter_tensors
from llm.models.classifier import Classifier
from llm.models.decoder import Decoder
from llm.nn.lora import adapters, disabled, inject, merge
from llm.tokenizers.tokenizer import Tokenizer
from tests.conftest import TINY, random_ids, random_model
from tests.nn.test_lora import learned, logits

FAMILIES = ["gpt", "qwen3", "llama"]
OURS = {"gpt": ["q_proj", "v_proj", "attention.out_proj"], "qwen3": None, "llama": ["q_proj", "down_proj"]}
THEIRS = {"gpt": ["c_attn", "c_proj", "c_fc"], "qwen3": ["q_proj", "k_proj", "o_proj", "up_proj"],
          "llama": "all-linear"}
LABELS = ["ham", "spam", "哪个"]


@pytest.fixture
def peft() -> Any:
    pytest.importorskip("transformers")
    return pytest.importorskip("peft")


def adapted(folder: Path, family: str, *, last_blocks: int | None = None, use_rslora: bool = False) -> Decoder:
    """A base in folder/base, and in folder/adapter adapters on it that do something; the model with both."""
    llm.save(random_model(TINY[family]), folder / "base")
    model, _ = llm.load(folder / "base")
    inject(model, rank=3, alpha=5, targets=OURS[family], last_blocks=last_blocks, use_rslora=use_rslora)
    learned(model)
    llm.save(model, folder / "adapter", base=folder / "base")
    return model


def trained_by_peft(peft: Any, folder: Path, family: str, **settings: Any) -> Any:
    """The same by peft."""
    import transformers

    llm.save(random_model(TINY[family]), folder / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", attn_implementation="eager")
    settings = {"r": 3, "lora_alpha": 5, "target_modules": THEIRS[family], "task_type": "CAUSAL_LM", **settings}
    model = peft.get_peft_model(base, peft.LoraConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=generator)
    model.save_pretrained(folder / "adapter")
    return model


def opened_by_peft(peft: Any, folder: Path) -> Any:
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", attn_implementation="eager")
    return peft.PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True).eval()


def gradients_of(theirs: Any, ids: Tensor) -> dict[str, Tensor]:
    """Of the loss summed over tokens, by the names in the file."""
    theirs(ids, labels=ids).loss.mul(ids[:, 1:].numel()).backward()
    return {name.replace(".default.", "."): parameter.grad for name, parameter in theirs.named_parameters()
            if "lora_" in name}


def assert_equal_gradients(ours: Decoder, theirs: Any) -> None:
    """What the file would hold if our gradients were weights; zeros outside of the blocks of a stack have none."""
    ids = random_ids(2, 12)
    ours(ids[:, :-1], targets=ids[:, 1:]).loss_sum.backward()
    expected = gradients_of(theirs, ids)
    with torch.no_grad():
        for layer in adapters(ours).values():
            assert layer.lora_a.grad is not None and layer.lora_b.grad is not None
            layer.lora_a.copy_(layer.lora_a.grad)
            layer.lora_b.copy_(layer.lora_b.grad)
    found = adapter_tensors(ours)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        theirs_ = expected[name] if gradient.shape == expected[name].shape else None
        if theirs_ is None:   # one A for the three of GPT-2 in peft's own adapters
            assert name.endswith("c_attn.lora_A.weight") or name.endswith("c_attn.lora_B.weight")
            rank = len(expected[name]) if "lora_A" in name else expected[name].shape[1]
            parts = gradient.split(rank) if "lora_A" in name else gradient.split(rank, dim=1)
            gradient, theirs_ = sum(parts[1:], parts[0]), expected[name]
        else:
            theirs_ = theirs_.where(gradient != 0, 0) if "c_attn.lora_B" in name else theirs_
        assert torch.allclose(gradient, theirs_, atol=1e-5 * max(1.0, float(theirs_.abs().max()))), name


@pytest.mark.parametrize(("last_blocks", "use_rslora"), [(None, False), (1, True)])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_opens_ours_with_equal_logits_and_gradients(
    peft: Any, family: str, last_blocks: int | None, use_rslora: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    import transformers

    ours = adapted(tmp_path, family, last_blocks=last_blocks, use_rslora=use_rslora)
    theirs = opened_by_peft(peft, tmp_path)
    assert not [warning for warning in recwarn if "peft" in str(warning.filename)], "peft misses or passes over a part"
    assert torch.allclose(logits(theirs), logits(ours), atol=1e-5)
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")   # it finds the base itself
    assert torch.allclose(logits(alone.eval()), logits(ours), atol=1e-5)
    assert not torch.allclose(logits(ours), logits(random_model(TINY[family])), atol=1e-2)
    assert_equal_gradients(ours, theirs)


@pytest.mark.parametrize("settings", [
    {}, {"use_rslora": True, "layers_to_transform": [1]}, {"layers_to_transform": 0, "init_lora_weights": "gaussian"},
    {"target_modules": r".*\.(1\.mlp|0\.\w*attn)\.(c_fc|up_proj|c_attn|v_proj)", "lora_dropout": 0.2},
    {"exclude_modules": ["c_fc", "q_proj", "k_proj"]},
], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_peft_saved_opens_here_with_equal_logits_and_gradients(
    peft: Any, family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    if "layers_to_transform" in settings and isinstance(THEIRS[family], str):
        settings = {**settings, "target_modules": ["q_proj", "down_proj"]}
    theirs = trained_by_peft(peft, tmp_path, family, **settings)
    ours, tokenizer = llm.load(tmp_path / "adapter", merged=False)
    assert tokenizer is None and adapters(ours)
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)
    plain, _ = llm.load(tmp_path / "adapter")
    assert torch.allclose(logits(plain), logits(theirs), atol=1e-5) and not adapters(plain)
    assert all(parameter.requires_grad for parameter in plain.parameters())
    with disabled(ours):
        assert torch.equal(logits(ours), logits(random_model(TINY[family])))
    assert_equal_gradients(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_ours_comes_back_to_the_bit_and_is_small(family: str, tmp_path: Path) -> None:
    model = adapted(tmp_path, family)
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "model_config.json"}
    state = torch.random.get_rng_state()
    again, _ = llm.load(tmp_path / "adapter", merged=False)
    assert torch.equal(torch.random.get_rng_state(), state)   # loading draws no numbers
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    llm.save(again, tmp_path / "second", base=tmp_path / "base")
    for name in files:
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()
    merge(model)
    llm.save(model, tmp_path / "whole")
    assert torch.equal(logits(llm.load(tmp_path / "whole")[0]), logits(llm.load(tmp_path / "adapter")[0]))
    gguf.save(model, tmp_path / "whole.gguf", kind="f32")
    assert torch.equal(logits(llm.load(tmp_path / "whole.gguf")[0]), logits(model))


def test_a_classifier_with_a_larger_vocabulary_goes_both_ways(peft: Any, tmp_path: Path) -> None:
    """The scores are a module that peft saves as a whole; the base has no row for padding."""
    import transformers

    tokenizer = Tokenizer.byte_level()
    config = replace(TINY["gpt"], vocab_size=257)
    llm.save(random_model(config), tmp_path / "base", tokenizer=tokenizer)
    decoder, _ = llm.load(tmp_path / "base")
    decoder.grow(258)
    model = Classifier(decoder, labels=LABELS, pad_id=257)
    nn.init.normal_(model.score.weight, std=0.2)   # scores near one: a bound of 1e-5 is about rounding, not size
    inject(decoder, rank=2)
    learned(model)
    llm.save(model.eval(), tmp_path / "adapter", base=tmp_path / "base")
    ids, lengths = random_ids(3, 9), torch.tensor([9, 4, 7])
    expected = model(ids, lengths).scores

    for merged in (False, True):
        again, _ = load_classifier(tmp_path / "adapter", merged=merged)
        assert (again.labels, again.pad_id) == (tuple(LABELS), 257)
        assert torch.allclose(again(ids, lengths).scores, expected, atol=1e-5)
        assert again.score.weight.requires_grad and bool(adapters(again)) is not merged
    padded = ids.masked_fill(torch.arange(9) >= lengths[:, None], 257)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=3, pad_token_id=257)
    theirs.resize_token_embeddings(258)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.allclose(theirs(padded).logits, expected, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    back, _ = load_classifier(tmp_path / "theirs")   # which says nothing of labels
    assert back.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert torch.allclose(back(ids, lengths).scores, expected, atol=1e-5)


def test_an_adapter_on_a_classifier_keeps_its_labels(peft: Any, tmp_path: Path) -> None:
    import transformers

    model = Classifier(random_model(TINY["llama"]), labels=LABELS, pad_id=0)
    nn.init.normal_(model.score.weight)
    llm.save(model, tmp_path / "base")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["v_proj"])).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path / "adapter")
    ours, _ = load_classifier(tmp_path / "adapter")
    ids = random_ids(2, 6, vocab_size=60) + 1
    assert ours.labels == tuple(LABELS) and ours.pad_id == 0
    with torch.no_grad():
        assert torch.allclose(ours(ids, torch.tensor([6, 6])).scores, theirs(ids).logits, atol=1e-5)
    with pytest.raises(ValueError, match="holds a classifier, which writes no text"):
        llm.load(tmp_path / "adapter")


def test_the_base_may_be_a_run_a_gguf_file_or_stand_beside(tmp_path: Path) -> None:
    model = adapted(tmp_path, "llama")
    expected = logits(model)
    shutil.move(tmp_path / "base", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"without their base .*base', which is not there; put that model's folder at"):
        llm.load(tmp_path / "adapter")
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "adapter", tmp_path / "moved" / "adapter")
    shutil.copy(tmp_path / "elsewhere" / "config.json", tmp_path / "moved" / "adapter")   # many folders hold the base's
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "moved" / "base")
    assert torch.allclose(logits(llm.load(tmp_path / "moved" / "adapter")[0]), expected, atol=1e-5)
    gguf.save(llm.load(tmp_path / "elsewhere")[0], tmp_path / "base.gguf", kind="f32")
    for base in (tmp_path / "base.gguf", tmp_path / "elsewhere"):
        llm.save(model, tmp_path / "again", base=base)
        assert torch.allclose(logits(llm.load(tmp_path / "again")[0]), expected, atol=1e-5)
    assert weights_hash(tmp_path / "elsewhere") == weights_hash(tmp_path / "moved" / "base")
    assert weights_hash(tmp_path / "base.gguf") != weights_hash(tmp_path / "elsewhere")


def test_what_is_saved_is_what_there_is(tmp_path: Path) -> None:
    model = adapted(tmp_path, "gpt")
    with pytest.raises(ValueError, match="saved as them alone; name the base=FOLDER of the weights, or merge"):
        llm.save(model, tmp_path / "new")
    with pytest.raises(ValueError, match="base holds a whole model, perhaps the base itself; choose another folder"):
        llm.save(model, tmp_path / "base", base=tmp_path / "base")
    with pytest.raises(ValueError, match="would be lost; merge them first"):
        gguf.save(model, tmp_path / "new.gguf", kind="f32")
    with pytest.raises(ValueError, match="which this one lacks; leave it out"):
        llm.save(random_model(TINY["gpt"]), tmp_path / "new", base=tmp_path / "base")
    model.final_norm.requires_grad_(True)
    with pytest.raises(ValueError, match=r"final_norm.weight learns beside the adapters, which are saved without it"):
        llm.save(model, tmp_path / "new", base=tmp_path / "base")
    whole, ids = random_model(TINY["gpt"], seed=5), random_ids(2, 9)
    llm.save(whole, tmp_path / "adapter")   # in place of the adapter
    assert torch.equal(logits(llm.load(tmp_path / "adapter")[0], ids), logits(whole, ids))


def test_a_model_is_filled_only_with_adapters_like_its_own(tmp_path: Path) -> None:
    model = adapted(tmp_path, "gpt")
    again = random_model(TINY["gpt"])
    with pytest.raises(ValueError, match="the model has none to be filled; inject some first"):
        load_weights(again, tmp_path / "adapter")
    inject(again, rank=3, alpha=5, targets=OURS["gpt"])
    load_weights(again, tmp_path / "adapter")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    for settings, message in (({"rank": 2}, "adapters of rank=3, and the model has rank=2"),
                              ({"alpha": 3}, "adapters of alpha=5.0, and the model has alpha=3"),
                              ({"use_rslora": True}, "use_rslora=False, and the model has use_rslora=True"),
                              ({"last_blocks": 1}, "other layers than the model: blocks.0.attention.out_proj"),
                              ({"targets": ["q_proj"]}, "other layers than the model: blocks.0.attention.out_proj")):
        other = random_model(TINY["gpt"])
        inject(other, **{"rank": 3, "alpha": 5, "targets": OURS["gpt"], **settings})
        with pytest.raises(ValueError, match=message):
            load_weights(other, tmp_path / "adapter")


Change = Callable[[Path], Any]


def setting(name: str, value: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        table = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**table, name: value}), encoding="utf-8")
    return change


def tensors(alter: Callable[[dict[str, Tensor]], Any]) -> Change:
    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        table = load_file(path)
        alter(table)
        save_file(table, path)
    return change


def data(name: str, alter: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / name).write_bytes(alter((folder / name).read_bytes()))


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"run": "me"}))


A = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
BROKEN: dict[str, tuple[Change, str]] = {
    "config cut": (data("adapter_config.json", lambda text: text[:50]), "adapter_config.json is damaged"),
    "config a list": (data("adapter_config.json", lambda text: b"[]"), "is damaged: it holds no object"),
    "config empty": (data("adapter_config.json", lambda text: b"{}"), "it lacks peft_type, r, lora_alpha"),
    "file cut": (data("adapter_model.safetensors", lambda all_: all_[:-9]), "adapter_model.safetensors is damaged"),
    "file empty": (data("adapter_model.safetensors", lambda all_: b""), "adapter_model.safetensors is damaged"),
    "file gone": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "does not exist; weights are read"),
    "pickle": (pickled, "holds only adapter_model.bin, a pickle, which can run any code"),
    "other method": (setting("peft_type", "IA3"), "peft_type = 'IA3' is not supported, only plain LoRA is; merge it"),
    "other task": (setting("task_type", "TOKEN_CLS"), "task_type = 'TOKEN_CLS' is not supported"),
    "dora": (setting("use_dora", True), "use_dora = True is not supported"),
    "biases": (setting("bias", "lora_only"), "bias = 'lora_only' is not supported"),
    "pissa": (setting("init_lora_weights", "pissa"), "init_lora_weights = 'pissa' is not supported"),
    "ranks": (setting("rank_pattern", {"q_proj": 4}), r"rank_pattern = \{'q_proj': 4\} and .* are not supported"),
    "alphas": (setting("alpha_pattern", {"q_proj": 4}), r"alpha_pattern = \{'q_proj': 4\} are not supported"),
    "embeddings": (setting("modules_to_save", ["embed_tokens"]), r"modules_to_save = \['embed_tokens'\] is not"),
    "from tomorrow": (setting("use_qlora_3", {"a": 1}), "use_qlora_3 = {'a': 1} is not supported"),
    "replication": (setting("layer_replication", [[0, 2]]), r"layer_replication = \[\[0, 2\]\] is not supported"),
    "rank a word": (setting("r", "8"), "adapter_config.json: r = '8' must be of type int"),
    "rank zero": (setting("r", 0), r"lora_A.weight has shape \(3, 16\), not \(0, 16\)"),
    "rank huge": (setting("r", 10**20), r"has shape \(3, 16\), not \(100000000000000000000, 16\)"),
    "alpha infinite": (setting("lora_alpha", float("inf")), "alpha=inf must be above 0 and finite"),
    "dropout": (setting("lora_dropout", 2), "dropout=2.0 must lie in"),
    "tensor gone": (tensors(lambda table: table.pop(A)), "down_proj.lora_A.weight is missing"),
    "layer gone": (tensors(lambda table: [table.pop(A), table.pop(A.replace("_A", "_B"))]), "lora_B.weight is missing"),
    "all gone": (tensors(lambda table: table.clear()), "is missing"),
    "wrong shape": (tensors(lambda table: table.update({A: torch.zeros(3, 3)})), r"has shape \(3, 3\), not \(3, 48\)"),
    "too many": (tensors(lambda table: table.update({"base_model.model.lm_head.lora_A.weight": torch.zeros(3, 16)})),
                 "lm_head.lora_A.weight is unknown"),
    "no prefix": (tensors(lambda table: table.update({A.removeprefix("base_model."): table.pop(A)})), "is unknown"),
    "no base": (setting("base_model_name_or_path", None), "without their base '', which is not there"),
    "base of a hub": (setting("base_model_name_or_path", "org/model"), "base 'org/model', which is not there; put"),
    "base upwards": (setting("base_model_name_or_path", "nowhere/.."), "base 'nowhere/..', which is not there"),
    "base a number": (setting("base_model_name_or_path", 7), "base_model_name_or_path = 7 must be of type str"),
    "no model": (lambda folder: shutil.rmtree(folder.parent / "base") or (folder.parent / "base").mkdir(),
                 "base holds no complete checkpoint"),
    "other base": (lambda folder: llm.save(random_model(TINY["qwen3"]), folder.parent / "base"),
                   "is not the model that the adapters in .* were trained on"),
    "upon itself": (lambda folder: setting("base_model_name_or_path", str(folder))(folder),
                    "adapter, which holds adapters itself; merge those"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_or_foreign_adapter_is_refused_by_name(name: str, tmp_path: Path) -> None:
    adapted(tmp_path, "llama")
    change, message = BROKEN[name]
    change(tmp_path / "adapter")
    with pytest.raises(ValueError, match=message):
        llm.load(tmp_path / "adapter")


def test_of_a_classifier_scores_must_be_there_and_fit(tmp_path: Path) -> None:
    llm.save(random_model(TINY["llama"]), tmp_path / "base")
    decoder, _ = llm.load(tmp_path / "base")
    model = Classifier(decoder, labels=LABELS)
    inject(decoder, rank=2)
    llm.save(model, tmp_path / "adapter", base=tmp_path / "base")
    path, score = tmp_path / "adapter" / "adapter_model.safetensors", "base_model.model.score.weight"
    whole = load_file(path)
    for others in ({}, {score: torch.zeros(2, 16)}):
        save_file({**{name: tensor for name, tensor in whole.items() if name != score}, **others}, path)
        with pytest.raises(ValueError, match=r"3 labels and a width of 16 need \(3, 16\)"):
            load_classifier(tmp_path / "adapter")
    with pytest.raises(ValueError, match="holds no classifier"):
        adapted(tmp_path / "writer", "gpt")
        load_classifier(tmp_path / "writer" / "adapter")


def test_three_adapters_that_peft_trained_on_as_one_are_not_three_any_more(tmp_path: Path) -> None:
    adapted(tmp_path, "gpt")
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"
    tensors(lambda table: table[name].add_(1))(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"lora_B.weight mixes the adapters of blocks.0.attention.q_proj"):
        llm.load(tmp_path / "adapter")


def test_the_trainer_asks_for_the_base_before_it_trains(tmp_path: Path) -> None:
    from tests.conftest import windows

    model = adapted(tmp_path, "gpt")
    config = llm.TrainConfig(steps=2, batch_size=4, device="cpu", precision="fp32")
    with pytest.raises(ValueError, match="saved as them alone; name the base=FOLDER"):
        llm.Trainer(model, llm.NextToken(), train=windows(), config=config, folder=tmp_path / "run")
    trainer = llm.Trainer(model, llm.NextToken(), train=windows(), config=config, folder=tmp_path / "run",
                          base=tmp_path / "base")
    assert {parameter for optimizer in trainer.optimizers for group in optimizer.param_groups
            for parameter in group["params"]} == {p for p in model.parameters() if p.requires_grad}
    trainer.fit()
    assert torch.allclose(logits(llm.load(tmp_path / "run")[0]), logits(model.eval()), atol=1e-5)
