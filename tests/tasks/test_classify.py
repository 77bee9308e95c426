"""Laws of the classify command: what a run leaves behind, and that it says of a text what it said in the run."""

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import llm
from llm.checkpoint import load_classifier
from llm.classification.config import ObjectiveConfig, recipe
from llm.classification.judge import encode
from llm.data.labelled import Labelled
from llm.data.labelled_sets import Parts, load_parts
from llm.tasks import classify
from llm.tokenizers.tokenizer import Tokenizer
from tests.conftest import TINY as TINY_MODELS
from tests.conftest import random_model

TINY = ["--num-layers", "1", "--num-heads", "1", "--num-kv-heads", "1", "--dim", "8", "--mlp-dim", "8", "--tokenizer",
        "byte", "--epochs", "1", "--warm-up", "1", "--batch-size", "4", "--threads", "1", "--device", "cpu",
        "--precision", "fp32"]


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a table of 40 different texts in two classes."""
    monkeypatch.chdir(tmp_path)
    words = ["tea", "sun", "dog", "car", "tree", "moon", "ball", "fish", "milk", "rain"]
    rows = [f"{label},{word} {other} for you\n" for word in words for label, other in
            (("ham", "and bread"), ("spam", "prize"), ("ham", "or jam"), ("spam", "cash"))]
    Path("rows.csv").write_text("Label,Text\n" + "".join(rows), encoding="utf-8")
    yield tmp_path


def run(*argv: str) -> int:
    return classify.main([*TINY, *argv])


def test_a_run_can_be_used_and_says_again_what_it_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--data", "rows.csv", "--out", "run") == 0
    assert capsys.readouterr().out == "run\n"
    with open("run/predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    first = next(row for row in rows if row["part"] == "test")
    assert classify.main(["--predict", first["text"], "--model", "run", "--device", "cpu", "--precision",
                          "fp32"]) == 0
    with pytest.raises(ValueError, match="--context 257 exceeds the model's context_length=256; leave it out"):
        classify.main(["--predict", "hi", "--model", "run", "--device", "cpu", "--context", "257"])
    label, shown, text = capsys.readouterr().out.rstrip("\n").split("\t")
    assert (label, text) == (first["predicted"], first["text"])
    assert float(shown.split()[1]) == pytest.approx(float(first["p(ham)"]), abs=1e-4)


def test_transformers_says_of_a_text_what_the_run_said() -> None:
    transformers = pytest.importorskip("transformers")
    run("--data", "rows.csv", "--out", "run")
    folder = llm.checkpoint.find_checkpoint("run")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with open("run/predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.softmax(-1)
    assert found[:, 0].tolist() == pytest.approx([float(row["p(ham)"]) for row in rows], abs=2e-6)


@pytest.mark.parametrize("is_new", [True, False])
def test_longer_texts_than_the_context_are_cut_as_in_the_run_later_and_by_transformers(
        is_new: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The context stands in tokenizer_config.json, since config.json says how far the model could reach."""
    transformers = pytest.importorskip("transformers")
    config = replace(TINY_MODELS["llama"], vocab_size=257, context_length=64)
    llm.save(random_model(config), "base", tokenizer=Tokenizer.byte_level())
    trained = [] if is_new else ["--model", "base", "--epochs", "1", "--threads", "1", "--device", "cpu",
                                   "--precision", "fp32"]
    assert classify.main([*(trained or TINY), "--data", "rows.csv", "--out", "run", "--context", "8"]) == 0
    with open("run/predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    told = pytest.approx([float(row["p(ham)"]) for row in rows], abs=1e-4)
    Path("texts.csv").write_text("Text\n" + "".join(f"{row['text']}\n" for row in rows), encoding="utf-8")
    capsys.readouterr()
    assert classify.main(["--predict", "texts.csv", "--model", "run", "--device", "cpu", "--precision", "fp32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [float(line.split("\t")[1].split()[1]) for line in lines] == told

    folder = llm.checkpoint.find_checkpoint("run")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = tokenizer([row["text"] for row in rows], truncation=True, padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == encode([row["text"] for row in rows], Tokenizer.load(folder), context=8)[0]
    with torch.no_grad():
        found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.softmax(-1)
    assert found[:, 0].tolist() == told


def test_a_context_has_room_for_text_and_end() -> None:
    with pytest.raises(ValueError, match="context=1 has no room"):
        run("--data", "rows.csv", "--out", "run", "--context", "1")


def test_the_default_needs_no_file() -> None:
    assert run("--rows", "600", "--out", "run", "--context", "16", "--batch-size", "64") == 0
    assert json.loads(Path("run/results.json").read_text(encoding="utf-8"))["test"]["majority"]["rows"] > 100


def test_rows_that_are_made_bring_settings_of_their_own_which_flags_and_files_overrule() -> None:
    made, read = classify.parse([]), classify.parse(["--data", "rows.csv"])
    assert (made.train.epochs, made.objective.bpe_dropout, made.objective.token_dropout) == (1, 0.0, 0.0)
    assert (read.train, read.objective) == (recipe(), ObjectiveConfig())
    assert replace(made.train, epochs=10, eval_every=50) == read.train
    assert classify.parse(["--warm-up", "3", "--epochs", "9"]).objective.warm_up == 3
    Path("mine.toml").write_text("[train]\nepochs = 9\n", encoding="utf-8")
    assert classify.parse(["--config", "mine.toml"]).train.epochs == 9
    assert classify.parse(["--train-file", "rows.csv"]).train == recipe()


@pytest.mark.parametrize(("labels", "positive"), [
    (["ham", "spam"], "spam"), (["ham", "spam", "spam"], "spam"), (["Spam", "ok", "Spam"], "Spam"),
    (["0", "1", "1"], "1"), (["negative", "positive", "positive"], "positive"), (["no", "yes", "yes"], "yes"),
    (["False", "True", "True"], "True"), (["a", "b", "b"], "a"), (["a", "b"], "b"), (["1", "spam", "spam"], "spam"),
])
def test_the_class_looked_for_is_called_so_or_is_rare_or_comes_later(labels: list[str], positive: str) -> None:
    config = classify.parse(["--data", "rows.csv"])
    parts = Parts(Labelled([""] * len(labels), labels, [""] * len(labels)), *[Labelled([], [], [])] * 2)
    assert parts.names[classify.positive_class(config, parts)] == positive


def test_integers_have_one_order_also_where_several_are_the_same_number() -> None:
    """In a set, where they are gathered, words stand in an order that differs from process to process."""
    labels = ["1", "01", "2", "-1", "0001", "10", "001"]
    rows = Labelled([""] * len(labels), labels, [""] * len(labels))
    assert Parts(rows, rows, rows).names == ["-1", "0001", "001", "01", "1", "2", "10"]


def test_a_file_of_new_texts_is_labelled(capsys: pytest.CaptureFixture[str]) -> None:
    run("--data", "rows.csv", "--out", "run")
    Path("new.jsonl").write_text('{"body": "tea for you"}\n{"body": "\\n"}\n{"body": "cash for you"}\n', "utf-8")
    capsys.readouterr()
    assert classify.main(["--predict", "new.jsonl", "--text-column", "body", "--model", "run", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[2] for line in lines] == ["tea for you", "cash for you"]


def test_the_report_tells_of_baselines_mistakes_and_rows() -> None:
    run("--data", "rows.csv", "--out", "run", "--class-balance", "weights", "--positive", "ham")
    report = Path("run/report.md").read_text(encoding="utf-8")
    for words in ("The best baseline, ", "## Scores on the test rows", "| Naive Bayes, characters | 8 |",
                  "| logistic regression, characters | 8 |", "of 'ham'", "the same, threshold from validation",
                  "## The surest mistakes", "earlier part"):
        assert words in report, words
    assert Path("run/judgement.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(Path("run/results.json").read_text(encoding="utf-8"))
    assert set(found) == {"train", "val", "test"} and found["test"]["this classifier"]["rows"] == 8


def test_folds_judge_every_row_once_for_each_seed() -> None:
    run("--data", "rows.csv", "--out", "run", "--folds", "2", "--seeds", "2", "--warm-up", "0")
    found = json.loads(Path("run/results.json").read_text(encoding="utf-8"))
    assert set(found) == {"1", "2"}
    assert all(found[seed]["this classifier"]["rows"] == 40 for seed in found)
    judged = []
    for fold in ("1", "2"):
        with open(f"run/seed-2_fold-{fold}/predictions.csv", encoding="utf-8", newline="") as file:
            judged += [(row["place"], row["label"] == row["predicted"]) for row in csv.DictReader(file)
                       if row["part"] == "test"]
    assert len({place for place, _ in judged}) == 40
    assert sum(not is_right for _, is_right in judged) == found["2"]["this classifier"]["errors"]
    folders = "run/seed-1_fold-1, run/seed-1_fold-2, run/seed-2_fold-1, run/seed-2_fold-2"
    with pytest.raises(ValueError, match=f"--model run holds several classifiers; name one: {folders}$"):
        classify.main(["--predict", "hi", "--model", "run", "--device", "cpu"])
    assert classify.main(["--predict", "hi", "--model", "run/seed-1_fold-2", "--device", "cpu"]) == 0
    with pytest.raises(ValueError, match=r"trained with --seeds or --folds, .* cannot be resumed"):
        classify.main(["--resume", "run"])


def test_balanced_folds_judge_every_row_and_learn_from_as_many_of_each_class() -> None:
    rows = Path("rows.csv").read_text(encoding="utf-8").splitlines()
    Path("rare.csv").write_text("\n".join(row for place, row in enumerate(rows) if place % 4 != 2) + "\n", "utf-8")
    config = classify.parse(["--data", "rare.csv", "--class-balance", "undersample", "--folds", "3", "--seeds", "2"])
    parts = load_parts(config.data, is_pooled=True)
    found = [job for _, _, job in classify.jobs(config, parts)]
    assert len(found) == 6
    for seed in (0, 1):
        tested = [place for job in found[3 * seed : 3 * seed + 3] for place in job.test.places]
        assert len(tested) == len(set(tested)) == sum(map(len, parts))
    for job in found:
        assert job.train.labels.count("ham") == job.train.labels.count("spam") > 0
        assert not set(job.train.places) & {*job.val.places, *job.test.places}


def test_a_resumed_run_ends_as_an_unbroken_one() -> None:
    argv = ["--data", "rows.csv", "--save-every", "3", "--keep", "0", "--dropout", "0.1", "--eval-every", "3"]
    run(*argv, "--out", "unbroken")
    run(*argv, "--out", "broken")
    for newest in sorted(Path("broken/checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(newest)
    Path("broken/report.md").unlink()
    assert classify.main(["--resume", "broken"]) == 0
    for name in ("predictions.csv", "results.json"):
        assert Path("broken", name).read_bytes() == Path("unbroken", name).read_bytes()
    assert Path("broken/report.md").exists()


def test_a_teacher_is_the_classifier_of_its_seed_and_the_taught_one_is_none_of_them() -> None:
    argv = ["--data", "rows.csv", "--warm-up", "0", "--seed", "3"]
    run(*argv, "--out", "taught", "--teachers", "2")
    run(*argv[:-1], "2000003", "--out", "second")
    taught, first, second, alone = (load_classifier(name)[0].state_dict() for name in
                                    ("taught", "taught/teacher-1", "taught/teacher-2", "second"))
    assert all(torch.equal(second[name], tensor) for name, tensor in alone.items())
    scores = [model["score.weight"] for model in (taught, first, second)]
    assert not any(torch.equal(scores[place], scores[place - 1]) for place in range(3))


def test_a_taught_run_that_was_broken_off_ends_as_an_unbroken_one() -> None:
    """Broken off while the taught one learned, and while the first teacher did."""
    run("--data", "rows.csv", "--save-every", "3", "--keep", "0", "--dropout", "0.1", "--teachers", "2", "--out", "run")
    expected = Path("run/predictions.csv").read_bytes()
    later = sorted(Path("run/checkpoints").glob("step-*"))[1:]
    earlier = [*sorted(Path("run/teacher-1/checkpoints").glob("step-*"))[1:], Path("run/teacher-2"),
               Path("run/checkpoints"), Path("run/warm-up")]
    for gone in (later, earlier):
        for folder in gone:
            shutil.rmtree(folder)
        Path("run/predictions.csv").unlink()
        assert classify.main(["--resume", "run"]) == 0
        assert Path("run/predictions.csv").read_bytes() == expected


def test_a_finished_taught_run_needs_no_teachers_to_be_judged_again_and_any_seed_has_some() -> None:
    run("--data", "rows.csv", "--teachers", "1", "--seed", str(2**63 - 1), "--out", "run")
    expected = Path("run/predictions.csv").read_bytes()
    shutil.rmtree("run/teacher-1")
    Path("run/predictions.csv").unlink()
    assert classify.main(["--resume", "run"]) == 0
    assert Path("run/predictions.csv").read_bytes() == expected
    assert not Path("run/teacher-1").exists()
    assert "taught by 1 such model and logistic regression" in Path("run/report.md").read_text(encoding="utf-8")


def test_a_refused_resume_changes_nothing_and_the_run_goes_on_as_if_it_had_not_been() -> None:
    run("--data", "rows.csv", "--out", "run")
    kept = ("run.toml", "environment.json", "metrics.jsonl", "warm-up/metrics.jsonl", "predictions.csv")
    before = [Path("run", name).read_bytes() for name in kept]
    for refused in ("--dim=16", "--batch-size=5", "--bpe-dropout=0.2", "--tune=last-9", "--context=1", "--epochs=0"):
        with pytest.raises(ValueError):
            classify.main(["--resume", "run", refused])
        assert [Path("run", name).read_bytes() for name in kept] == before, refused
    assert classify.main(["--resume", "run"]) == 0


def test_what_cannot_be_done_leaves_the_place_free_for_the_corrected_command() -> None:
    for refused in ("--context=1", "--bpe-dropout=0.2", "--tokenizer=char", "--tune=last-9", "--folds=150",
                    "--warmup=999"):
        with pytest.raises(ValueError):
            run("--data", "rows.csv", "--out", "run", refused)
        assert not Path("run").exists(), refused
    assert run("--data", "rows.csv", "--out", "run") == 0
    with pytest.raises(ValueError, match=r"--model run is a finished classifier, .*; start from the model that it was"):
        classify.main(["--model", "run", "--data", "rows.csv", "--device", "cpu", "--out", "further"])
    assert not Path("further").exists()


def test_the_warm_up_teaches_also_what_is_frozen_afterwards() -> None:
    """The decoder that a head is tuned on is the one that the warm-up left, and the warm-up left none of it alone."""
    head = ["--tune", "head", "--language", "0", "--optimizer", "adamw"]
    run("--data", "rows.csv", "--out", "run", *head)
    warm = llm.load("run/warm-up")[0].state_dict()
    after = load_classifier("run")[0].decoder.state_dict()
    assert all(torch.equal(warm[name], tensor) for name, tensor in after.items())
    run("--data", "rows.csv", "--out", "other", *head, "--warm-up", "2")
    longer = llm.load("other/warm-up")[0].state_dict()
    assert not any(torch.equal(warm[name], tensor) for name, tensor in longer.items())


@pytest.mark.parametrize(("tune", "learning"), [
    ("head", ["score"]), ("last-block", ["blocks.1.", "final_norm", "score"]),
    ("last-2", ["blocks.0.", "blocks.1.", "final_norm", "score"])])
def test_only_what_is_tuned_changes(tune: str, learning: list[str]) -> None:
    config = {**vars(TINY_MODELS["llama"]), "vocab_size": 257, "context_length": 64}
    llm.save(random_model(llm.QwenConfig(**config)), "base", tokenizer=Tokenizer.byte_level())
    assert classify.main(["--model", "base", "--tune", tune, "--data", "rows.csv", "--epochs", "1", "--device", "cpu",
                          "--threads", "1", "--out", "run"]) == 0
    model, tokenizer = load_classifier("run")
    assert tokenizer is not None and tokenizer.pad_id == model.pad_id == 257 and tokenizer.eos_id == 256
    base = llm.load("base")[0].state_dict()
    for name, after in model.decoder.state_dict().items():
        before = base[name] if name != "embed.weight" else torch.cat([base[name], torch.zeros(1, 16)])
        assert torch.equal(after, before) is not any(part in name for part in learning), name


@pytest.mark.parametrize(("argv", "message"), [
    (["--predict", "hi"], "--predict needs --model RUN"),
    (["--predict", "hi", "--model", "base", "--epochs", "2", "--out=x", "--seeds=3", "--data=rows.csv", "--dim", "8"],
     "--data, --dim, --epochs, --out, --seeds cannot be used with --predict, which trains nothing; leave them out"),
    (["--predict", "hi", "--model", "base", "--label_column", "y"], "--label-column cannot be used with --predict"),
    (["--model", "base", "--dim", "64"], "--model base brings its own architecture; leave the architecture's flags"),
    (["--model", "base", "--context", "9999"], "--context 9999 exceeds the model's context_length="),
    (["--config", "narrow.toml"], "context_length=64 has no effect, as .* give --context instead"),
    (["--data", "sms-spam", "--text-column", "body"], "text_column=body has no effect, as --data sms-spam has columns"),
    (["--data", "tinyworld-spam", "--use-quotes", "True"], "use_quotes=True has no effect, as --data tinyworld-spam"),
    (["--folds", "2", "--test-fraction", "0.3"], "test_fraction=0.3 has no effect, as each of --folds is tested on"),
    (["--predict", " ", "--model", "base"], "--predict is empty"),
    (["--predict", "hi", "--model", "base"], "holds no classifier"),
    (["--predict", "rows.md", "--model", "base"], "rows.md: texts are read from .csv, .tsv, .jsonl, .parquet"),
    (["--predict", "hi " * 5000, "--model", "base"], "holds no classifier"),
    (["--positive", "eggs"], "--positive eggs is not one of the labels ham, spam"),
    (["--tune", "last-0"], "tune='last-0' is not one of head"),
    (["--tune", "last-9"], "--tune last-9: the model has only 1 blocks"),
    (["--tokenizer", "char"], "--tokenizer char cannot read a character"),
    (["--model", "base", "--tokenizer", "gpt2"], "brings its own tokenizer; leave --tokenizer out"),
    (["--model", "bare"], "--model bare has no tokenizer.json"),
    (["--data", "rows.csv", "--rows", "9"], "rows=9 is for tinyworld-spam, which is made on the spot"),
    (["--data", "tinyworld-spam", "--rows", "0"], "rows=0 must be at least 1"),
    (["--balance", "0.1"], "balance=0.1 has no effect on a model without experts"),
    (["--teachers", "1", "--class-balance", "weights"], "teachers=1: what they believe is not weighed by class"),
    (["--seeds", "0"], "seeds=0 must be at least 1"),
    (["--folds", "1"], "folds=1 must be 2 or more"),
    (["--folds", "150"], "--folds 150 would leave a fold empty.* 40 rows are too few; choose fewer folds"),
    (["--context", "0"], "context=0 must be at least 1"),
    (["--warm-up", "-1"], "warm_up=-1 must be at least 0"),
    (["--label-smoothing", "1"], "label_smoothing=1.0 must lie in"),
    (["--data", "nowhere.csv"], "no such file or folder, nor a data set of this name; choose from tinyworld-spam, sms"),
    (["--data", "sms-spam-balancd"], "nor a data set of this name; did you mean 'sms-spam-balanced'"),
])
def test_what_cannot_be_done_says_why(argv: list[str], message: str) -> None:
    config = llm.QwenConfig(**{**vars(TINY_MODELS["llama"]), "vocab_size": 257})
    llm.save(random_model(config), "base", tokenizer=Tokenizer.byte_level())
    llm.save(random_model(config), "bare")
    Path("rows.md").write_text("hi", encoding="utf-8")
    Path("narrow.toml").write_text("[architecture]\ncontext_length = 64\n", encoding="utf-8")
    start = [] if "--model" in argv else TINY if "--tokenizer" not in argv else TINY[: TINY.index("--tokenizer")]
    data = [] if {"--data", "--predict"} & {*argv} else ["--data", "rows.csv"]
    with pytest.raises(ValueError, match=message):
        classify.main([*start, *data, "--device", "cpu", *argv])


def test_the_books_recipe_has_the_books_settings() -> None:
    config = classify.parse(["--config", "book-ch06"])
    train = config.train
    assert (train.epochs, train.batch_size, train.lr, train.weight_decay, train.clip, train.dropout, train.schedule,
            train.warmup, train.seed, train.optimizer) == (5, 8, 5e-5, 0.1, 0.0, 0.0, "constant", 0, 123, "adamw")
    assert (train.beta1, train.beta2) == (0.9, 0.999)
    assert (config.objective.tune, config.context, config.tokenizer) == ("last-block", 120, "gpt2")
    assert (config.architecture.dim, config.architecture.num_layers) == (768, 12)
    assert classify.parse(["--config", "spam-scratch"]).data.data == "sms-spam-balanced"


def test_files_of_ones_own_replace_the_data_of_a_preset_but_not_those_of_a_flag() -> None:
    data = classify.parse(["--config", "book-ch06", "--train-file", "a.csv"]).data
    assert (data.train_file, data.is_made) == ("a.csv", False)
    with pytest.raises(ValueError, match=r"--data b\.csv and --train-file a\.csv: give one of them"):
        classify.parse(["--train-file", "a.csv", "--data", "b.csv"])
