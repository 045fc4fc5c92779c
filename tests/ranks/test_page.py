"""The two-rank run of the page on many prompts runs as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_script_of_the_page_runs_by_its_command(tmp_path):
    page = (ROOT / "docs" / "many.md").read_text()
    command = re.search(r"^torchrun (.*) two_ranks\.py$", page, re.MULTILINE)
    script = re.search(r"```py\n((?:(?!```).)*enable_parallelism.*?)```", page, re.DOTALL)
    (tmp_path / "two_ranks.py").write_text(script[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", *command[1].split(), "two_ranks.py"]
    done = subprocess.run(launch, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "computed" in done.stdout, done.stdout
