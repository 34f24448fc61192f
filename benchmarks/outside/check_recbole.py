"""Read the exports with RecBole: BPR on single interactions, GRU4Rec on the benchmark files, one epoch each.

python benchmarks/outside/check_recbole.py X
"""

import sys
from importlib import metadata
from pathlib import Path

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

SINGLE = {"load_col": {"inter": ["user_id", "item_id", "timestamp", "weight"], "item": ["item_id", "title"]}}
SEQUENCES = {
    "load_col": {"inter": ["user_id", "item_id_list", "item_id", "item_length"]},
    "alias_of_item_id": ["item_id_list"],
    "benchmark_filename": ["train", "valid", "test"],
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "LIST_SUFFIX": "_list",
    "train_neg_sample_args": None,
}
SOFT = {"load_col": {"inter": [*SEQUENCES["load_col"]["inter"], "weight", "weight_list"]}}  # fmt: skip
COMMON = {"epochs": 1, "train_batch_size": 256, "embedding_size": 16, "show_progress": False, "use_gpu": False,
          "hidden_size": 16, "metrics": ["NDCG"], "topk": [20], "valid_metric": "NDCG@20", "save_dataset": False,
          "save_dataloaders": False, "state": "ERROR"}  # fmt: skip


def check(model: str, folder: Path, options: dict) -> None:
    """Train one epoch and print what RecBole read."""
    chosen = COMMON | {"data_path": str(folder)} | options
    config = Config(model=model, dataset="corrected", config_dict=chosen)
    init_seed(0, reproducibility=True)
    dataset = create_dataset(config)
    train, valid, _ = data_preparation(config, dataset)
    network = get_model(model)(config, train.dataset).to("cpu")
    score, _ = get_trainer(config["MODEL_TYPE"], model)(config, network).fit(train, valid, saved=False, verbose=False)
    fields = {name: str(kind).rsplit(".", 1)[-1] for name, kind in dataset.field2type.items()}
    print(f"{model} on {folder}: {dataset.user_num - 1} users, {dataset.item_num - 1} items, "
          f"{len(train.dataset)} to learn from, NDCG@20 on validation {score:.4f}, fields {fields}")  # fmt: skip


if __name__ == "__main__":
    print("recbole", metadata.version("recbole"), "torch", torch.__version__)
    out = Path(sys.argv[1])
    for name, more in (("drop", {}), ("soft", SOFT)):
        check("BPR", out / name / "recbole", SINGLE)
        check("GRU4Rec", out / name / "recbole-splits", SEQUENCES | more)
