"""A corpus that needs no download: small consistent worlds, and texts about them, in English and Chinese.

- `stories` for pretraining: each tells of a fresh world. `log_prob` is the exact log-probability of a story, so
  `-sum(log_prob) / tokens` over a validation set is the floor below which no model's loss can fall.
- `judge` reads any text back and says whether it is well formed and true of its world.
- `questions` and `check_answer` for instruction tuning, `preferences` for preference tuning, `messages` (ham and spam)
  for classification.

The grammar is a program that makes all its choices visible in the text; read `grammar.py`, then `world.py`, `story.py`,
`plots.py`, `judge.py`, `questions.py`, `messages.py`. The words and sentences are data: `lexicon.toml`, `people.toml`,
and for each language `en.toml` and `en_tasks.toml`.
"""

from llm.data.tinyworld.judge import Verdict, judge, log_prob
from llm.data.tinyworld.messages import messages
from llm.data.tinyworld.questions import check_answer, preferences, questions
from llm.data.tinyworld.stories import stories

__all__ = ["Verdict", "check_answer", "judge", "log_prob", "messages", "preferences", "questions", "stories"]
