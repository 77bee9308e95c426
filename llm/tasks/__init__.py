"""The commands: `python -m llm.tasks.pretrain` and so on. Each reads like a recipe; `python -m llm` lists them."""

import codecs
import contextlib
import errno
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from llm.config import UsageError
from llm.launch import read_launch


def entry(main: Callable[[], int | None], *, is_for_several: bool = False) -> None:
    """Run a task as a command: what the user can mend ends in one clear line, not in a traceback.

    Args:
        main: the task.
        is_for_several: whether several processes, started by torchrun, may run it together. The first of them to fail
            tells why, and all end.
    """
    _leave_ascii()
    try:
        launch = read_launch()
        if launch.size > 1 and not is_for_several:
            raise ValueError(f"torchrun started {launch.size} processes, but this command works in one; start it "
                             "without torchrun")
        status = main() or 0
        if launch.size > 1:
            _leave(status)
        sys.exit(status)
    except BrokenPipeError:   # whoever read the text has seen enough, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())   # else Python complains when it ends
        sys.exit(1)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        _fail(f"error: {_told(error)}", 2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:   # a fault of ours
        _fail(traceback.format_exc(), 1)


REMEDIES = {
    errno.ENOSPC: "make room, then go on with --resume",
    errno.EDQUOT: "make room, then go on with --resume",
    errno.ENOENT: "check the path; what is read must stay there meanwhile",
    errno.ENOTDIR: "a part of the path is a file; choose another path",
    errno.EISDIR: "name a file instead",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EACCES: "change its rights, or choose another path",
    errno.EPERM: "change its rights, or choose another path",
    errno.EROFS: "choose a path that can be written",
}


def _told(error: Exception) -> str:
    """An error in one line, those of the system and of torch too."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, MemoryError) or "allocate memory" in lines[0] or "out of memory" in lines[0]:
        return f"{lines[0]}; lower --batch-size, raise --accumulate or choose a smaller model"
    if isinstance(error, OSError) and error.filename is not None:
        remedy = REMEDIES.get(error.errno or 0)
        return f"{error.filename}: {error.strerror}" + (f"; {remedy}" if remedy else "")
    # what torch raises goes on with the places in its own code
    return lines[0] if isinstance(error, RuntimeError) else " ".join(map(str.strip, lines))


def _fail(message: str, status: int) -> NoReturn:
    with contextlib.suppress(ValueError):   # an environment that makes no sense is what the message is about
        if read_launch().size > 1:
            from llm.runtime import end_all

            end_all(message, status)
    print(message, file=sys.stderr)
    sys.exit(status)


def _leave(status: int) -> NoReturn:
    """End one of several processes at once.

    Python's shutdown beside torch's threads takes most of a second, and torchrun ends a process in the middle of it as
    soon as another has gone: which of them it then names, and with which status, would be chance.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _leave_ascii() -> None:
    """Make sure that every text can be shown and every path be named.

    In the C locale with its UTF-8 mode switched off Python takes arguments, paths and output for ASCII; the same
    command is then started again in UTF-8. Other narrow encodings can show "?" for what they lack.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
