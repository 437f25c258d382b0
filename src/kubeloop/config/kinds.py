"""Find the kinds of task by name, and the settings that each of them adds to loop.yaml.

A kind is a package with the module `settings`: a folder of `kubeloop.tasks`, or an installed package of another
project with the entry point group `kubeloop.kinds`. docs/kinds.md describes the rest of such a package.
"""

import functools
import pkgutil
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import ModuleType

DEFAULT = "binary"
GROUP = "kubeloop.kinds"
_HOME = "kubeloop.tasks"


@functools.cache
def packages() -> dict[str, str]:
    """Return the package of every kind by its name, binary first."""
    home = find_spec(_HOME)
    places = home.submodule_search_locations if home else None
    own = [
        info.name
        for info in pkgutil.iter_modules(places)
        if info.ispkg and find_spec(f"{_HOME}.{info.name}.settings") is not None
    ]
    found = {name: f"{_HOME}.{name}" for name in sorted(own, key=lambda name: (name != DEFAULT, name))}
    return found | {point.name: point.value for point in entry_points(group=GROUP)}


def names() -> tuple[str, ...]:
    """Return the names of all kinds, binary first."""
    return tuple(packages())


def module(name: str, part: str) -> ModuleType:
    """Return a module of a kind's package, such as `task` or `maker`."""
    return import_module(f"{packages()[name]}.{part}")


def settings(name: str) -> ModuleType:
    """Return the module with the kind's `Training` and `Gates`."""
    return module(name, "settings")
