"""What a denoiser tells: score, decide, suggest, explain, correct. Each answers one question and returns a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from llm4dsr import columns as c
from llm4dsr.charts import Chart
from llm4dsr.core.cache import PartCache
from llm4dsr.core.progress import Progress, log
from llm4dsr.core.progress_bar import shown
from llm4dsr.data.histories import Histories
from llm4dsr.data.overlap import merge_scores
from llm4dsr.data.read import as_windows
from llm4dsr.data.windows import Windows
from llm4dsr.denoise import correct as correcting
from llm4dsr.denoise import decide as deciding
from llm4dsr.denoise.calibrate import Calibrator
from llm4dsr.denoise.explain import explain_prequentially
from llm4dsr.denoise.score_in_time import score_prequentially
from llm4dsr.denoise.suggest_in_time import suggest_prequentially
from llm4dsr.denoise.tables import SCORED, SUGGESTED, flagged_rows, given_table, score_table
from llm4dsr.denoiser import display
from llm4dsr.denoiser.fitting import Fitting


class Denoiser(Fitting):
    """Find interactions that do not belong in a history, and suggest better items.

    Once fitted, a denoiser may be used by several threads, and by processes that joblib starts. Histories
    may be `Windows`, a table with `user_id, window_id, item_ids`, or lists of item ids, oldest first.

    Parameters
    ----------
    config : Config, optional
        All options. Default: the embedded model.
    items : Catalogue or table, optional
        All items, with `item_id` and `title`, for a `Pipeline`. Otherwise give them to `fit`.

    Attributes
    ----------
    calibrator : Calibrator
        The map from log-odds to probabilities.
    ranking_weights : RankingWeights
        How suggestions are ranked, for soft tokens.
    curve : list of float
        Mean tuning loss of each epoch, fold after fold.
    learned_from : dict of str to int
        How many histories and interactions were learned from, and how many validation histories. Parts of long ones
        count each. `labels`, if any were given.
    width : int
        Items of the longest training window. Longer histories are scored in overlapping parts.

    References
    ----------
    LLM4DSR, arXiv 2408.08208, section 4.
    """

    def score(
        self,
        histories: Any,
        progress: Progress | bool | None = None,
        has_target: bool = False,
        recalibrate: bool = False,
        work: Path | None = None,
    ) -> pl.DataFrame:
        """Score how likely each interaction is noise.

        With `train.folds` > 1, users in training are scored out of fold. With one fold, their scores are in sample, and
        too low where the model memorized their noise. The denoiser itself is not changed.

        Parameters
        ----------
        histories : Windows, table or list
            Histories of any length. Those longer than the training windows are scored in overlapping parts, and their
            scores averaged.
        progress : Progress or bool, optional
            True: show bars. A callback gets (windows done, all windows, what is being done).
        has_target : bool, default False
            The last item of each history is an evaluation target: it is not scored. Such histories are scored in order
            of time, and counted once they are scored. Those without a timestamp come first, and are not counted.
        recalibrate : bool, default False
            Fit the map to probabilities on noise injected into these histories, since tastes and catalogues change.
            Takes several times as long; ignored below 1,000 histories.
        work : Path, optional
            Folder of finished parts; the same call resumes from it.

        Returns
        -------
        DataFrame
            One row per interaction: `window_id`; `position`, 0 = oldest; `item_id`; `log_odds`; `noise_probability` in
            [0, 1], higher = more likely noise, between `noise_probability_low` and `noise_probability_high`; `rank` in
            the window, 1 = most suspicious. A history of one item has the log-odds NaN and the estimated noise rate as
            its probability.
        """
        return self.score_and_map(histories, progress, has_target, recalibrate, work)[0]

    def score_and_map(
        self,
        histories: Any,
        progress: Progress | bool | None = None,
        has_target: bool = False,
        recalibrate: bool = False,
        work: Path | None = None,
        earlier: Windows | None = None,
        keep: Path | None = None,
    ) -> tuple[pl.DataFrame, Calibrator]:
        """Return the table of `score`, and the map used; `earlier` windows are counted as time goes on.

        A folder `keep`, given to `suggest` as `work`, gets what spares it a second pass of the embedded model.
        """
        windows, parts, origin = self.in_parts(histories, has_target)
        with shown(progress) as report:
            log_odds, calibrator = score_prequentially(
                self.ensemble, self.calibrator, windows, parts, origin, has_target, recalibrate, report,
                PartCache(work), self.width, earlier, PartCache(keep) if keep else None,
            )  # fmt: skip
        scores = score_table(parts, log_odds, calibrator, self.catalogue)
        return merge_scores(scores, origin).drop(c.COVER) if origin else scores, calibrator

    def decide(
        self,
        scores: Any,
        policy: str | None = None,
        eta: float | None = None,
        cap: int | None = None,
        is_train: bool = True,
    ) -> pl.DataFrame:
        """Decide which interactions count as noise. No model is asked, so η can be moved freely.

        Parameters
        ----------
        scores : table
            As `score` returns them; of Polars, pandas or Arrow, like all tables that are given.
        policy : {"percentile", "probability", "precision", "rate"}, optional
            How η is read; see `denoise.decide.decide`. Default: `config.decide`.
        eta : float, optional
            The threshold η, in [0, 1].
        cap : int, optional
            Most flagged interactions in a window.
        is_train : bool, default True
            False takes the configured η and cap of evaluation histories.

        Returns
        -------
        DataFrame
            The flagged rows of `scores`.

        Raises
        ------
        ConfigError
            If the policy is unknown or needs a recommender, or η is out of range.
        DataError
            If `scores` lacks a column, or a window id or position is no whole number.
        """
        policy, eta, cap = deciding.rule(self.config.decide, policy, eta, cap, is_train)
        return flagged_rows(given_table(scores, "The scores", c.LOG_ODDS, c.NOISE_PROBABILITY), policy, eta, cap)

    def suggest(
        self,
        histories: Any,
        decisions: Any,
        progress: Progress | bool | None = None,
        has_target: bool = False,
        work: Path | None = None,
        earlier: Windows | None = None,
    ) -> pl.DataFrame:
        """Suggest a replacement for each flagged interaction.

        Parameters
        ----------
        histories : Windows, table or list
            The scored histories.
        decisions : table
            The flagged interactions, as `decide` returns them.
        progress, has_target, work, earlier
            As in `score` and `score_and_map`.

        Returns
        -------
        DataFrame
            One row per flagged interaction: `window_id`, `position`; `suggested_item_id` and `suggested_title`, never
            an item of the history nor one item twice in it, null if none is left; `generated_text`; `grounding`, how
            the item was found; `distance` to it, 0 = exact; `suggestion_probability`.

        Raises
        ------
        DataError
            If `decisions` names a window or position that is not among the histories.
        """
        windows, parts, origin = self.in_parts(histories, has_target)
        decisions, ensemble = given_table(decisions, "The decisions"), self.ensemble.configured(self.config)
        with shown(progress) as report:
            return suggest_prequentially(
                ensemble, self.ranking_weights, windows, parts, origin, decisions, has_target, report,
                PartCache(work), self.width, earlier,
            )  # fmt: skip

    def explain(
        self,
        histories: Any,
        chosen: Any,
        progress: Progress | bool | None = None,
        has_target: bool = False,
        calibrator: Calibrator | None = None,
        earlier: Windows | None = None,
    ) -> pl.DataFrame:
        """Explain scores: how each would change without each other item, and what both items have in common.

        Parameters
        ----------
        histories : Windows, table or list
            The scored histories.
        chosen : table
            The interactions to explain, by `window_id` and `position`, such as the flagged ones.
        progress, has_target, earlier
            As in `score` and `score_and_map`.
        calibrator : Calibrator, optional
            Default: that of `fit`.

        Returns
        -------
        DataFrame
            One row per chosen interaction and other item of its history: `other_position, other_item_id, other_title`;
            `noise_probability`, and `noise_probability_without` the other item; `log_odds_change`, above 0 if the other
            item makes it look like noise; `pair_users, item_users, other_item_users`, other users who have both items,
            the item, and the other item; `title_similarity`, 0 to 1.
        """
        windows, parts, origin = self.in_parts(histories, has_target)
        chosen = given_table(chosen, "The chosen interactions")
        with shown(progress) as report:
            return explain_prequentially(
                self.ensemble, calibrator or self.calibrator, windows, parts, origin, chosen, has_target, report,
                self.width, earlier,
            )  # fmt: skip

    def correct(
        self,
        histories: Any,
        decisions: Any = None,
        suggestions: Any = None,
        action: str | None = None,
        has_target: bool = False,
        progress: Progress | bool | None = None,
    ) -> correcting.Corrected:
        """Correct histories; scores, decides and suggests first where that was not done.

        Parameters
        ----------
        histories : Windows, table or list
            The histories.
        decisions, suggestions : table, optional
            As `decide` and `suggest` return them.
        action : {"replace", "drop", "mixed", "downweight"}, optional
            Default: `config.correct.action`.
        has_target : bool, default False
            The last item of each history is an evaluation target: it is neither scored nor changed.
        progress : Progress or bool, optional
            As in `score`.

        Returns
        -------
        Corrected
            `windows`, the corrected histories, and `edits`, one row per flagged interaction. A notebook shows the
            histories with their edits.

        Raises
        ------
        DataError
            If a table lacks a column, names an interaction that is not among the histories, or has two suggestions for
            one.
        """
        windows = as_windows(histories, self.catalogue)
        action = action or self.config.correct.action
        if decisions is None:
            decisions = self.decide(self.score(windows, progress, has_target), is_train=not has_target)
        decisions = given_table(decisions, "The decisions", c.NOISE_PROBABILITY)
        if suggestions is None and action in c.WITH_SUGGESTIONS:
            suggestions = self.suggest(windows, decisions, progress, has_target)
        elif suggestions is not None:
            suggestions = given_table(suggestions, "The suggestions", *SUGGESTED)
        return correcting.apply(windows, decisions, suggestions, self.catalogue, action, has_target)

    def plot(
        self,
        scores: Any,
        histories: Any,
        kind: str = "history",
        window_id: int | None = None,
        is_train: bool = True,
    ) -> Chart:
        """Draw scores. A notebook shows the chart; `save` writes it to an .svg or .png file.

        Parameters
        ----------
        scores : table
            As `score` returns them.
        histories : Windows, table or list
            The scored histories.
        kind : {"history", "precision", "precision_recall", "reliability"}
            The noise probabilities of one history with their intervals; the stated precision at each rate of flags; or,
            where the noise is known, precision against recall, or how often stated probabilities come true.
        window_id : int, optional
            The history that is drawn. Default: that with the most suspicious interaction.
        is_train : bool, default True
            As in `decide`, whose configured rule marks the flagged interactions.

        Returns
        -------
        Chart

        Raises
        ------
        ConfigError
            If the kind is unknown.
        DataError
            If the noise of the histories is not known but needed, or the window is not among the scores.
        """
        rule = deciding.rule(self.config.decide, None, None, None, is_train)
        table = given_table(scores, "The scores", *SCORED)
        return display.plot(table, as_windows(histories, self.catalogue), self.catalogue, rule, kind, window_id)

    def transform(
        self,
        histories: Any,
        policy: str | None = None,
        eta: float | None = None,
        cap: int | None = None,
        action: str | None = None,
    ) -> Any:
        """Correct histories with what was learned by `fit`; nothing is learned, and no history has a target.

        Parameters
        ----------
        histories : list, table or Windows
            Lists of item ids, oldest first; a table with a list `item_ids` in each row, and optionally `user_id`; or a
            long table with `user_id, item_id` in each row, and optionally `timestamp`. Tables are of pandas, Polars or
            Arrow. Items that `fit` did not know, and histories of a single item, stay as they are.
        policy, eta, cap
            As in `decide`, for evaluation histories. Policies other than "probability" compare the histories that are
            given together, so their flags depend on the batch.
        action
            As in `correct`.

        Returns
        -------
        list, table or Windows
            The same form, columns, index and order. "drop" removes items, and rows of a long table; at least one item
            of a history stays. "replace" changes `item_ids` or `item_id`; "downweight" adds `weights` or `weight`, in
            [0, 1].

        Raises
        ------
        DataError
            If the histories cannot be used.
        ConfigError
            If the policy or action is unknown, or lists should get weights.
        """
        return self._transformed(histories, policy, eta, cap, action, is_train=False)

    def fit_transform(self, X: Any, y: Any = None, *, items: Any = None, valid: Any = None, **how: Any) -> Any:
        """Learn from histories, and return them corrected; with `train.folds` > 1 each is scored out of fold.

        Parameters
        ----------
        X : list, table or Windows
            Training histories, as in `transform`.
        y : None
            Ignored; scikit-learn passes it.
        items, valid
            As in `fit`.
        **how
            `policy`, `eta`, `cap` and `action`, as in `transform`; the policy is that of training histories.
        """
        self.fit(X, items, valid)
        return self._transformed(X, **{"policy": None, "eta": None, "cap": None, "action": None, **how}, is_train=True)

    def _transformed(
        self, given: Any, policy: str | None, eta: float | None, cap: int | None, action: str | None, is_train: bool
    ) -> Any:
        found = None if isinstance(given, Windows) else Histories.of(given, self.catalogue)
        if found is not None and found.unknown:
            log.warning("%d interaction(s) are of items that the denoiser does not know. They are kept.", found.unknown)
        windows = given if found is None else found.windows
        action = action or self.config.correct.action
        decisions = self.decide(self.score(windows), policy, eta, cap, is_train)
        suggestions = self.suggest(windows, decisions) if action in c.WITH_SUGGESTIONS else None
        result = correcting.apply(
            windows, decisions, suggestions, self.catalogue, action, has_target=False, min_items=0
        )
        return result.windows if found is None else found.corrected(result.edits, action)
