r"""Conversations to ids, and which of the ids a model should learn to write: the only place that knows a template.

A template is Jinja text, ours and those that come with a model alike, saved as `chat_template.jinja`, where
transformers finds it. Before it is rendered, every message is marked, so that afterwards it is known which text is
whose; ids and mask are then built together from left to right, and nothing is ever searched for in ids:

    <|im_start|>user\nWhat now?<|im_end|>\n<|im_start|>assistant\nTea.<|im_end|>\n
                                                                 ~~~~~~~~~~~~~~  supervised: the answer and its end

Text of a message never becomes a control token. The ids are those of transformers' apply_chat_template for the same
text, with one difference that is meant: an answer is encoded as the model will write it, behind the prompt, and not
together with the line break that ends the prompt. Torch-free. Read next: `llm/conversation.py`.
"""

import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

from llm.tokenizers.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
Message = Mapping[str, Any]   # "role", "content", and maybe "train": whether to learn it; default: what assistants say

# Characters that Unicode promises never to assign.
MARK, ANSWER, END = "\ufdd0", "\ufdd1", "\ufdd2"   # breaks up control tokens in messages; begins and ends an answer


@dataclass(frozen=True)
class Template:
    """How turns are written down.

    Args:
        jinja: the template itself.
        control_tokens: what the vocabulary must have for it.
        stop_strings: what a model that does not know the end token writes when it goes on with the other's turn.
    """

    jinja: str
    control_tokens: tuple[str, ...] = ()
    stop_strings: tuple[str, ...] = ()


TEMPLATES = {
    # OpenAI's, as Qwen and SmolLM2 use it
    "chatml": Template(
        r"{% for message in messages %}"
        r"{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
        r"{% endfor %}"
        r"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        control_tokens=("<|im_start|>", "<|im_end|>"),
    ),
    # Stanford's; an Alpaca row's input follows its instruction as "\n\n### Input:\n..."
    "alpaca": Template(
        r"{% if messages[0]['role'] != 'system' %}"
        r"{{ 'Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.' }}"
        r"{% endif %}"
        r"{% for message in messages %}"
        r"{% if message['role'] == 'system' %}{{ message['content'] }}"
        r"{% elif message['role'] == 'assistant' %}{{ '\n\n### Response:\n' + message['content'] }}{{ eos_token }}"
        r"{% else %}{{ '\n\n### Instruction:\n' + message['content'] }}"
        r"{% endif %}"
        r"{% endfor %}"
        r"{% if add_generation_prompt %}{{ '\n\n### Response:\n' }}{% endif %}",
        stop_strings=("\n### Instruction:",),
    ),
    # for models that have never seen a conversation
    "plain": Template(
        r"{% for message in messages %}"
        r"{{ message['role'].capitalize() + ':\n' + message['content'] }}"
        r"{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        r"{{ '\n\n' }}"
        r"{% endfor %}"
        r"{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}",
        stop_strings=("\nUser:", "\nAssistant:", "\nSystem:"),
    ),
}


class Rendered(NamedTuple):
    """A conversation as a model reads it."""

    ids: list[int]
    mask: list[bool]   # for each id, whether the model should learn to write it


def find_template(tokenizer: Tokenizer, template: str | None = None) -> Template:
    """The template to use.

    Args:
        tokenizer: its own template is the default; without one it is `plain`.
        template: a name of `TEMPLATES`, or Jinja text.

    Raises:
        ValueError: for an unknown name, or a vocabulary that lacks the template's control tokens.

    Example:
        >>> find_template(Tokenizer.byte_level()) == TEMPLATES["plain"]
        True
    """
    text = template or tokenizer.chat_template or "plain"
    ours = {known.jinja: known for known in TEMPLATES.values()}
    found = TEMPLATES.get(text) or ours.get(text)
    if found is None:
        if "{" not in text:
            raise ValueError(f"template={text!r} is neither Jinja text nor one of {', '.join(TEMPLATES)}")
        return Template(text)
    if missing := [token for token in found.control_tokens if token not in tokenizer.special_tokens]:
        raise ValueError(f"the vocabulary lacks {' and '.join(missing)}, which the template needs; choose another "
                         "template, or a tokenizer that was trained with them among its special_tokens")
    return found


def render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: str | None = None,
    *,
    add_generation_prompt: bool = False,
) -> Rendered:
    r"""The ids of a conversation, and which of them are supervised.

    Supervised is what the assistant says, each time with the control token that ends it, or what `"train": true` says
    otherwise; `"train": false` takes an answer out.

    Args:
        messages: in order, each with "role" and "content", and maybe "train".
        tokenizer: the model's.
        template: as in `find_template`.
        add_generation_prompt: end with the beginning of an answer, for the model to write.

    Raises:
        ValueError: for a message that is none, a conversation that the template refuses, an answer that it does not
            write down whole or does not end with a control token, or, without `add_generation_prompt`, a
            conversation in which nothing is supervised.

    Example:
        >>> tokenizer = Tokenizer.byte_level()
        >>> ids, mask = render([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}], tokenizer)
        >>> tokenizer.decode(ids)
        'User:\nHi\n\nAssistant:\nHo<|endoftext|>\n\n'
        >>> tokenizer.decode(token for token, is_supervised in zip(ids, mask) if is_supervised)
        'Ho<|endoftext|>'
    """
    found = find_template(tokenizer, template)
    marked, answers = [], []
    longest_first = sorted(map(re.escape, tokenizer.special_tokens), key=len, reverse=True)
    control = re.compile("|".join(longest_first) or "(?!)")   # (?!) matches nothing
    for number, message in enumerate(messages):
        _check(message, number)
        is_answer = bool(message.get("train", message["role"] == "assistant"))
        answers += [number] if is_answer else []
        marked.append({**message, "content": _marked(message["content"], control, is_answer=is_answer)})
    text = _write(found.jinja, marked, tokenizer, add_generation_prompt=add_generation_prompt)
    if not add_generation_prompt:
        _check_answers(text, len(answers), control)
    if text.count(ANSWER) == len(answers):
        prompts = [_write(found.jinja, marked[:number], tokenizer, add_generation_prompt=True) for number in answers]
        text = _with_answers_behind(prompts, text)
    return _encode(text, control, tokenizer)


