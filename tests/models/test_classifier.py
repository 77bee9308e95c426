"""Laws of the classifier: padding, neighbours and what stands inside a text never change an answer."""

from pathlib import Path

import pytest
import torch

import llm
from llm.checkpoint import load_classifier, load_weights, save
from llm.losses import IGNORE_INDEX
from llm.models.classifier import Classifier
from llm.models.config import ModelConfig, QwenConfig
from llm.models.decoder import Decoder
from llm.models.scaling import RopeScaling
from tests.conftest import TINY, random_ids, random_model

PAD = 60    # random texts below hold the ids up to 59, of which one ends texts
EOS = 59
LABELS = ["ham", "spam", "哪个"]
STRETCHED = QwenConfig(vocab_size=61, context_length=200, num_layers=2, num_heads=4, num_kv_heads=2, dim=16,
                       rope_scaling=RopeScaling(kind="dynamic", factor=4.0, trained_context=50))


def classifier(config: ModelConfig, *, pad_id: int | None = PAD) -> Classifier:
    model = Classifier(random_model(config), labels=LABELS, pad_id=pad_id, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model.score.weight.mul_(20)   # answers that differ
    return model.eval()


def padded(texts: list[list[int]], *, left: bool, extra: int, fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, texts)) + extra
    rows = [[fill] * (width - len(text)) + text if left else text + [fill] * (width - len(text)) for text in texts]
    return torch.tensor(rows), torch.tensor([len(text) for text in texts])


@pytest.mark.parametrize("extra", [0, 5, 100])
@pytest.mark.parametrize("left", [False, True])
def test_padding_never_changes_an_answer(tiny_model: Decoder, extra: int, left: bool) -> None:
    """To either side, alone or among 8, with the end-of-text id inside and at the end of texts and in the padding."""
    model = Classifier(tiny_model, labels=LABELS, generator=torch.Generator().manual_seed(3)).eval()
    texts = [random_ids(length, vocab_size=60, seed=length).tolist() for length in (1, 2, 5, 9, 12, 17, 24, 3)]
    texts[3][4] = texts[5][-1] = texts[6][0] = EOS
    alone = torch.cat([model(torch.tensor([text]), torch.tensor([len(text)])).scores for text in texts])
    for fill in (EOS, 0):
        inputs, lengths = padded(texts, left=left, extra=extra, fill=fill)
        together = model(inputs, lengths, is_left_padded=left).scores
        assert torch.allclose(together, alone, atol=1e-5)   # float32 sums in another order
        for number in range(len(texts)):
            inputs, length = padded([texts[number]], left=left, extra=extra, fill=fill)
            assert torch.allclose(model(inputs, length, is_left_padded=left).scores[0], alone[number], atol=1e-5)


def test_padding_does_not_stretch_the_positions_of_a_text() -> None:
    """Under dynamic scaling positions depend on how long a text is, which padding must not seem to be."""
    model = classifier(STRETCHED)
    text = random_ids(40).tolist()
    inputs, lengths = padded([text], left=False, extra=60, fill=0)
    assert torch.allclose(model(inputs, lengths).scores, model(inputs[:, :40], lengths).scores, atol=1e-5)


def test_targets_change_no_score_and_give_the_loss_of_the_decoder(tiny_model: Decoder) -> None:
    model = Classifier(tiny_model, labels=LABELS)
    inputs, lengths = random_ids(3, 9), torch.tensor([9, 4, 6])
    targets = torch.where(torch.arange(9) < lengths[:, None] - 1, inputs.roll(-1, 1), IGNORE_INDEX)
    judged = model(inputs, lengths, targets=targets)
    assert torch.allclose(judged.scores, model(inputs, lengths).scores, atol=1e-5)
    assert judged.loss_sum is not None
    assert torch.allclose(judged.loss_sum, tiny_model(inputs, targets=targets).loss_sum)


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe"])
@pytest.mark.parametrize("has_targets", [False, True])
def test_routers_are_judged_by_the_tokens_of_the_texts_and_not_by_padding(family: str, has_targets: bool) -> None:
    model = classifier(TINY[family])
    texts = [random_ids(length, vocab_size=60, seed=length).tolist() for length in (3, 12, 7)]
    alone = [model(torch.tensor([text]), torch.tensor([len(text)])) for text in texts]
    for fill in (0, PAD):
        inputs, lengths = padded(texts, left=False, extra=5, fill=fill)
        together = model(inputs, lengths, targets=inputs if has_targets else None)
        for name in ("aux_loss", "z_loss"):
            expected = torch.stack([getattr(judged, name) for judged in alone]).sum()
            assert torch.allclose(getattr(together, name), expected, rtol=1e-5)
        assert float(together.router.tokens) == 22
        assert torch.equal(together.router.load, torch.stack([judged.router.load for judged in alone]).sum(0))
    assert torch.autograd.grad(together.aux_loss, model.decoder.blocks[0].mlp.router.weight)[0].any()
    assert classifier(TINY["llama"])(inputs, lengths).router is None


