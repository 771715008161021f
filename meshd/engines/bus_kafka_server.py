"""A Kafka cluster as the bus's URL names it: how to sign in, which topics there must be, what they promise."""

from __future__ import annotations

import concurrent.futures
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from meshd.engines.bus_port import EventMalformed
from meshd.engines.port import StoreError, StoreFull, StoreReadOnly, StoreUnable
from meshd.engines.url import CONNECT_TIMEOUT_S

if TYPE_CHECKING:
    from meshd.engines.bus_terms import Terms
    from meshd.engines.url import StoreUrl

log = logging.getLogger("meshd")

PORT: Final = 9092
TIMEOUT_S: Final = 5.0
"""How long an operation may take: an acknowledgement of all replicas is slower than one server's."""
FETCH_WAIT_S: Final = 0.5
"""How long a broker may hold an answer back for want of records; it answers at once when there are some."""
MECHANISMS: Final = {"plain": "PLAIN", "scram-sha-256": "SCRAM-SHA-256", "scram-sha-512": "SCRAM-SHA-512"}
TLS_SCHEME: Final = "kafka+tls"
PARTITIONS_MAX: Final = 1000
RECORD_BYTES: Final = 2 * 2**20
"""How long a record may be in topics that meshd makes: an event of 1 MiB, and its attributes."""
SLACK_S: Final = 86_400.0
"""For how much longer Kafka keeps records than meshd needs them."""

_E = KafkaError
_AWAY: Final = {_E._TRANSPORT, _E._ALL_BROKERS_DOWN, _E._RESOLVE, _E._TIMED_OUT, _E._MSG_TIMED_OUT, _E._TIMED_OUT_QUEUE}
_REFUSED: Final = {
    _E._AUTHENTICATION, _E.SASL_AUTHENTICATION_FAILED, _E.TOPIC_AUTHORIZATION_FAILED, _E._SSL, _E.ILLEGAL_SASL_STATE,
    _E.CLUSTER_AUTHORIZATION_FAILED, _E.GROUP_AUTHORIZATION_FAILED, _E.UNSUPPORTED_SASL_MECHANISM,
}  # fmt: skip
_FEW: Final = {_E.NOT_ENOUGH_REPLICAS, _E.NOT_ENOUGH_REPLICAS_AFTER_APPEND}
_LARGE: Final = {_E.MSG_SIZE_TOO_LARGE, _E.RECORD_LIST_TOO_LARGE}


class Names(NamedTuple):
    """The topics of a bus."""

    events: str
    groups: str
    """The journal: one partition."""
    snapshots: str
    dead: str

    @classmethod
    def of(cls, prefix: str) -> Names:
        return cls(*(f"{prefix}.{name}" for name in cls._fields))


class Promise(NamedTuple):
    """What was found out about a cluster."""

    partitions: int
    """Of the events."""
    record_bytes: int
    is_durable: bool
    caution: str


def check(url: StoreUrl) -> None:
    """Read all that a URL says. Raises StoreUnable."""
    url.allow(("brokers", "fetch_wait", "partitions", "prefix", "replicas", "sasl"), "bus")
    if not url.host:
        raise StoreUnable("a Kafka bus is named by a broker: kafka://127.0.0.1:9092")
    if url.path.strip("/"):
        raise StoreUnable("a Kafka URL has no path; the names of topics begin with prefix=, for example prefix=meshd")
    prefix = url.options.get("prefix", "meshd")
    # Kafka's own limit is 249 characters, and of two names that differ in . and _ alone it warns.
    if not prefix.isascii() or not prefix.replace("-", "").replace("_", "").isalnum() or len(prefix) > 100:
        raise StoreUnable(f"prefix={prefix[:40]} is not letters, digits, - and _, at most 100 characters")
    url.number("partitions", 1, least=1, most=PARTITIONS_MAX)
    url.number("replicas", 3, least=1, most=9)
    sasl = url.options.get("sasl")
    if sasl is not None and sasl not in MECHANISMS:
        raise StoreUnable(f"sasl={sasl[:40]} is none of {', '.join(MECHANISMS)}")
    if url.user is not None and url.password is None and "password_file" not in url.options:
        raise StoreUnable("the Kafka URL names a user and no password: write it behind a :, or name a password_file=")
    if sasl is not None and url.user is None:
        raise StoreUnable("sasl= names how a user signs in, and the URL names no user")
    if url.scheme != TLS_SCHEME and (bad := {"ca", "cert", "key"} & set(url.options)):
        raise StoreUnable(f"{min(bad)}= is for TLS: write {TLS_SCHEME}:// in place of kafka://")
    for name, default in (("timeout", TIMEOUT_S), ("connect_timeout", CONNECT_TIMEOUT_S), ("fetch_wait", FETCH_WAIT_S)):
        url.seconds(name, default)


