"""The API's specification according to the published Kubeflow Pipelines client: paths, parameters, bodies."""

import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import kfp_server_api
from kfp_server_api import api, models


@dataclass(frozen=True)
class Route:
    """One operation as it appears in the generated client."""

    operation: str
    method: str
    pattern: re.Pattern[str]
    query: frozenset[str]
    body: str | None
    response: str
    takes_file: bool


class SpecError(Exception):
    """A request that the specification does not allow."""


class Specification:
    """Routes and models, parsed from the client's source."""

    def __init__(self) -> None:
        self.routes = [route for module in _modules(api) for route in _routes(module)]
        self._models = {
            name: found for module in _modules(models) for name, found in inspect.getmembers(module, inspect.isclass)
        }

    def route(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """Return the operation of a path and the values in the path; a fixed path wins over one with a value."""
        for route in sorted(self.routes, key=lambda item: item.pattern.groups):
            if route.method == method and (match := route.pattern.fullmatch(path)):
                return route, {name.replace("__", "."): value for name, value in match.groupdict().items()}
        return None

    def check(self, kind: str, value: Any, where: str = "body") -> None:
        """Refuse a value of another type; in models also unknown fields, wrong types and unknown enum values."""
        if value is None or kind == "object":
            return
        if match := re.fullmatch(r"list\[(.+)\]", kind):
            self._expect(value, list, where)
            for number, item in enumerate(value):
                self.check(match[1], item, f"{where}[{number}]")
        elif match := re.fullmatch(r"dict\(str, (.+)\)", kind):
            self._expect(value, dict, where)
            for key, item in value.items():
                self.check(match[1], item, f"{where}.{key}")
        elif kind in ("str", "int", "bool", "float"):
            self._expect(value, {"str": str, "int": int, "bool": bool, "float": (int, float)}[kind], where)
        elif kind == "datetime":
            self._expect(value, str, where)
            datetime.fromisoformat(value)
        else:
            self._check_model(self._models[kind], value, where)

    def _check_model(self, model: Any, value: Any, where: str) -> None:
        if words := getattr(model, "allowable_values", None):
            if value not in words:
                raise SpecError(f"{where}: {value!r} is none of {words}")
            return
        self._expect(value, dict, where)
        fields = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
        for key, item in value.items():
            if key not in fields:
                raise SpecError(f"{where}: unknown field {key!r} of {model.__name__}")
            self.check(fields[key], item, f"{where}.{key}")

    @staticmethod
    def _expect(value: Any, kind: Any, where: str) -> None:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise SpecError(f"{where}: {value!r} is not of type {kind}")


def _modules(package: Any) -> list[Any]:
    assert kfp_server_api.__version__
    found = pkgutil.iter_modules(package.__path__)
    return [importlib.import_module(f"{package.__name__}.{module.name}") for module in found]


def _routes(module: Any) -> list[Route]:
    found = []
    for _, service in inspect.getmembers(module, inspect.isclass):
        for name, method in inspect.getmembers(service, inspect.isfunction):
            if service.__module__ == module.__name__ and name.endswith("_with_http_info"):
                found.append(_route(name.removesuffix("_with_http_info"), inspect.getsource(method)))
    return found


def _route(operation: str, source: str) -> Route:
    path, verb = re.search(r"call_api\(\s*'([^']+)', '([A-Z]+)'", source).groups()  # type: ignore[union-attr]
    pieces = re.split(r"\{([^}]+)\}", path)
    pattern = "".join(
        f"(?P<{piece.replace('.', '__')}>[^/:]+)" if number % 2 else re.escape(piece)
        for number, piece in enumerate(pieces)
    )
    body = re.search(r"body_params = local_var_params\['(\w+)'\]", source)
    kind = re.search(rf":type {body[1]}: (\S+?),?\n", source) if body else None
    response = re.search(r"response_type='([^']+)'", source)
    return Route(
        operation,
        verb,
        re.compile(pattern),
        frozenset(re.findall(r"query_params\.append\(\('([\w.]+)'", source)),
        kind[1] if kind else None,
        response[1] if response else "object",
        "local_var_files['uploadfile']" in source,
    )
