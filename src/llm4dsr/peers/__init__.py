"""The peers of the benchmark, each re-implemented from its paper. `peer.py` has their contract."""

from __future__ import annotations

from llm4dsr.peers.hsd import HSD
from llm4dsr.peers.iadsr import IADSR
from llm4dsr.peers.labels import ConfidentLearning
from llm4dsr.peers.likelihood import BERT4RecLikelihood, SASRecLikelihood
from llm4dsr.peers.peer import Peer
from llm4dsr.peers.pmi import PMI
from llm4dsr.peers.simple import Popularity, RandomFlags
from llm4dsr.peers.steam import STEAM
from llm4dsr.peers.text import SentenceOutlier, TfidfOutlier

_ALL: tuple[type[Peer], ...] = (
    RandomFlags,
    Popularity,
    PMI,
    TfidfOutlier,
    SentenceOutlier,
    SASRecLikelihood,
    BERT4RecLikelihood,
    ConfidentLearning,
    IADSR,
    HSD,
    STEAM,
)
PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in _ALL}
