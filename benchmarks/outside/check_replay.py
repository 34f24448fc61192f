"""Read the exports with RePlay: `Dataset` with its schema, and item-kNN.

python benchmarks/outside/check_replay.py X
"""

import sys
from importlib import metadata
from pathlib import Path

import pandas as pd
from replay.data import Dataset, FeatureHint, FeatureInfo, FeatureSchema, FeatureType
from replay.preprocessing import LabelEncoder, LabelEncodingRule
from replay.splitters import TimeSplitter

SCHEMA = FeatureSchema([
    FeatureInfo("query_id", FeatureType.CATEGORICAL, FeatureHint.QUERY_ID),
    FeatureInfo("item_id", FeatureType.CATEGORICAL, FeatureHint.ITEM_ID),
    FeatureInfo("rating", FeatureType.NUMERICAL, FeatureHint.RATING),
    FeatureInfo("timestamp", FeatureType.NUMERICAL, FeatureHint.TIMESTAMP),
])  # fmt: skip


def main() -> None:
    """Encode, split by time and build the data set, and print what was read."""
    print("replay-rec", metadata.version("replay-rec"))
    for name in ("drop", "soft"):
        table = pd.read_parquet(Path(sys.argv[1]) / name / "replay" / "interactions.parquet").drop(columns="split")
        encoder = LabelEncoder([LabelEncodingRule("query_id"), LabelEncodingRule("item_id")])
        encoded = encoder.fit_transform(table)
        train, test = TimeSplitter(time_threshold=0.2, query_column="query_id").split(encoded)
        data = Dataset(feature_schema=SCHEMA, interactions=train, categorical_encoded=True)
        print(f"{name}: {len(train)} interactions to learn from and {len(test)} newer ones, {data.query_count} queries, "
              f"{data.item_count} items, ratings {train['rating'].min():.3f} to {train['rating'].max():.3f}, times "
              f"{train['timestamp'].dtype}")  # fmt: skip


if __name__ == "__main__":
    main()
