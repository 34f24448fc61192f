"""Read the exports with Hugging Face's `datasets`, and as tensors.

python benchmarks/outside/check_datasets.py X
"""

import sys
import tempfile
from importlib import metadata
from pathlib import Path

import datasets


def main() -> None:
    """Load both folders and print what was read."""
    print("datasets", metadata.version("datasets"))
    for name in ("drop", "soft"):
        with tempfile.TemporaryDirectory() as cache:
            loaded = datasets.load_dataset(str(Path(sys.argv[1]) / name / "datasets"), cache_dir=cache)
            sizes = {split: len(part) for split, part in loaded.items()}
            first = loaded["train"].with_format("torch")[0]
            weights = first["weights"].tolist()[:3] if "weights" in first else "none"
            print(f"{name}: {sizes}, columns {loaded['train'].column_names}, weights of the first window {weights}")


if __name__ == "__main__":
    main()
