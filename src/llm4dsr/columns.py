"""Names of columns, files and splits. Every stage reads and writes tables with these names.

docs/reference/tables.md lists the tables.
"""

from typing import Final

# Interactions, items and windows
USER: Final = "user_id"
ITEM: Final = "item_id"
TIME: Final = "timestamp"
TITLE: Final = "title"
CANONICAL: Final = "canonical_id"  # first item with the same title
RATING: Final = "rating"  # float; optional
CATEGORY: Final = "category"  # of an item; optional
WINDOW: Final = "window_id"
ROW: Final = "row"  # of a file of histories, from 0
ITEMS: Final = "item_ids"  # list, oldest first; the last one is the target
CLEAN_ITEMS: Final = "clean_item_ids"  # list: what stood there before noise was injected; for measuring only
CLEAN_ITEM: Final = "clean_item_id"  # the same in an interaction log, one per row; null: inserted
NOISE_MASK: Final = "noise_mask"  # list of 0/1, known truth, for measuring only
WEIGHTS: Final = "weights"  # list of float in [0, 1], written by the "downweight" correction

# Scores, decisions, suggestions, edits
POSITION: Final = "position"  # 0-based, oldest = 0
LOG_ODDS: Final = "log_odds"  # uncalibrated; higher = more likely noise
NOISE_PROBABILITY: Final = "noise_probability"  # calibrated, in [0, 1]; higher = more likely noise
PROBABILITY_LOW: Final = "noise_probability_low"  # at the lowest noise rate that is possible
PROBABILITY_HIGH: Final = "noise_probability_high"  # at the highest
PROBABILITIES: Final = (NOISE_PROBABILITY, PROBABILITY_LOW, PROBABILITY_HIGH)
SPLIT: Final = "split"  # in a table of labels: train | valid | test
IS_NOISE: Final = "is_noise"  # a label, 0 or 1
REPLACEMENT: Final = "replacement_item_id"  # of a reviewed interaction: what belongs there; optional
RANK: Final = "rank"  # 1 = the most suspicious interaction of its window
COVER: Final = "windows"  # overlapping windows that hold the interaction, where scores were merged
SUGGESTED: Final = "suggested_item_id"
SUGGESTED_TITLE: Final = "suggested_title"
GENERATED: Final = "generated_text"  # text that the model wrote; null if none
GROUNDING: Final = "grounding"  # one of GROUNDINGS
SUGGESTION_PROBABILITY: Final = "suggestion_probability"  # that exactly this item belongs there; NaN for text
DISTANCE: Final = "distance"  # to the grounded item; 0 for a constrained or exact match
KEPT: Final = "kept_item_id"  # item in the corrected history; null = dropped
ACTION: Final = "action"  # replace | drop | downweight | keep

# Explanations: one row for each other item of the history
OTHER_POSITION: Final = "other_position"
OTHER_ITEM: Final = "other_item_id"
OTHER_TITLE: Final = "other_title"
PROBABILITY_WITHOUT: Final = "noise_probability_without"  # of the interaction, had the other item not been there
LOG_ODDS_CHANGE: Final = "log_odds_change"  # > 0: the other item makes it look like noise
PAIR_USERS: Final = "pair_users"  # other users who have both items
ITEM_USERS: Final = "item_users"  # other users who have the item
OTHER_USERS: Final = "other_item_users"  # other users who have the other item
TITLE_SIMILARITY: Final = "title_similarity"  # cosine of the words of both titles, 0 to 1

REVIEWED: Final = "reviewed"  # a suggestion that a reviewer chose
GROUNDINGS: Final = ("constrained", "exact", "nearest_embedding", "nearest_vector", REVIEWED, "none")
KEEP: Final = "keep"  # the action that changes nothing
ACTIONS: Final = ("replace", "drop", "mixed", "downweight")
WITH_SUGGESTIONS: Final = ("replace", "mixed")  # actions that need suggestions

TRAIN: Final = "train"
VALID: Final = "valid"
TEST: Final = "test"
SPLITS: Final = (TRAIN, VALID, TEST)

# Files of a data folder
ITEMS_FILE: Final = "items"
LOG_FILE: Final = "interactions"
