"""Where the `hybridlm` command starts: outside the package, and so before torch and transformers are imported.

That takes seconds. Ctrl-C in them ends the process in one line, as it does later, instead of with the traceback of
whichever import it hit. Nothing but these three is imported up here: until the handler stands, Ctrl-C is not caught.
"""

import os
import signal
import sys


class Importing:
    """`with Importing("program"):` leaves at once on Ctrl-C, with exit code 130 and one line. For imports alone:
    nothing is cleaned up. (An exception would not do: a library that is half imported may catch it, or turn it into
    another one.)
    """

    def __init__(self, program: str):
        self.message = f"{program}: stopped by Ctrl-C.\n".encode()

    def __enter__(self) -> None:
        self.before = signal.getsignal(signal.SIGINT)
        # Otherwise it is ignored, as in the background of a shell, or somebody else's.
        if self.before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._leave)

    def __exit__(self, *_: object) -> None:
        if signal.getsignal(signal.SIGINT) == self._leave:
            signal.signal(signal.SIGINT, self.before)

    def _leave(self, *_: object) -> None:
        os.write(2, self.message)
        os._exit(130)


def main() -> int:
    """The command; returns its exit code. 2 with one message for a release of transformers that was not tested."""
    try:
        with Importing("hybridlm"):
            from hybridlm.cli import main as run
    except ImportError as error:
        if error.name != "transformers" or error.path is not None:  # with a path: a name that transformers lacks
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
