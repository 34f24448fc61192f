"""The benchmark: cells that are kept, rows that differ in their data alone, and tables that can be checked by hand."""

import json
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from llm4dsr.bench import tables
from llm4dsr.bench.cells import DETECTION, RESULTS, bench, read_results, write_results
from llm4dsr.bench.datasets import BenchDataset, load_dataset
from llm4dsr.bench.denoised import BASELINE_RATE, denoised, names, usual
from llm4dsr.bench.ours import FIXED, HIGH_RATE, HISTORIES_ALONE, OURS, OurRun, our_run, run_name
from llm4dsr.bench.studies.study import smaller
from llm4dsr.config import Config, NeighborhoodConfig
from llm4dsr.core.manifest import write_manifest
from llm4dsr.core.memory import peak_memory_mb
from llm4dsr.data.dataset import Dataset
from llm4dsr.errors import ConfigError, DataError, OutputError
from llm4dsr.pipeline import Run

DATASET = load_dataset("demo", tiny=True)
COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results" / "bench"
CONFIG = smaller(Config())
SIX = ["none", "llm4dsr (replace 10 %)", "llm4dsr (drop 10 %)", "random", "tfidf", "oracle (restore)"]
SEEDS = 2  # of our denoiser


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    bench(DATASET, folder, ["sasrec"], SIX, CONFIG, denoiser_seeds=SEEDS)
    return folder


def results(out) -> pl.DataFrame:
    return pl.read_parquet(out / DATASET.name / RESULTS)


def test_there_is_a_cell_for_each_denoiser_and_seed(out):
    found = results(out)
    counts = dict(found.group_by("denoiser").len().iter_rows())
    assert counts == {name: 2 * SEEDS if name in OURS else 2 for name in SIX}
    ours = found.filter(pl.col("denoiser") == "llm4dsr (drop 10 %)").sort("denoiser_seed", "seed")
    assert ours.select("denoiser_seed", "seed").rows() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert ours["ranks"].to_list()[0] != ours["ranks"].to_list()[2]  # another run of the denoiser
    assert found.filter(pl.col("denoiser") == "none")["denoiser_seed"].is_null().all()
    assert found["coverage"].is_between(0, 1).all()
    assert found["ranks"].list.len().unique().to_list() == [len(DATASET.data.splits["test"])]
    assert found["ranks"].explode().is_between(1, len(DATASET.data.catalogue)).all()


def test_finished_cells_are_not_trained_again_and_others_stay(out):
    before = results(out)
    again = bench(DATASET, out, ["sasrec"], ["none", "popularity"], CONFIG)
    kept = again.filter(pl.col("denoiser") == "none").sort("seed")
    # the seconds that training took are part of a cell: equal to the last digit only where it was not trained again
    assert kept["seconds"].to_list() == before.filter(pl.col("denoiser") == "none").sort("seed")["seconds"].to_list()
    assert set(results(out)["denoiser"]) == {*SIX, "popularity"}


def test_detection_is_measured_for_each_split(out):
    found = pl.read_parquet(out / DATASET.name / DETECTION).filter(pl.col("denoiser") == "tfidf")
    assert found["split"].to_list() == ["test", "train", "valid"]
    assert found["flagged"].to_list() == pytest.approx([BASELINE_RATE] * 3, abs=0.01)
    assert (found["memory_mb"] > 50).all()
    assert found["auroc"].is_between(0.5, 1).all()  # titles of the demo's series share words


@pytest.mark.parametrize("name", FIXED)
def test_our_rows_at_fixed_correction_rates(out, name):
    action, rate = FIXED[name].action, FIXED[name].rate
    rows, _ = denoised(DATASET, out / DATASET.name, [name], CONFIG)
    before, after = DATASET.data.splits["train"], rows[name, 0]["train"]
    if name in HISTORIES_ALONE:  # the recommender learns from the windows as they were
        assert after is before
        before, after = (splits["test"].histories() for splits in (DATASET.data.splits, rows[name, 0]))
    is_drop = action == "drop"
    left = len(after.items) / len(before.items) if is_drop else (after.items == before.items).mean()
    assert left == pytest.approx(1 - rate, abs=0.01)