def test_transformers_opens_a_classifier_with_the_same_scores(tiny_config: ModelConfig, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = classifier(tiny_config)
    save(model, tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.id2label == dict(enumerate(LABELS))
    texts = [random_ids(length, vocab_size=60, seed=length).tolist() for length in (3, 12, 7, 8)]
    texts[1][-1] = EOS
    inputs, lengths = padded(texts, left=False, extra=4, fill=PAD)
    with torch.no_grad():
        found = theirs(input_ids=inputs, attention_mask=(inputs != PAD).long()).logits
    assert torch.allclose(found, model(inputs, lengths).scores, atol=1e-5)


def test_a_saved_classifier_comes_back_to_the_bit(tiny_config: ModelConfig, tmp_path: Path) -> None:
    model = classifier(tiny_config)
    save(model, tmp_path)
    again, _ = load_classifier(tmp_path)
    inputs, lengths = random_ids(2, 7), torch.tensor([7, 3])
    assert torch.equal(again(inputs, lengths).scores, model(inputs, lengths).scores)
    assert (again.labels, again.pad_id) == (tuple(LABELS), PAD)
    other = Classifier(random_model(tiny_config, seed=9), labels=LABELS)
    load_weights(other, tmp_path)
    assert torch.equal(other.eval()(inputs, lengths).scores, model(inputs, lengths).scores)


def test_a_classifier_of_transformers_is_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=61, n_positions=32, n_embd=16, n_layer=2, n_head=2, num_labels=2,
                                     pad_token_id=PAD)
    theirs = transformers.GPT2ForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    ours, _ = load_classifier(tmp_path)
    assert ours.labels == ("LABEL_0", "LABEL_1")
    inputs, lengths = padded([random_ids(9, vocab_size=60).tolist(), [4, 5]], left=False, extra=2, fill=PAD)
    with torch.no_grad():
        assert torch.allclose(theirs(inputs).logits, ours(inputs, lengths).scores, atol=1e-5)


def test_a_grown_vocabulary_leaves_all_else_as_it_was(tiny_model: Decoder) -> None:
    ids = random_ids(2, 8)
    before = tiny_model(ids).logits
    tiny_model.grow(64)
    after = tiny_model(ids).logits
    assert torch.equal(after[..., :61], before) and tiny_model.config.vocab_size == 64
    assert not after[..., 61:].any()
    tiny_model.grow(10)
    assert tiny_model.config.vocab_size == 64


def test_impossible_classifiers_and_batches_are_refused(tiny_model: Decoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is nothing to tell apart"):
        Classifier(tiny_model, labels=["one"])
    with pytest.raises(ValueError, match="holds a name twice"):
        Classifier(tiny_model, labels=["a", "a"])
    model = Classifier(tiny_model, labels=LABELS)
    for lengths in ([0, 3], [4, 1]):
        with pytest.raises(ValueError, match="do not fit rows of 3 tokens"):
            model(random_ids(2, 3), torch.tensor(lengths))
    with pytest.raises(ValueError, match="targets together with is_left_padded"):
        model(random_ids(2, 3), torch.tensor([3, 2]), targets=random_ids(2, 3), is_left_padded=True)


def test_classifiers_and_language_models_are_not_mistaken_for_each_other(tmp_path: Path) -> None:
    save(classifier(TINY["llama"]), tmp_path / "judge")
    save(random_model(TINY["llama"]), tmp_path / "writer")
    with pytest.raises(ValueError, match="holds a classifier, which writes no text"):
        llm.load(tmp_path / "judge")
    with pytest.raises(ValueError, match="holds no classifier"):
        load_classifier(tmp_path / "writer")
    wider = Classifier(random_model(TINY["llama"]), labels=["a", "b"])
    with pytest.raises(ValueError, match=r"score.weight has shape \(3, 16\); 2 labels and a width of 16"):
        load_weights(wider, tmp_path / "judge")
