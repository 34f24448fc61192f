"""Train RecTools' SASRec or BERT4Rec on the exported windows, in RecTools' own environment; keep the ranks per epoch.

    python benchmarks/crosscheck/theirs.py --data FOLDER --model sasrec --supervise last --epochs 40 --out theirs.npz

Each training window is one user. Data preparation, network, initial weights, optimizer and ranking are RecTools'. Its
loss, softmax over all items, is computed at the positions that have one and not at all positions: the same number in
less time, which `--check` verifies at each batch against the library's own.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, SASRecModel
from rectools.models.nn.transformers.base import TransformerModelBase
from rectools.models.nn.transformers.bert4rec import BERT4RecDataPreparator
from rectools.models.nn.transformers.constants import MASKING_VALUE
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from rectools.models.nn.transformers.net_blocks import PreLNTransformerLayers
from rectools.models.nn.transformers.sasrec import SASRecTransformerLayers

K = 20
BEYOND = 10**6  # the rank of a target that is not among the K recommended


class OnlyWhereAsked(TransformerLightningModule):
    """The library's softmax loss, without scores for positions that are padding or have the weight 0."""

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        here = (batch["y"] != 0) & (batch["yw"] > 0)  # [B, L]
        vectors = self.torch_model.item_model.get_all_embeddings()  # [N + extra tokens, d]
        states = self.torch_model.encode_sessions(batch, vectors)[here]  # [P, d]
        return F.cross_entropy(states @ vectors.T, batch["y"][here])


class StartAsOurs(OnlyWhereAsked):
    """Vectors of items and positions begin as ours do; so do the layers of SASRec. The library's are Xavier normal."""

    def _xavier_normal_init(self) -> None:
        super()._xavier_normal_init()
        sasrec = isinstance(self.torch_model.transformer_layers, SASRecTransformerLayers)
        for name, values in self.torch_model.named_parameters():
            if "emb" in name or (sasrec and values.dim() > 1):
                places = not sasrec and "pos" in name  # our BERT4Rec has places as large as the items that it reads
                torch.nn.init.normal_(values, std=0.02 * values.shape[-1] ** 0.5 if places else 0.02)
            elif sasrec and "bias" in name:
                torch.nn.init.zeros_(values)


class Checked(OnlyWhereAsked):
    """Stops at a batch where the two ways to compute the loss differ."""

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.eval()  # dropout would draw twice
        with torch.no_grad():
            ours = super().training_step(batch, batch_idx)
            theirs = self._calc_softmax_loss(self.get_batch_logits(batch), batch["y"], batch["yw"])
        torch.testing.assert_close(ours, theirs)
        self.train()
        return super().training_step(batch, batch_idx)


class LayersAsOurs(PreLNTransformerLayers):
    """What our BERT4Rec has and the library's not: a norm after the last block, no dropout of what goes from one block
    to the next as a whole."""

    def __init__(self, n_blocks: int, n_factors: int, n_heads: int, dropout_rate: float, **others: int) -> None:
        super().__init__(n_blocks, n_factors, n_heads, dropout_rate, **others)
        self.norm = torch.nn.LayerNorm(n_factors)
        for block in self.transformer_blocks:
            block.dropout_3 = torch.nn.Identity()

    def forward(self, *args: torch.Tensor, **others: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(*args, **others))


class GapsAsOurs(BERT4RecDataPreparator):
    """Masks as our BERT4Rec does: in half of the windows the last item alone, in the rest random items."""

    def _mask_session(self, ses: list[int], *borders: float) -> tuple[list[int], list[int]]:
        last = np.arange(len(ses)) == len(ses) - 1
        gaps = torch.rand(len(ses)).numpy() < self.mask_prob
        masked = last if torch.rand(1) < 0.5 or not gaps.any() else gaps
        items = np.array(ses)
        mask = self.extra_token_ids[MASKING_VALUE]
        return np.where(masked, mask, items).tolist(), np.where(masked, items, 0).tolist()


def read(path: Path) -> list[list[int]]:
    return [list(row) for row in pd.read_parquet(path)["items"]]


