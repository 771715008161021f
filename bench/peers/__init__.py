"""The proxies that are measured beside meshd, one a file, in one table."""

from bench.peers.aiohttp_proxy import AiohttpProxy
from bench.peers.contract import Peer
from bench.peers.envoy import Envoy
from bench.peers.haproxy import Haproxy
from bench.peers.litellm import LiteLlm
from bench.peers.meshd import Meshd
from bench.peers.nginx import Nginx

PEERS: tuple[Peer, ...] = (Meshd(), Envoy(), Nginx(), Haproxy(), AiohttpProxy(), LiteLlm())
ONLY_WHERE_NAMED = frozenset({"litellm"})
