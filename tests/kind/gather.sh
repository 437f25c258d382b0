#!/usr/bin/env bash
# Collects the objects, events and logs of a failed cluster in a folder.
set -uo pipefail

to=${1:?the folder to write to}
mkdir -p "$to"
KUBECONFIG=${KUBECONFIG:-$PWD/build/kind/kubeconfig}
export KUBECONFIG
kubectl get events -A --sort-by .lastTimestamp > "$to/events.txt"
kubectl get pods -A -o wide > "$to/pods.txt"
for kind in inferenceservices.serving.kserve.io deployments.apps; do
  kubectl -n kubeloop get "$kind" -o yaml > "$to/$kind.yaml"
done
for namespace in kubeloop kubeflow kserve backends web; do
  for pod in $(kubectl -n "$namespace" get pods -o name); do
    kubectl -n "$namespace" logs "$pod" --all-containers --prefix --tail 2000 > "$to/$namespace-${pod#pod/}.log" 2>&1
  done
done
