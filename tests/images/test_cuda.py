"""The GPU image takes its libraries from NVIDIA's base; in the stand-in here, each library contains only its name."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.images.conftest import BASE, Builder, Image

pytestmark = pytest.mark.timeout(900)

CUDA = ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcufft.so.12", "libcurand.so.10")
CUDNN = ("libnvrtc.so.13", "libcudnn.so.9", "libcudnn_ops.so.9")
TENSORRT = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")


def collect(
    builder: Builder, name: str, libraries: tuple[str, ...], *arguments: str
) -> "subprocess.CompletedProcess[str]":
    """Make a base with these libraries and build the stage that collects them."""
    container = builder.buildah("from", BASE)
    root = Path(builder.buildah("mount", container))
    folder = root / "usr/local/cuda-13.0/targets/x86_64-linux/lib"
    (folder / "stubs").mkdir(parents=True)
    for library in libraries:
        (folder / f"{library}.0.96").write_text(library)
        (folder / library).symlink_to(f"{library}.0.96")
        (folder / "stubs" / library).write_text("a stub, for linking alone")
    builder.buildah("commit", "--quiet", container, f"localhost/{name}:13")
    builder.buildah("rm", container)
    command = [
        "buildah",
        "build",
        "--target",
        "cuda",
        "--build-arg",
        f"IMAGE_BASE={BASE}",
        "--tag",
        f"localhost/{name}-libs",
    ]
    return subprocess.run(
        [*command, "--build-arg", f"CUDA_BASE=localhost/{name}:13", *arguments, "--file", "images/Dockerfile", "."],
        cwd=builder.checkout,
        env=builder.environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_collects_what_onnx_runtime_opens(builder: Builder) -> None:
    done = collect(builder, "cuda", (*CUDA, *CUDNN, "libnpp.so.13"))
    assert done.returncode == 0, done.stderr
    container = builder.buildah("from", "localhost/cuda-libs")
    folder = Path(builder.buildah("mount", container)) / "cuda/lib64"
    assert {path.name for path in folder.iterdir()} == {*CUDA, *CUDNN} | {f"{name}.0.96" for name in (*CUDA, *CUDNN)}
    assert all((folder / name).read_text() == name for name in (*CUDA, *CUDNN))


@pytest.mark.parametrize(
    ("libraries", "arguments", "missing"),
    [((*CUDA, CUDNN[0]), (), "libcudnn"), ((*CUDA, *CUDNN), ("--build-arg", "TENSORRT=1"), "libnvinfer")],
)
def test_refuses_a_base_without(
    builder: Builder, libraries: tuple[str, ...], arguments: tuple[str, ...], missing: str
) -> None:
    done = collect(builder, f"without-{missing}", libraries, *arguments)
    assert done.returncode != 0
    assert f"the CUDA base has no {missing};" in done.stderr + done.stdout


def test_takes_tensorrt_where_it_is_demanded(builder: Builder) -> None:
    done = collect(builder, "tensorrt", (*CUDA, *CUDNN, *TENSORRT), "--build-arg", "TENSORRT=1")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def gpu(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The whole GPU image.

    Its CUDA libraries are empty here; ONNX Runtime opens them only if a GPU is requested.
    """
    assert collect(builder, "gpu", (*CUDA, *CUDNN)).returncode == 0
    out = tmp_path_factory.mktemp("gpu")
    (listing,) = builder.build("runtime-gpu", "--build-arg", "CUDA_BASE=localhost/gpu:13", out=out)
    config = json.loads(builder.buildah("inspect", "--type", "image", listing["id"]))["OCIv1"]
    container = builder.buildah("from", listing["id"])
    return Image(listing, {}, config, Path(builder.buildah("mount", container)), out)


def test_the_gpu_image_passes_the_smoke_test(gpu: Image, project: Path, tmp_path: Path) -> None:
    done = gpu.run("python", "-", script=project / "images/smoke/runtime.py", mount=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["ok"]), done.stdout + done.stderr


def test_the_gpu_image_does_not_serve_on_a_processor_what_was_meant_for_a_gpu(
    gpu: Image, project: Path, tmp_path: Path
) -> None:
    text = (project / "images/smoke/runtime.py").read_text()
    script = tmp_path / "script.py"
    script.write_text(
        text[: text.index("PROGRAMS = ")]
        + "Path('/tmp/model.onnx').write_bytes(base64.b64decode(MODEL))\n"
        + "command = [sys.executable, '-m', 'kubeloop.serving.server', '--model-dir=/tmp', '--name=smoke']\n"
        + "sys.exit(subprocess.call([*command, '--device=cuda', '--port=0']))\n"
    )
    (tmp_path / "root").mkdir()
    done = gpu.run("python", "-", script=script, mount=tmp_path / "root")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "cannot start CUDAExecutionProvider; see that the node's driver fits" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
