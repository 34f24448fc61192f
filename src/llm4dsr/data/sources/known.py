"""Public data sets that `fetch` can download: addresses, licenses, and checksums where the publisher states them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class File:
    """A file to download.

    Attributes
    ----------
    url : str
        Its address.
    checksum : str or None
        "md5:…" or "sha256:…" as the publisher states it, or the address of a file that contains it. None if not stated.
    size : int or None
        Bytes, if known.
    """

    url: str
    checksum: str | None = None
    size: int | None = None

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Download:
    """A data set to download.

    Attributes
    ----------
    name : str
        For `fetch`.
    form : str
        Name of its reader, for `read_source`.
    homepage : str
        Of the publisher.
    license : str
        In one line.
    files : tuple of File
        Empty if the publisher requires a form to be filled in by hand.
    """

    name: str
    form: str
    homepage: str
    license: str
    files: tuple[File, ...]

    @property
    def size_text(self) -> str:
        """The total size as text."""
        sizes = [file.size for file in self.files]
        return "not known" if None in sizes or not sizes else f"{sum(filter(None, sizes)) / 1e6:.0f} MB"


def known_sources() -> tuple[Download, ...]:
    """Return all data sets that `fetch` knows, ordered by name."""
    return tuple(sorted((*_MOVIELENS, *_amazon(), *_goodreads(), *_OTHERS), key=lambda download: download.name))


# --- GroupLens: an .md5 beside each archive ---------------------------------------------------------------------------

_GROUPLENS: Final = "https://files.grouplens.org/datasets"
_RESEARCH: Final = "Research only, no commercial use without permission; cite Harper and Konstan (2015)"


def _movielens(version: str, form: str, sharing: str, checksum: str | None, size: int | None = None) -> Download:
    url = f"{_GROUPLENS}/movielens/ml-{version}.zip"
    page = version if version[0].isdecimal() else "latest"
    return Download(
        f"movielens-{version}", f"movielens-{form}", f"https://grouplens.org/datasets/movielens/{page}/",
        f"{_RESEARCH}; {sharing}", (File(url, checksum or f"{url}.md5", size),),
    )  # fmt: skip


_NOT_SHARED: Final = "no redistribution without permission"
_SHARED_ALIKE: Final = "redistribution under the same conditions"
_MOVIELENS: Final = (
    _movielens("100k", "100k", _NOT_SHARED, "md5:0e33842e24a9c977be4e0107933c0723"),
    _movielens("1m", "dat", _NOT_SHARED, "md5:c4d9eecfca2ab87c1945afe126590906"),
    _movielens("10m", "dat", _NOT_SHARED, "md5:ce571fd55effeba0271552578f2648bd"),
    _movielens("20m", "csv", _SHARED_ALIKE, "md5:cd245b17a1ae2cc31bb14903e1204af3", 198_702_078),
    _movielens("25m", "csv", _SHARED_ALIKE, "md5:6b51fb2759a8657d3bfcbfc42b592ada", 261_978_986),
    _movielens("32m", "csv", _SHARED_ALIKE, "md5:d472be332d4daa821edc399621853b57", 238_950_008),
    _movielens("latest", "csv", _SHARED_ALIKE, None),
    _movielens("latest-small", "csv", _SHARED_ALIKE, None),
)

# --- McAuley Lab: no checksums ----------------------------------------------------------------------------------------

_LAB: Final = "https://mcauleylab.ucsd.edu/public_datasets"
_2014: Final = """Amazon_Instant_Video Apps_for_Android Automotive Baby Beauty Books CDs_and_Vinyl
    Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics Grocery_and_Gourmet_Food
    Health_and_Personal_Care Home_and_Kitchen Kindle_Store Movies_and_TV Musical_Instruments Office_Products
    Patio_Lawn_and_Garden Pet_Supplies Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games Video_Games"""
_2018: Final = """AMAZON_FASHION All_Beauty Appliances Arts_Crafts_and_Sewing Automotive Books CDs_and_Vinyl
    Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards
    Grocery_and_Gourmet_Food Home_and_Kitchen Industrial_and_Scientific Kindle_Store Luxury_Beauty
    Magazine_Subscriptions Movies_and_TV Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies
    Prime_Pantry Software Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games Video_Games"""
_2023: Final = """All_Beauty Amazon_Fashion Appliances Arts_Crafts_and_Sewing Automotive Baby_Products
    Beauty_and_Personal_Care Books CDs_and_Vinyl Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music
    Electronics Gift_Cards Grocery_and_Gourmet_Food Handmade_Products Health_and_Household Health_and_Personal_Care
    Home_and_Kitchen Industrial_and_Scientific Kindle_Store Magazine_Subscriptions Movies_and_TV Musical_Instruments
    Office_Products Patio_Lawn_and_Garden Pet_Supplies Software Sports_and_Outdoors Subscription_Boxes
    Tools_and_Home_Improvement Toys_and_Games Unknown Video_Games"""


def _amazon() -> list[Download]:
    """One for each category: the 5-core of 2014 and 2018, all reviews of 2023."""
    sets = (
        ("2014", _2014, "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html", "He and McAuley (2016)",
         "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/reviews_{}_5.json.gz",
         "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/meta_{}.json.gz"),
        ("2018", _2018, "https://nijianmo.github.io/amazon/index.html", "Ni, Li and McAuley (2019)",
         _LAB + "/data/amazon_v2/categoryFilesSmall/{}_5.json.gz", _LAB + "/data/amazon_v2/metaFiles2/meta_{}.json.gz"),
        ("2023", _2023, "https://amazon-reviews-2023.github.io", "Hou et al. (2024)",
         _LAB + "/data/amazon_2023/raw/review_categories/{}.jsonl.gz",
         _LAB + "/data/amazon_2023/raw/meta_categories/meta_{}.jsonl.gz"),
    )  # fmt: skip
    return [
        Download(
            f"amazon-{year}-{category.lower().replace('_', '-')}", f"amazon-{year}", page,
            f"No license stated, published for research; cite {authors}",
            (File(reviews.format(category)), File(meta.format(category))),
        )
        for year, categories, page, authors, reviews, meta in sets
        for category in categories.split()
    ]  # fmt: skip


def _goodreads() -> list[Download]:
    genres = """children comics_graphic fantasy_paranormal history_biography mystery_thriller_crime poetry romance
        young_adult"""
    base = f"{_LAB}/gdrive/goodreads"
    names = [(f"-{g.replace('_', '-')}", f"{base}/byGenre", f"interactions_{g}", f"books_{g}") for g in genres.split()]
    return [
        Download(
            f"goodreads{name}", "goodreads", "https://cseweb.ucsd.edu/~jmcauley/datasets/goodreads.html",
            "Academic use only, no redistribution, no commercial use; cite Wan and McAuley (2018), Wan et al. (2019)",
            (File(f"{folder}/goodreads_{log}.json.gz"), File(f"{folder}/goodreads_{books}.json.gz")),
        )
        for name, folder, log, books in [*names, ("", base, "interactions_dedup", "books")]
    ]  # fmt: skip


_OTHERS: Final = (
    Download(
        "steam", "steam", "https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data",
        "No license stated, published for research; cite Kang and McAuley (2018), Wan and McAuley (2018)",
        (File("https://cseweb.ucsd.edu/~wckang/steam_reviews.json.gz"),
         File("https://cseweb.ucsd.edu/~wckang/steam_games.json.gz")),
    ),
    Download(
        "lastfm-1k", "lastfm-1k", "https://zenodo.org/records/6090214",
        "Non-commercial use only, by permission of Last.fm; cite Celma (2010)",
        (File("https://zenodo.org/records/6090214/files/lastfm-dataset-1K.tar.gz",
              "md5:a79a6808f54f73354789a9fb02cb1e41"),),
    ),
    Download(
        "lastfm-2k", "lastfm-2k-tags", "https://grouplens.org/datasets/hetrec-2011/",
        "Non-commercial use only; cite Cantador, Brusilovsky and Kuflik (2011)",
        (File(f"{_GROUPLENS}/hetrec2011/hetrec2011-lastfm-2k.zip"),),
    ),
    Download(
        "yelp", "yelp", "https://business.yelp.com/data/resources/open-dataset/",
        "Yelp Dataset Terms of Use: personal, educational and academic purposes; no redistribution", (),
    ),
)  # fmt: skip
