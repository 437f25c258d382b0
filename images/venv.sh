#!/bin/sh
# Install the virtual environment of one image at /opt/venv from uv.lock, and write its bill of materials next to it:
#   venv.sh core|runtime|runtime-gpu|detector
# The stage `tools` is mounted at /mnt and uv's cache at /media: every base has these folders, so no new ones are left.
set -eu
image=$1
extra=${image%-gpu}
site=/opt/venv/lib/python3.11/site-packages

if [ -f /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi
export TMPDIR=/media UV_CACHE_DIR=/media UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never
export UV_PROJECT_ENVIRONMENT=/opt/venv
PATH=/mnt/opt/tools/bin:$PATH
cd /mnt/build

if [ "$image" = runtime-gpu ]; then
    uv sync --quiet --frozen --python "$(command -v python3.11)" --no-install-project --extra "$extra" \
        --no-install-package onnxruntime
    uv pip install --quiet --python /opt/venv --no-deps --require-hashes --requirement images/gpu-requirements.txt
else
    uv sync --quiet --frozen --python "$(command -v python3.11)" --no-install-project --extra "$extra"
fi

mkdir /usr/share/kubeloop
uv export --quiet --frozen --preview-features sbom-export --format cyclonedx1.5 --extra "$extra" |
    /opt/venv/bin/python images/sbom.py --image "$image" --dpkg /var/lib/dpkg/status --libraries /usr/local/cuda/lib64 \
        >/usr/share/kubeloop/sbom.json

# An image does not need the libraries' own tests; these files of uv contain the time of the installation.
find "$site" -mindepth 2 -type d -name tests -prune -exec rm -rf {} +
find "$site" -path '*.dist-info/uv_cache.json' -delete
rm -f /opt/venv/.lock

# The byte code depends on what the process compiled before, so one process per package gives the same bytes.
find "$site" -mindepth 1 -maxdepth 1 ! -name '*.dist-info' -print0 | sort -z | PYTHONHASHSEED=0 xargs -0 -n 1 \
    -P "$(nproc)" /opt/venv/bin/python -I -m compileall -qq --invalidation-mode unchecked-hash
