"""Whole models with experts: what comes back beside the loss, and that nothing else of the library minds them."""

import math
from pathlib import Path

import pytest
import torch

import llm
from llm.losses import IGNORE_INDEX
from llm.models.build import build_model
from llm.models.config import QwenConfig
from llm.models.profile import profile_model
from llm.train.muon import Muon
from llm.train.optimizer import build_optimizers
from tests.conftest import TINY, random_ids, random_model, windows

transformers = pytest.importorskip("transformers")
EXPERTS = ("qwen3_moe", "qwen2_moe")


def tiny(family: str = "qwen3_moe") -> QwenConfig:
    config = TINY[family]
    assert isinstance(config, QwenConfig)
    return config


@pytest.mark.parametrize("family", EXPERTS)
def test_the_batch_wise_balance_is_that_of_transformers(family: str, tmp_path: Path) -> None:
    """Theirs is of the whole batch and all layers, and K times as large; ours is by sequence. Same choices, though."""
    ours, ids = random_model(TINY[family]), random_ids(2, 12)
    llm.save(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    routings = []
    for block in ours.blocks:
        block.mlp.register_forward_hook(lambda module, arguments, result: routings.append(result[1]))
    ours(ids)
    logits = torch.cat([routing.logits.flatten(0, 1) for routing in routings])   # (L N, E)
    share = torch.zeros(len(logits), tiny(family).expert_count).scatter_(
        1, torch.cat([routing.experts.flatten(0, 1) for routing in routings]), 1.0).mean(0)
    batch_wise = tiny(family).expert_count * (share * logits.softmax(-1).mean(0)).sum()
    assert torch.allclose(batch_wise, theirs(ids, output_router_logits=True).aux_loss)


@pytest.mark.parametrize("family", EXPERTS)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_uniform_router_gives_one_for_each_supervised_token(family: str, reduction: str) -> None:
    model, ids = random_model(TINY[family]), random_ids(2, 8)
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.router.weight.zero_()
    targets = ids.clone()
    targets[0, :5] = IGNORE_INDEX
    output = model(ids, targets=targets, reduction=reduction)
    num_experts, per_token = tiny(family).expert_count, tiny(family).experts_per_token
    assert output.aux_loss.item() == pytest.approx(11.0)
    assert output.z_loss.item() == pytest.approx(11 * math.log(num_experts) ** 2)
    assert output.router.entropy.tolist() == pytest.approx([11 * math.log(num_experts)] * 2, rel=1e-5)
    assert output.router.load.sum(-1).tolist() == [11 * per_token] * 2
    assert output.router.dead.tolist() == [num_experts - per_token] * 2   # ties: always the first ones
    assert output.router.peak.tolist() == pytest.approx([num_experts / per_token] * 2)
    assert model(ids).router is None and model(ids).aux_loss is None


def test_the_aux_loss_is_the_same_in_one_batch_and_in_pieces() -> None:
    model, ids = random_model(tiny()), random_ids(4, 8)
    targets = ids.clone()
    targets[1, 2:] = IGNORE_INDEX
    whole = model(ids, targets=targets)
    pieces = [model(ids[row : row + 1], targets=targets[row : row + 1]) for row in range(4)]
    assert torch.allclose(whole.aux_loss, torch.stack([piece.aux_loss for piece in pieces]).sum(), atol=1e-4)
    assert torch.allclose(whole.router.load, torch.stack([piece.router.load for piece in pieces]).sum(0))


@pytest.mark.parametrize("settings", [{}, {"optimizer": "muon"}, {"activation_checkpointing": True}])
def test_experts_learn_and_their_health_is_in_the_metrics(settings: dict[str, object], tmp_path: Path) -> None:
    config = llm.TrainConfig(steps=6, batch_size=8, lr=1e-2, device="cpu", precision="fp32", eval_every=6,
                             **settings)   # type: ignore[arg-type]
    model = build_model(tiny(), generator=torch.Generator().manual_seed(0))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = llm.Trainer(model, llm.NextToken(balance=0.1, router_z=0.001), train=windows(),
                          val=windows(is_shifted=False), config=config, folder=tmp_path)
    rows = [trainer.train_step() for _ in range(6)]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all((parameter != before[name]).any() for name, parameter in model.named_parameters())
    assert 1.0 <= rows[0]["balance"] < 2.0
    for layer in range(2):
        assert 0.0 <= rows[0][f"router_entropy.{layer}"] <= math.log(4) + 1e-5
        assert 1.0 <= rows[0][f"peak_load.{layer}"] <= 2.0
        assert rows[0][f"dead_experts.{layer}"] == 0
    assert rows[0]["dead_experts"] == 0


def test_the_aux_losses_act_in_training_only_and_by_their_weights() -> None:
    model, ids = random_model(tiny()), random_ids(2, 8)
    batch = {"input_ids": ids, "targets": ids}
    output = model(ids, targets=ids)
    objective = llm.NextToken(balance=0.5, router_z=0.25)
    assert torch.equal(objective(model.eval(), batch).loss_sum, output.loss_sum)
    expected = output.loss_sum + 0.5 * output.aux_loss + 0.25 * output.z_loss
    assert torch.allclose(objective(model.train(), batch).loss_sum, expected)


def test_muon_treats_each_expert_as_a_matrix_of_its_own() -> None:
    model = build_model(tiny(), generator=torch.Generator().manual_seed(0))
    ids = random_ids(4, 12)
    model(ids, targets=ids).loss_sum.backward()
    stacked = model.blocks[0].mlp.experts.up_proj
    alone = [torch.nn.Parameter(expert.detach().clone()) for expert in stacked]
    for parameter, gradient in zip(alone, stacked.grad, strict=True):
        parameter.grad = gradient.clone()
    optimizers = build_optimizers(model, llm.TrainConfig(optimizer="muon", weight_decay=0.1))
    assert any(stacked is parameter for group in optimizers[-1].param_groups for parameter in group["params"])
    optimizers[-1].step()
    Muon(alone, lr=0.02, weight_decay=0.1).step()
    for expert, parameter in zip(stacked, alone, strict=True):
        assert torch.allclose(expert, parameter, atol=1e-5)


def test_experts_of_the_default_width_cost_what_the_dense_layer_costs() -> None:
    dense = QwenConfig(vocab_size=100, num_layers=2)
    experts = QwenConfig(vocab_size=100, num_layers=2, num_experts=8)
    flops = [profile_model(config, rows=1, context=8).flops_per_token for config in (dense, experts)]
    router = 6 * 2 * 8 * 256
    assert flops[1] - flops[0] == router
    profile = profile_model(experts, rows=1, context=8)
    assert profile.num_active_parameters < profile.num_parameters / 2
    assert f"{profile.num_active_parameters:,} active in one token" in str(profile)
