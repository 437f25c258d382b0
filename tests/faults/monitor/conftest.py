import importlib.util
from pathlib import Path
from types import ModuleType

# The same small world as in the unit tests: its fixtures are loaded by path, since tests are not a package.
UNIT = Path(__file__).parents[2] / "unit" / "monitoring"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"monitor_unit_{name}", UNIT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_unit = _load("conftest")
world, references, open_monitor = _unit.world, _unit.references, _unit.open_monitor
server, trigger = _unit.server, _unit.trigger
