"""Talk with a model in the terminal."""

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm.config import load
from llm.sampling import Sampling
from llm.tasks import entry
from llm.tasks.generate import open_model

if TYPE_CHECKING:
    from llm.conversation import Conversation

BLOCK = '"""'   # begins and ends a message of several lines


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Talk with a model in the terminal.

    python -m llm.tasks.chat --model FOLDER --system "You answer in rhymes."
    """

    config: str | None = None
    """A TOML file with any of these settings."""
    model: str = ""
    """A run folder (its best checkpoint), a checkpoint, a Hugging Face folder, or a .gguf file."""
    system: str = ""
    """What the model is told before everything else."""
    template: str | None = None
    """chatml, alpaca or plain; default the model's own, and plain for a model without one."""
    max_new_tokens: int = 512
    """The longest answer, in tokens."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7, top_p=0.95))
    """How the next token is chosen."""
    stop: tuple[str, ...] = ()
    """Text that ends an answer, besides that of the template."""
    seed: int = 1
    """The same seed and the same words give the same conversation."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of weights and activations; auto is bf16 where the hardware multiplies it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads; default torch's choice."""


def parse(argv: Sequence[str] | None = None) -> ChatConfig:
    """The settings that a command line asks for."""
    return load(ChatConfig, argv, prog="python -m llm.tasks.chat")


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(argv)
    if config.seed < 0:
        raise ValueError(f"seed={config.seed} must be at least 0")
    opened = open_model(config.model, dtype=config.dtype, device=config.device, threads=config.threads)

    from llm.conversation import Conversation

    conversation = Conversation(
        opened.model, opened.tokenizer, template=config.template, system=config.system, seed=config.seed,
        max_new_tokens=config.max_new_tokens, stop_strings=config.stop, **vars(config.sampling),
    )
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")   # here: it is refused once a line has been read ahead
    say(f"{opened.name}\n/help lists what you can do besides talking; Ctrl-C stops an answer, Ctrl-D ends.")
    Terminal(conversation).run()
    return 0


