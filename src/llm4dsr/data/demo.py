"""A made-up shop with known noise, to try everything without data.

Everything is drawn from a seed.

- The interest of an item shows in the words of its title, but not perfectly. Brands sell to several interests, and
  words
  such as "Travel Case" occur everywhere.
- A user has up to three interests; one of them may show only once.
- The next item is partly predictable: who bought one title of a series often buys its next.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import IntArray
from llm4dsr.data.dataset import Dataset, make_windows
from llm4dsr.data.noise.kinds import add_noise
from llm4dsr.errors import DataError


@dataclass(frozen=True)
class _Interest:
    """Words that titles of one interest are made of. A series is one brand with one line; its parts are products."""

    brands: str
    lines: str
    products: str
    details: str


# Brands recur between interests on purpose: the first word of a title alone does not tell where it belongs.
_INTERESTS: Final = {
    "model railways": _Interest(
        "Tillworth, Harrowgate, Brightwater",
        "Branch Line, Harbour Junction, Alpine Express, Heritage Steam, City Tram",
        "Tank Locomotive, Coal Wagon, Signal Box, Curved Track Pack, Station Platform, Passenger Coach, "
        "Level Crossing, Diesel Shunter, Goods Shed, Turntable Kit",
        "00 Gauge, N Gauge, H0 Gauge, Weathered, Starter Pack",
    ),
    "watercolour": _Interest(
        "Brightwater, Lumeira, Pinecove",
        "Studio, Botanical, Coastal Light, Atelier, First Wash",
        "Watercolour Set, Round Brush Set, Cold Press Paper Pad, Mixing Palette, Masking Fluid, Water Brush Pens, "
        "Sketching Easel, Gouache Tubes, Colour Chart Book, Brush Roll",
        "24 Half Pans, 12 Colours, 300 gsm, Fine Tip, A4",
    ),
    "baking for kids": _Interest(
        "Sugarwell, Merrifold, Pinecove",
        "Little Baker, Cupcake Party, Gingerbread House, Rainbow Kitchen, Junior Patisserie",
        "Cookie Cutter Set, Rolling Pin, Apron and Hat, Icing Kit, Silicone Moulds, Recipe Cards, Measuring Spoons, "
        "Sprinkles Mix, Mixing Bowl, Cake Stand",
        "Silicone, Dishwasher Safe, 12 Shapes, Nut Free, Vanilla",
    ),
    "outdoor": _Interest(
        "Ridgeback, Harrowgate, Wrenfield",
        "Trailhead, Young Explorer, Forest Camp, Summit, River Day",
        "Compass, Bug Viewer, Pop Up Tent, Head Torch, Binoculars, Walking Poles, Camping Lantern, Butterfly Net, "
        "Water Bottle, Field Guide",
        "Waterproof, Lightweight, 8x21, Rechargeable, Camo",
    ),
    "puzzles": _Interest(
        "Quillon, Brightwater, Merrifold",
        "World Landmarks, Vintage Posters, Cosy Cottage, Wildlife, Impossible",
        "Jigsaw Puzzle, Panorama Puzzle, Floor Puzzle, Wooden Puzzle, Puzzle Mat, 3D Puzzle, Shaped Jigsaw, "
        "Double Sided Puzzle, Mini Puzzle, Sorting Trays",
        "1000 Pieces, 500 Pieces, 2000 Pieces, Linen Finish, With Poster",
    ),
    "dolls": _Interest(
        "Petalina, Wrenfield, Lumeira",
        "Rosie and Friends, Winter Ballet, Royal Stable, Nursery, Seaside Holiday",
        "Fashion Doll, Doll Outfit, Doll Pushchair, Wardrobe Playset, Baby Doll, Tea Party Set, Doll House Furniture, "
        "Pony and Rider, Hair Styling Head, Doll Carrier",
        "18 Inch, Brown Hair, Soft Body, With Accessories, Ballet Dress",
    ),
    "building bricks": _Interest(
        "Bloxley, Tillworth, Quillon",
        "Space Colony, Castle Siege, Fire Brigade, Race Team, Jungle Temple",
        "Brick Set, Minifigure Pack, Base Plate, Vehicle Build, Tower Build, Rover Build, Dragon Build, "
        "Storage Brick, Gate Build, Motor Add-On",
        "412 Pieces, 96 Pieces, 1040 Pieces, Ages 8 to 12, 3 in 1",
    ),
    "science": _Interest(
        "Nebulab, Ridgeback, Bloxley",
        "Junior Chemist, Night Sky, Crystal Cave, Dino Dig, Electronic Lab",
        "Experiment Kit, Microscope, Telescope, Crystal Growing Kit, Fossil Excavation Kit, Circuit Board Kit, "
        "Volcano Model, Planetarium Projector, Test Tube Rack, Lab Notebook",
        "60 Experiments, 400x Zoom, With Goggles, Ages 10 Up, STEM",
    ),
    "board games": _Interest(
        "Rookwood, Quillon, Sugarwell",
        "Harvest Valley, Lost Lighthouse, Dragon Market, Night Train, Merchant Isles",
        "Board Game, Expansion, Card Game, Dice Game, Travel Edition, Two Player Game, Scenario Pack, Card Sleeves, "
        "Promo Pack, Cooperative Game",
        "2 to 4 Players, 45 Minutes, Second Edition, Ages 10 Up, English",
    ),
    "music": _Interest(
        "Cantora, Petalina, Nebulab",
        "First Notes, Marching Band, Jungle Rhythm, Concert, Campfire",
        "Xylophone, Ukulele, Tambourine, Recorder, Hand Drum, Keyboard, Harmonica, Song Book, Music Stand, Maracas",
        "Soprano, 25 Note, Beech Wood, With Songbook, 32 Keys",
    ),
}  # fmt: skip
_COMMON: Final = (
    "Blue, Red, Green, Yellow, Purple, Natural Wood, Gift Box, Travel Case, Travel Tin, Deluxe, Large, Small, "
    "Pack of 2, Pack of 6, Limited Edition, Ages 6 Up, New Edition, Refill"
)

_SIZES: Final = {  # interests, series of each, titles of a series, users
    "full": (10, 12, 6, 3200),
    "tiny": (4, 3, 5, 150),
}
_CONTINUE, _STAY, _FROM_START = 0.65, 0.75, 0.7  # next of the series; same interest; a new series from its first title
_WAYS = (0.4, 0.4, 0.2)  # share of "Brand Line Product", "Product by Brand, Line" and "Line: Product"
_RELISTED = 0.08  # share of series whose last title is listed under the title of its first


@dataclass
class Demo:
    """The shop.

    Attributes
    ----------
    data : Dataset
        The windows.
    items, interactions : DataFrame
        The same as tables of a log, with the truth.
    interests : array of int
        [N] the interest of each item of `data.catalogue`.
    names : list of str
        Names of the interests.
    """

    data: Dataset
    items: pl.DataFrame
    interactions: pl.DataFrame
    interests: IntArray
    names: list[str]


def make_demo(
    seed: int = 0, size: Literal["full", "tiny"] = "full", users: int | None = None, noise: float = 0.1
) -> Demo:
    """Make the shop; the same arguments give the same shop.

    Parameters
    ----------
    seed : int, default 0
        Seed of everything.
    size : {"full", "tiny"}, default "full"
        720 items and 3,200 users; or 60 items and 150 users, for tests.
    users : int, optional
        Another number of users.
    noise : float, default 0.1
        Probability in [0, 1] that an interaction is replaced, once per user and before windows are built. Test targets
        are clean.

    Returns
    -------
    Demo
    """
    if size not in _SIZES:
        raise DataError(f"The demo comes in the sizes {', '.join(_SIZES)}; got {size!r}.")
    n_interests, n_series, n_parts, default_users = _SIZES[size]
    rng = np.random.default_rng(seed)
    names = list(_INTERESTS)[:n_interests]
    titles = [title for name in names for title in _titles(_INTERESTS[name], n_series, n_parts, rng)]
    place = rng.permutation(len(titles))  # [interest, series, part] flattened -> catalogue row; ids must tell nothing
    shop = place.reshape(n_interests, n_series, n_parts)
    by_row = np.argsort(place)
    ids = 1001 + np.arange(len(titles))
    items = pl.DataFrame({c.ITEM: ids, c.TITLE: [titles[i] for i in by_row]})

    n_users = default_users if users is None else users
    histories = [_history(shop, rng) for _ in range(n_users)]
    noisy, masks = add_noise(histories, len(titles), noise, seed)
    starts = rng.integers(0, 500 * 86_400, size=n_users)  # users come over 500 days, and buy for some months each
    log = pl.DataFrame(
        {
            c.USER: np.repeat(np.arange(n_users), [len(h) for h in histories]) + 1,
            c.ITEM: ids[np.concatenate(noisy)],
            c.TIME: np.concatenate([
                1_700_000_000 + s + np.cumsum(rng.integers(3_600, 14 * 86_400, size=len(h)))
                for s, h in zip(starts, histories, strict=True)
            ]),
            c.NOISE_MASK: np.concatenate(masks).astype(np.int8),
            c.CLEAN_ITEM: ids[np.concatenate(histories)],
        }
    )  # fmt: skip
    data = make_windows(log, items, k_core=0)
    return Demo(data, items, log, by_row // (n_series * n_parts), names)


def write_demo(folder: str | Path, seed: int = 0, size: Literal["full", "tiny"] = "full") -> Demo:
    """Make the shop and write items, train, valid and test as Parquet.

    Parameters
    ----------
    folder : Path
        Where to write.
    seed : int
        The same seed and size write the same bytes.
    size
        As in `make_demo`.
    """
    demo = make_demo(seed, size)
    demo.data.write(folder)
    return demo


def _titles(interest: _Interest, n_series: int, n_parts: int, rng: np.random.Generator) -> list[str]:
    """n_series * n_parts titles, series after series, in the three forms that shops use."""
    brands, lines, products, details, common = (
        text.split(", ") for text in (interest.brands, interest.lines, interest.products, interest.details, _COMMON)
    )
    pairs = [(brand, line) for brand in brands for line in lines]
    out = []
    for pair in rng.permutation(len(pairs))[:n_series]:
        brand, line = pairs[pair]
        series = []
        for product in rng.permutation(products)[:n_parts]:
            ways = (f"{brand} {line} {product}", f"{product} by {brand}, {line}", f"{line}: {product}")
            ending = [rng.choice(details)] if rng.random() < 0.6 else []
            ending += list(rng.choice(common, size=2 if rng.random() < 0.5 else 1, replace=False))
            series.append(", ".join([rng.choice(ways, p=_WAYS), *ending]))
        if rng.random() < _RELISTED:
            series[-1] = series[0]
        out += series
    return out


def _history(shop: IntArray, rng: np.random.Generator) -> IntArray:
    """6 to 14 different catalogue rows. shop: [interests, series, parts] catalogue rows."""
    n_interests, n_series, n_parts = shop.shape
    popular = 1.0 / np.arange(1, n_interests + 1) ** 0.5
    mine = rng.choice(
        n_interests, size=rng.choice([1, 2, 3], p=[0.3, 0.4, 0.3]), replace=False, p=popular / popular.sum()
    )
    share = rng.dirichlet(np.full(len(mine), 2.0))
    liking = 1.0 / np.arange(1, n_series + 1) ** 0.9  # the first series of an interest sell best
    length = 6 + int(rng.binomial(8, 0.75))
    bought: list[int] = []
    last: dict[int, tuple[int, int]] = {}  # interest -> (series, part) bought last
    interest = int(rng.choice(mine, p=share))
    while len(bought) < length:
        if rng.random() > _STAY:
            interest = int(rng.choice(mine, p=share))
        series, part = last.get(interest, (-1, n_parts - 1))
        if part + 1 < n_parts and rng.random() < _CONTINUE:
            part += 1
        else:
            series = int(rng.choice(n_series, p=liking / liking.sum()))
            part = 0 if rng.random() < _FROM_START else int(rng.integers(n_parts))
        last[interest] = series, part
        if (item := int(shop[interest, series, part])) not in bought:
            bought.append(item)
    return np.array(bought, dtype=np.int64)