def test_the_default_row_is_what_validation_chooses(out):
    """No correction is kept as it is; otherwise action and rate are those of the choice. The choice is made once."""
    run = our_run(DATASET.data, out / DATASET.name / run_name(0), CONFIG, None)
    ours = OurRun(run, DATASET.data, CONFIG, out / DATASET.name / "llm4dsr-suggestions", None)
    rows, detection = denoised(DATASET, out / DATASET.name, ["llm4dsr"], CONFIG)
    choice = ours.choice("denoise")
    best = choice.filter("chosen").row(0, named=True)
    changed = not np.array_equal(rows["llm4dsr", 0]["train"].items, DATASET.data.splits["train"].items)
    assert changed == (best["action"] != "keep")
    assert detection["denoiser_seed"].to_list() == [0, 0, 0]
    before = {path: path.stat().st_mtime_ns for path in ours.work.iterdir()}
    assert ours.choice("denoise").equals(choice)
    assert {path: path.stat().st_mtime_ns for path in ours.work.iterdir()} == before


def test_a_baseline_can_drop_at_a_higher_rate(out):
    rows, detection = denoised(DATASET, out / DATASET.name, ["tfidf", "tfidf (20 %)"], CONFIG)
    few, more = (detection.filter(pl.col("denoiser") == n) for n in ("tfidf", "tfidf (20 %)"))
    assert more["flagged"].to_list() == pytest.approx([HIGH_RATE] * 3, abs=0.01)
    assert more["average_precision"].to_list() == few["average_precision"].to_list()
    assert rows["tfidf (20 %)", None]["train"].lengths.sum() < rows["tfidf", None]["train"].lengths.sum()


def test_flags_of_a_baseline_can_get_our_suggestions(out):
    """As many interactions as it drops, at the same places: what a gain owes to suggestions alone."""
    rows, detection = denoised(DATASET, out / DATASET.name, ["random (20 %)", "random (replace 20 %)"], CONFIG)
    assert detection["denoiser"].unique().to_list() == ["random (20 %)"]
    for name, before in DATASET.data.splits.items():
        dropped, replaced = rows["random (20 %)", None][name], rows["random (replace 20 %)", 0][name]
        assert replaced.lengths.tolist() == before.lengths.tolist()
        at = {int(w): i for i, w in enumerate(dropped.window_ids)}
        changed = 0
        for i, window in enumerate(before.window_ids):
            old, new = np.array(before.row(i)), np.array(replaced.row(i))
            changed += (old != new).sum()
            if int(window) in at:  # a window that lost all but one item is left out
                assert dropped.row(at[int(window)]) == old[old == new].tolist()
        assert changed == pytest.approx(detection.filter(split=name)["flagged"][0] * judged(name))


def judged(split: str) -> int:
    windows = DATASET.data.splits[split]
    return int((windows if split == "train" else windows.histories()).lengths.sum())


def test_every_baseline_is_listed_once_and_rewriting_ones_without_a_rate():
    assert {"tfidf", "steam", "oracle (drop)"} <= set(usual(DATASET)) < set(names(DATASET))
    assert "tfidf (20 %)" in set(names(DATASET)) - set(usual(DATASET))
    assert "tfidf (replace 20 %)" in set(names(DATASET)) - set(usual(DATASET))
    assert not {"steam (20 %)", "steam (replace 20 %)"} & set(names(DATASET))


def test_evaluation_targets_stay_and_truth_is_restored_by_the_oracle(out):
    rows, _ = denoised(DATASET, out / DATASET.name, SIX, CONFIG)
    for splits in rows.values():
        for name in ("valid", "test"):
            assert splits[name].targets().tolist() == DATASET.data.splits[name].targets().tolist()
    train = DATASET.data.splits["train"]
    assert rows["oracle (restore)", None]["train"].items.tolist() == train.clean_items.tolist()


