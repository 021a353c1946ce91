"""`python -m noprop` and the command `noprop`."""

import sys


def main() -> None:
    try:
        from .cli import app
    except ImportError as error:  # one line for who has installed the library alone
        sys.exit(f"noprop: error: {error}")
    app(prog_name="noprop")


if __name__ == "__main__":
    main()
