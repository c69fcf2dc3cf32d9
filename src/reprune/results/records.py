"""The records of results/runs/*.json as tables of DuckDB: read, checked and averaged in SQL, ten thousand in seconds.

`read_runs` makes the table `runs` of all records that are as results.RECORD wants them, one row each, with `config_id`:
a hash of what determines the result, without the seed. LINES, SPEED and NORMS are the questions asked of it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import duckdb

from reprune.errors import UserError
from reprune.results.rows import GROUPS, RECORD, SCHEMA, STAGES, read_all, read_record
from reprune.runs.fingerprint import PARTS
from reprune.runs.store import NOT_IN_KEY, unused, without

NUMBER = "typeof IN ('UBIGINT', 'BIGINT', 'DOUBLE')"
COUNT = "typeof = 'UBIGINT'"
NORM_LISTS = "map_values(try_cast(try_cast(said AS JSON) AS MAP(VARCHAR, DOUBLE[])))"       # one per layer
KINDS = {           # results.KINDS in SQL: typeof is the JSON type of a field, said its text
    "text": "typeof = 'VARCHAR' AND trim(said) != ''", "mapping": "typeof = 'OBJECT'", "count": COUNT,
    "percent": f"{NUMBER} AND try_cast(said AS DOUBLE) BETWEEN 0 AND 100",
    "positive": f"{NUMBER} AND try_cast(said AS DOUBLE) > 0 AND isfinite(try_cast(said AS DOUBLE))",
    "lists of norms": f"""typeof = 'OBJECT' AND said != '{{}}' AND coalesce(list_bool_and(list_transform(
        {NORM_LISTS}, lambda l: len(l) > 0 AND list_bool_and(list_transform(
            l, lambda x: coalesce(x >= 0 AND isfinite(x), false))))), false)"""}
SPLIT = {name: kind for name, kind in RECORD.items() if kind.split()[0] != "counts"} | {
    f"{name}.{stage}": kind.replace("counts", "count") for name, kind in RECORD.items() if kind.split()[0] == "counts"
    for stage in STAGES}
ALSO = ["schema", "status", *(f"code.{part}" for part in PARTS), "env.git", "env.torch", "config.dataset.limit",
        "config.recipe.recover.epochs", "seconds", "paper_epochs"]
FIELDS = [*SPLIT, *(name for name in ALSO if name not in SPLIT)]
SAME = ("experiment", "config_id", "code", *(f"epochs.{stage}" for stage in STAGES))     # of the runs of a line


def said(name: str, kind: str = "VARCHAR") -> str:
    """A field of a record as SQL."""
    text = f"said[{FIELDS.index(name) + 1}]"
    return text if kind == "VARCHAR" else f"try_cast({text} AS {kind})"


def holds(name: str, kind: str) -> str:
    """SQL: is the field of its kind?"""
    plain = kind.removesuffix(" or null")
    test = KINDS[plain].replace("typeof", f"typeof[{FIELDS.index(name) + 1}]").replace("said", said(name))
    return f"({test})" if plain == kind else f"({said(name)} IS NULL OR {test})"


def patch() -> str:
    """The JSON merge patch that takes out of a config what a result does not depend on, and the seed."""
    tree: dict[str, Any] = {}
    for name in ("seed", *NOT_IN_KEY):
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = None
    return json.dumps(tree)


def counts_hold() -> str:
    """The paper's epochs: of all stages, or not known."""
    every = " AND ".join(holds(f"paper_epochs.{stage}", "count") for stage in STAGES)
    return f"({said('paper_epochs')} IS NULL OR ({every}))"


def read_query() -> str:
    """Of each file: the fields, and whether they are as results.RECORD wants them."""
    paths = "[" + ", ".join(f"'$.{name}'" for name in FIELDS) + "]"
    tests = [holds(name, kind) for name, kind in SPLIT.items() if not name.startswith("paper_epochs.")]
    tests += [counts_hold(), f"{said('schema')} = '{SCHEMA}'", f"{said('status')} = 'done'",
              f"{said('key')} || '.json' = parse_filename(filename)"]
    return f"""
        SELECT filename, said, coalesce({' AND '.join(tests)}, false) AS good FROM (
            SELECT filename, json_type(text, {paths}) AS typeof, json_extract_string(text, {paths}) AS said FROM (
                SELECT filename, if(json_valid(text), text, NULL) AS text FROM (
                    SELECT filename, try(decode(content)) AS text FROM read_blob(?))))"""


RUNS = f"""
    SELECT {', '.join(f'{said(name)} AS "{name}"' for name in ('key', 'experiment', *GROUPS))},
        if({said('code')} IS NULL, NULL, json_object({
            ', '.join(f"'{part}', {said(f'code.{part}')}" for part in PARTS)})::VARCHAR) AS code,
        {said('seed', 'BIGINT')} AS seed,
        {', '.join(f'{said(f"epochs.{stage}", "BIGINT")} AS "epochs.{stage}"' for stage in STAGES)},
        {', '.join(f'{said(f"paper_epochs.{stage}", "BIGINT")} AS "paper.{stage}"' for stage in STAGES)},
        {said('paper_epochs')} IS NOT NULL AS paper_known,
        {said('config.dataset.limit')} AS images,
        {said('config.recipe.recover.epochs', 'BIGINT')} AS last_epochs,
        {said('baseline.source')} AS source, {said('baseline.top1', 'DOUBLE')} AS base,
        {said('pruned.top1', 'DOUBLE')} AS top1, {said('pruned.top1_best', 'DOUBLE')} AS best,
        {said('pruned.top1_before_recovery', 'DOUBLE')} AS before,
        {', '.join(f'{said(f"{net}.{what}", "DOUBLE")} AS {net}_{what}'
                   for net in ("baseline", "pruned") for what in ("params", "macs", "latency_ms"))},
        {said('latency.device')} || ', batch ' || {said('latency.batch_size')} || ', ' || {said('latency.threads')}
            || if({said('latency.threads')} = '1', ' thread', ' threads') AS machine,
        coalesce({said('env.git')}, 'unknown') AS commit, coalesce({said('env.torch')}, 'unknown') AS torch,
        list_sum(map_values(try_cast({said('seconds', 'JSON')} AS MAP(VARCHAR, DOUBLE)))) AS seconds,
        json_merge_patch({said('config')}, '{patch()}')::VARCHAR AS config,
        {NORM_LISTS.replace('said', said('group_norms'))} AS norms
    FROM read WHERE good"""


