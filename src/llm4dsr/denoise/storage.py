"""Save a denoiser to a folder, and load it. No pickle; docs/reference/tables.md lists the files."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl
from transformers.utils import logging as transformers_logging

from llm4dsr.config import Config
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import new_folder, sync_folder, write_parquet
from llm4dsr.core.manifest import MANIFEST, DamageError, read_manifest, write_manifest
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.denoise.ensemble import Ensemble
from llm4dsr.denoise.model_card import NAME as README
from llm4dsr.denoise.model_card import model_card
from llm4dsr.denoise.saved_checks import as_damaged, check_parts, check_table
from llm4dsr.denoise.stacking import Stacker
from llm4dsr.errors import ModelError, OutputError
from llm4dsr.features.cooccurrence import CooccurrenceCounts
from llm4dsr.features.title_vectors import TitleEncoder
from llm4dsr.lm.load import check_files
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prompt import PromptBuilder

FORMAT = 10  # of a saved denoiser; other formats are refused
NEWER, TRAINING = "newer", "training"  # windows that a stacker is for
CARD, ITEMS, USERS = "denoiser.json", "items.parquet", "users.parquet"
SAVED, FORMER = ".saved", ".former"  # folders of a new and a former denoiser while they change places
PARTS = re.compile(  # what a former denoiser may have that the new one has not; other files are the user's own
    r"(cooccurrence_(pairs|items|own)|title_terms)\.parquet|(collaborative|title_encoder|projector)\.safetensors"
    rf"|stacking_({NEWER}|{TRAINING})\.safetensors|lm|fold_\d+"
)


def save_denoiser(folder: Path, ensemble: Ensemble, facts: dict[str, Any]) -> None:
    """Write models, catalogue, counts, a card with configuration, versions and `facts`, and a README.md for people.

    A denoiser that is in the folder already is replaced once the new one is complete; on any error it stays. So do
    other files. The README.md may be edited afterwards; all other files are checked before they are used.
    """
    saved = folder / SAVED
    shutil.rmtree(saved, ignore_errors=True)  # of a process that was killed
    try:
        with new_folder(saved) as part:
            _write(part, ensemble, facts)
        _replace(folder, saved)
    finally:
        shutil.rmtree(saved, ignore_errors=True)


def _write(folder: Path, ensemble: Ensemble, facts: dict[str, Any]) -> None:
    with _no_bars():
        for model, place in zip(ensemble.models, _model_folders(folder, ensemble.config), strict=True):
            model.save(place)
    write_parquet(ensemble.catalogue.to_frame(), folder / ITEMS)
    write_parquet(pl.DataFrame({"hash": ensemble.seen}), folder / USERS)
    if ensemble.counts is not None:
        ensemble.counts.save(folder)
    if ensemble.encoder is not None:
        ensemble.encoder.save(folder)
    for name, stacker in ((NEWER, ensemble.stacker_newer), (TRAINING, ensemble.stacker_training)):
        if stacker is not None:
            stacker.save(folder, name)
    card = {
        "format": FORMAT,
        "prompt_hash": ensemble.builder.hash,
        **facts,
        "config": ensemble.config.to_dict(),
        "versions": versions(),
    }
    (folder / CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")
    write_manifest(folder)
    (folder / README).write_text(model_card(ensemble, facts), encoding="utf-8")


def _replace(folder: Path, saved: Path) -> None:
    """Move what is saved into the folder, and what a former denoiser had there out of it; on any error, all back."""
    new, has_former = sorted(saved.iterdir(), key=_order), (folder / CARD).is_file()
    names = {path.name for path in new}
    old = [p for p in folder.iterdir() if p.name in names or (has_former and PARTS.fullmatch(p.name))]
    if not has_former and (own := [path for path in old if path.is_dir()]):
        raise OutputError(f"{folder} is no saved denoiser, but has a folder {own[0].name!r}. Choose another folder.")
    former = folder / FORMER
    shutil.rmtree(former, ignore_errors=True)
    former.mkdir()
    try:
        with ExitStack() as back:
            moves = [(path, former) for path in sorted(old, key=_order, reverse=True)]
            for path, place in [*moves, *((path, folder) for path in new)]:
                os.replace(path, place / path.name)
                back.callback(os.replace, place / path.name, path)
            sync_folder(folder)
            back.pop_all()
        shutil.rmtree(former)
    finally:
        with suppress(OSError):  # it is gone, or holds what could not be moved back
            former.rmdir()


def _order(path: Path) -> int:
    """The card is there first and the manifest last, so that nothing between is taken for a whole denoiser."""
    return (path.name == MANIFEST) - (path.name == CARD)


def load_denoiser(folder: Path) -> tuple[Ensemble, dict[str, Any]]:
    """Read what `save_denoiser` wrote.

    Returns
    -------
    ensemble : Ensemble
    card : dict
        The card, with the facts.

    Raises
    ------
    ModelError
        If the folder holds no denoiser, a damaged one, one of another format, or one that was tuned with another
        prompt.
    """
    card, config = _read_card(folder)
    with as_damaged(folder):
        for table in folder.glob("*.parquet"):
            check_table(table)
        seen = pl.read_parquet(folder / USERS, glob=False)["hash"].to_numpy()
        catalogue = Catalogue.from_frame(pl.read_parquet(folder / ITEMS, glob=False))
    with _no_bars():
        models = [NoiseLM.load(place, config.model).eval() for place in _model_folders(folder, config)]
    soft = config.model.item_input == "soft_token"
    with as_damaged(folder):
        counts = CooccurrenceCounts.load(folder) if soft and config.model.cooccurrence else None
        encoder = TitleEncoder.load(folder, config.model.title_vectors) if soft else None
    builder = PromptBuilder(models[0].tokenizer, catalogue.titles, config.model, config.train.max_tokens, counts)
    if builder.hash != card["prompt_hash"]:
        raise ModelError(f"{folder} was tuned with another prompt ({card['prompt_hash']}). Tune the model again.")
    with as_damaged(folder):
        stackers = Stacker.load(folder, NEWER), Stacker.load(folder, TRAINING)
        ensemble = Ensemble(models, builder, catalogue, config, seen, *stackers, encoder)
        check_parts(folder, ensemble, card)
    return ensemble, card


def saved_config(folder: Path) -> Config:
    """Read the options of a saved denoiser; errors as in `load_denoiser`."""
    return _read_card(folder)[1]


def _read_card(folder: Path) -> tuple[dict[str, Any], Config]:
    """(the card, the options) of a folder whose format and files were checked."""
    if not (folder / CARD).is_file():
        raise ModelError(f"{folder} holds no {CARD}: not a saved denoiser. Give a folder written by save_pretrained.")
    for place in sorted({folder, *(path.parent for path in folder.glob("[!.]*/**/*.json"))}):
        check_files(place)
    with suppress(ValueError, AttributeError, RecursionError):  # damage is reported below
        if (found := json.loads((folder / CARD).read_bytes()).get("format")) != FORMAT:
            raise ModelError(f"{folder} has format {found}; this version reads {FORMAT}. Tune the model again.")
    try:
        read_manifest(folder)
    except DamageError as error:
        raise ModelError(f"{error}. Restore the folder from a copy, or tune the model again.") from None
    with as_damaged(folder):
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        return card, Config.from_dict(card["config"], str(folder / CARD))


def _model_folders(folder: Path, config: Config) -> list[Path]:
    folds = config.train.folds
    return [folder] if folds == 1 else [folder / f"fold_{k}" for k in range(folds)]


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the progress bars of transformers, of which each fold would show one."""
    before = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            transformers_logging.enable_progress_bar()
