"""What a wrong command or a broken file is answered: one line with value, rule and remedy, and nothing is lost.

The table is run in this process; `python -O -m tests.test_bad_input` runs it where Python leaves every assert out, and
prints what each case was answered.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import llm
from llm.data.tokenfile import write_token_file
from llm.tasks import entry, generate, pretrain
from llm.tokenizers.tokenizer import Tokenizer

ROOT = Path(llm.__file__).parents[1]
TEXT = "The quick brown fox jumps over the lazy dog.\n猴王出世。\n" * 10
TINY = ["--model", "gpt-tiny", "--num-layers", "1", "--num-heads", "1", "--dim", "8"]
SHORT = ["--context", "8", "--batch-size", "4", "--steps", "2", "--device", "cpu", "--precision", "fp32", "--threads",
         "1", "--sample-tokens", "5"]
STEP = "run/checkpoints/step-00000002"
PICKLE = b"cos\nsystem\n(S'touch executed'\ntR."   # run by whoever unpickles it

Prepare = Callable[[], Any]


def write(name: str, content: str | bytes) -> Prepare:
    def do() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return do


def change(name: str, alter: Callable[[bytes], bytes]) -> Prepare:
    return lambda: Path(name).write_bytes(alter(Path(name).read_bytes()))


def replaced(name: str, old: bytes, new: bytes) -> Prepare:
    return change(name, lambda data: data.replace(old, new))


def remove(name: str) -> Prepare:
    return lambda: shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()


def token_file(alter: Callable[[bytes], bytes] = bytes) -> Prepare:
    def do() -> None:
        tokenizer = Tokenizer.byte_level()
        write_token_file("t.bin", [tokenizer.encode_document(TEXT)], vocab_size=257, fingerprint=tokenizer.fingerprint)
        Path("t.bin").write_bytes(alter(Path("t.bin").read_bytes()))
    return do


def other_tokenizer() -> None:
    token_file()()
    Tokenizer.train([TEXT] * 3, vocab_size=270, pattern="gpt2").save("other")


def pickled_model() -> None:
    Path("pickled").mkdir()
    shutil.copy(f"{STEP}/config.json", "pickled")
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin"):
        Path("pickled", name).write_bytes(PICKLE)


def lose_a_slot() -> None:
    path = f"{STEP}/trainer/optimizer.safetensors"
    tensors = load_file(path)
    del tensors[next(name for name in tensors if name.endswith(".exp_avg_sq"))]
    save_file(tensors, path)


def lose_all_slots() -> None:
    save_file({}, f"{STEP}/trainer/optimizer.safetensors")


def nothing() -> None:
    pass


# what is prepared; the flags, added to those of a short run; the status; what the line says
DATA: list[tuple[str, Prepare, str, int, str]] = [
    ("empty file", write("b.txt", ""), "--data b.txt", 1, "b.txt holds no text; give a file or folder with some"),
    ("blank file", write("b.txt", " \n\n"), "--data b.txt", 1, "b.txt holds no text; give a file or folder with some"),
    ("binary file", write("b.txt", bytes(range(128))), "--data b.txt", 1, "b.txt holds NUL characters and .* give"),
    ("invalid UTF-8", write("b.txt", b"abc\xffdef"), "--data b.txt", 1, r"b.txt is not UTF-8 text \(byte 3 is 0xff\); "
     "convert it"),
    ("one character", write("b.txt", "x"), "--data b.txt", 1, "the text, of length 1, is too short .* give more"),
    ("too short a text", write("b.txt", "xyzab"), "--data b.txt", 1, "b.txt gives 1 token for validation, and .* give"),
    ("context longer than the data", nothing, "--context 999", 1, "--context 999 is longer than the training text, "
     "which has 550 tokens; give more text, or --context 549 at most"),
    ("missing file", nothing, "--data b.txt", 1, "--data b.txt: there is no such file or folder, nor a data set"),
    ("misspelt data set", nothing, "--data tinyshakespear", 1, "did you mean 'tinyshakespeare'?"),
    ("folder without text", lambda: Path("docs").mkdir(), "--data docs", 1, "docs holds no file that ends in .txt or"),
    ("broken row", write("b.jsonl", '{"text": "a"}\n{"text": b}'), "--data b.jsonl", 1, "b.jsonl, line 2: not JSON .* "
     "each line must be an object"),
    ("row without text", write("b.jsonl", '{"txt": "a"}'), "--data b.jsonl", 1, 'b.jsonl, line 1: no "text"; each'),
    ("not a parquet file", write("b.parquet", b"PAR1"), "--data b.parquet", 1, "b.parquet is not a parquet file"),
    ("wrong tokenizer", other_tokenizer, "--data t.bin --tokenizer other", 1, "t.bin was written with another "
     "tokenizer .*; tokenize the text again, or name the right --tokenizer"),
    ("truncated token file", token_file(lambda data: data[:-7]), "--data t.bin", 1, "t.bin has 1279 bytes, but its "
     "header promises 611 ids in 1286; .* write it again"),
    ("cut in its header", token_file(lambda data: data[:20]), "--data t.bin", 1, "t.bin has no token-file header; for"),
    ("bad magic", token_file(lambda data: b"MAGIC" + data[5:]), "--data t.bin", 1, "t.bin has no token-file header"),
    ("newer version", token_file(lambda data: data[:8] + b"\7" + data[9:]), "--data t.bin", 1, "t.bin: version 7, .* "
     "this program reads version 1"),
    ("empty token file", token_file(lambda data: b""), "--data t.bin", 1, "t.bin is empty; write it again"),
    ("foreign ids", token_file(lambda data: data[:-2] + b"\xff\xff"), "--data t.bin", 1, "t.bin holds id 65535, but "
     "the vocabulary has only 257 ids; check --tokenizer"),
    ("half an id", write("t.bin", b"abc"), "--data t.bin --raw-dtype uint16", 1, "t.bin: 3 bytes are not a whole"),
    ("raw text", nothing, "--raw-dtype uint16", 1, "--raw-dtype uint16 is for streams of ids, .* leave it out"),
    ("two kinds", token_file(), "--val t.bin", 1, "--data a.txt and --val t.bin: one is a token file, .* give both"),
    ("damaged tokenizer", write("tok/tokenizer.json", "{"), "--tokenizer tok", 1, "tokenizer.json is "),
]
SETTINGS: list[tuple[str, Prepare, str, int, str]] = [
    ("misspelt flag", nothing, "--stpes 5", 2, "Unrecognized options: --stpes, 5; did you mean --steps?"),
    ("wrong type", nothing, "--steps five", 2, "--steps five must be {None} or INT; --help lists every flag"),
    ("fraction for a count", nothing, "--seed 1.5", 2, "Error parsing --seed: .* '1.5'; --help lists every flag"),
    ("missing value", nothing, "--lr", 2, "Missing value for argument '--lr'"),
    ("= in a number", nothing, "--lr=1e-3=4", 2, "Error parsing --lr: could not convert string to float: '1e-3=4'"),
    ("unknown choice", nothing, "--optimizer adam", 2, "invalid choice 'adam' for argument '--optimizer'. Expected"),
    ("stray word", nothing, "extra", 2, "Unrecognized options: extra; --help lists every flag"),
    ("steps and epochs", nothing, "--epochs 3", 2, "steps=2 and epochs=3: give one of them"),
    ("long warmup", nothing, "--warmup 3", 1, "warmup=3 is not shorter than the run of 2 steps; the learning rate"),
    ("limit on one document", nothing, "--limit 3", 1, "--limit 3 counts documents, and a.txt is a single one"),
    ("dim 0", nothing, "--dim 0", 2, "dim=0 must be at least 1"),
    ("no heads", nothing, "--num-heads 0", 2, "num_heads=0 must be at least 1"),
    ("no head width", nothing, "--model qwen-tiny --num-heads 4 --head-dim 0", 2,
     "head_dim=0 must be at least 2 and even, since RoPE turns pairs; leave it out"),
    ("no key heads", nothing, "--model qwen-tiny --num-kv-heads 0", 2, "num_kv_heads=0 does not divide num_heads=1; "),
    ("heads that do not divide", nothing, "--dim 10 --num-heads 3", 2, "num_heads=3 does not divide dim=10; choose 2"),
    ("eps that is no number", nothing, "--norm-eps nan", 2, r"norm_eps=nan must lie in \[0, 1\); 1e-5 is usual"),
    ("larger than memory", nothing, "--dim 1000000", 1, "dim=1000000, num_layers=1: weights, gradients and AdamW take "
     "about 192.0 TB, but cpu has .* GB in all; choose smaller numbers"),
    ("larger than numbers", nothing, "--dim 4000000000 --mlp-dim 4000000000", 1,
     "AdamW take more than 18446744.1 TB, but cpu has"),
    ("infinite learning rate", nothing, "--lr inf", 2, "lr=inf must be finite; the first step would"),
    ("learning rate that is no number", nothing, "--lr nan", 2, "lr=nan must be above 0"),
    ("empty batch", nothing, "--batch-size 0", 2, "batch_size=0 must be at least 1"),
    ("finer than samples", nothing, "--accumulate 8", 2, "accumulate=8 exceeds batch_size=4; a step cannot be cut"),
    ("huge seed", nothing, f"--seed {10**30}", 2, r"seed=10+ must be below 2\^63"),
    ("no threads", nothing, "--threads 0", 1, "threads=0 must be at least 1"),
    ("no such GPU", nothing, "--device cuda:77", 1, "--device cuda:77: this torch sees . CUDA devices; use another"),
    ("no such device", nothing, "--device gpu", 1, "--device gpu: choose from auto, cpu, cuda"),
    ("setting without effect", nothing, "--muon-lr 0.1", 2, "muon_lr=0.1 has no effect with optimizer=adamw; leave it"),
    ("unknown tokenizer", nothing, "--tokenizer chra", 1, "--tokenizer chra is none of char, byte, bpe:SIZE"),
    ("vocabulary that is no number", nothing, "--tokenizer bpe:x", 1, "--tokenizer bpe:x: 'x' is no vocabulary size"),
    ("misspelt preset", nothing, "--model gpt-tinny", 1, "'gpt-tinny' is neither a preset .* did you mean 'gpt-tiny'?"),
    ("misspelt key", write("c.toml", "[train]\nstesp = 3"), "--config c.toml", 1, r"c.toml \[train\]: unknown key "
     "'stesp'; did you mean 'steps'?"),
    ("wrong type in a file", write("c.toml", "[train]\nsteps = '3'"), "--config c.toml", 1, "steps = '3' must be of"),
    ("no TOML", write("c.toml", "steps = ["), "--config c.toml", 1, "c.toml is not a TOML file"),
    ("binary config", write("c.toml", b"\xff\xfe"), "--config c.toml", 1, "c.toml is not a TOML file"),
    ("out is a file", nothing, "--out a.txt", 1, "--out a.txt is a file; name a folder, new or empty"),
    ("out below a file", nothing, "--out a.txt/b", 1, "a.txt/b: Not a directory; a part of the path is a file"),
    ("out that cannot be", nothing, f"--out {'x' * 300}", 1, "x: File name too long; choose a shorter name"),
    ("out that holds a run", nothing, "--out run", 1, "run holds a run already; go on with --resume run, or choose"),
    ("two places", nothing, "--resume run --out b", 1, "--model gpt-tiny and --resume run exclude each other"),
]
RESUME: list[tuple[str, Prepare, str, int, str]] = [
    ("no run", nothing, "--resume docs", 1, "--resume docs: that is no run folder, it has no run.toml"),
    ("no run at all", nothing, "--resume latest", 1, "--resume latest: there is no run below logs/pretrain"),
    ("changed data", replaced("a.txt", b"fox", b"cat"), "--resume run", 1, "data are not "
     "those that run was begun with; restore them, or start a new run"),
    ("data that is gone", remove("a.txt"), "--resume run", 1, "--data a.txt: there is no such file"),
    ("another seed", nothing, "--resume run --seed 7", 1, "seed=7, but the run was made with 1: its data order would"),
    ("another model", nothing, "--resume run --dim 16", 1, "the tensors do not fit the configuration"),
    ("another place", nothing, "--resume run --out b", 2, "--out b and --resume run exclude each other; a resumed run"),
    ("damaged settings", write("run/run.toml", "= ="), "--resume run", 1, "run/run.toml is not a TOML file"),
    ("damaged record", write("run/environment.json", "{"), "--resume run", 1, "run/environment.json is damaged: .* "
     "If they are the same, delete it"),
    ("damaged index", write("run/checkpoints/index.json", b"\0"), "--resume run", 1, "index.json is damaged:"),
    ("index without numbers", write("run/checkpoints/index.json", '{"complete": ["a"], "latest": "a", "best": null}'),
     "--resume run", 1, "index.json is damaged: its steps are no numbers; delete it"),
    ("half a checkpoint", change(f"{STEP}/model.safetensors", lambda data: data[:-100]), "--resume run", 1,
     "model.safetensors is damaged: .* file not fully covered; copy it again, or use another checkpoint"),
    ("empty weights", write(f"{STEP}/model.safetensors", b""), "--resume run", 1, "model.safetensors is damaged:"),
    ("huge header", write(f"{STEP}/model.safetensors", (2**60).to_bytes(8, "little") + b"{}"), "--resume run", 1,
     "model.safetensors is damaged: .* header too large; copy it again"),
    ("missing weights", remove(f"{STEP}/model.safetensors"), "--resume run", 1,
     "step-00000002 holds no weights; weights are read only from safetensors files"),
    ("pickle for weights", write(f"{STEP}/model.safetensors", PICKLE), "--resume run", 1, "model.safetensors is"),
    ("pickle for the optimizer", write(f"{STEP}/trainer/optimizer.safetensors", PICKLE), "--resume run", 1,
     "trainer/optimizer.safetensors is damaged: .* copy it again"),
    ("missing state", remove(f"{STEP}/trainer"), "--resume run", 1, "has no trainer/ to resume from; start from its "
     "weights with --model"),
    ("state that lacks something", write(f"{STEP}/trainer/state.json", "{}"), "--resume run", 1, "state.json is "
     "damaged: it lacks step, epoch"),
    ("state without numbers", replaced(f"{STEP}/trainer/state.json", b'"step": 2', b'"step": "2"'),
     "--resume run", 1, "the saved step='2' is no number, .* delete its folder"),
    ("state below zero", replaced(f"{STEP}/trainer/state.json", b'"tokens": 64', b'"tokens": -64'),
     "--resume run", 1, "the saved tokens=-64 is no number, or below 0, .* delete its folder"),
    ("place beyond the epoch", replaced(f"{STEP}/trainer/state.json", b'"place": 2', b'"place": 999'),
     "--resume run", 1, "the saved place=999 is beyond the epoch's end, .* delete its folder"),
    ("lengths that are none", replaced(f"{STEP}/trainer/state.json", b'"lengths": {', b'"lengths": {"a": -1, '),
     "--resume run", 1, "the saved lengths=.* are no lengths of files, .* delete its folder"),
    ("fewer steps than were taken", nothing, "--resume run --steps 1", 1, "the run has taken 2 steps already, more "
     "than the 1 asked for; ask for more"),
    ("another optimizer", nothing, "--resume run --optimizer muon", 1, "the optimizer state of 'blocks.* holds "
     "exp_avg, exp_avg_sq, step, but Muon keeps momentum_buffer; go on with the optimizer that the run was made with"),
    ("half of an optimizer's state", lose_a_slot, "--resume run", 1, "holds exp_avg, step, but AdamW keeps exp_avg, "
     "exp_avg_sq, step; go on with"),
    ("no optimizer's state", lose_all_slots, "--resume run", 1, "optimizer state is empty after 2 steps, so the "
     "checkpoint is damaged; delete its folder"),
    ("damaged random state", replaced(f"{STEP}/trainer/state.json", b'"cpu": "', b'"cpu": "AAAA'),
     "--resume run", 1, "the saved state of the random numbers is damaged"),
]
MODEL: list[tuple[str, Prepare, str, int, str]] = [
    ("no model", nothing, "--model nowhere", 1, "nowhere does not exist; name a run folder, a checkpoint"),
    ("a file for a model", nothing, "--model a.txt", 1, "a.txt is a file; name a run folder, a checkpoint"),
    ("empty folder", lambda: Path("docs").mkdir(), "--model docs", 1, "docs holds no complete checkpoint; name"),
    ("unknown architecture", write("m/config.json", '{"model_type": "bert"}'), "--model m", 1, "model_type 'bert' is "
     "not supported; choose from"),
    ("damaged config", write("m/config.json", "{"), "--model m", 1, "m/config.json is damaged: .* copy it again"),
    ("no heads in a config", replaced(f"{STEP}/config.json", b'"n_head": 1', b'"n_head": 0'),
     "--model run", 1, "num_heads=0 must be at least 1"),
    ("a pickled model", pickled_model, "--model pickled", 1, "pickled holds only model.pt, a pickle, which can run "
     "any code when it is read; weights are read only from safetensors files"),
    ("pickle for a model", write(f"{STEP}/model.safetensors", PICKLE), "--model run", 1, "model.safetensors is"),
]
CASES = {
    **{name: (prepare, pretrain, [*TINY, *SHORT, "--data", "a.txt", *([] if "bin" in argv else ["--tokenizer", (
        "char" if name == "too short a text" else "byte")]), "--out", "new", *argv.split()], status, line)
       for name, prepare, argv, status, line in [*DATA, *SETTINGS]},
    **{name: (prepare, pretrain, argv.split(), status, line) for name, prepare, argv, status, line in RESUME},
    **{name: (prepare, generate, ["--device", "cpu", *argv.split()], status, line)
       for name, prepare, argv, status, line in MODEL},
}


def make_good_run() -> None:
    """A text and a short run of it in the current folder, as `a.txt` and `run`."""
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    pretrain.main([*TINY, *SHORT, "--data", "a.txt", "--tokenizer", "byte", "--out", "run"])


def answer(task: Any, argv: list[str]) -> tuple[int, list[str]]:
    """The status of a command, and what it said on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as stop:
        entry(lambda: task.main(argv))
    return int(stop.value.code or 0), said.getvalue().splitlines()


