"""The commands: `python -m llm.tasks.pretrain` and so on. Each reads like a recipe; `python -m llm` lists them."""

import sys
from collections.abc import Callable


def entry(main: Callable[[], int | None]) -> None:
    """Run a task as a command: what the user can mend ends in one clear line, not in a traceback."""
    try:
        sys.exit(main() or 0)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
