"""The commands: `python -m llm.tasks.pretrain` and so on. Each reads like a recipe; `python -m llm` lists them."""

import codecs
import io
import os
import sys
from collections.abc import Callable


def entry(main: Callable[[], int | None]) -> None:
    """Run a task as a command: what the user can mend ends in one clear line, not in a traceback."""
    _leave_ascii()
    try:
        sys.exit(main() or 0)
    except BrokenPipeError:   # whoever read the text has seen enough, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())   # else Python complains when it ends
        sys.exit(1)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _leave_ascii() -> None:
    """Make sure that every text can be shown and every path be named.

    In the C locale with its UTF-8 mode switched off Python takes arguments, paths and output for ASCII; the same
    command is then started again in UTF-8. Other narrow encodings can show "?" for what they lack.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
