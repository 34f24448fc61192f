"""The peers of the benchmark, each re-implemented from its paper. `peer.py` has their contract."""

from __future__ import annotations

from llm4dsr.peers.peer import Peer

PEERS: dict[str, type[Peer]] = {}
