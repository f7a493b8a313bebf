"""``python -m moesim``: the command line."""

from moesim.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