class Terminal:
    """Reads lines, shows answers as they are written, and obeys what begins with a slash."""

    def __init__(self, conversation: "Conversation"):
        self.conversation = conversation
        self.commands: dict[str, Callable[[str], bool | None]] = {
            "help": self.help, "reset": self.reset, "system": self.system, "retry": self.retry, "undo": self.undo,
            "set": self.set, "show": self.show, "stats": self.stats, "save": self.save, "quit": self.quit,
        }

    def run(self) -> None:
        """Until the input ends or /quit."""
        for message in messages(read_line):
            if message.startswith("/") and not message.startswith("//"):
                name, _, rest = message[1:].partition(" ")
                command = self.commands.get(name)
                if command is None:
                    say(f"There is no /{name}. /help lists the commands; // begins a message with a slash.")
                    continue
                try:
                    if command(rest.strip()):
                        return
                except (ValueError, OSError) as error:
                    say(f"{error}")
            else:
                self.show_answer(partial(self.conversation.answer, message.removeprefix("/")))

    def show_answer(self, answer: Callable[[], Iterator[str]]) -> None:
        """Print an answer as it is written; Ctrl-C ends it."""
        before = self.conversation.num_left_out
        try:
            pieces = answer()
            if (now := self.conversation.num_left_out) > before:
                say(f"The context of {self.conversation.model.config.context_length} tokens is full: the oldest {now} "
                    "messages are left out from here on.")
            for piece in pieces:
                print(piece, end="", flush=True)
            print(flush=True)
        except ValueError as error:
            say(f"{error}")
            return
        except KeyboardInterrupt:
            print(flush=True)
            say("Stopped.")
            return
        if self.conversation.stats.is_cut:
            say(f"Cut after {self.conversation.stats.num_written} tokens.")

    def help(self, _: str) -> None:
        """what you can do"""
        for name, command in self.commands.items():
            say(f"  /{name:<7} {command.__doc__}")
        say(f"  {BLOCK:<8} on a line of its own begins and ends a message of several lines")

    def reset(self, _: str) -> None:
        """forget what was said"""
        self.conversation.reset()
        say("Forgotten.")

    def system(self, text: str) -> None:
        """[TEXT] start again with another system message; alone: show it"""
        if text:
            self.conversation.reset(text)
        say(f"System: {self.conversation.system or '(none)'}")

    def retry(self, _: str) -> None:
        """another answer to your last message"""
        self.show_answer(self.conversation.retry)

    def undo(self, _: str) -> None:
        """take back your last message and its answer"""
        if self.conversation.undo():
            say("Taken back.")
        else:
            say("There is nothing to take back.")

    def set(self, text: str) -> None:
        """[NAME VALUE] change temperature, top_p ... or max_new_tokens; alone: show them"""
        talk = self.conversation
        if text:
            name, _, value = text.partition(" ")
            if name == "max_new_tokens":
                talk.max_new_tokens = whole_number(name, value)
            else:
                talk.sampling = vars(changed(Sampling(**talk.sampling), name, value))
        plain = vars(Sampling())
        settings = {name: value for name, value in talk.sampling.items() if value != plain[name]}
        settings = {"max_new_tokens": talk.max_new_tokens, "temperature": talk.sampling["temperature"], **settings}
        say("  " + ", ".join(f"{name} {value}" for name, value in settings.items()) + "; the others are off")

    def show(self, _: str) -> None:
        """the conversation so far, as the model reads it"""
        say(self.conversation.text())

    def stats(self, _: str) -> None:
        """what the last answer took"""
        stats, context = self.conversation.stats, self.conversation.model.config.context_length
        say(f"  {stats.num_prompt} tokens of conversation, {stats.num_read} of them new: first token after "
            f"{stats.first_s:.2f} s\n  {stats.num_written} tokens written, {stats.tokens_per_second:.1f} a second\n"
            f"  {stats.num_prompt + stats.num_written} of {context} tokens of context in use")

    def save(self, name: str) -> None:
        """FILE add the conversation to a .jsonl file, as a row that can be trained on"""
        if not name:
            raise ValueError("Name a file: /save talk.jsonl")
        with open(name, "a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": self.conversation.messages}, ensure_ascii=False) + "\n")
        say(f"{Path(name).resolve()}: one conversation added.")

    def quit(self, _: str) -> bool:
        """end"""
        return True


def read_line(prompt: str) -> str | None:
    """The next line that a person types, with editing and history where there is a terminal, or that a pipe holds.

    Returns:
        The line without its end, None when there are no more.
    """
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
    with contextlib.suppress(ImportError):   # Windows has its own
        import readline  # noqa: F401  (its import gives `input` editing and history)
    while True:
        try:
            return input(prompt)
        except KeyboardInterrupt:
            say("\nCtrl-D or /quit ends.")
        except EOFError:
            say("")
            return None


def messages(read: Callable[[str], str | None]) -> Iterator[str]:
    """The messages in what is typed: a line each, or several between two marks."""
    while (line := read("> ")) is not None:
        if line.strip() == BLOCK:
            block = []
            while (inner := read(". ")) is not None and inner.strip() != BLOCK:
                block.append(inner)
            line = "\n".join(block)
        if line.strip():
            yield line


def changed(sampling: Sampling, name: str, value: str) -> Sampling:
    """The settings with one of them read from a text.

    Raises:
        ValueError: for an unknown name or a value that does not fit.
    """
    if name not in vars(sampling):
        raise ValueError(f"There is no setting {name}; choose from max_new_tokens, {', '.join(vars(sampling))}")
    try:
        number: Any = whole_number(name, value) if name in ("top_k", "no_repeat_ngram") else float(value)
        return replace(sampling, **{name: number})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def whole_number(name: str, value: str) -> int:
    """A number of at least 0 (1 for `max_new_tokens`) from a text."""
    least = int(name == "max_new_tokens")
    if not value.isdecimal() or int(value) < least:
        raise ValueError(f"{value} must be a whole number of at least {least}")
    return int(value)


def say(text: str) -> None:
    """What the program itself has to say, apart from the conversation."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    entry(main)