def interactions(rows: list[list[int]], weights: list[list[float]] | None = None) -> pd.DataFrame:
    """One user for each row; the order in the row becomes the order of time."""
    lengths = [len(row) for row in rows]
    order = np.concatenate([np.arange(length) for length in lengths])
    return pd.DataFrame({
        Columns.User: np.repeat(np.arange(len(rows)), lengths),
        Columns.Item: np.concatenate(rows),
        Columns.Weight: 1.0 if weights is None else np.concatenate(weights),
        Columns.Datetime: pd.Timestamp("2014-01-01") + pd.to_timedelta(order, unit="D"),
    })  # fmt: skip


def ranks(model: TransformerModelBase, rows: list[list[int]]) -> np.ndarray:
    """[W] rank of each row's last item after the others, 1 = best, by the library's own recommendations."""
    histories = Dataset.construct(interactions([row[:-1] for row in rows]))
    found = model.recommend(users=np.arange(len(rows)), dataset=histories, k=K, filter_viewed=False)
    target = np.array([row[-1] for row in rows])
    hits = found[found[Columns.Item].to_numpy() == target[found[Columns.User].to_numpy()]]
    out = np.full(len(rows), BEYOND)
    out[hits[Columns.User].to_numpy()] = hits[Columns.Rank].to_numpy()
    return out


def trainer() -> pl.Trainer:
    return pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def build(
    name: str, masking: str, start: str, layers: str, dropout: float, learning_rate: float, check: bool
) -> TransformerModelBase:
    """Sizes of `RecommenderConfig`. Padding is masked in attention, as it is with us by the side it stands on."""
    module = StartAsOurs if start == "ours" else Checked if check else OnlyWhereAsked
    common = dict(
        n_factors=64, n_blocks=2, n_heads=1, dropout_rate=dropout, batch_size=256, lr=learning_rate, loss="softmax",
        use_key_padding_mask=True, get_trainer_func=trainer,
        lightning_module_type=module, pos_encoding_kwargs={"use_scale_factor": start == "ours"},
    )  # fmt: skip
    if name == "sasrec":
        return SASRecModel(session_max_len=10, **common)
    preparator = GapsAsOurs if masking == "ours" else BERT4RecDataPreparator
    return BERT4RecModel(  # one more place than in a history, for the mask that stands for the item to come
        session_max_len=11, mask_prob=0.2, data_preparator_type=preparator,
        transformer_layers_type=LayersAsOurs if layers == "ours" else PreLNTransformerLayers,
        transformer_layers_kwargs={"ff_factors_multiplier": 1}, **common,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what export.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="an .npz file")
    parser.add_argument("--model", choices=("sasrec", "bert4rec"), required=True)
    parser.add_argument("--supervise", choices=("all", "last"), default="all", help="of sasrec: predict which items")
    parser.add_argument("--masking", choices=("theirs", "ours"), default="theirs", help="of bert4rec")
    parser.add_argument(
        "--start", choices=("theirs", "ours"), default="theirs", help="initial weights, and vectors * √d"
    )
    parser.add_argument("--layers", choices=("theirs", "ours"), default="theirs", help="of bert4rec")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="with the library's own start only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pl.seed_everything(args.seed)
    warnings.filterwarnings("ignore")

    train, valid, test = (read(args.data / f"{name}.parquet") for name in ("train", "valid", "test"))
    weights = None
    if args.supervise == "last":
        weights = [[0.0] * (len(row) - 1) + [1.0] for row in train]
    dataset = Dataset.construct(interactions(train, weights))
    model = build(args.model, args.masking, args.start, args.layers, args.dropout, args.learning_rate, args.check)
    by_epoch, seconds = [], 0.0
    for epoch in range(args.epochs):
        started = time.perf_counter()
        model.fit_partial(dataset, min_epochs=1, max_epochs=1)
        seconds += time.perf_counter() - started
        by_epoch.append((ranks(model, valid), ranks(model, test)))
        print(f"epoch {epoch + 1}: {seconds:.0f} s, validation HR@{K} {(by_epoch[-1][0] <= K).mean():.4f}", flush=True)
        np.savez(args.out, valid=[v for v, _ in by_epoch], test=[t for _, t in by_epoch], seconds=seconds)


if __name__ == "__main__":
    main()
