"""Read the exports with RePlay: `Dataset` with its schema, and sequences for its neural models.

python benchmarks/outside/check_replay.py X
"""

import sys
from importlib import metadata
from pathlib import Path

import pandas as pd
from replay.data import Dataset, FeatureHint, FeatureInfo, FeatureSchema, FeatureSource, FeatureType
from replay.data.nn import SequenceTokenizer, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.preprocessing import LabelEncoder, LabelEncodingRule
from replay.splitters import TimeSplitter

SCHEMA = FeatureSchema([
    FeatureInfo("query_id", FeatureType.CATEGORICAL, FeatureHint.QUERY_ID),
    FeatureInfo("item_id", FeatureType.CATEGORICAL, FeatureHint.ITEM_ID),
    FeatureInfo("rating", FeatureType.NUMERICAL, FeatureHint.RATING),
    FeatureInfo("timestamp", FeatureType.NUMERICAL, FeatureHint.TIMESTAMP),
])  # fmt: skip

TENSORS = TensorSchema([
    TensorFeatureInfo("item_id", FeatureType.CATEGORICAL, is_seq=True, feature_hint=FeatureHint.ITEM_ID,
                      feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")]),
])  # fmt: skip


def main() -> None:
    """Encode, split by time and build the data set, and print what was read."""
    print("replay-rec", metadata.version("replay-rec"))
    for name in ("drop", "soft"):
        table = pd.read_parquet(Path(sys.argv[1]) / name / "replay" / "interactions.parquet").drop(columns="split")
        train, newer = TimeSplitter(time_threshold=0.2, query_column="query_id").split(table)
        encoder = LabelEncoder([LabelEncodingRule("query_id"), LabelEncodingRule("item_id")])
        data = Dataset(feature_schema=SCHEMA, interactions=encoder.fit_transform(train), categorical_encoded=True)
        sequences = SequenceTokenizer(TENSORS, allow_collect_to_master=True).fit_transform(data)
        longest = sequences.get_max_sequence_length()
        print(f"{name}: {len(train)} interactions to learn from and {len(newer)} newer ones, "
              f"{data.query_count} queries, {data.item_count} items, {len(sequences)} sequences of up to {longest}, "
              f"ratings {train['rating'].min():.3f} to {train['rating'].max():.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
