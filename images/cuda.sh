#!/bin/sh
# Collect the CUDA libraries that ONNX Runtime opens in /cuda/lib64; `cuda.sh 1` also requires those of TensorRT.
set -eu
needed='libcudart libcublas libcublasLt libcufft libcurand libnvrtc libcudnn'
optional='libcudnn_* libnvrtc-builtins libnvJitLink libnvinfer libnvinfer_* libnvonnxparser'
if [ "$1" = 1 ]; then needed="$needed libnvinfer libnvinfer_plugin libnvonnxparser"; fi

mkdir -p /cuda/lib64
collect() {
    find / -xdev -path /cuda -prune -o \( -type f -o -type l \) -name "$1.so.*" ! -path '*/stubs/*' -print |
        while read -r path; do
            # A name may match twice, which some versions of `cp --no-clobber` report as a failure.
            target=/cuda/lib64/${path##*/}
            [ -e "$target" ] || [ -L "$target" ] || cp --no-dereference "$path" /cuda/lib64/
        done
}
set -f
for name in $needed $optional; do collect "$name"; done
for name in $needed; do
    set +f
    if ! ls /cuda/lib64/"$name".so.* >/dev/null 2>&1; then
        echo "the CUDA base has no $name; take an image with the CUDA runtime, cuDNN and, for TENSORRT=1, TensorRT" >&2
        exit 1
    fi
done
