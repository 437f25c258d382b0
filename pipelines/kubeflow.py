"""Configure the steps for Kubernetes from loop.yaml: images, resources, retries, secrets and identities."""

from collections.abc import Sequence

from kfp import dsl, kubernetes
from kfp.dsl import PipelineTask

from kubeloop import config, names
from kubeloop.config import Loop
from kubeloop.config.cluster import Gpu, StepSettings
from kubeloop.steps import loops

ALWAYS = frozenset({"begin-run", "gate-model", "deploy-model", "materialize-features", "score-batch", "judge-windows"})
"""Steps that read more than their inputs, such as the champion: a cached result could be out of date."""

GIT = frozenset({"gate-model", "deploy-model", "score-batch"})
"""Steps that read or write the served version in Git: only they get the token."""


TELLS = frozenset({"begin-run", "gate-model"})
"""Steps that report if a run differs from the installed loop: in its log, and in the ledger's reason."""


def settle(loop: Loop, tasks: Sequence[PipelineTask]) -> None:
    """Give every task its image, resources, retries, time limit, identity and variables."""
    pipelines = loop.pipelines
    for task in tasks:
        step = pipelines.step(task.name)
        task.set_container_image(pipelines.images.core)
        kubernetes.set_image_pull_policy(task, pipelines.images.pull_policy)
        if pipelines.images.pull_secrets:
            kubernetes.set_image_pull_secrets(task, list(pipelines.images.pull_secrets))
        task.set_cpu_request(step.cpu)
        if step.cpu_limit:
            task.set_cpu_limit(step.cpu_limit)
        task.set_memory_request(step.memory)
        task.set_memory_limit(step.memory)
        if step.gpu:
            _accelerate(task, step.gpu)
        _place(task, step)
        if step.retries:
            task.set_retry(step.retries, backoff_duration=config.duration_text(step.backoff), backoff_factor=2.0)
        kubernetes.set_timeout(task, int(step.timeout.total_seconds()))
        task.set_caching_options(step.cache and task.name not in ALWAYS)
        kubernetes.set_security_context(task, run_as_user=pipelines.run_as_user, run_as_non_root=True)
        for name, value in names.labels(loop.name, "pipeline").items():
            kubernetes.add_pod_label(task, name, value)
        # Only here does Kubeflow Pipelines tell its pods the name of the run.
        kubernetes.use_field_path_as_env(task, "KUBELOOP_RUN_ID", "metadata.labels['pipeline/runid']")
        git = loop.delivery.git if task.name in GIT else None
        for secret in (*pipelines.secrets, *(git.secrets if git else ())):
            keys = {key: variable for variable, key in secret.env.items()}
            kubernetes.use_secret_as_env(task, secret.secret, keys)
        if pipelines.config_map:
            kubernetes.use_config_map_as_env(
                task, pipelines.config_map, {name: name for name in config.PUBLIC}, optional=True
            )
        if task.name in TELLS:
            _tell(loop, task)


def _tell(loop: Loop, task: PipelineTask) -> None:
    task.set_env_variable("KUBELOOP_COMPILED", loops.compiled(loop))
    if loop.pipelines.config_map:
        keys = {names.installed(loop.name): "KUBELOOP_INSTALLED_LOOP", "KUBELOOP_RELEASE": "KUBELOOP_RELEASE"}
        kubernetes.use_config_map_as_env(task, loop.pipelines.config_map, keys, optional=True)


def run_config(loop: Loop) -> dsl.PipelineConfig:
    """Return the limits of a whole run."""
    ttl = int(loop.pipelines.ttl.total_seconds())
    return dsl.PipelineConfig(
        ttl_seconds_after_finished=ttl,
        # Kubeflow's workflow defaults set these two to an hour, and for Argo they override the first.
        ttl_seconds_after_success=ttl,
        ttl_seconds_after_failure=ttl,
        active_deadline_seconds=int(loop.pipelines.deadline.total_seconds()),
    )


def _accelerate(task: PipelineTask, gpu: Gpu) -> None:
    task.set_accelerator_type(gpu.resource)
    task.set_accelerator_limit(gpu.count)
    for key, value in gpu.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in gpu.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))


def _place(task: PipelineTask, step: StepSettings) -> None:
    for key, value in step.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in step.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
