"""``python -m bntools``, and the ``bntools`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; whatever happens ends in one of the documented ones."""
    try:
        _open_streams()
        from bntools.cli.app import run

        run(sys.argv[1:] if arguments is None else list(arguments))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from bntools.cli.render import failure_of, say, unwritable

        # What a command has to do with files it answers for itself: only stdout is left.
        failure = failure_of(unwritable(sys.stdout, error) if isinstance(error, OSError) else error)
        say(failure)
        return failure.exit_code
    return 0


def _open_streams() -> None:
    """Who starts us may have closed them: Python has None then, and the next file would get their numbers."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
