"""The trigger's answer to a Knative Broker, which treats a body that is not a CloudEvent as a failed delivery."""

import json

import httpx

from tests.unit.trigger.test_request import ledger, trigger
from tests.unit.trigger.test_senders import delivered

__all__ = ["ledger", "trigger"]


def test_the_answer_is_a_cloud_event_of_another_type(trigger: str) -> None:
    headers, body = delivered()
    answers = [httpx.post(f"{trigger}/events", headers=headers, content=body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    for answer in answers:
        assert answer.headers["ce-specversion"] == "1.0"
        assert answer.headers["ce-type"] != headers["Ce-Type"], "otherwise the Broker would send it back here"
        assert answer.headers["ce-source"] == "/kubeloop/trigger/flight-delay"
        assert answer.headers["content-type"] == "application/json"
    assert answers[0].headers["ce-id"] == answers[1].headers["ce-id"]
    assert json.loads(answers[1].content)["duplicate"] is True
