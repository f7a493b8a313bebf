"""Files: strict YAML in (1.2, line numbers kept), atomic writes out, catalog names to paths."""

from moesim.files.catalog import CATALOG, Kind, catalog_names, catalog_root, find, nearest
from moesim.files.reader import Document, parse_yaml, read_text, read_yaml
from moesim.files.writer import dump_yaml, write_atomic

__all__ = [
    "CATALOG",
    "Document",
    "Kind",
    "catalog_names",
    "catalog_root",
    "dump_yaml",
    "find",
    "nearest",
    "parse_yaml",
    "read_text",
    "read_yaml",
    "write_atomic",
]
