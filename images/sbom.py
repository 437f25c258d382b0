"""Write an image's bill of materials: the installed packages of uv's export (standard input) and of dpkg's list.

CycloneDX 1.5 (https://cyclonedx.org/docs/1.5/json/). Run it with the image's own interpreter. Times and random serial
numbers are left out, so that the same image has the same bill.
"""

import argparse
import hashlib
import importlib.metadata
import json
import platform
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote


def python_packages(exported: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the export's components that are installed here, and those that replace a locked one.

    Raises:
        SystemExit: a package is installed in another version than the lock's.
    """
    locked = {component["name"]: component for component in exported["components"]}
    found = []
    for installed in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", installed.name).lower()
        component = locked.get(name)
        if component is None:
            found.append(_component(name, installed.version, f"pkg:pypi/{name}@{installed.version}"))
        elif component["version"] == installed.version:
            found.append({key: value for key, value in component.items() if key != "properties"})
        else:
            sys.exit(f"{name} {installed.version} is installed, but the lock says {component['version']}")
    return found


def system_packages(status: str) -> list[dict[str, Any]]:
    """Return a component for every package of dpkg's status file."""
    found = []
    for paragraph in status.strip().split("\n\n"):
        field = dict(re.findall(r"^([A-Z][\w-]*): (.*)$", paragraph, re.MULTILINE))
        name, version = field["Package"], field["Version"]
        purl = f"pkg:deb/debian/{name}@{quote(version)}?arch={field['Architecture']}"
        found.append(_component(name, version, purl))
    return found


def libraries(folder: Path) -> list[dict[str, Any]]:
    """Return a component with its hash for every shared library in a folder, which need not exist."""
    return [
        {
            "type": "file",
            "bom-ref": f"file:{path}",
            "name": path.name,
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
        }
        for path in folder.glob("*.so.*")
        if path.is_file() and not path.is_symlink()
    ]


def _component(name: str, version: str, purl: str) -> dict[str, Any]:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def main() -> None:
    """Read the export and print the bill."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", required=True, help="name of the image's target")
    parser.add_argument("--dpkg", type=Path, required=True, help="the image's /var/lib/dpkg/status")
    parser.add_argument("--libraries", type=Path, required=True, help="folder of libraries that no package brought")
    options = parser.parse_args()
    exported = json.load(sys.stdin)
    version = exported["metadata"]["component"]["version"]
    python = platform.python_version()
    components = [
        _component("python", python, f"pkg:generic/python@{python}"),
        *python_packages(exported),
        *system_packages(options.dpkg.read_text()),
        *libraries(options.libraries),
    ]
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "bom-ref": "image",
                "name": f"kubeloop-{options.image}",
                "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": sorted(components, key=lambda component: component["bom-ref"]),
    }
    print(json.dumps(bill, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
