"""Short messages, wanted and unwanted, for classification.

The rule, without exception: a message is spam if and only if it both promises the reader a gain and demands that the
reader act. Wanted messages may do one of the two ("you have won a ribbon" from a friend, "ring me back" from a
sister), and they speak of prizes, calls and money in other phrases ("I have won a ribbon"). So no single word gives a
message away.

Left out: spelling tricks, links and numbers of real spam; the public data sets have those.
"""

from collections.abc import Iterator
from typing import TypedDict

from llm.data.tinyworld.grammar import Writer
from llm.data.tinyworld.language import capital, load_tasks
from llm.data.tinyworld.stories import languages, stream

# What a wanted message is made of, beside greeting and signature; spam has a gain and a demand.
HAM = (("gain", "talk"), ("demand", "talk"), ("talk", "talk"))
SPAM = ("gain", "demand")


class Labelled(TypedDict):
    text: str
    label: str


def messages(seed: int, language: str, count: int) -> Iterator[Labelled]:
    """Messages with the label "ham" or "spam", half of each on average.

    Args:
        seed: 0 or more.
        language: "en", "zh" or "both" (in turn).
        count: how many.

    Raises:
        ValueError: for an unknown language or a negative seed.

    Example:
        >>> sorted({message["label"] for message in messages(seed=1, language="both", count=50)})
        ['ham', 'spam']
    """
    sources = [(name, stream(seed, name, "messages")) for name in languages(language)]
    for turn in range(count):
        name, rng = sources[turn % len(sources)]
        tasks = load_tasks(name)
        is_spam = rng.random() < 0.5
        parts = list(SPAM if is_spam else rng.choices(HAM, weights=(2, 2, 1))[0])
        if rng.random() < 0.5:
            parts.append("talk")
        rng.shuffle(parts)
        written = []
        for beat in ("hello", *parts, "bye"):
            writer = Writer(tasks, rng)
            writer.say(beat)
            stop = "" if beat in ("hello", "bye") else "." if name == "en" else "。"
            written.append(capital(writer.text) + stop)
        yield {"text": tasks.joint.join(written), "label": "spam" if is_spam else "ham"}
