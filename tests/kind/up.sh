#!/usr/bin/env bash
# Makes a cluster with kind and installs what `make e2e` needs: databases and a bucket, Gateway API, Kubeflow and KServe
# as docs/install.md installs them, and the images. Ends with a file of variables: set -a; . build/kind/e2e.env; make e2e
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
name=kubeloop
envoy_gateway=v1.8.1
# Our images are built with the same engine.
engine=${KUBELOOP_ENGINE:-$(for found in docker podman; do command -v "$found" > /dev/null && echo "$found" && break; done || true)}

for tool in "${engine:-docker}" kind kubectl helm; do
  command -v "$tool" > /dev/null || { echo "make kind-up needs $tool; nothing was changed" >&2; exit 1; }
done
mkdir -p build/kind
if [ "$engine" = podman ]; then export KIND_EXPERIMENTAL_PROVIDER=podman; fi
export KUBECONFIG=$PWD/build/kind/kubeconfig

if ! kind get clusters 2> /dev/null | grep -qx "$name"; then
  kind create cluster --name "$name" --config tests/kind/cluster.yaml --wait 5m
fi
kind export kubeconfig --name "$name" --kubeconfig "$KUBECONFIG" > /dev/null 2>&1

echo "Databases and a bucket"
kubectl apply -k tests/kind
for part in postgres redis s3; do
  kubectl -n backends rollout status "deployment/$part" --timeout 5m
done
kubectl -n backends exec deployment/s3 -- sh -c 'echo "s3.bucket.create -name kubeloop" | weed shell' > /dev/null

.venv/bin/python -m tests.e2e_cluster.page 2 3 > build/kind/install.sh
if ! helm status kserve -n kserve > /dev/null 2>&1; then
  echo "Gateway API, then Kubeflow Pipelines and KServe by docs/install.md"
  helm upgrade --install gateway oci://docker.io/envoyproxy/gateway-helm --version "$envoy_gateway" \
    -n envoy-gateway-system --create-namespace --wait
  # shellcheck source=/dev/null
  source build/kind/install.sh
  # The settings that the page gives for canaries.
  helm upgrade kserve oci://ghcr.io/kserve/charts/kserve-resources --version "$KSERVE" -n kserve --reuse-values --wait \
    --set kserve.controller.gateway.ingressGateway.enableGatewayApi=true \
    --set kserve.controller.gateway.ingressGateway.createGateway=true \
    --set kserve.controller.gateway.ingressGateway.className=envoy
fi
kubectl apply -f tests/kind/gateway-class.yaml
kubectl -n kubeflow wait --for condition=Available deployment --all --timeout 15m

echo "Images"
.venv/bin/python images/build.py core runtime detector --engine "$engine" --registry localhost --tag 0.1.0
for image in core runtime detector; do
  "$engine" save -o build/kind/image.tar "localhost/kubeloop-$image:0.1.0"
  kind load image-archive build/kind/image.tar --name "$name"
  rm build/kind/image.tar
done

url=postgresql+psycopg://kubeloop:kubeloop@postgres.backends
manifest=/etc/kubernetes/manifests/kube-apiserver.yaml
control="$engine exec $name-control-plane"
scale="kubectl -n backends scale deployment"
cat > build/kind/e2e.env <<END
KUBECONFIG=$KUBECONFIG
KUBELOOP_E2E_LEDGER=$url/ledger
KUBELOOP_E2E_MONITOR=$url/monitor
KUBELOOP_E2E_MLFLOW=$url/mlflow
KUBELOOP_E2E_FEAST=$url/feast
KUBELOOP_E2E_ONLINE=redis://redis.backends:6379
KUBELOOP_E2E_DATABASES=backends
KUBELOOP_E2E_BUCKET=s3://kubeloop
KUBELOOP_E2E_S3_ENDPOINT=http://s3.backends:8333
KUBELOOP_E2E_AWS_ACCESS_KEY_ID=kubeloop
KUBELOOP_E2E_AWS_SECRET_ACCESS_KEY=kubeloop-secret
KUBELOOP_E2E_IMAGES=localhost
KUBELOOP_E2E_IMAGES_ARE_THERE=1
KUBELOOP_E2E_VALUES_FILE=$PWD/tests/kind/values.yaml
KUBELOOP_E2E_STOP_POSTGRES='$scale/postgres --replicas 0 && kubectl -n backends wait --for delete pod -l app=postgres'
KUBELOOP_E2E_START_POSTGRES='$scale/postgres --replicas 1 && kubectl -n backends rollout status deployment/postgres'
KUBELOOP_E2E_STOP_S3='$scale/s3 --replicas 0 && kubectl -n backends wait --for delete pod -l app=s3'
KUBELOOP_E2E_START_S3='$scale/s3 --replicas 1 && kubectl -n backends rollout status deployment/s3'
KUBELOOP_E2E_STOP_API='$control mv $manifest /root/'
KUBELOOP_E2E_START_API='$control mv /root/kube-apiserver.yaml $manifest'
END
echo "Ready. set -a; . build/kind/e2e.env; make e2e     Afterwards: kind delete cluster --name $name"
