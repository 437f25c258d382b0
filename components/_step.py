"""The decorator every step shares: no package is installed at run time, and the pipeline sets the image."""

import functools

from kfp import dsl

UNSET = "kubeloop:unset"

step = functools.partial(dsl.component, base_image=UNSET, install_kfp_package=False)
