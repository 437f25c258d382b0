"""Python scripts that the tests run in pods of the images: each prints its findings as JSON on the last line."""

GET = """
import sys, httpx
answer = httpx.get(sys.argv[1], timeout=10)
print(answer.raise_for_status().text)
"""
# The events of KServe's agent, sent repeatedly until they are accepted.
EVENTS = """
import json, sys, time, httpx
url, prefix, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
head = {"ce-specversion": "1.0", "ce-source": "http://localhost:9081/", "ce-inferenceservicename": "flight-delay",
        "ce-type": "org.kubeflow.serving.inference.request", "ce-namespace": "kubeloop", "ce-endpoint": "",
        "ce-time": "2013-05-20T00:00:00Z", "content-type": "application/json"}
refused, longest = 0, 0.0
with httpx.Client(timeout=3) as client:
    for number in range(count):
        begun = time.monotonic()
        while True:
            try:
                taken = client.post(url, headers=head | {"ce-id": f"{prefix}-{number}"}, content=b'{"inputs": []}')
                if taken.status_code == 202:
                    break
            except httpx.HTTPError:
                pass
            refused += 1
            time.sleep(0.05)
        longest = max(longest, time.monotonic() - begun)
        time.sleep(0.005)
print(json.dumps({"refused": refused, "longest": longest}))
"""
# Memory that cannot be reclaimed; version 1 of control groups calls it rss, version 2 anon.
MEMORY = """
from pathlib import Path
old, new = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
place, limit = (old, "memory.limit_in_bytes") if old.is_dir() else (new, "memory.max")
used = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
print([int(used["total_rss" if old.is_dir() else "anon"]), int((place / limit).read_text())])
"""
DRIFT = """
import json, sys, httpx
data = json.loads(sys.argv[2])
head = {"ce-specversion": "1.0", "ce-type": sys.argv[3], "ce-source": "test", "ce-id": data["episode"],
        "ce-subject": data["episode"], "content-type": "application/json"}
answers = [httpx.post(sys.argv[1], headers=head, content=json.dumps(data), timeout=10) for _ in range(6)]
print(json.dumps([answer.status_code for answer in answers]))
"""
PREDICT = """
import json, sys, httpx
base = sys.argv[1]
row = {"tailnum": "N14228", "carrier": "UA", "dest": "IAH", "origin": "EWR", "distance": 1400.0,
       "sched_dep": "2013-05-20T05:15:00+00:00", "sched_minutes": 200.0}
inputs = httpx.get(base, timeout=10).raise_for_status().json()["inputs"]
body = {"parameters": {"event_time": "2013-05-20T00:00:00Z"},
        "inputs": [item | {"shape": [1], "data": [row[item["name"]]]} for item in inputs]}
answer = httpx.post(f"{base}/infer", json=body, timeout=20)
print(answer.text if answer.is_success else json.dumps({"error": answer.text}))
"""
