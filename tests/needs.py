"""What a test needs of the machine: skipped with a reason where it is missing, but never in CI."""

import os
import shutil

import pytest


def need(*commands: str) -> None:
    """Skip the test unless these commands are there; fail it in CI."""
    missing = [command for command in commands if shutil.which(command) is None]
    if missing:
        reason = f"needs {', '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}: .ci/run installs it")
        pytest.skip(reason)