def test_a_control_learns_from_validation_windows_too(tmp_path):
    rows, _ = denoised(DATASET, Path("unused"), ["none (validation learned)"], CONFIG)
    before, control = DATASET.data.splits, rows["none (validation learned)", None]
    learned = control["learned"]
    assert len(learned) == len(before["train"]) + len(before["valid"])
    assert learned.row(len(before["train"])) == before["valid"].row(0)  # with its target
    assert learned.user_ids.to_list()[-1] == before["valid"].user_ids.to_list()[-1]
    assert all(control[split] is before[split] for split in ("train", "valid", "test"))
    assert "none (validation learned)" not in usual(DATASET)
    found = bench(DATASET, tmp_path, ["itemknn", "sasrec"], ["none", "none (validation learned)"], CONFIG)
    for _, cells in found.group_by("backbone", "seed"):  # validation is as unknown as before, and test is not
        of = {line["denoiser"]: line for line in cells.iter_rows(named=True)}
        none, control = of["none"], of["none (validation learned)"]
        assert control["valid_ndcg"] == none["valid_ndcg"]
        assert control["epochs"] == none["epochs"]
        assert control["ranks"] != none["ranks"]


def test_a_robust_recommender_learns_from_original_windows_only(out, tmp_path):
    found = bench(DATASET, tmp_path, ["fmlprec"], ["none", "oracle (drop)"], replace(CONFIG, seed=1))
    assert found["denoiser"].unique().to_list() == ["none"]


def test_recommenders_without_a_seed_have_one_cell_and_no_interval(tmp_path):
    found = bench(DATASET, tmp_path, ["itemknn", "ease"], ["none", "oracle (restore)"], CONFIG)
    assert CONFIG.evaluate.seeds == 2
    assert found.select("backbone", "denoiser", "seed").rows() == [
        (name, row, CONFIG.seed) for name in ("itemknn", "ease") for row in ("none", "oracle (restore)")
    ]
    assert found["device"].unique().to_list() == ["CPU"]
    ranking = [
        line for line in tables.results_markdown(tmp_path).splitlines() if line.startswith(("| none", "| oracle"))
    ]
    lines = [line for line in ranking if line.split(" | ")[1] == "1 × 1"]
    assert len(lines) == 4
    assert not any("±" in line.split(" | ")[2] for line in lines)  # NDCG; gains have one over users
    for backbone in ("itemknn", "ease"):
        other = replace(CONFIG.evaluate, neighborhood=NeighborhoodConfig(decay=0.5))
        with pytest.raises(ConfigError, match=f"{backbone} with other options"):
            bench(DATASET, tmp_path, [backbone], ["none"], replace(CONFIG, evaluate=other))


def test_natural_windows_are_those_before_the_noise():
    natural = load_dataset("demo", natural=True, tiny=True)
    windows, noisy = natural.data.splits["train"], DATASET.data.splits["train"]
    assert windows.items.tolist() == noisy.clean_items.tolist()
    assert windows.noise_mask is None
    assert not any(name.startswith("oracle") for name in names(natural))


def test_without_a_known_truth_there_is_nothing_natural(tmp_path):
    load_dataset("demo", natural=True, tiny=True).data.write(tmp_path / "shop")
    with pytest.raises(DataError, match="clean_item_ids"):
        load_dataset(str(tmp_path / "shop"), natural=True)


@pytest.mark.parametrize(("backbone", "denoiser"), [("transformer", "none"), ("sasrec", "magic")])
def test_unknown_names_are_refused_with_those_that_are_known(backbone, denoiser, tmp_path):
    with pytest.raises(ConfigError, match="Known: "):
        bench(DATASET, tmp_path, [backbone], [denoiser], CONFIG)
    assert not any(tmp_path.iterdir())


def test_one_process_at_a_time(tmp_path):
    with Run(tmp_path / DATASET.name, CONFIG).locked(), pytest.raises(OutputError, match="in use"):
        bench(DATASET, tmp_path, ["sasrec"], ["none"], CONFIG)


@pytest.mark.parametrize(
    ("config", "dataset", "why"),
    [
        (replace(CONFIG, decide=replace(CONFIG.decide, eta=0.3)), DATASET, "another configuration"),
        (CONFIG, load_dataset("demo", tiny=True, seed=1), "other windows"),
    ],
)
def test_a_finished_run_of_ours_is_reused_only_for_the_same_configuration_and_windows(out, config, dataset, why):
    with pytest.raises(ConfigError, match=f"{why}.*Choose another --out"):
        our_run(dataset.data, out / DATASET.name / "llm4dsr-0", config, None)


