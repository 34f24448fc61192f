"""The package is importable without the modules of one operating system."""

import subprocess
import sys

CODE = """
import importlib, pkgutil, sys, warnings
for name in ("fcntl", "grp", "pwd", "resource", "syslog", "termios", "tty", "msvcrt", "winreg"):
    sys.modules[name] = None  # as if it were missing
warnings.simplefilter("ignore")
import llm4dsr
for module in pkgutil.walk_packages(llm4dsr.__path__, "llm4dsr."):
    importlib.import_module(module.name)
from llm4dsr.core.memory import available_memory, peak_memory_mb
print(peak_memory_mb() >= 0 and available_memory() >= 0)
"""


def test_every_module_can_be_imported_without_posix():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
