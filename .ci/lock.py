"""`make lock`: requirements.lock, every package of constraints.txt with the hash of its file, for this kind of machine.

pip resolves the set, and reports what it would install. The lock that is kept is for Linux on x86-64, Python 3.11 and
PyTorch's CPU build; `make setup LOCKED=1` installs from it, and from nothing whose hash differs.
"""

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# Written by `make lock` on {system} {machine}, Python {python}: `make setup LOCKED=1` installs these files and no others.
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--dry-run", "--ignore-installed",
                   "--report", str(report), "--constraint", "constraints.txt", ".[test]", "setuptools"]
        subprocess.run(command, cwd=ROOT, check=True, timeout=1800)
        wanted = json.loads(report.read_text())["install"]
    files = {item["metadata"]["name"]: (item["metadata"]["version"], item["download_info"].get("archive_info", {}).get("hashes", {}))
             for item in wanted if item["metadata"]["name"] != "zerosearch-workbench"}
    if lacking := [name for name, (_, hashes) in files.items() if "sha256" not in hashes]:
        sys.exit(f"pip's index gives no sha256 for {', '.join(lacking)}: use another index.")
    head = HEAD.format(system=platform.system(), machine=platform.machine(), python=".".join(platform.python_version_tuple()[:2]))
    lines = [f"{name}=={version} --hash=sha256:{hashes['sha256']}\n" for name, (version, hashes) in sorted(files.items(), key=lambda one: one[0].lower())]
    (ROOT / "requirements.lock").write_text(head + "".join(lines), encoding="utf-8")
    print(f"requirements.lock: {len(lines)} packages")


if __name__ == "__main__":
    main()