def mean_of(values: str) -> str:
    """Added up in the order of the seeds: the same last digit every time."""
    return f"round(avg({values} ORDER BY seed, key), 6)"


def std_of(values: str) -> str:
    return f"round(stddev_samp({values} ORDER BY seed, key), 6)"


FIRST = [*GROUPS, "source", "images", "last_epochs", "paper_known", *(f"paper.{stage}" for stage in STAGES)]
LINES = f"""
    SELECT {', '.join(f'"{name}"' for name in SAME)},
        {', '.join(f'first("{name}" ORDER BY seed, key) AS "{name}"' for name in FIRST)},
        count(DISTINCT seed) AS seeds, list(key ORDER BY seed, key) AS keys,
        list(DISTINCT commit ORDER BY commit) AS commits,
        {mean_of('base')} AS baseline_top1, {mean_of('top1')} AS pruned_top1, {std_of('top1')} AS pruned_top1_std,
        {mean_of('top1 - base')} AS delta, {std_of('top1 - base')} AS delta_std,
        {', '.join(f'if(count({name}) = count(*), {of(name)}, NULL) AS {name}{end}' for name in ("before", "best")
                   for of, end in ((mean_of, ""), (std_of, "_std")))},
        {', '.join(f'{mean_of(f"{net}_{what}")} AS {what}_{net}' for net in ("baseline", "pruned")
                   for what in ("params", "macs"))},
        {', '.join(f'{mean_of(f"100 * (1 - pruned_{what} / baseline_{what})")} AS {what}_drop'
                   for what in ("params", "macs"))},
        {mean_of('seconds')} AS seconds
    FROM runs GROUP BY ALL"""
SPEED = f"""
    SELECT {', '.join(f'"{name}"' for name in SAME)}, machine, count(*) AS n,
        {mean_of('baseline_latency_ms / pruned_latency_ms')} AS ratio
    FROM runs GROUP BY ALL ORDER BY n DESC, machine"""
NORMS = """
    SELECT key, model, seed, "epochs.sparse" AS epochs, len(flatten(norms)) AS groups,
        list_max(flatten(norms)) AS largest, list_aggregate(flatten(norms), 'median') AS median,
        list_sum(list_transform(norms, lambda l: len(list_filter(l, lambda x: x <= 0.01 * list_max(l))))) AS near,
        len(list_filter(flatten(norms), lambda x: x < 0.01)) AS small
    FROM runs WHERE norms IS NOT NULL"""


def query(con: duckdb.DuckDBPyConnection, sql: str) -> list[dict]:
    cursor = con.execute(sql)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]


def read_runs(con: duckdb.DuckDBPyConnection, root: Path, errors: list[str]) -> None:
    """Table `runs` of all good records; each bad file becomes a line in `errors`."""
    files = sorted(root.glob("results/runs/*.json"))
    readable = [file for file in files if file.is_file() and os.access(file, os.R_OK)]
    con.execute("SET threads = 2; SET memory_limit = '300MB'; SET preserve_insertion_order = false")
    con.execute(f"CREATE TABLE read AS {read_query()}" if readable else
                "CREATE TABLE read (filename VARCHAR, said VARCHAR[], good BOOLEAN)",
                [[glob.escape(str(file)) for file in readable]] if readable else None)
    good = {name for (name,) in con.execute("SELECT parse_filename(filename) FROM read WHERE good").fetchall()}

    def explain(file: Path) -> None:
        """The rules of results.py say what is wrong, by name."""
        read_record(file)
        raise UserError("content cannot be read: it is no plain JSON")

    read_all([file for file in files if file.name not in good], explain, root, errors)
    con.execute(f"CREATE TABLE found AS {RUNS}; DROP TABLE read")
    con.execute("CREATE TABLE texts AS "
                "SELECT row_number() OVER (ORDER BY config) AS n, config FROM found GROUP BY config")
    texts = con.execute("SELECT n, config FROM texts ORDER BY n").fetchall()
    hashes = [canonical_hash(text) for _, text in texts]          # Python sees each distinct config once
    con.execute("CREATE TABLE ids AS SELECT unnest(?) AS n, unnest(?) AS config_id", [[n for n, _ in texts], hashes])
    con.execute("CREATE TABLE runs AS SELECT * EXCLUDE (config, n) "
                "FROM found JOIN texts USING (config) JOIN ids USING (n)")
    con.execute("CREATE TABLE configs AS "
                "SELECT config_id, min(config) AS config FROM texts JOIN ids USING (n) GROUP BY ALL")


def canonical_hash(text: str) -> str:
    """Of a config as JSON, whatever the order of its keys; options it does not use count as not there.

    >>> canonical_hash('{"a": 1, "b": 2}') == canonical_hash('{"b": 2,"a": 1, "speed": {"compile": false}}')
    True
    """
    config = json.loads(text)
    config = without(config, unused(config))
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