def settings(url: StoreUrl) -> dict[str, Any]:
    """Return what every client of librdkafka is told. Raises StoreError where a secret's file cannot be read."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    brokers = [f"{host}:{url.port or PORT}", *filter(None, url.options.get("brokers", "").split(","))]
    found: dict[str, Any] = {
        "bootstrap.servers": ",".join(brokers),
        "client.id": "meshd",
        "log_level": 0,
        "socket.connection.setup.timeout.ms": max(
            1000, round(url.seconds("connect_timeout", CONNECT_TIMEOUT_S) * 1000)
        ),
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 5000,
        "topic.metadata.refresh.fast.interval.ms": 50,
    }
    is_tls = url.scheme == TLS_SCHEME
    found["security.protocol"] = ("SASL_" if url.user is not None else "") + ("SSL" if is_tls else "PLAINTEXT")
    if url.user is not None:
        found["sasl.mechanism"] = MECHANISMS[url.options.get("sasl", "scram-sha-512")]
        found["sasl.username"], found["sasl.password"] = url.user, url.secret() or ""
    for option, name in (("ca", "ssl.ca.location"), ("cert", "ssl.certificate.location"), ("key", "ssl.key.location")):
        if option in url.options:
            found[name] = url.options[option]
    return found


def told(error: KafkaError, where: str) -> StoreError | EventMalformed:
    """Say what Kafka refused, or that it is away."""
    code = error.code()
    if code in _REFUSED:
        return StoreUnable(f"{where} does not let this user do what meshd must: {error.str()}")
    if code in (_E._INVALID_ARG, _E._UNSUPPORTED_FEATURE):
        return StoreUnable(f"{where} cannot be used: {error.str()}")
    if code in _LARGE:
        return EventMalformed("data", f"is longer than max.message.bytes of the topic in {where}: put it elsewhere")
    if code in _FEW:
        return StoreReadOnly(f"{where} has too few replicas in sync (min.insync.replicas)")
    if code == _E.KAFKA_STORAGE_ERROR:
        return StoreFull(f"{where} cannot write: its disk is full or broken")
    if code == _E._QUEUE_FULL:
        return StoreFull(f"{where} does not take events as fast as they are published")
    if code in _AWAY:
        return StoreError(f"{where} does not answer")
    return StoreError(f"{where}: {error.str() or error.name()}")


def make_topics(
    config: dict[str, Any], url: StoreUrl, names: Names, terms: Terms, where: str
) -> tuple[Promise, AdminClient]:
    """Make the topics that are not there, and look at what they promise. Blocks. Raises StoreError.

    Returns the client that did it, too: it knows the brokers by now.
    """
    timeout_s = url.seconds("connect_timeout", CONNECT_TIMEOUT_S)
    heard: deque[KafkaError] = deque(maxlen=100)
    try:
        admin = AdminClient({**config, "error_cb": heard.append, "allow.auto.create.topics": True})
        present = admin.list_topics(timeout=timeout_s).topics
        missing = [name for name in names if name not in present or present[name].error is not None]
        if missing:
            _create(admin, _wanted(url, names, terms, missing), timeout_s)
        metadata = [admin.list_topics(name, timeout=timeout_s).topics[name] for name in names]
        for topic in metadata:
            if topic.error is not None:
                raise KafkaException(topic.error)
        configs = _configs(admin, names, timeout_s)
    except KafkaException as error:
        # What is told last is that nobody answers; why is what was heard before.
        why = next((one for one in heard if one.code() in _REFUSED), error.args[0])
        found = told(why, where)
        raise found if isinstance(found, StoreError) else StoreUnable(str(found)) from None
    replicas = min(len(partition.replicas) for topic in metadata for partition in topic.partitions.values())
    return _promise(names, terms, len(metadata[0].partitions), replicas, configs, where), admin


def _wanted(url: StoreUrl, names: Names, terms: Terms, missing: list[str]) -> list[NewTopic]:
    keep_ms = round((max(terms.keep_s, terms.repeat_s) + SLACK_S) * 1000)
    dead_ms = round((terms.dead_keep_s + terms.keep_s + SLACK_S) * 1000)
    own = {
        names.events: {"retention.ms": str(keep_ms)},
        names.groups: {"retention.ms": str(dead_ms)},
        names.snapshots: {"cleanup.policy": "compact", "segment.ms": "3600000"},
        names.dead: {"retention.ms": str(dead_ms)},
    }
    shared = {
        "max.message.bytes": str(RECORD_BYTES),
        "min.insync.replicas": "2" if url.number("replicas", 3, least=1, most=9) > 2 else "1",
        "unclean.leader.election.enable": "false",
    }
    return [
        NewTopic(
            name,
            num_partitions=url.number("partitions", 1, least=1, most=PARTITIONS_MAX) if name == names.events else 1,
            replication_factor=url.number("replicas", 3, least=1, most=9),
            config={"retention.bytes": "-1", **shared, **own[name]},
        )
        for name in missing
    ]


def _create(admin: AdminClient, topics: list[NewTopic], timeout_s: float) -> None:
    for future in admin.create_topics(topics, operation_timeout=timeout_s, request_timeout=timeout_s).values():
        try:
            future.result()
        except KafkaException as error:
            code = error.args[0].code()
            # One that cannot make topics (librdkafka's mock cluster) makes them when it is asked about them.
            if code not in (_E.TOPIC_ALREADY_EXISTS, _E._UNSUPPORTED_FEATURE):
                raise


def _configs(admin: AdminClient, names: Names, timeout_s: float) -> dict[str, dict[str, str]]:
    """Return the settings of each topic; of one that does not tell, none."""
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    found: dict[str, dict[str, str]] = {}
    for resource, future in admin.describe_configs(resources, request_timeout=timeout_s).items():
        try:
            found[resource.name] = {name: str(entry.value) for name, entry in future.result(timeout_s).items()}
        except (KafkaException, concurrent.futures.TimeoutError):
            found[resource.name] = {}
    return found


def _promise(
    names: Names, terms: Terms, partitions: int, replicas: int, configs: dict[str, dict[str, str]], where: str
) -> Promise:
    events = configs[names.events]
    if any(not one for one in configs.values()):
        return Promise(partitions, RECORD_BYTES, is_durable=False, caution="it does not tell what its topics promise")
    for name, least_s in ((names.events, terms.keep_s), (names.dead, terms.dead_keep_s), (names.groups, terms.keep_s)):
        if "compact" in configs[name]["cleanup.policy"]:
            raise StoreUnable(f"the topic {name} of {where} is compacted: events of one key would be lost")
        kept_ms = int(configs[name]["retention.ms"])
        if 0 <= kept_ms < least_s * 1000:
            raise StoreUnable(f"the topic {name} of {where} keeps records for {kept_ms} ms, and must {least_s:.0f} s")
    if configs[names.snapshots]["cleanup.policy"] != "compact":
        raise StoreUnable(
            f"the topic {names.snapshots} of {where} must have cleanup.policy=compact, or groups are lost"
        )
    weak = []
    if replicas < 2:
        weak.append("its topics have one replica")
    if any(int(one["min.insync.replicas"]) < 2 for one in configs.values()):
        weak.append("min.insync.replicas is 1")
    if any(one["unclean.leader.election.enable"] == "true" for one in configs.values()):
        weak.append("unclean.leader.election.enable is true")
    if any(int(configs[name]["retention.bytes"]) >= 0 for name in (names.events, names.groups, names.dead)):
        weak.append("retention.bytes lets go of records that are still needed")
    return Promise(partitions, int(events["max.message.bytes"]), not weak, ", ".join(weak))
