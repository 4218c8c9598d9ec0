"""The method is pure torch: importing it must not drag the training stack in."""

import subprocess
import sys


def test_import_saw_loads_neither_verl_nor_ray():
    code = "import sys, saw; print([m for m in ('verl', 'ray', 'vllm', 'transformers', 'hydra') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert output.stdout.strip() == "[]"
