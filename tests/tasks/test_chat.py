"""Laws of the chat command: answers go out, notices aside, and no command or interruption loses the conversation."""

import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import llm
from llm.conversation import Conversation
from llm.sampling import Sampling
from llm.tasks import chat
from llm.tasks.chat import Terminal, changed, messages, whole_number

TEXT = "Hello, tea is a drink.\n你好 " + "".join(map(chr, range(32, 127)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    tokenizer = llm.Tokenizer.train([TEXT], 270, special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    config = llm.GPTConfig(vocab_size=270, context_length=128, num_layers=1, num_heads=1, dim=8)
    llm.save(llm.GPT(config), "model", tokenizer=tokenizer)
    return "model"


def talk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str | bytes, *argv: Any
) -> tuple[str, str]:
    """What the command prints when it reads a text from a pipe: answers, notices."""
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))   # reads ahead, as a pipe
    settings = ["--device", "cpu", "--dtype", "fp32", "--threads", "1", "--max-new-tokens", "8"]
    assert chat.main([*settings, "--model", "model", *map(str, argv)]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_each_message_gets_an_answer_and_a_seed_repeats_them(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = talk(monkeypatch, capsys, "Hello\n\nwhat is tea?\n")
    model, tokenizer = llm.load(folder)
    assert tokenizer is not None
    mirror = Conversation(model, tokenizer, max_new_tokens=8, seed=1, temperature=0.7, top_p=0.95)
    assert out == "".join("".join(mirror.answer(text)) + "\n" for text in ("Hello", "what is tea?"))
    assert "model: 0.0M parameters, fp32, context 128\n/help lists" in err
    assert talk(monkeypatch, capsys, "Hello\nwhat is tea?\n")[0] == out
    assert talk(monkeypatch, capsys, "Hello\nwhat is tea?\n", "--seed", 2)[0] != out
    assert talk(monkeypatch, capsys, "Hello\nwhat is tea?\n", "--temperature", 3)[0] != out


def test_a_line_of_a_pipe_that_is_not_utf_8_is_answered_too(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = talk(monkeypatch, capsys, b"Hello\nt\xe9\n/show\n")
    assert out and "t\ufffd" in err


def test_every_command(folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def notices(text: str, *argv: Any) -> str:
        return talk(monkeypatch, capsys, text, *argv)[1].split("ends.\n", 1)[1]

    assert all(f"/{name} " in notices("/help") for name in ("reset", "system", "retry", "save", "stats", "quit"))
    assert notices("/system\n/system Be kind.\n/show") == (
        "System: (none)\nSystem: Be kind.\nSystem:\nBe kind.\n\nAssistant:\n\n")
    assert notices("/system", "--system", "Be kind.") == "System: Be kind.\n"
    assert "<|im_start|>user\nHi<|im_end|>\n" in notices("Hi\n/show", "--template", "chatml")
    assert "Forgotten.\nAssistant:\n" in notices("Hi\n/reset\n/show")
    assert notices("/undo") == "There is nothing to take back.\n"
    assert "Taken back.\nAssistant:\n" in notices("Hi\n/undo\n/show")
    assert notices("/retry") == "there is no answer to write again\n"
    assert "of 128 tokens of context in use" in notices("Hi\n/stats")
    assert "8 tokens written" in notices("Hi\n/stats")
    assert "temperature 0.2, top_k 5, top_p 0.95; the others are off" in notices("/set temperature 0.2\n/set top_k 5")
    assert "max_new_tokens 3" in notices("/set max_new_tokens 3")
    assert notices("/dance\nHi\n").startswith("There is no /dance. /help lists")
    assert "user\nUser" not in notices("//not a command\n/show") and "User:\n/not" in notices("//not a command\n/show")
    assert notices("/quit\nHi\n") == ""


def test_settings_change_what_is_said(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = talk(monkeypatch, capsys, "Hi")[0]
    assert talk(monkeypatch, capsys, "/set temperature 5\nHi")[0] != plain
    assert talk(monkeypatch, capsys, "/set max_new_tokens 2\nHi")[0] == (
        talk(monkeypatch, capsys, "Hi", "--max-new-tokens", 2)[0])
    first, second = talk(monkeypatch, capsys, "Hi\n/retry")[0][: len(plain)], talk(monkeypatch, capsys, "Hi\n/retry")[0]
    assert first == plain and second != plain * 2
    assert talk(monkeypatch, capsys, "Hi", "--stop", plain[2:4])[0] == plain[:2] + "\n"
    assert talk(monkeypatch, capsys, "/system Rhyme.\nHi")[0] == (
        talk(monkeypatch, capsys, "Hi", "--system", "Rhyme.")[0])


def test_a_saved_conversation_is_a_row_to_train_on(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = "/save talk.jsonl\n"
    out, err = talk(monkeypatch, capsys, f"/system Sei nett.\n你好\n{save}{save}/save\n/save .\n")
    rows = [json.loads(line) for line in Path("talk.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [{"messages": [{"role": "system", "content": "Sei nett."}, {"role": "user", "content": "你好"},
                                  {"role": "assistant", "content": out.removesuffix("\n")}]}] * 2
    assert err.count("one conversation added") == 2
    assert "Name a file: /save talk.jsonl" in err and "Is a directory" in err


def test_a_full_context_and_a_long_message_are_told(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = talk(monkeypatch, capsys, "Hello tea\n" * 6 + "tea " * 100 + "\nHello\n")
    assert "The context of 128 tokens is full: the oldest 6 messages are left out from here on." in err
    assert "leaves no room for an answer in the model's context of 128; shorten it" in err
    assert err.count("Cut after 8 tokens.") == 7


def test_several_lines_between_marks_are_one_message() -> None:
    lines = ["one", "", '"""', "two", "", " three", ' """ ', "four", '"""', "five"]
    rest = iter(lines)
    assert list(messages(lambda _: next(rest, None))) == ["one", "two\n\n three", "four", "five"]


class Interrupting:
    """A conversation whose answer is interrupted in its middle."""

    num_left_out = 0

    def __init__(self) -> None:
        self.texts: list[str] = []

    def answer(self, text: str) -> Iterator[str]:
        self.texts.append(text)
        yield "be"
        raise KeyboardInterrupt


def test_an_interruption_ends_the_answer_and_not_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    talk: Any = Interrupting()
    Terminal(talk).run()
    assert talk.texts == ["one", "two"]
    captured = capsys.readouterr()
    assert captured.out == "be\nbe\n" and captured.err == "Stopped.\nStopped.\n"


@pytest.mark.parametrize(("name", "value", "message"), [
    ("heat", "1", "There is no setting heat; choose from max_new_tokens, temperature"),
    ("temperature", "hot", "temperature: could not convert"), ("temperature", "-1", "temperature=-1.0 must be"),
    ("top_k", "1.5", "top_k: 1.5 must be a whole number of at least 0"), ("top_p", "", "top_p: could not convert"),
])
def test_settings_that_make_no_sense_change_nothing(name: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(Sampling(), name, value)
    with pytest.raises(ValueError, match="0 must be a whole number of at least 1"):
        whole_number("max_new_tokens", "0")


def test_what_cannot_be_talked_with_is_refused_in_one_line(folder: str) -> None:
    for argv, message in [([], "--model is missing"), (["--model", "nowhere"], "nowhere does not exist"),
                          (["--model", "model", "--template", "chat"], "neither Jinja text nor one of chatml"),
                          (["--model", "model", "--max-new-tokens", "0"], "max_new_tokens=0"),
                          (["--model", "model", "--seed", "-1"], "seed=-1 must be at least 0")]:
        with pytest.raises(ValueError, match=message):
            chat.main(argv)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send")
def test_in_a_terminal_ctrl_c_does_not_end_it_and_ctrl_d_does(folder: str) -> None:
    import pty
    import termios

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "llm.tasks.chat", "--model", folder, "--max-new-tokens", "9", "--threads", "1"],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),   # ignored by what a script runs with `&`
        env={**os.environ, "PYTHONPATH": str(Path(llm.__file__).parents[1]), "TERM": "dumb"})
    os.close(theirs)
    shown = ""

    def until(text: str, seconds: float = 120) -> bool:
        nonlocal shown
        while text not in shown:
            if not select.select([ours], [], [], seconds)[0]:
                return False
            shown += os.read(ours, 4096).decode(errors="replace")
        shown = shown.split(text, 1)[1]
        return True

    def listens() -> bool:
        """Whether it waits for keys: readline takes them one by one then, not in lines."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if not termios.tcgetattr(ours)[3] & termios.ICANON:
                return True
            time.sleep(0.05)
        return False

    try:
        assert until("> ") and listens(), shown
        for _ in range(10):   # a signal in the instant between the prompt and the waiting is not noticed by readline
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            if until("Ctrl-D or /quit ends.", seconds=15):
                break
        assert until("> ") and listens(), shown
        os.write(ours, b"Hello\n")
        assert until("> ") and listens(), shown
        os.write(ours, b"/stats\n")
        assert until("tokens written") and until("> ") and listens(), shown
        os.write(ours, b"\x04")
        assert process.wait(120) == 0
    finally:
        process.kill()
        os.close(ours)
