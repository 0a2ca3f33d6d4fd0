"""What NVIDIA's assembler, which comes with Triton, says of compiled code. Works with triton 3.6 and 3.9."""

import os
import re
import subprocess
import tempfile

from triton.backends.nvidia import compiler as nvidia


def resources(ptx: str, architecture: int) -> tuple[int, int]:
    """(registers per thread, bytes spilled) of a kernel."""
    tool = nvidia.get_ptxas(architecture)
    path = tool[0] if isinstance(tool, tuple) else getattr(tool, "path", tool)
    target = f"sm_{architecture}{'a' if architecture >= 90 else ''}"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [path, "-v", f"--gpu-name={target}", file.name, "-o", os.devnull]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(int(found) for found in re.findall(r"(\d+) bytes spill", text))
    return int(re.search(r"Used (\d+) registers", text)[1]), spilled
