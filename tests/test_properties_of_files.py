"""Whatever a file of a stranger holds, reading it gives a result or one line, never another error."""

import copy
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from project import project, record

from reprune.errors import UserError
from reprune.results.lines import summary
from reprune.schema import Claim, Paper, Record

QUICK = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(
    ["top1", "done", 1, 0, 100, 10**18, "a" * 16, "\x1b[31m", "=cmd()", "<script>", "$(touch x)", "a.b"])
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner,
                                                                                      max_size=4), max_leaves=12)


def one_line(read, *content):
    """-> what was read, or None for one line"""
    try:
        return read(*content)
    except UserError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 2000
        return None


def whole(tmp_path_factory):
    return json.loads(record(project(tmp_path_factory.mktemp("p")), seconds={"prune": 1.0}, group_norms={"a": [1.0]},
                             widths={"a": [16, 8]}, curves={"recover": {"loss": [1.0]}}).read_text())


def places(node, prefix=()):
    yield prefix
    for name, value in node.items() if isinstance(node, dict) else ():
        yield from places(value, (*prefix, name))


@QUICK
@given(st.binary(max_size=200))
def test_bytes(content):
    assert one_line(Record.read, content) is None and one_line(Claim.read, content) is None


@QUICK
@given(JSON)
def test_any_json(content):
    for kind in (Record, Claim, Paper):
        one_line(kind.read, content, "file")
        one_line(kind.read, json.dumps(content).encode())


@QUICK
@given(st.dictionaries(st.sampled_from(sorted(Claim.model_fields)), LEAVES, max_size=8), st.booleans())
def test_any_claim(claim, sourced):
    read = one_line(Claim.read, {**claim, **({"source": "a", "provenance": "b"} if sourced else {})}, "claim")
    if read is not None:
        assert all(name in Claim.model_fields for name in read.derived) and read.also() is not None


def test_a_record_with_anything_anywhere_is_a_line_of_the_tables_or_one_of_the_errors(tmp_path_factory):
    good = whole(tmp_path_factory)
    spots = sorted(map(list, places(good)))

    @QUICK
    @given(st.sampled_from(spots[1:]), JSON)
    def anywhere(spot, value):
        content = copy.deepcopy(good)
        node = content
        for name in spot[:-1]:
            node = node[name]
        node[spot[-1]] = value
        root = project(tmp_path_factory.mktemp("p"))
        (root / "results/runs").mkdir(parents=True)
        (root / f"results/runs/{good['key']}.json").write_text(json.dumps(content))
        errors: list[str] = []
        lines = summary(root, errors)
        assert all("\n" not in error and "\x1b" not in error for error in errors)
        assert sum(line["seeds"] for line in lines) + len(errors) == 1

    anywhere()
