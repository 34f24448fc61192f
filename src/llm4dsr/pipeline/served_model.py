"""Open what is served or applied to a file: a saved denoiser, or that of a run."""

from __future__ import annotations

from pathlib import Path

from llm4dsr import columns as c
from llm4dsr.core.device import use_threads
from llm4dsr.denoise.storage import CARD
from llm4dsr.denoiser import Denoiser
from llm4dsr.errors import ModelError
from llm4dsr.pipeline.run_folder import CONFIG
from llm4dsr.pipeline.stages import Run


def open_model(folder: str | Path, threads: int | None = None) -> Denoiser:
    """Load a denoiser.

    Parameters
    ----------
    folder : str or Path
        A folder that `Denoiser.save_pretrained` wrote, or a run folder. Of a run: its model, which then knows all
        windows of the run, and the map to probabilities of the newest ones, as reviewed labels have narrowed it.
    threads : int, optional
        CPU threads that compute; 0: one for each core. Default: as configured.

    Returns
    -------
    Denoiser

    Raises
    ------
    ModelError
        If the folder holds neither, or a damaged model.
    OutputError
        If a stage of the run is missing or damaged.
    """
    folder = Path(folder)
    if (folder / CARD).is_file():
        denoiser = Denoiser.from_pretrained(folder)
    elif (folder / CONFIG).is_file():
        denoiser = _of_run(Run(folder))
    else:
        raise ModelError(
            f"{folder} holds neither {CARD} nor {CONFIG}. Give a folder written by save_pretrained, or a run folder."
        )
    use_threads(denoiser.config.threads if threads is None else threads)
    return denoiser


def _of_run(run: Run) -> Denoiser:
    run.need("prepare", "train")
    denoiser = Denoiser.from_pretrained(run.verified("train"))
    if run.done("score"):
        denoiser.calibrator = run.maps()[c.TEST]
    splits = run.data().splits
    for name in (c.VALID, c.TEST):  # those of training are counted already
        denoiser.update_counts(splits[name])
    return denoiser
