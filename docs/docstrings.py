"""How the reference reads the package's docstrings: an ``Example:`` is code, and a role is a name."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|mod|attr|meth|data):`~?([\w.]+)`")


class ReadDocstrings(griffe.Extension):
    """Turns what is written for ``help()`` into what the parser of Google's style knows."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object, once it is read."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = _ROLE.sub(lambda role: f"`{role[1].rpartition('.')[2]}`", text)
