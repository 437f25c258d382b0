#!/usr/bin/env bash
# Put Flux's CustomResourceDefinitions into a folder, from its controllers' Go modules, each of a pinned version and content.
# `make control-plane` calls it.
set -euo pipefail
folder=$1
go=${GO:-go}
part=$folder.part
rm -rf "$part"
mkdir -p "$part"

take() {  # module, version, checksum as in a go.sum
    found=$(cd "$part" && GOWORK=off GOFLAGS=-mod=mod "$go" mod download -json "github.com/fluxcd/$1@$2") \
        || { echo "$found" >&2; exit 1; }
    if ! grep -qF "\"Sum\": \"$3\"" <<< "$found"; then
        echo "github.com/fluxcd/$1@$2 is not what was pinned ($3)" >&2
        exit 1
    fi
    install -m 644 -t "$part" "$(sed -n 's/.*"Dir": "\(.*\)".*/\1/p' <<< "$found")"/config/crd/bases/*.yaml
}
take source-controller v1.7.3 h1:gFfeBiNUgF0kFFGap/rrMeJqz+0Tod0ARENJO8w/UA8=
take kustomize-controller v1.7.3 h1:SzNnGn/4ObAPEHHleM5U7y/AKxKXph3Vj6ZhteeXw8M=
take helm-controller v1.4.0 h1:rkm8rmB6Na7eNc4pJOnvtXEaJ19iKluRtayHKjBxcUM=
rm -rf "$folder"
mv "$part" "$folder"
