"""The file of a latency table of either family: its key, which says what was timed, and the table's own fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json
from leanear.runtimes.records import as_json, read

IN_KEY = ("geometry", "graph_form")  # fields of a table that its file has in the key
TableRecord = TypeVar("TableRecord")


def table_document(schema: str, table: Any) -> dict[str, Any]:
    """The table as its file holds it."""
    own = {name: value for name, value in as_json(table).items() if name not in (*IN_KEY, "key")}
    return {"schema": schema, "key": table.key, **own}


def read_table_document(record: type[TableRecord], schema: str, path: Path, key: dict[str, Any] | None) -> TableRecord:
    """The table in `path`, which must have been timed for `key` where one is given.

    Raises:
        BadInput: the file is missing, malformed, or for something else.
    """
    document = read_json(path, schema, ("key",))
    del document["schema"]
    found = document["key"]
    if key is not None and found != json.loads(json.dumps(key)):
        raise BadInput(f"{path}: key 'key' is another device, runtime, model or work than asked for")
    timed = {name: found[name] for name in IN_KEY if name in found} if isinstance(found, dict) else {}
    return read(record, {**document, **timed}, path)
