"""griffe: a NamedTuple's fields are what its constructor takes, as a dataclass's are."""

import importlib
from typing import Any

griffe = importlib.import_module("griffe")  # of the site's environment


class NamedTupleFields(griffe.Extension):
    """Gives each class of NamedTuple a constructor, so that `Args:` of its docstring has types."""

    def on_class(self, *, cls: Any, **_: Any) -> None:
        """Called when griffe has read a class."""
        if not any(str(base).split("[")[0] in ("NamedTuple", "typing.NamedTuple") for base in cls.bases):
            return
        kind = griffe.ParameterKind.positional_or_keyword
        fields = [
            griffe.Parameter(name, annotation=field.annotation, default=field.value, kind=kind)
            for name, field in cls.members.items()
            if field.is_attribute and field.annotation is not None
        ]
        cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*fields)))
