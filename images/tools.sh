#!/bin/sh
# Install the packages that build the images, by hash, into /opt/tools. Runs in the `tools` stage.
set -eu

# A network with its own certificate authority passes it as the secret `ca`.
if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi
python3 -m venv /opt/tools
/opt/tools/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check --only-binary :all: \
    --require-hashes --requirement images/build-requirements.txt
