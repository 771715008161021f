"""The tables of meshd in a PostgreSQL, and the function through which its records are changed.

One call makes a whole group of changes and takes, each on its own, in one transaction and one round trip. Their rows
are locked in the order in which they are named; every sidecar names them in byte order, so none waits in a circle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

SCHEMA: Final = 1
"""Format of the tables. Another one gets other functions, so that two versions of meshd may run side by side."""
LOCK: Final = 0x6D657368
"""Advisory lock ("mesh") under which the tables are made, since many sidecars may start at once."""

REFUSED, DAMAGED, BELOW_ZERO = -1, -2, -3
"""What the function says of a take in place of its sum."""

# Not to_regclass: under the lock it may answer from what this connection remembers from before it had waited.
LOOK: Final = """
SELECT coalesce(bool_or(c.relname = 'meshd_record'), false) AS has_record,
       coalesce(bool_or(c.relname = 'meshd_format'), false) AS has_format
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = '{schema}' AND c.relname IN ('meshd_record', 'meshd_format')
"""
FORMAT: Final = "SELECT max(version) FROM {schema}.meshd_format"

MAKE: Final = """
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE {schema}.meshd_format (version integer NOT NULL);
CREATE SEQUENCE {schema}.meshd_version;
CREATE TABLE {schema}.meshd_record (
    space text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (space, key)
) WITH (fillfactor = 70);
CREATE FUNCTION {schema}.meshd_change_1(
    p_channel text, p_spaces text[], p_keys text[], p_values bytea[], p_expected bigint[],
    p_amounts bigint[], p_ceilings bigint[], p_told text[]
) RETURNS bigint[] LANGUAGE plpgsql VOLATILE AS $body$
#variable_conflict use_column
DECLARE
    answers bigint[] := '{{}}';
    answer bigint;
    is_changed boolean;
    old bytea;
    is_there boolean;
BEGIN
    FOR n IN 1 .. cardinality(p_keys) LOOP
        is_changed := false;
        IF p_amounts[n] IS NOT NULL THEN
            LOOP
                SELECT value INTO old FROM {schema}.meshd_record
                    WHERE space = p_spaces[n] AND key = p_keys[n] FOR UPDATE;
                is_there := FOUND;
                IF NOT is_there THEN
                    answer := p_amounts[n];
                ELSIF length(old) NOT BETWEEN 1 AND 18 OR encode(old, 'escape') !~ '^[0-9]+$' THEN
                    answer := -2;
                    EXIT;
                ELSE
                    answer := encode(old, 'escape')::bigint + p_amounts[n];
                END IF;
                IF answer > p_ceilings[n] THEN
                    answer := -1;
                    EXIT;
                ELSIF answer < 0 THEN
                    answer := -3;
                    EXIT;
                END IF;
                IF is_there THEN
                    UPDATE {schema}.meshd_record
                        SET value = convert_to(answer::text, 'UTF8'), version = nextval('{schema}.meshd_version')
                        WHERE space = p_spaces[n] AND key = p_keys[n];
                ELSE
                    INSERT INTO {schema}.meshd_record VALUES (
                        p_spaces[n], p_keys[n], nextval('{schema}.meshd_version'), convert_to(answer::text, 'UTF8')
                    ) ON CONFLICT DO NOTHING;
                END IF;
                is_changed := FOUND;
                EXIT WHEN is_changed; -- else somebody put it there meanwhile
            END LOOP;
        ELSIF p_values[n] IS NULL THEN
            IF p_expected[n] IS NULL THEN
                DELETE FROM {schema}.meshd_record WHERE space = p_spaces[n] AND key = p_keys[n];
                is_changed := FOUND;
                answer := 1;
            ELSIF p_expected[n] = 0 THEN
                PERFORM 1 FROM {schema}.meshd_record WHERE space = p_spaces[n] AND key = p_keys[n];
                answer := CASE WHEN FOUND THEN 0 ELSE 1 END;
            ELSE
                DELETE FROM {schema}.meshd_record
                    WHERE space = p_spaces[n] AND key = p_keys[n] AND version = p_expected[n];
                is_changed := FOUND;
                answer := is_changed::integer;
            END IF;
        ELSE
            IF p_expected[n] IS NULL THEN
                INSERT INTO {schema}.meshd_record AS r
                    VALUES (p_spaces[n], p_keys[n], nextval('{schema}.meshd_version'), p_values[n])
                    ON CONFLICT (space, key) DO UPDATE
                        SET value = excluded.value, version = nextval('{schema}.meshd_version');
            ELSIF p_expected[n] = 0 THEN
                INSERT INTO {schema}.meshd_record
                    VALUES (p_spaces[n], p_keys[n], nextval('{schema}.meshd_version'), p_values[n])
                    ON CONFLICT DO NOTHING;
            ELSE
                UPDATE {schema}.meshd_record SET value = p_values[n], version = nextval('{schema}.meshd_version')
                    WHERE space = p_spaces[n] AND key = p_keys[n] AND version = p_expected[n];
            END IF;
            is_changed := FOUND;
            answer := is_changed::integer;
        END IF;
        IF is_changed THEN
            PERFORM pg_notify(p_channel, p_told[n]);
        END IF;
        answers := answers || answer;
    END LOOP;
    RETURN answers;
END
$body$;
"""
MADE: Final = "INSERT INTO {schema}.meshd_format VALUES ($1)"

# Arrays go out and come back as text: the driver would ask every new connection what an array is, which a server with
# JIT takes two seconds to say.
CHANGE: Final = """
SELECT {schema}.meshd_change_1(
    $1, $2::text::text[], $3::text::text[], $4::text::bytea[], $5::text::bigint[],
    $6::text::bigint[], $7::text::bigint[], $8::text::text[]
)::text
"""
READ: Final = """
SELECT r.space, r.key, r.version, r.value
FROM unnest($1::text::text[], $2::text::text[]) AS asked (space, key)
JOIN {schema}.meshd_record r ON r.space = asked.space AND r.key = asked.key
"""


def array(values: Iterable[str | bytes | int | None]) -> str:
    """Return an array as PostgreSQL writes one. https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO"""
    return "{" + ",".join(_element(value) for value in values) + "}"


def _element(value: str | bytes | int | None) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def numbers(text: str) -> list[int]:
    """Return the numbers of an array that PostgreSQL has written."""
    return [int(number) for number in text[1:-1].split(",")] if text != "{}" else []


KEYS: Final = "SELECT key FROM {schema}.meshd_record WHERE space = $1 AND key > $2 ORDER BY key LIMIT $3"

PROMISES: Final = """
SELECT current_setting('server_version_num')::integer AS version,
       current_setting('server_version') AS version_said,
       pg_is_in_recovery() AS is_standby,
       current_setting('transaction_read_only') AS read_only,
       current_setting('server_encoding') AS encoding,
       current_setting('default_transaction_isolation') AS isolation,
       current_setting('fsync') AS fsync,
       current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('synchronous_standby_names') AS synchronous_standbys,
       (SELECT count(*) FROM pg_stat_replication) AS standbys
"""
