"""``python -m bntools``, and the ``bntools`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; whatever happens ends in one of the documented ones."""
    try:
        from bntools.cli.app import app
        from bntools.cli.config import defaults

        app(list(arguments) if arguments is not None else None, prog_name="bntools", default_map=defaults())
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has gone, as with `bntools inspect | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from bntools.cli.render import exit_code_of, say_error

        say_error(error)
        return exit_code_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