def show_mask(rendered: Rendered, tokenizer: Tokenizer) -> str:
    r"""Each token on a line, those that are supervised behind a `+`: for looking at what a model will learn.

    Example:
        >>> tokenizer = Tokenizer.byte_level()
        >>> turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
        >>> for line in show_mask(render(turns, tokenizer), tokenizer).splitlines()[-6:]:
        ...     print("|", line)
        |   '\n'
        | + 'H'
        | + 'o'
        | + <|endoftext|>
        |   '\n'
        |   '\n'
    """
    return "\n".join(f"{'+' if is_supervised else ' '} {tokenizer.readable(token)}"
                     for token, is_supervised in zip(*rendered, strict=True))


def _check(message: Message, number: int) -> None:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"message {number}: role={role!r} is not one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"message {number}: its content is a {type(content).__name__}, not text")
    if held := {MARK, ANSWER, END} & set(content):
        raise ValueError(f"message {number} holds U+{ord(min(held)):04X}, which is no character; remove it")


def _marked(content: str, control: re.Pattern[str], *, is_answer: bool) -> str:
    """A message with marks around it, inside its outer white space (templates may trim it), and in control tokens."""
    core = content.strip()
    start = content.index(core)
    core = control.sub(lambda token: MARK.join(token[0]), core)
    begin, end = (ANSWER, END) if is_answer else (MARK, MARK)
    return content[:start] + begin + core + end + content[start + len(content.strip()) :]


def _write(
    jinja: str, messages: list[dict[str, Any]], tokenizer: Tokenizer, *, add_generation_prompt: bool
) -> str:
    tokens = {name: token for name in ("bos_token", "eos_token", "pad_token") if (token := getattr(tokenizer, name))}
    try:
        return _compiled(jinja).render(messages=messages, add_generation_prompt=add_generation_prompt, tools=None,
                                       documents=None, **tokens)
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template refuses this conversation: {error}") from error


@lru_cache(maxsize=8)
def _compiled(jinja: str) -> jinja2.Template:
    """In a sandbox, with what transformers gives to templates: they come with models, and models from anywhere."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.filters["tojson"] = lambda value, **how: json.dumps(value, **{"ensure_ascii": False, **how})
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda how: datetime.datetime.now().strftime(how)
    return environment.from_string(re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", jinja))   # transformers' own tag


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _check_answers(text: str, num_answers: int, control: re.Pattern[str]) -> None:
    if not num_answers:
        raise ValueError("nothing in this conversation is supervised: it has no assistant message, or all say "
                         "train = false")
    if "".join(re.findall(f"[{ANSWER}{END}]", text)) != (ANSWER + END) * num_answers:
        raise ValueError("the chat template leaves out or repeats part of an answer, so that it cannot be learned "
                         "from; give that message train = false")
    if any(not control.match(rest.lstrip()) for rest in text.split(END)[1:]):
        raise ValueError("the chat template ends an answer without a control token, so that a model could not learn to "
                         "stop; choose a tokenizer with an end-of-text token, or another template")


def _with_answers_behind(prompts: list[str], text: str) -> str:
    """Let each answer begin where the prompt for it ends: what a template puts in between is the model's to write."""
    places = [place for place, letter in enumerate(text) if letter == ANSWER]
    for place, prompt in reversed(list(zip(places, prompts, strict=True))):
        if text.startswith(prompt) and len(prompt) < place:   # some templates write earlier turns otherwise later
            text = prompt + ANSWER + text[len(prompt) : place] + text[place + 1 :]
    return text


def _encode(text: str, control: re.Pattern[str], tokenizer: Tokenizer) -> Rendered:
    """Ids and mask from left to right; what has the same mask is encoded together."""
    rendered = Rendered([], [])

    def add(ids: Iterable[int], is_supervised: bool) -> None:
        rendered.ids.extend(ids)
        rendered.mask.extend([is_supervised] * (len(rendered.ids) - len(rendered.mask)))

    is_answer = has_ended = False
    waiting = ""   # text that is not encoded yet
    for piece in re.split(f"([{ANSWER}{END}]|{control.pattern})", text):
        if piece == ANSWER:
            add(tokenizer.encode(waiting), False)
            waiting, is_answer, has_ended = "", True, False
        elif piece == END:
            has_ended = True   # but for the control token
        elif piece in tokenizer.special_tokens:
            add(tokenizer.encode(waiting), is_answer)
            add([tokenizer.special_tokens[piece]], is_answer)
            waiting, is_answer = "", is_answer and not has_ended
        else:
            waiting += piece.replace(MARK, "")
    add(tokenizer.encode(waiting), is_answer)
    return rendered
