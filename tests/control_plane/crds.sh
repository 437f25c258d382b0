#!/usr/bin/env bash
# Fetch the CustomResourceDefinitions of the systems that the manifests use into a folder, each at a pinned commit.
# `make crds` calls it; CODELOAD may name another server with the archives of codeload.github.com.
set -euo pipefail
folder=$1
part=$folder.part
rm -rf "$part"

fetch() {  # folder, repository, commit, path
    mkdir -p "$part/$1"
    curl -fsSL --retry 3 "${CODELOAD:-https://codeload.github.com}/$2/tar.gz/$3" \
        | tar -xz -C "$part/$1" --wildcards --transform 's|.*/||' "*/$4/*.yaml"
}
fetch kserve kserve/kserve aaac4e29 config/crd/full
fetch kubeflow-pipelines kubeflow/pipelines 7b70c7b9 manifests/kustomize/base/crds
fetch gateway-api kubernetes-sigs/gateway-api 4564255a config/crd/standard
fetch argo-cd argoproj/argo-cd 37ee0097 manifests/crds
fetch keda kedacore/keda 8b4f083c config/crd/bases
fetch prometheus-operator prometheus-operator/prometheus-operator 6adcebc5 example/prometheus-operator-crd
find "$part" -name kustomization.yaml -delete
rm -rf "$folder"
mv "$part" "$folder"
