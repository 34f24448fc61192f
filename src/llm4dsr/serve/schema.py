"""What the service takes and answers, as pydantic models. OpenAPI is made from them."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

MAX_HISTORIES: Final = 256  # of a request
MAX_LENGTH: Final = 1_000  # items of a history
MAX_INTERACTIONS: Final = 20_000  # of a request, so that it takes seconds
MAX_NEW_ITEMS: Final = 256  # that a request brings
MAX_EXPLAINED: Final = 64  # flags of a request


def _utf8(text: str) -> str:
    """Refuse halves of surrogate pairs: JSON can name them, but no answer can hold them."""
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ValueError("half of a surrogate pair; expected text that UTF-8 can hold")
    return text


Text = Annotated[StrictStr, AfterValidator(_utf8)]
Id = StrictInt | Text
Probability = Annotated[float, Field(ge=0, le=1)]

REQUEST: Final[dict[str, Any]] = {
    "histories": [{"user_id": "ann", "item_ids": [1389, 1016, 1629, 1557, 1421, 1674, 1340, 1128, 1081]}],
    "policy": "probability",
    "eta": 0.5,
    "action": "drop",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class History(_Strict):
    """The items of one user, oldest first."""

    item_ids: list[Id] = Field(max_length=MAX_LENGTH, description="Ids of the items table, oldest first.")
    user_id: Id | None = Field(
        None,
        description="Id of the user. What the model knows from this very user is then left out of the score. Without "
        "it, the history counts as that of a new user.",
    )
    timestamps: list[StrictInt] | None = Field(
        None, description="One for each item, never decreasing. The corrected history has those of its items."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (times := self.timestamps) is None:
            return self
        if len(times) != len(self.item_ids):
            raise ValueError(f"{len(times)} timestamps for {len(self.item_ids)} items; expected one for each")
        if any(later < earlier for earlier, later in pairwise(times)):
            raise ValueError("timestamps decrease; expected the oldest item first")
        return self


class NewItem(_Strict):
    """An item that the model's catalogue does not have."""

    item_id: Id
    title: Text = Field(min_length=1, max_length=2_000)


class Request(_Strict):
    """Histories to denoise."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, json_schema_extra={"examples": [REQUEST]})

    histories: list[History] = Field(min_length=1, max_length=MAX_HISTORIES)
    items: list[NewItem] = Field(
        default_factory=list,
        max_length=MAX_NEW_ITEMS,
        description="Items that are known by their title, for this request alone. Items of the catalogue keep theirs.",
    )
    policy: Literal["percentile", "probability", "precision", "rate"] | None = Field(
        None,
        description="How η is read. All but probability look at all histories of the request. Default: as configured.",
    )
    eta: Probability | None = Field(None, description="The threshold η. Needed with a policy.")
    cap: Annotated[StrictInt, Field(ge=0, lt=2**31)] | None = Field(
        None, description="Most flagged interactions in a history. Default: as configured."
    )
    action: Literal["replace", "drop", "mixed", "downweight"] | None = Field(
        None, description="What is done to flagged interactions. Default: as configured."
    )
    explain: StrictBool = Field(
        False,
        description=f"Explain the {MAX_EXPLAINED} most suspicious flagged interactions. Takes several times as long.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.policy is not None and self.eta is None:
            raise ValueError(f"the policy {self.policy!r} comes without eta; give both")
        if (size := sum(len(history.item_ids) for history in self.histories)) > MAX_INTERACTIONS:
            raise ValueError(f"{size:,} interactions; expected at most {MAX_INTERACTIONS:,} in a request")
        return self


class Score(BaseModel):
    """How likely one interaction is noise."""

    item_id: Id
    log_odds: float | None = Field(description="Before calibration. Null in a history of one item.")
    noise_probability: Probability | None
    noise_probability_low: Probability | None = Field(description="At the lowest noise rate that is possible.")
    noise_probability_high: Probability | None = Field(description="At the highest.")
    rank: int = Field(description="1 = the most suspicious interaction of its history.")


class Without(BaseModel):
    """How the score would be without one other item of the history."""

    title: str
    p: Probability | None = Field(description="Noise probability without this item.")
    change: float | None = Field(
        description="Log-odds that this item adds. Above 0: it makes the other look like noise."
    )
    users: int | None = Field(description="Other users who have both items.")


class Explanation(BaseModel):
    """Why an interaction looks like noise, as on the pages of report and review."""

    users: int | None = Field(description="Other users who have the item.")
    together: int | None = Field(description="Other items of the history that some other user has together with it.")
    others: int = Field(description="Other items of the history that were looked at.")
    alike: str = Field(description="The other item with the most similar title.")
    similarity: float | None = Field(description="Similarity of the titles, 0 to 1.")
    without: list[Without] = Field(description="Items without which the score changes most.")


class Edit(BaseModel):
    """A flagged interaction, and what was done to it."""

    position: int = Field(description="In the history that was sent, 0 = oldest.")
    item_id: Id
    title: str
    noise_probability: Probability | None
    action: Literal["replace", "drop", "downweight", "keep"]
    suggested_item_id: Id | None = Field(description="The better item. Null without one, and with drop and downweight.")
    suggested_title: str | None
    suggestion_probability: Probability | None = Field(description="That exactly this item belongs there.")
    kept_item_id: Id | None = Field(description="Item in the corrected history. Null: dropped.")
    explanation: Explanation | None


class Corrected(BaseModel):
    """The corrected history."""

    item_ids: list[Id]
    timestamps: list[int] | None
    weights: list[Probability] | None = Field(
        description="With downweight: 1 - noise probability where flagged, else 1."
    )


class HistoryError(BaseModel):
    """Why one history was not answered. The others of the request are."""

    code: Literal["unknown_items"]
    message: str
    item_ids: list[Id] = Field(description="At most ten of the unknown items.")


class HistoryAnswer(BaseModel):
    """The answer for one history."""

    user_id: Id | None
    scores: list[Score] | None = Field(description="One for each item of the history, in its order.")
    edits: list[Edit] | None = Field(description="One for each flagged interaction, by position.")
    corrected: Corrected | None
    error: HistoryError | None = Field(description="If there is one, the other fields but user_id are null.")


class Answer(BaseModel):
    """One answer for each history, in their order."""

    histories: list[HistoryAnswer]


class Reason(BaseModel):
    """What went wrong, and what to do."""

    code: str
    message: str


class Problem(BaseModel):
    """A request that was not answered."""

    error: Reason


class State(BaseModel):
    """Whether the service lives, or takes work."""

    status: Literal["ok", "ready", "shutting down", "failed"]
