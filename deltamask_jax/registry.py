"""Looking names up in tables, with errors that name the nearest valid one."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def look_up(what: str, name: str, table: Mapping[str, T]) -> T:
    """`table[name]`.

    Raises:
        ValueError: `name` is not in the table; the message gives the nearest valid name and all of them.

    Example:
        >>> look_up("codec", "rise", {"rice": 4, "bfuse": 1})
        Traceback (most recent call last):
        ValueError: unknown codec 'rise'; did you mean 'rice'? Valid: bfuse, rice
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"unknown {what} {name!r}{hint} Valid: {', '.join(sorted(table))}")
