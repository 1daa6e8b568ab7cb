from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.fixture
def in_a_process(root):
    """A command of Python with this package and these tests on its path."""

    def begin(code, *arguments, **options):
        paths = os.pathsep.join([str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **options)

    return begin