def test_scores_of_a_baseline_are_reused_only_for_the_same_windows_and_seed(out):
    for dataset, config in ((load_dataset("demo", tiny=True, seed=1), CONFIG), (DATASET, replace(CONFIG, seed=1))):
        with pytest.raises(ConfigError, match=r"tfidf has other windows or another seed\. Choose another --out"):
            denoised(dataset, out / DATASET.name, ["tfidf"], config)


@pytest.mark.parametrize(("name", "before"), [("torch", "1.0"), ("minilm", "other")])
def test_scores_of_a_baseline_are_reused_only_for_the_same_versions(out, name, before):
    """The card is put back, since other tests share the folder."""
    card = out / DATASET.name / "baselines" / "tfidf" / "card.json"
    text = card.read_text()
    made = json.loads(text)
    made["versions"][name] = before
    try:
        card.write_text(json.dumps(made))
        write_manifest(card.parent)
        with pytest.raises(ConfigError, match=rf"tfidf was made with other versions: {name} {before}, now .*Remove"):
            denoised(DATASET, out / DATASET.name, ["tfidf"], CONFIG)
    finally:
        card.write_text(text)
        write_manifest(card.parent)
    denoised(DATASET, out / DATASET.name, ["tfidf"], CONFIG)


def test_rows_of_one_table_share_the_options_of_their_recommender(out):
    bce = replace(CONFIG.evaluate, recommender=replace(CONFIG.evaluate.recommender, loss="bce"))
    with pytest.raises(ConfigError, match="sasrec with other options"):
        bench(DATASET, out, ["sasrec"], ["none"], replace(CONFIG, evaluate=bce))


def test_rows_of_one_table_are_of_the_same_windows(out):
    """Also where no denoiser is asked for, whose own files would tell."""
    with pytest.raises(ConfigError, match="other windows"):
        bench(load_dataset("demo", tiny=True, seed=1), out, ["sasrec"], ["none"], CONFIG)


@pytest.mark.parametrize(("change", "said"), [
    (lambda t: t.with_columns(device=pl.lit("Some GPU")), "another device"),
    (lambda t: t.drop("device"), "another version"),
    (lambda t: t.with_columns(versions=pl.lit("earlier")), "other versions of this package"),
    (lambda t: t.with_columns(k=pl.lit(10)), "results at k = 10, not 20"),
])  # fmt: skip
def test_rows_of_one_table_are_of_the_same_device_and_version(out, tmp_path, change, said):
    folder = tmp_path / DATASET.name
    folder.mkdir()
    write_results(change(pl.read_parquet(out / DATASET.name / RESULTS)), folder / RESULTS)
    with pytest.raises(ConfigError, match=said):
        bench(DATASET, tmp_path, ["sasrec"], ["none"], CONFIG)


@pytest.mark.parametrize(("writes", "kept"), [(1, "old"), (2, "new")])
def test_an_interrupted_table_is_the_old_or_the_new_one(writes, kept, tmp_path, monkeypatch):
    """Stopped before it takes the place of the old one, or before the manifest lists it there."""
    write_results(pl.DataFrame({"is": ["old"]}), tmp_path / RESULTS)
    left = iter(range(1, 3))

    def write(*given, **more):
        if next(left) == writes:
            raise KeyboardInterrupt
        write_manifest(*given, **more)

    with monkeypatch.context() as stopped:
        stopped.setattr("llm4dsr.bench.cells.write_manifest", write)
        with pytest.raises(KeyboardInterrupt):
            write_results(pl.DataFrame({"is": ["new"]}), tmp_path / RESULTS)
    assert read_results(tmp_path / RESULTS)["is"].to_list() == [kept]
    write_results(pl.DataFrame({"is": ["next"]}), tmp_path / RESULTS)
    assert read_results(tmp_path / RESULTS)["is"].to_list() == ["next"]


def test_each_seed_of_ours_has_its_own_choice(out, tmp_path, monkeypatch):
    """Two runs can score as long, in as much memory."""
    monkeypatch.setattr(Run, "card", lambda run: {"stages": {"score": {"seconds": 1.0}}})
    monkeypatch.setattr(Run, "try_candidates", lambda run, *given: pl.DataFrame({"seed": [run.config.seed]}))
    runs = [Run(out / DATASET.name / run_name(seed)) for seed in range(SEEDS)]
    found = [OurRun(run, DATASET.data, CONFIG, tmp_path, None).choice("denoise")["seed"][0] for run in runs]
    assert found == list(range(SEEDS))


