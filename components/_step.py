"""The decorator of every step: no package is installed at run time, and the pipeline sets the image."""

from collections.abc import Callable
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

UNSET = "kubeloop:unset"


def step(function: Callable[..., Any]) -> BaseComponent:
    """Make a component of a function.

    Its docstring stays in the source. In the component's specification no page of the Kubeflow UI shows it, while
    Argo holds eight copies of that for every step of a run, in one object of one megabyte.
    """
    component: BaseComponent = dsl.component(function, base_image=UNSET, install_kfp_package=False)
    spec = component.component_spec
    for item in (spec, *(spec.inputs or {}).values(), *(spec.outputs or {}).values()):
        item.description = None
    return component
