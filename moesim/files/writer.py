"""Write files whole: to a temporary name in the same directory, then rename."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import Any

from moesim.errors import SpecError

__all__ = ["dump_yaml", "write_atomic"]


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` so that a reader sees the old file or the new one, never half of it."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise SpecError(f"{path}: cannot be written: {error.strerror}") from None
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SpecError(f"{path}: cannot be written: {error.strerror}") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def dump_yaml(data: Any) -> str:
    """Return ``data`` (plain dicts, lists, scalars) as YAML 1.2 text, keys in the given order."""
    from ruamel.yaml import YAML  # noqa: PLC0415 - only when writing
    from ruamel.yaml.comments import CommentedSeq  # noqa: PLC0415

    def short_rows(value: Any) -> Any:
        """Write a short list of scalars on one line: ``[mla, dense]``."""
        if isinstance(value, dict):
            return {key: short_rows(item) for key, item in value.items()}
        if not isinstance(value, list):
            return value
        row = CommentedSeq(short_rows(item) for item in value)
        scalars = not any(isinstance(item, dict | list) for item in value)
        if scalars and sum(len(str(item)) + 2 for item in value) <= 80:
            row.fa.set_flow_style()
        return row

    yaml = YAML(typ="rt", pure=True)
    yaml.default_flow_style = False
    yaml.width = 110
    yaml.indent(mapping=2, sequence=4, offset=2)
    buffer = io.StringIO()
    yaml.dump(short_rows(data), buffer)
    return buffer.getvalue()
