"""Laws of adapters: nothing changes at first, only they learn, and merged they are the same model."""

import copy

import pytest
import torch
from torch import Tensor, nn

import llm
from llm.models.classifier import Classifier
from llm.models.decoder import Decoder
from llm.models.step import step_of
from llm.nn.lora import LoRALinear, adapters, disabled, eject, inject, merge, unmerge, whole_state
from tests.conftest import TINY, random_ids, random_model

DENSE = [name for name in TINY if not name.endswith("moe")]
ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


def learned(model: nn.Module, seed: int = 0) -> nn.Module:
    """The same model with adapters that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapters(model).values():
            layer.lora_b.normal_(std=0.3, generator=generator)
    return model


def logits(model: nn.Module, ids: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model(random_ids(2, 9) if ids is None else ids).logits


def loss_of(model: nn.Module) -> Tensor:
    ids = random_ids(3, 12)
    return model(ids[:, :-1], targets=ids[:, 1:]).loss_sum


def test_the_formula_is_that_of_the_paper() -> None:
    layer = LoRALinear(nn.Linear(5, 3), rank=2, alpha=6)
    nn.init.normal_(layer.lora_b)
    x = torch.randn(2, 4, 5)
    expected = x @ layer.weight.T + layer.bias + 6 / 2 * (x @ layer.lora_a.T @ layer.lora_b.T)
    assert torch.allclose(layer(x), expected, atol=1e-6)
    assert torch.allclose(layer(x[0, 0]), expected[0, 0], atol=1e-6)   # as any linear layer, without a batch too
    assert LoRALinear(nn.Linear(5, 3), rank=4, alpha=6, use_rslora=True).scale == 3.0


@pytest.mark.parametrize("family", DENSE)
def test_at_first_nothing_changes_and_the_weights_are_the_same_memory(family: str) -> None:
    model = random_model(TINY[family])
    before, weights = logits(model), dict(model.named_parameters())
    layers = inject(model, rank=2)
    assert torch.equal(logits(model), before)
    assert len(layers) == (6 if family == "gpt" else 7) * 2
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in weights.items())
    assert {name for name, parameter in after.items() if parameter.requires_grad} == set(after) - set(weights)
    model.load_state_dict(dict(random_model(TINY[family], seed=1).state_dict()), strict=False)
    assert torch.equal(logits(model), logits(random_model(TINY[family], seed=1)))   # a base's weights fit as they are


def test_initial_values_are_those_of_peft() -> None:
    layer = LoRALinear(nn.Linear(400, 8), rank=50, alpha=1, generator=torch.Generator().manual_seed(0))
    assert layer.lora_a.abs().max() <= 400**-0.5
    assert abs(float(layer.lora_a.detach().std()) * (3 * 400) ** 0.5 - 1) < 0.02   # uniform; 20,000 numbers
    assert not layer.lora_b.any()
    again = LoRALinear(nn.Linear(400, 8), rank=50, alpha=1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer.lora_a, again.lora_a)


@pytest.mark.parametrize("targets", [*([name] for name in ALL), ATTENTION, ["q_proj", "v_proj"], None], ids=str)
@pytest.mark.parametrize("family", ["qwen3", "llama"])   # with groups of heads, and without
def test_merged_is_the_same_model_and_unmerged_is_it_again(family: str, targets: list[str] | None) -> None:
    model = random_model(TINY[family])
    base = copy.deepcopy(model)
    inject(model, rank=3, alpha=5, targets=targets)
    apart = logits(learned(model))
    assert not torch.allclose(apart, logits(base), atol=1e-3)
    merge(model)
    once = whole_state(model)
    assert once.keys() == base.state_dict().keys()
    assert torch.allclose(logits(model), apart, atol=1e-5)
    once = {name: tensor.clone() for name, tensor in once.items()}
    merge(model)   # a second time adds nothing
    assert all(torch.equal(tensor, once[name]) for name, tensor in whole_state(model).items())
    unmerge(model)
    unmerge(model)
    again = model.state_dict()
    assert all(torch.allclose(again[name], tensor, atol=1e-6) for name, tensor in base.state_dict().items())
    assert torch.allclose(logits(model), apart, atol=1e-5)


def test_ejected_it_is_a_plain_model_with_or_without_what_was_learned() -> None:
    for is_merged in (False, True):
        model = random_model(TINY["gpt"])
        base = logits(model)
        inject(model, rank=2)
        expected = logits(learned(model)) if is_merged else base
        if is_merged:
            merge(model)
        eject(model)
        assert torch.allclose(logits(model), expected, atol=0 if not is_merged else 1e-5)
        assert not adapters(model) and model.state_dict().keys() == random_model(TINY["gpt"]).state_dict().keys()
        assert all(type(module) is not LoRALinear for module in model.modules())
        inject(model, rank=4)   # and room for others


def test_disabled_it_is_the_base_to_the_bit_and_an_error_inside_changes_nothing() -> None:
    model = random_model(TINY["qwen3"])
    base = logits(model)
    inject(model)
    apart = logits(learned(model))
    with disabled(model):
        assert torch.equal(logits(model), base)
        with disabled(model):
            pass
        assert torch.equal(logits(model), base)
        with pytest.raises(ValueError, match="the adapters are disabled; leave `disabled` first"):
            merge(model)
    assert torch.equal(logits(model), apart)
    with pytest.raises(KeyError), disabled(model):
        raise KeyError
    assert torch.equal(logits(model), apart)
    merge(model)
    with pytest.raises(ValueError, match="the adapters are merged; unmerge them first"), disabled(model):
        pass


@pytest.mark.parametrize("use_checkpointing", [False, True])
def test_every_adapter_learns_and_the_base_stays_to_the_bit(use_checkpointing: bool) -> None:
    model = random_model(TINY["qwen3"]).train()
    model.use_checkpointing = use_checkpointing   # whose inputs are frozen
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = inject(model, rank=2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    start = float(loss_of(model).detach())
    for _ in range(5):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss_of(model).detach()) < start
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(layer.lora_b.any() for layer in layers.values())


def test_recomputed_blocks_give_the_same_gradients_and_dropout_is_for_training_only() -> None:
    gradients = []
    for use_checkpointing in (False, True):
        model = random_model(TINY["llama"]).train()
        model.use_checkpointing = use_checkpointing
        inject(model, rank=2, dropout=0.3, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        loss_of(learned(model)).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert torch.equal(logits(model.eval()), logits(model))
    assert not torch.equal(logits(model.train()), logits(model))


def test_a_layer_in_place_inherits_whether_it_trains() -> None:
    model = random_model(TINY["gpt"]).eval()
    assert not any(layer.training for layer in inject(model, dropout=0.5).values())
    eject(model)
    assert not any(module.training for module in model.modules())


def test_bf16_autocast_computes_the_same_but_for_its_rounding() -> None:
    model = random_model(TINY["qwen3"])
    inject(model, rank=4)
    wide = logits(learned(model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = logits(model)
        loss_of(model).backward()
    assert narrow.dtype == torch.bfloat16
    assert (narrow.float() - wide).norm() < 0.03 * wide.norm()   # bf16 keeps 8 bits, and errors add up over layers
    assert all(layer.lora_b.grad is not None and layer.lora_b.grad.dtype == torch.float32
               for layer in adapters(model).values())


def test_a_model_in_bf16_merges_with_one_rounding() -> None:
    layer = LoRALinear(nn.Linear(64, 64, dtype=torch.bfloat16), rank=8, alpha=8)
    nn.init.normal_(layer.lora_b)
    exact = layer.weight.double() + layer.lora_b.double() @ layer.lora_a.double()
    model = nn.Module()
    model.blocks = nn.ModuleList([layer])
    merge(model)
    assert torch.equal(layer.weight, exact.to(torch.bfloat16))


@pytest.mark.parametrize("family", DENSE)
def test_one_more_token_is_written_with_adapters_too(family: str) -> None:
    """Generation takes a model apart; what stands beside a weight must not be lost there."""
    model = random_model(TINY[family])
    inject(model, rank=2)
    assert isinstance(learned(model), Decoder)
    ids = random_ids(2, 5)
    cache = model.new_cache(2, 8)
    with torch.no_grad():
        model(ids[:, :-1], cache=cache)
        step = step_of(model)
        assert step is not None
        last = step(ids[:, -1:], None, cache)
    assert torch.allclose(last, logits(model, ids)[:, -1], atol=1e-5)
    rows = [[1, 2, 3], [4]]
    written = llm.generate(model, rows, max_new_tokens=5, temperature=0)
    merge(model)
    assert llm.generate(model, rows, max_new_tokens=5, temperature=0) == written


def test_layers_are_chosen_by_name_and_block_in_classifiers_too() -> None:
    model = Classifier(random_model(TINY["llama"]), labels=["a", "b"])
    assert list(inject(model, targets=["attention.q_proj", "blocks.1.mlp.up_proj", "v_proj"])) == [
        "blocks.0.attention.q_proj", "blocks.0.attention.v_proj", "blocks.1.attention.q_proj",
        "blocks.1.attention.v_proj", "blocks.1.mlp.up_proj"]
    assert not model.score.weight.requires_grad   # all is frozen that was given
    eject(model)
    assert {name.split(".")[1] for name in inject(model, last_blocks=1)} == {"1"}


def test_a_mixture_takes_adapters_where_its_layers_are_its_own() -> None:
    model = random_model(TINY["qwen2_moe"])
    before = logits(model)
    for targets in (None, ["up_proj"], ["q_proj", "experts.down_proj"]):
        with pytest.raises(ValueError, match="stacks all experts in one parameter, which takes no adapter; name "
                           "targets among down_proj, gate_proj, k_proj, out_proj, q_proj, shared_gate, up_proj"):
            inject(model, targets=targets)
    with pytest.raises(ValueError, match="there is no linear layer 'router'"):   # whose weight is read without it
        inject(model, targets=["router"])
    inject(model, targets=[*ATTENTION, "shared.up_proj", "shared_gate"])
    assert torch.equal(logits(model), before)
    for layer in adapters(learned(model)).values():
        with torch.no_grad():
            changed = logits(model)
            layer.lora_b.mul_(2)
            assert not torch.equal(logits(model), changed)   # none is passed over


@pytest.mark.parametrize(("settings", "message"), [
    ({"rank": 0}, "rank=0 must be at least 1"),
    ({"alpha": 0.0}, "alpha=0.0 must be above 0"),
    ({"alpha": float("inf")}, "alpha=inf must be above 0 and finite"),
    ({"dropout": 1.0}, "dropout=1.0 must lie in"),
    ({"targets": ["q_proj", "o_proj"]}, r"no linear layer 'o_proj'; choose from down_proj, k_proj, out_proj, q_proj"),
    ({"targets": ["blocks.0.attention.q_proj"], "last_blocks": 1}, "there is no linear layer 'blocks.0.attention"),
    ({"last_blocks": 0}, "last_blocks=0 must lie between 1 and 2"),
    ({"last_blocks": 3}, "last_blocks=3 must lie between 1 and 2"),
])
def test_what_cannot_be_injected_says_why(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inject(random_model(TINY["gpt"]), **settings)   # type: ignore[arg-type]


def test_models_without_blocks_or_with_or_without_adapters_are_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no list of `blocks`"):
        inject(nn.Linear(2, 2))
    model = random_model(TINY["gpt"])
    for verb in (merge, unmerge, eject, lambda model: disabled(model).__enter__()):
        with pytest.raises(ValueError, match="this GPT has no adapters"):
            verb(model)
    inject(model)
    with pytest.raises(ValueError, match="has adapters already"):
        inject(model)
    with pytest.raises(ValueError, match="would be lost; merge them first"):
        whole_state(model)
