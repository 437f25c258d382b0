"""Read and write KServe's V1 predict: bytes to numpy arrays and back.

Source: KServe's V1 protocol page.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from kubeloop.serving.oip import InferRequest, jsonable, load_object, parameters_of, refuse_names
from kubeloop.serving.tensors import Array, ProtocolError, Specs, array_of, listed, shape_of, type_of


def parse(body: bytes, specs: Specs) -> InferRequest:
    """Parse a V1 predict request: `instances` are objects, or bare values for a model with one input.

    A top-level `parameters` object is taken as in V2.

    Raises:
        ProtocolError: the body is not such a request (400).
    """
    message = load_object(body)
    instances = message.get("instances")
    if type(instances) is not list or not instances:
        raise ProtocolError('expected a JSON object with "instances", a list of at least one row')
    if dict in set(map(type, instances)):
        columns = _columns(instances, specs)
    elif len(specs) == 1:
        columns = dict.fromkeys(specs, instances)
    else:
        raise ProtocolError(f"every instance must be an object with {listed(specs)}")
    inputs = {}
    with np.errstate(over="raise"):
        for name, spec in specs.items():
            free = -1 in spec.shape[1:]
            inner = shape_of(columns[name][0]) if free else list(spec.shape[1:])
            inputs[name] = array_of(spec, columns[name], [len(instances), *inner])
    return InferRequest(inputs, len(instances), parameters=parameters_of(message))


def encode(outputs: Mapping[str, Array]) -> bytes:
    """Write a V1 predict response: plain rows for one output, objects for more; NaN and infinities become null.

    Raises:
        ProtocolError: the outputs differ in their number of rows.
    """
    if len(outputs) == 1:
        predictions = jsonable(next(iter(outputs.values())))
    elif len({array.shape[:1] for array in outputs.values()}) == 1:
        columns = [array.tolist() for array in outputs.values()]
        predictions = [dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)]
    else:
        raise ProtocolError("the model's outputs do not have one value per row, which V1 needs; use V2")
    return orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY)


def _columns(instances: list[Any], specs: Specs) -> dict[str, list[Any]]:
    names = specs.keys()
    for number, instance in enumerate(instances):
        if type(instance) is not dict:
            raise ProtocolError(f"instance {number} must be an object with {listed(specs)}, got {type_of(instance)}")
        if instance.keys() != names:
            refuse_names(f"instance {number}", instance.keys(), specs)
    return {name: [instance[name] for instance in instances] for name in names}
