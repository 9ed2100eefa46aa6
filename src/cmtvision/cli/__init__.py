"""The command ``cmtvision``: one thin file per command, each around one function of the library.

Importing this package costs nothing; typer is imported when a command line is read, torch when a command needs it.
Exit codes: 0 done, 1 a result that failed its check, a bug of ours or a broken installation, 2 bad input,
130 interrupted.
"""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: what follows ``cmtvision``; by default the process's own.

    Returns:
        The exit code. Bad input gives one line on stderr, a traceback is shown only with ``--debug``.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = False
    try:
        from cmtvision.cli.output import show_anything
        from cmtvision.machine import sleep_soon
        from cmtvision.user_folders import find_home

        show_anything()
        sleep_soon()
        find_home()
        from cmtvision.cli.app import app
        from cmtvision.cli.arguments import options_end, spelled_out
        from cmtvision.cli.faults import quiet_libraries

        debug = "--debug" in words[: options_end(words)]
        if debug:
            words.remove("--debug")  # it may stand anywhere, as one adds it after a line that has just failed
        else:
            quiet_libraries()
        words = spelled_out(words)
        result = app(words, obj=words, prog_name="cmtvision", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            import traceback

            traceback.print_exc()
        from cmtvision.cli.faults import exit_code

        return exit_code(error, words)
