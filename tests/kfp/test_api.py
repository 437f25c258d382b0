"""The client of the pipelines API: what it sends, how it authenticates, and what it says about errors."""

import re
from pathlib import Path
from typing import Any

import pytest

from kubeloop.config import ConfigError, Loop, Settings
from kubeloop.kubeflow import submission
from kubeloop.kubeflow.api import Api
from kubeloop.kubeflow.errors import DeniedError, KfpError, MissingError, NoAnswerError, RefusedError, TooOldError
from kubeloop.kubeflow.submission import Package


def test_an_upload_happens_once_for_the_same_bytes(
    server: Any, api: Api, case: Loop, packages: dict[str, Package]
) -> None:
    first = submission.upload(api, case, packages["materialize"])
    assert submission.upload(api, case, packages["materialize"]) == first
    assert server.count("upload_pipeline_version") == 1
    [pipeline] = server.store.pipelines.values()
    assert pipeline["name"] == "flight-delay-materialize"
    [version] = server.store.versions.values()
    assert (version["name"], version["pipeline_id"]) == (packages["materialize"].version, pipeline["pipeline_id"])
    assert version["pipeline_spec"]["pipeline_spec"] == packages["materialize"].documents[0]


@pytest.mark.usefixtures("steady")
def test_other_bytes_are_a_new_version_and_the_newest_is_found(
    server: Any, api: Api, case: Loop, packages: dict[str, Package], tmp_path: Path
) -> None:
    first = submission.upload(api, case, packages["backfill"])
    other = tmp_path / "other.yaml"
    other.write_text(packages["backfill"].path.read_text() + "\n")
    second = submission.upload(api, case, Package("backfill", other))
    assert second.name != first.name
    assert second.pipeline_id == first.pipeline_id
    assert api.version(first.pipeline_id) == second
    assert api.version(first.pipeline_id, first.name) == first
    assert len(server.store.versions) == 2


@pytest.mark.parametrize("kind", ["lost before", "lost after"])
@pytest.mark.parametrize("operation", ["create_pipeline", "upload_pipeline_version", "create_experiment"])
def test_a_lost_answer_leaves_one_of_each(
    server: Any, api: Api, case: Loop, packages: dict[str, Package], fault: Any, kind: str, operation: str
) -> None:
    def make() -> None:
        submission.upload(api, case, packages["backfill"])
        api.experiment("flights")

    lost = []
    server.fault = lambda name: lost.append(name) or fault(kind) if name.endswith(operation) and not lost else None
    if kind == "lost before":
        with pytest.raises(NoAnswerError):
            make()
    make()
    make()
    assert [len(found) for found in (server.store.pipelines, server.store.versions, server.store.experiments)] == [
        1
    ] * 3


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (401, DeniedError, "KUBELOOP_KFP_TOKEN_FILE "),
        (302, DeniedError, "needs to know the caller"),
        (403, DeniedError, "account needs a role "),
        (400, RefusedError, "told to fail"),
        (503, NoAnswerError, "it may work later"),
        (500, NoAnswerError, "status 500"),
        (429, NoAnswerError, "it may work later"),
        (404, MissingError, "told to fail"),
    ],
)
def test_each_status_is_a_sentence(
    server: Any, api: Api, fault: Any, status: int, error: type[Exception], says: str
) -> None:
    server.fault = lambda name: None if name.startswith("healthz") else fault("status", status=status)
    with pytest.raises(error, match=re.escape(says)) as caught:
        api.runs("mark")
    assert isinstance(caught.value, OSError), "the trigger treats every error as a missing answer"
    assert "\n" not in str(caught.value)
    assert len(server.requests) == (2 if status == 404 else 1), "no request is repeated, no redirect is followed"


def test_an_api_that_is_away_is_a_sentence(server: Any, api: Api) -> None:
    server.close()
    with pytest.raises(NoAnswerError, match=re.escape(f"{server.url} does not answer")) as caught:
        api.experiment("flights")
    assert isinstance(caught.value, ConnectionError)


def test_a_login_page_is_not_an_empty_list(server: Any, api: Api, fault: Any) -> None:
    server.fault = lambda _: fault("page")
    with pytest.raises(DeniedError, match="answers with text/html instead of JSON"):
        api.runs("mark")


def test_a_server_without_this_api_is_told_from_one_without_the_pipeline(
    server: Any, place: Settings, case: Loop
) -> None:
    assert Api.open(place).pipeline("none") is None
    assert Api.open(place).run("00000000-0000-0000-0000-000000000000") is None
    old = Api(f"{server.url}/elsewhere")
    with pytest.raises(TooOldError, match=r"Kubeflow Pipelines 2\.17 or newer"):
        old.pipeline("none")
    with pytest.raises(TooOldError):
        old.runs("mark")


def test_an_invalid_package_is_refused(api: Api, case: Loop, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("pipelineInfo: {name: broken}\n")
    with pytest.raises(RefusedError, match="unknown template format"):
        submission.upload(api, case, Package("broken", path))


def test_without_an_address_the_setting_is_named(place: Settings, case: Loop) -> None:
    with pytest.raises(ConfigError, match="KUBELOOP_KFP_URL"):
        Api.open(place.model_copy(update={"kfp_url": ""}))


class TestManyUsers:
    """An installation in which every user has a token and a namespace."""

    @pytest.fixture
    def token(self, server: Any, tmp_path: Path) -> Path:
        server.store.multi_user = True
        server.tokens = {"first"}
        path = tmp_path / "token"
        path.write_text("first\n")
        return path

    @pytest.fixture
    def ours(self, place: Settings, token: Path) -> Api:
        return Api.open(place.model_copy(update={"kfp_token_file": token, "namespace": "team"}))

    def test_everything_is_in_the_namespace(
        self, server: Any, ours: Api, case: Loop, packages: dict[str, Package]
    ) -> None:
        experiment = ours.experiment("flights")
        assert ours.experiment("flights") == experiment
        assert server.store.experiments[experiment]["namespace"] == "team"
        version = submission.upload(ours, case, packages["backfill"])
        assert submission.upload(ours, case, packages["backfill"]) == version
        made = ours.create_run(
            "one", version, experiment_id=experiment, description="mark", parameters={}, service_account="runner"
        )
        assert [run.run_id for run in ours.runs("mark")] == [made.run_id]

    def test_a_token_that_rotates_is_read_again(self, server: Any, ours: Api, token: Path) -> None:
        ours.experiment("flights")
        server.tokens = {"second"}
        with pytest.raises(DeniedError):
            ours.experiment("flights")
        token.write_text("second")
        ours.experiment("flights")

    def test_a_missing_token_file_is_named(self, ours: Api, token: Path) -> None:
        token.unlink()
        with pytest.raises(DeniedError, match=f"cannot read {re.escape(str(token))}"):
            ours.runs("mark")

    def test_a_namespace_that_is_forbidden_is_a_sentence(self, server: Any, ours: Api) -> None:
        server.forbidden = {"team"}
        with pytest.raises(DeniedError, match="in namespace team"):
            ours.runs("mark")

    def test_no_token_reaches_an_error(self, server: Any, ours: Api) -> None:
        server.tokens = {"another"}
        with pytest.raises(KfpError) as caught:
            ours.runs("mark")
        assert "first" not in str(caught.value)
