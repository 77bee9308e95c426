"""A conversation with a model: what was said, what fits into its context, and answers as they are written.

Each answer reads only what is new since the one before. When the conversation passes the context, its oldest turns are
left out (and the rest is read again, once), never the system message; a whole answer always fits. Next:
`llm/tasks/chat.py`, the same in a terminal.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llm.generation import Reader
from llm.models.decoder import Decoder
from llm.tokenizers.chat import find_template, render
from llm.tokenizers.tokenizer import Tokenizer
from llm.writing import write


@dataclass
class AnswerStats:
    """What the last answer took."""

    num_prompt: int = 0      # tokens of the conversation before it
    num_read: int = 0        # how many of them were not read before
    num_written: int = 0     # tokens of the answer, its end included
    first_s: float = 0.0     # until its first token, reading included
    written_s: float = 0.0   # from the first token to the last
    is_cut: bool = False     # whether it reached max_new_tokens or the end of the context

    @property
    def tokens_per_second(self) -> float:
        """How fast it was written, without reading."""
        return (self.num_written - 1) / self.written_s if self.num_written > 1 else 0.0


class Conversation:
    """What you and a model have said to each other.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        template: as in `tokenizers.chat.find_template`; default the model's own, or `plain`.
        system: what the model is told before everything else; empty for nothing.
        max_new_tokens: the longest answer, >= 1.
        stop_strings: text that ends an answer, besides that of the template.
        seed: >= 0; the same seed and the same words give the same conversation.
        sampling: temperature, top_p and all else that `Sampling` explains.

    Raises:
        ValueError: for an unknown template, or one that needs control tokens which the vocabulary lacks.

    Example:
        >>> import llm
        >>> config = llm.GPTConfig(vocab_size=257, context_length=99, num_layers=1, num_heads=1, dim=8)
        >>> chat = Conversation(llm.GPT(config).eval(), llm.Tokenizer.byte_level(), max_new_tokens=5, temperature=0.8)
        >>> answer = "".join(chat.answer("Hello!"))
        >>> [message["role"] for message in chat.messages]
        ['user', 'assistant']
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        template: str | None = None,
        system: str = "",
        max_new_tokens: int = 512,
        stop_strings: Sequence[str] = (),
        seed: int = 0,
        **sampling: Any,
    ):
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
        self.model, self.tokenizer = model, tokenizer
        self.template = find_template(tokenizer, template)
        self.max_new_tokens, self.seed, self.sampling = max_new_tokens, seed, sampling
        self.stop_strings = [*self.template.stop_strings, *stop_strings]
        # No answer holds a control token: each of them ends it.
        self.end_ids = sorted(tokenizer.special_tokens.values())
        self.reader = Reader(model)
        self.stats = AnswerStats()
        self.system = system
        self.reset()

    def reset(self, system: str | None = None) -> None:
        """Forget what was said, and go on with another system message; None keeps the one before."""
        if system is not None:
            self.system = system
        self.messages: list[dict[str, str]] = []
        if self.system:
            self.messages.append({"role": "system", "content": self.system})
        self.num_left_out = 0   # messages behind the system message that the model no longer sees
        self.num_answers = 0    # each has random numbers of its own

    def answer(self, text: str) -> Iterator[str]:
        """Say something; the pieces of the answer, as they are written.

        What has been written when the iteration is given up stays in the conversation.

        Args:
            text: the message.

        Raises:
            ValueError: at once, if the message alone leaves no room for an answer, or the template refuses it.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            ids = self._prompt()
        except ValueError:
            self.messages.pop()
            raise
        return self._write(ids)

    def retry(self) -> Iterator[str]:
        """Take back the last answer and write another.

        Raises:
            ValueError: if nothing was asked yet.
        """
        if not self.messages or self.messages[-1]["role"] == "system":
            raise ValueError("there is no answer to write again")
        if self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        return self.answer(self.messages.pop()["content"])

    def undo(self) -> bool:
        """Take back the last message and its answer; whether there was one."""
        self.num_left_out = 0   # the next answer sees what fits
        while self.messages and self.messages[-1]["role"] != "system":
            if self.messages.pop()["role"] == "user":
                return True
        return False

    def text(self) -> str:
        """The conversation as the model reads it, up to the beginning of the next answer."""
        return self.tokenizer.decode(self._render())

    def _prompt(self) -> list[int]:
        """The ids of the conversation up to an answer; sees to it that they leave room for one."""
        context = self.model.config.context_length
        limit = context - min(self.max_new_tokens, context // 4)
        ids = self._render()
        if len(ids) <= limit:
            return ids
        turns = self._turns()
        while turns and len(ids) > limit // 2:   # down to half, so that the next turns need not read it all again
            self.num_left_out += turns.pop(0)
            ids = self._render()
        if len(ids) > limit:
            raise ValueError(f"the message takes {len(ids)} tokens with what belongs to it, which leaves no room for "
                             f"an answer in the model's context of {context}; shorten it")
        return ids

    def _turns(self) -> list[int]:
        """How many messages each earlier turn has that is not left out yet, the present one not among them."""
        seen = self.messages[bool(self.system) + self.num_left_out :]
        starts = [place for place, message in enumerate(seen) if message["role"] == "user"]
        return [after - start for start, after in itertools.pairwise(starts)]

    def _render(self) -> list[int]:
        first = int(bool(self.system))
        seen = [*self.messages[:first], *self.messages[first + self.num_left_out :]]
        return render(seen, self.tokenizer, self.template.jinja, add_generation_prompt=True).ids

    def _write(self, ids: list[int]) -> Iterator[str]:
        seed, self.num_answers = self.seed + self.num_answers, self.num_answers + 1
        room = min(self.max_new_tokens, self.model.config.context_length - len(ids))
        stats = self.stats = AnswerStats(num_prompt=len(ids), num_read=len(ids) - self.reader.num_shared(ids))
        started = time.perf_counter()
        answer = ""

        def count(written: Sequence[int]) -> bool:
            now = time.perf_counter() - started
            stats.first_s = stats.first_s or now
            stats.num_written, stats.written_s = len(written), now - stats.first_s
            stats.is_cut = len(written) == room and written[-1] not in self.end_ids
            return False

        try:
            for piece in write(self.model, self.tokenizer, ids, eos_id=self.end_ids, stop_strings=self.stop_strings,
                               max_new_tokens=room, seed=seed, stop=count, reader=self.reader, **self.sampling):
                answer += piece
                yield piece
        finally:
            self.messages.append({"role": "assistant", "content": answer})