def test_the_folder_that_one_is_in_has_its_name(tmp_path, monkeypatch):
    DATASET.data.write(tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    assert load_dataset(".").name == "shop"


def test_a_robust_recommender_is_compared_with_sasrec_only_at_the_same_options(tmp_path):
    line = {"denoiser": "none", "seed": 0, "ndcg": 0.5, "hit_rate": 0.5, "valid_ndcg": 0.5, "seconds": 1.0,
            "device": "CPU", "ranks": [3]}  # fmt: skip
    (tmp_path / "toy").mkdir()
    for own, there in (("one", True), ("other", False)):
        rows = [{"backbone": "sasrec", "recipe": "one", **line}, {"backbone": "fmlprec", "recipe": own, **line}]
        write_results(pl.DataFrame(rows), tmp_path / "toy" / RESULTS)
        assert ("(fmlprec itself)" in tables.results_markdown(tmp_path)) is there


def test_a_mask_alone_is_enough_to_drop_but_not_to_restore():
    splits = {n: replace(w, clean_items=None) for n, w in DATASET.data.splits.items()}
    known = names(BenchDataset("masked", Dataset(DATASET.data.catalogue, splits)))
    assert "oracle (drop)" in known
    assert "oracle (restore)" not in known


@pytest.mark.skipif(not COMMITTED.is_dir(), reason="the results are in the repository alone")
def test_the_results_that_are_shown_are_made_from_the_cells_that_are_kept():
    assert (COMMITTED.parents[1] / "RESULTS.md").read_text("utf-8") == tables.results_markdown(COMMITTED)


def test_recommenders_may_have_other_options_on_the_same_run_of_ours(out):
    other = replace(CONFIG, threads=1, evaluate=replace(CONFIG.evaluate, k=10))
    assert our_run(DATASET.data, out / DATASET.name / "llm4dsr-0", other, None).done("suggest")


def test_memory_of_a_baseline_excludes_the_parent_process():
    """A child process does not count the memory of its parent."""
    held = np.ones(100_000_000)  # 800 MB
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(peak_memory_mb).result() < 700 < peak_memory_mb()
    assert len(held)


def test_the_bench_command_writes_tables_and_resumes(tmp_path):
    """On a folder of windows and with a recipe. The second run trains nothing."""
    DATASET.data.write(tmp_path / "shop")
    recipe = {"model": {"hidden_size": 32, "layers": 1, "heads": 2, "vector_size": 32},
              "train": {"epochs": 1, "folds": 2},
              "evaluate": {"recommender": {"hidden_size": 16, "epochs": 2}}}  # fmt: skip
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    command = [Path(sys.executable).with_name("llm4dsr"), "bench", "--dataset", "shop", "--out", "out", "--seeds", "2",
               "--config", "small.yaml", "--denoisers", "none,llm4dsr (drop 5 %),pmi,oracle (drop)",
               "--denoiser-seeds", "1"]  # fmt: skip
    texts = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        texts.append((tmp_path / "out" / "RESULTS.md").read_text("utf-8"))
    assert texts[0] == texts[1]  # minutes included: they are those of the first run
    assert "at most 8 recommenders" in " ".join(done.stdout.split())
    assert texts[0].count("| oracle (drop) | 1 ×") == 1


def test_tables_need_results(tmp_path):
    with pytest.raises(OutputError, match="no results"):
        tables.results_markdown(tmp_path)


def test_ndcg_of_candidate_lists_against_random_order_by_hand(tmp_path):
    """Lists of two: one target is second, one is missing. In random order the first has NDCG (1 + .63) / 2."""
    line = {"backbone": "llara", "denoiser": "none", "seed": 0, "ndcg": 0.3155, "hit_rate": 0.5, "valid_ndcg": 0.5,
            "seconds": 1.0, "recipe": "one", "device": "CPU", "ranks": [2, 30], "listed": 2}  # fmt: skip
    (tmp_path / "toy").mkdir()
    write_results(pl.DataFrame([line]), tmp_path / "toy" / RESULTS)
    text = tables.results_markdown(tmp_path)
    assert "LLaRA reorders the 2 best items" in text
    assert "    - none: 2.0, 0.3155 beside 0.4077" in text
