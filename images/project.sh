#!/bin/sh
# Install kubeloop without dependencies into /install, and put the demo's project into /project and the detector's worker
# into /worker.
# Runs in the `project` stage.
set -eu
export UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
PATH=/opt/tools/bin:$PATH

# The build hook's files are for installations without a clone; an image has the demo at /project and its environment.
HATCH_BUILD_NO_HOOKS=true python -m hatchling build --target wheel --directory dist
uv venv --quiet --python "$(command -v python3.11)" /opt/venv
uv pip install --quiet --python /opt/venv --prefix /install --no-deps --no-index --find-links dist kubeloop
# These files of uv contain the time of the installation.
find /install \( -path '*.dist-info/uv_cache.json' -o -name .lock \) -delete
sed -i '/uv_cache\.json/d' /install/lib/python3.11/site-packages/kubeloop-*.dist-info/RECORD

mv demo /project
mkdir /worker
cp src/kubeloop/monitoring/detector/worker.py /worker/
# The images must not depend on the umask of the checkout.
find /install /project /worker -type d -exec chmod 755 {} +
find /install/lib /project /worker -type f -exec chmod 644 {} +
PYTHONHASHSEED=0 /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash \
    /install/lib /project /worker
