"""A wrapped model of transformers has its own loss and gradients, through our head; and our Trainer trains it."""

from pathlib import Path
from typing import Any

import pytest
import torch

import llm
from llm.interop.huggingface import wrap
from llm.losses import IGNORE_INDEX
from tests.conftest import random_ids, windows

transformers = pytest.importorskip("transformers")

SHARED = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
          "num_attention_heads": 2, "max_position_embeddings": 32}
KINDS = {
    "gpt2": {"vocab_size": 61, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "resid_pdrop": 0.0,
             "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {**SHARED, "num_key_value_heads": 1},
    "mistral": {**SHARED, "num_key_value_heads": 1, "sliding_window": 4},
    "gpt_neox": {**SHARED, "hidden_dropout": 0.0, "attention_dropout": 0.0},   # not one of ours
}


def hugging_face_model(kind: str, **changes: Any) -> torch.nn.Module:
    config = transformers.AutoConfig.for_model(kind, **{**KINDS.get(kind, SHARED), **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_those_of_the_model_itself(kind: str) -> None:
    model, ids = hugging_face_model(kind), random_ids(2, 12)
    labels = ids.clone()
    labels[0, :5] = IGNORE_INDEX
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    count = int((targets != IGNORE_INDEX).sum())
    loss = model(ids, labels=labels).loss
    loss.backward()
    expected = gradients(model)
    ours = wrap(model)
    loss_sum = ours(ids, targets=targets).loss_sum
    assert torch.allclose(loss_sum / count, loss, rtol=1e-5)
    (loss_sum / count).backward()
    for mine, theirs in zip(gradients(model), expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5 * max(1.0, float(theirs.abs().max())))
    assert torch.allclose(ours(ids).logits, model(ids).logits, atol=1e-5)
    likelihood = ours(ids, targets=targets, reduction="none").log_likelihood
    assert torch.allclose(-likelihood.sum(), loss_sum, rtol=1e-5)
    assert (likelihood[0, :4] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_packed_segments_do_not_see_each_other(kind: str) -> None:
    model = wrap(hugging_face_model(kind))
    first, second = random_ids(1, 5, seed=1), random_ids(1, 7, seed=2)
    segments = torch.tensor([[3] * 5 + [9] * 7])
    packed = model(torch.cat([first, second], dim=1), segment_ids=segments).logits
    assert torch.allclose(packed[:, :5], model(first).logits, atol=1e-5)
    assert torch.allclose(packed[:, 5:], model(second).logits, atol=1e-5)


@pytest.mark.parametrize(("kind", "changes", "complaint"), [
    ("phi", {}, "not its hidden states times its head"),   # its head has a bias
    ("gemma2", {"num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 0.5}, "not its hidden states"),
    ("cohere", {"num_key_value_heads": 1, "logit_scale": 0.1}, "not its hidden states"),
])
def test_a_model_whose_logits_come_about_otherwise_is_refused(
    kind: str, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        wrap(hugging_face_model(kind, **changes))


def trainer(folder: Path, model: torch.nn.Module, **settings: Any) -> llm.Trainer:
    config = llm.TrainConfig(steps=6, batch_size=8, lr=1e-2, device="cpu", precision="fp32", eval_every=0, save_every=3,
                             keep=0, **settings)
    return llm.Trainer(wrap(model), llm.NextToken(), train=windows(), config=config, folder=folder)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_the_trainer_trains_saves_and_resumes_it_to_the_bit(kind: str, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", hugging_face_model(kind))
    rows = [whole.train_step() for _ in range(6)]
    assert rows[-1]["loss"] < rows[0]["loss"]
    first = trainer(tmp_path / "run", hugging_face_model(kind))
    for _ in range(3):
        first.train_step()
    first.save(is_best=False)
    second = trainer(tmp_path / "run", hugging_face_model(kind))
    assert second.resume()
    assert [second.train_step()["loss"] for _ in range(3)] == [row["loss"] for row in rows[3:]]
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoints" / "step-00000003")
    assert type(saved) is type(second.model.model)
    if kind == "llama":   # one of ours too
        ids = random_ids(1, 9)
        ours, _ = llm.load(tmp_path / "run")
        assert torch.allclose(ours(ids).logits, saved(ids).logits, atol=1e-5)


def test_activation_checkpointing_changes_no_loss(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", hugging_face_model("llama"))
    frugal = trainer(tmp_path / "frugal", hugging_face_model("llama"), activation_checkpointing=True)
    assert frugal.model.use_checkpointing and not plain.model.use_checkpointing
    for _ in range(3):
        assert frugal.train_step()["loss"] == pytest.approx(plain.train_step()["loss"], rel=1e-6)
    frugal.model.use_checkpointing = False
    assert not frugal.model.use_checkpointing