def contents(*folders: str) -> dict[str, str]:
    """Every file with its hash; train.log and .lock may tell of the attempt."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for folder in folders
            for path in Path(folder).rglob("*") if path.is_file() and path.name not in ("train.log", ".lock")}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        make_good_run()
    return folder


@pytest.fixture
def desk(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a text, a run to play with and a neighbour that must stay as it is."""
    for name in ("run", "neighbour"):
        shutil.copytree(good / "run", tmp_path / name)
    shutil.copy(good / "a.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    before = contents("neighbour")
    yield tmp_path
    assert contents("neighbour") == before
    assert not Path("executed").exists()   # what the pickles would have done


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_answered_in_one_line_and_costs_nothing(name: str, desk: Path) -> None:
    prepare, task, argv, status, line = CASES[name]
    prepare()
    before = contents("run")
    code, said = answer(task, argv)
    errors = [text for text in said if text.startswith("error: ")]
    assert errors == said[-1:] and "Traceback" not in " ".join(said)
    assert re.search(line, errors[0]), errors[0]
    assert len(errors[0]) < 1200
    assert code == status
    assert contents("run") == before
    assert not Path("new").exists()   # the corrected command finds its place free


@pytest.mark.slow
def test_no_check_rests_on_an_assert() -> None:
    done = subprocess.run([sys.executable, "-O", "-m", "tests.test_bad_input"], cwd=ROOT, capture_output=True,
                          text=True, check=True, timeout=600, env={**os.environ, "PYTHONPATH": str(ROOT)})
    answers = json.loads(done.stdout.splitlines()[-1])
    assert answers.keys() == CASES.keys()
    for name, (code, said) in answers.items():
        assert code == CASES[name][3], name
        assert re.search(CASES[name][4], said), (name, said)


def answer_all() -> dict[str, tuple[int, str]]:
    """What every case is answered, each in a folder of its own."""
    answers = {}
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place), contextlib.redirect_stdout(io.StringIO()):
        Path("good").mkdir()
        with contextlib.chdir("good"), contextlib.redirect_stderr(io.StringIO()):
            make_good_run()
        for name, (prepare, task, argv, _, _) in CASES.items():
            shutil.copytree("good", "desk")
            with contextlib.chdir("desk"):
                prepare()
                code, said = answer(task, argv)
                answers[name] = (code, said[-1])
            shutil.rmtree("desk")
    return answers


if __name__ == "__main__":
    if not sys.flags.optimize:
        sys.exit("run it with python -O")
    torch.set_num_threads(1)
    print(json.dumps(answer_all(), ensure_ascii=True))
