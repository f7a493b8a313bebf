"""LP files of one constraint each, compared with the stored text; MOESIM_WRITE_GOLDENS=1 writes them anew."""

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "lp"


def text_of(program):
    path = FOLDER / f".{os.getpid()}.lp"
    try:
        program.writeLP(str(path))
        return path.read_text()
    finally:
        path.unlink(missing_ok=True)


def same_as_stored(program, name):
    """Tell whether the program's LP file equals ``lp/NAME.lp``."""
    stored, text = FOLDER / f"{name}.lp", text_of(program)
    if os.environ.get("MOESIM_WRITE_GOLDENS"):
        stored.write_text(text)
    assert text == stored.read_text(), f"{name}: the program changed"
    return True
