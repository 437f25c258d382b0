#!/bin/sh
# Make the virtual environment of one image at /opt/venv from uv.lock, and its bill of materials in /sbom:
#   venv.sh core|runtime|runtime-gpu|detector
set -eu
image=$1
extra=${image%-gpu}

if [ -f /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi
export UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_PROJECT_ENVIRONMENT=/opt/venv UV_PYTHON_DOWNLOADS=never
PATH=/opt/tools/bin:$PATH

if [ "$image" = runtime-gpu ]; then
    uv sync --quiet --frozen --python "$(command -v python3.11)" --no-install-project --extra "$extra" \
        --no-install-package onnxruntime
    uv pip install --quiet --python /opt/venv --no-deps --require-hashes --requirement images/gpu-requirements.txt
else
    uv sync --quiet --frozen --python "$(command -v python3.11)" --no-install-project --extra "$extra"
fi

mkdir /sbom
uv export --quiet --frozen --preview-features sbom-export --format cyclonedx1.5 --extra "$extra" |
    /opt/venv/bin/python images/sbom.py --image "$image" --dpkg dpkg-status --libraries /usr/local/cuda/lib64 \
        >/sbom/sbom.json

# Nobody runs the libraries' own tests in an image. uv notes when and from where it installed: that differs each time.
cd /opt/venv/lib/python3.11/site-packages
find . -type d -name tests -path '*/*/*' -prune -exec rm -rf {} +
find . -path '*.dist-info/uv_cache.json' -delete
rm -f /opt/venv/.lock

# A process a package, since what else a process compiled shows in its byte code. Templates are no valid Python.
find . -mindepth 1 -maxdepth 1 -print0 | sort -z | PYTHONHASHSEED=0 xargs -0 -n 1 -P "$(nproc)" \
    /opt/venv/bin/python -m compileall -qq --invalidation-mode unchecked-hash || true
