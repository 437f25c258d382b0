"""Call the Kubeflow Pipelines API, version v2beta1, with plain values and clear errors."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kubeloop.config import ConfigError, Settings
from kubeloop.kubeflow import values
from kubeloop.kubeflow.errors import (
    DeniedError,
    ExistsError,
    KfpError,
    MissingError,
    NoAnswerError,
    TooOldError,
    meaning,
)
from kubeloop.kubeflow.values import Run, Schedule, Version, where

_TIMEOUT_S = (3.05, 30)
_PAGE = 100
DESCRIPTION_LIMIT = 255
"""Most characters of a description, if the API stores it in MySQL."""


def described(text: str, mark: str) -> str:
    """Return a description for people that ends with a mark on a separate line."""
    return f"{text[: DESCRIPTION_LIMIT - len(mark) - 1]}\n{mark}"


class Api:
    """A client of one Kubeflow Pipelines API.

    No request is repeated: only the caller knows whether a lost request may be repeated. Every method raises a
    `KfpError`, which is an OSError, if there is no usable answer.
    """

    def __init__(self, url: str, *, token_file: Path | None = None, namespace: str = "") -> None:
        import kfp_server_api as kfp  # it opens sockets when it is imported

        self.url = url.rstrip("/")
        self.namespace = namespace
        self._token_file = token_file
        self._kfp = kfp
        configuration = kfp.Configuration(host=self.url)
        # Neither repeat lost requests nor follow redirects to a login page.
        configuration.retries = False
        if token_file:
            configuration.api_key_prefix["authorization"] = "Bearer"
            configuration.api_key["authorization"] = ""
            # The kubelet writes a new token long before the old one ends.
            configuration.refresh_api_key_hook = self._refresh
        self._client = kfp.ApiClient(configuration)
        self._experiments = kfp.ExperimentServiceApi(self._client)
        self._pipelines = kfp.PipelineServiceApi(self._client)
        self._uploads = kfp.PipelineUploadServiceApi(self._client)
        self._runs = kfp.RunServiceApi(self._client)
        self._recurring = kfp.RecurringRunServiceApi(self._client)
        self._health = kfp.HealthzServiceApi(self._client)

    @classmethod
    def open(cls, settings: Settings) -> "Api":
        """Return the API that the settings name; nothing is sent yet.

        With a token file, requests name the namespace of the pipeline's steps, as an API with many users needs; an
        API with a single user ignores it.

        Raises:
            ConfigError: KUBELOOP_KFP_URL is not set.
        """
        if not settings.kfp_url:
            raise ConfigError(
                "KUBELOOP_KFP_URL is not set; write the pipelines API, as http://ml-pipeline.kubeflow:8888"
            )
        namespace = settings.namespace if settings.kfp_token_file else ""
        return cls(settings.kfp_url, token_file=settings.kfp_token_file, namespace=namespace)

    def experiment(self, name: str, description: str = "") -> str:
        """Return the ID of the experiment of this name; create it, with a description, if it is missing."""
        found = self._experiment(name)
        if found is None:
            body = self._kfp.V2beta1Experiment(
                display_name=name, description=description[:DESCRIPTION_LIMIT], namespace=self.namespace or None
            )
            try:
                made = self._ask("make an experiment", self._experiments.experiment_service_create_experiment, body)
                return str(made.experiment_id)
            except (ExistsError, NoAnswerError):
                # Another client created it first, or our own request succeeded and its answer was lost.
                found = self._experiment(name)
                if found is None:
                    raise
        return found

    def pipeline(self, name: str) -> str | None:
        """Return the ID of the pipeline of this name; None if there is none."""
        options = {"namespace": self.namespace} if self.namespace else {}
        try:
            found = self._ask(
                "look a pipeline up", self._pipelines.pipeline_service_get_pipeline_by_name, name, **options
            )
        except MissingError:
            self._check()
            return None
        return str(found.pipeline_id)

    def create_pipeline(self, name: str, description: str) -> str:
        """Create a pipeline without a version, or find the existing one, and return its ID."""
        body = self._kfp.V2beta1Pipeline(
            name=name, display_name=name, description=description, namespace=self.namespace or None
        )
        try:
            made = self._ask("make a pipeline", self._pipelines.pipeline_service_create_pipeline, body)
            return str(made.pipeline_id)
        except (ExistsError, NoAnswerError):
            found = self.pipeline(name)
            if found is None:
                raise
            return found

    def version(self, pipeline_id: str, name: str | None = None) -> Version | None:
        """Return the version of this name, or the newest; None if there is none."""
        options = {"filter": where("name", "EQUALS", name)} if name else {}
        listing = self._pipelines.pipeline_service_list_pipeline_versions
        page = self._ask(
            "list pipeline versions", listing, pipeline_id, page_size=1, sort_by="created_at desc", **options
        )
        return values.version(page.pipeline_versions[0]) if page.pipeline_versions else None

    def upload(self, pipeline_id: str, name: str, package: Path, description: str) -> Version:
        """Upload a compiled pipeline as a version, unless that name exists, and return it."""
        if found := self.version(pipeline_id, name):
            return found
        try:
            made = self._ask(
                "upload a pipeline version",
                self._uploads.upload_pipeline_version,
                str(package),
                name=name,
                display_name=name,
                description=description,
                pipelineid=pipeline_id,
            )
            return values.version(made)
        except (ExistsError, NoAnswerError):
            found = self.version(pipeline_id, name)
            if found is None:
                raise
            return found

    def runs(self, mark: str) -> list[Run]:
        """Return the runs whose description holds a text, oldest first, with archived ones."""
        options: dict[str, Any] = {"filter": where("description", "IS_SUBSTRING", mark), "sort_by": "created_at asc"}
        pages = self._pages("list runs", self._runs.run_service_list_runs, options)
        return [values.run(item) for page in pages for item in page.runs or ()]

    def run(self, run_id: str) -> Run | None:
        """Return a run with its tasks; None if there is none."""
        try:
            return values.run(self._ask("look a run up", self._runs.run_service_get_run, run_id))
        except MissingError:
            self._check()
            return None

    def create_run(
        self,
        name: str,
        version: Version,
        *,
        experiment_id: str,
        description: str,
        parameters: Mapping[str, Any],
        service_account: str,
    ) -> Run:
        """Start a run. A repeated call starts another: see `runs.Runs`.

        The API accepts a run ID from us, but it makes the workflow before it checks that the ID is unused: the second
        of two equal requests would leave a workflow that no run shows and that cannot be ended.
        """
        body = self._kfp.V2beta1Run(
            display_name=name,
            description=description,
            experiment_id=experiment_id,
            pipeline_version_reference=self._reference(version),
            runtime_config=self._kfp.V2beta1RuntimeConfig(parameters=dict(parameters)),
            service_account=service_account,
        )
        return values.run(self._ask("start a run", self._runs.run_service_create_run, body))

    def terminate(self, run_id: str) -> None:
        """End a running run; one that is over does not change."""
        try:
            self._ask("end a run", self._runs.run_service_terminate_run, run_id)
        except KfpError:
            run = self.run(run_id)
            if run is not None and run.finished is None and run.state != "CANCELING":
                raise

    def schedules(self, mark: str) -> list[Schedule]:
        """Return the recurring runs whose description holds a text, oldest first."""
        options: dict[str, Any] = {"filter": where("description", "IS_SUBSTRING", mark), "sort_by": "created_at asc"}
        pages = self._pages("list recurring runs", self._recurring.recurring_run_service_list_recurring_runs, options)
        return [values.schedule(item) for page in pages for item in page.recurring_runs or ()]

    def create_schedule(
        self,
        name: str,
        version: Version,
        *,
        experiment_id: str,
        description: str,
        parameters: Mapping[str, Any],
        service_account: str,
        cron: str,
        max_concurrency: int,
        enabled: bool,
    ) -> Schedule:
        """Create a recurring run, whose runs use the newest version. A repeated call makes another: see `recurring`.

        Kubeflow Pipelines only names the runs of recurring runs without a fixed version. With a version, it keeps a
        workflow that every run copies, in which the name is empty and all parameters are fixed. (Source:
        kubeflow/pipelines 2.17.0, apiserver/resource/resource_manager.go CreateJob, v2/compiler/argocompiler/dag.go.)
        """
        body = self._kfp.V2beta1RecurringRun(
            display_name=name,
            description=description,
            experiment_id=experiment_id,
            pipeline_version_reference=self._kfp.V2beta1PipelineVersionReference(pipeline_id=version.pipeline_id),
            runtime_config=self._kfp.V2beta1RuntimeConfig(parameters=dict(parameters)),
            service_account=service_account,
            trigger=self._kfp.V2beta1Trigger(cron_schedule=self._kfp.V2beta1CronSchedule(cron=cron)),
            max_concurrency=str(max_concurrency),
            # Each run uses the moment at which it starts, so all missed runs would do the same work at once.
            no_catchup=True,
            # No namespace: it is the experiment's, and an API with a single user refuses another one.
            mode="ENABLE" if enabled else "DISABLE",
        )
        made = self._ask("make a recurring run", self._recurring.recurring_run_service_create_recurring_run, body)
        return values.schedule(made)

    def delete_schedule(self, schedule_id: str) -> None:
        """Delete a recurring run, if it exists; runs that it started continue."""
        deletion = self._recurring.recurring_run_service_delete_recurring_run
        try:
            self._ask("delete a recurring run", deletion, schedule_id, propagation_policy="ORPHAN")
        except MissingError:
            return

    def _experiment(self, name: str) -> str | None:
        options: dict[str, Any] = {"filter": where("display_name", "EQUALS", name)}
        for page in self._pages("list experiments", self._experiments.experiment_service_list_experiments, options):
            for item in page.experiments or ():
                return str(item.experiment_id)
        return None

    def _reference(self, version: Version) -> Any:
        return self._kfp.V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
        )

    def _pages(self, what: str, listing: Callable[..., Any], options: Mapping[str, Any]) -> Iterator[Any]:
        given = {**options, "page_size": _PAGE, **({"namespace": self.namespace} if self.namespace else {})}
        while True:
            try:
                page = self._ask(what, listing, **given)
            except MissingError:
                self._check()
                raise
            yield page
            if not page.next_page_token:
                return
            given["page_token"] = page.next_page_token

    def _ask(self, what: str, ask: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        import urllib3

        try:
            answer = ask(*arguments, **options, _request_timeout=_TIMEOUT_S)
        except self._kfp.ApiException as error:
            raise meaning(self.url, what, error.status or 0, error.body or str(error.reason)) from error
        except urllib3.exceptions.HTTPError as error:
            raise NoAnswerError(
                f"cannot {what}: {self.url} does not answer ({type(error).__name__}); is KUBELOOP_KFP_URL right, and "
                "Kubeflow Pipelines up?"
            ) from error
        kind = self._client.last_response.getheader("content-type") or ""
        # A page for people, from a proxy that asks for a login or an address that is another server's.
        if "json" not in kind:
            raise DeniedError(
                f"cannot {what}: {self.url} answers with {kind or 'something'} instead of JSON; KUBELOOP_KFP_URL must "
                "name the pipelines API itself, and KUBELOOP_KFP_TOKEN_FILE a token if it needs one"
            )
        return answer

    def _check(self) -> None:
        """Check that the address has this API, after an answer that something is missing.

        Raises:
            TooOldError: the address does not have this API.
        """
        try:
            self._ask("ask for its health", self._health.healthz_service_get_healthz)
        except MissingError as error:
            raise TooOldError(
                f"{self.url} has no API v2beta1; KUBELOOP_KFP_URL must name Kubeflow Pipelines 2.17 or newer"
            ) from error

    def _refresh(self, configuration: Any) -> None:
        if self._token_file is None:
            return
        try:
            configuration.api_key["authorization"] = self._token_file.read_text().strip()
        except OSError as error:
            raise DeniedError(
                f"cannot read {self._token_file} ({error.strerror}), which KUBELOOP_KFP_TOKEN_FILE names; mount a "
                "service account token for the audience pipelines.kubeflow.org there"
            ) from error
