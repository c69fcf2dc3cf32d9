"""Whatever a file of a stranger holds, reading it gives a result or one line, never another error."""

import copy
import json
import os
import re
import shutil
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from project import project, record

from reprune.errors import UserError
from reprune.results.lines import summary
from reprune.schema import Claim, Paper, Record
from reprune.sweeps.bundle import pack

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
@example({"\n": None})
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


# ---------------------------------------------------------------- bundles

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and not re.fullmatch(r"lock|__pycache__|.*\.(egg-info|part)", name, re.S))
TREES = st.dictionaries(NAMES, st.binary(max_size=3000) | st.deferred(lambda: TREES), max_size=4)
FEW = settings(QUICK, max_examples=30)


def unpack(bundle: Path, to: Path) -> str | None:
    """-> None where it was unpacked, else the one line; within 2 s of a processor and 200 MiB, or it ends"""
    limited = 'ulimit -t 2; ulimit -v 204800; exec sh "$1" "$2"'
    done = subprocess.run(["sh", "-c", limited, "sh", bundle / "unpack.sh", to], capture_output=True, text=True)
    if not done.returncode:
        return None
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and not to.exists(), done.stderr
    return done.stderr


def write(tree: dict, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in tree.items():
        write(content, folder / name) if isinstance(content, dict) else (folder / name).write_bytes(content)
    return folder


def read(folder: Path) -> dict:
    return {entry.name: read(entry) if entry.is_dir() else entry.read_bytes() for entry in folder.iterdir()}


def packed(folder: Path, *also: Path, part: float = 1) -> Path:
    with redirect_stdout(None):
        pack(folder / "bundle", part, python="", also=also, root=folder / "nothing")
    return folder / "bundle"


def test_a_bundle_gives_back_any_tree(tmp_path_factory):
    @FEW
    @given(TREES, st.sampled_from([1, 0.001]))
    def gives_back(tree, part):
        folder = tmp_path_factory.mktemp("b")
        bundle = packed(folder, write(tree, folder / "tree"), part=part)
        assert unpack(bundle, folder / "there") is None and read(folder / "there" / "tree") == tree

    gives_back()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return packed(folder, write({"a": bytes(range(256)) * 40, "b": {"c": b"d"}}, folder / "tree"), part=0.0001)


@FEW
@given(data=st.data())
def test_damaged_pieces_of_a_bundle_are_one_line_and_unpack_nothing(bundle, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("d")
    damaged = shutil.copytree(bundle, folder / "damaged")
    piece = data.draw(st.sampled_from(sorted(damaged.glob("bundle.*"))))
    whole = piece.read_bytes()
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    flipped = whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1:]
    damaged_by = [None, ..., whole[:at], flipped]                 # it is lost, a pipe, cut off, changed
    content = data.draw(st.sampled_from(damaged_by) | st.binary(max_size=300).filter(whole.__ne__))
    piece.unlink()
    if content is ...:
        os.mkfifo(piece)
    elif content is not None:
        piece.write_bytes(content)
    assert "copy all of them again" in unpack(damaged, folder / "there")
    assert unpack(bundle, folder / "there") is None


@FEW
@given(pieces=st.lists(st.binary(max_size=300), max_size=3))
def test_any_bytes_as_a_bundle(bundle, tmp_path_factory, pieces):
    folder = tmp_path_factory.mktemp("n")
    shutil.copy(bundle / "unpack.sh", folder)
    for number, content in enumerate(pieces):
        (folder / f"bundle.tar.gz.{number:03}").write_bytes(content)
    assert unpack(folder, folder / "there")
