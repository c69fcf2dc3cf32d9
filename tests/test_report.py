"""What the page of all results holds; test_page.py: what it does."""

import base64
import hashlib
import json
import re
from functools import partial
from pathlib import Path

import pytest
from project import CLAIM, ROW, record
from report_project import EVIL, small_project

from reprune.__main__ import main
from reprune.results.lines import collect, summary
from reprune.results.render.html import content, page

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return small_project(tmp_path_factory.mktemp("project"))


def built(root):
    errors = []
    text = page(content(collect(root, errors)))
    assert errors == []
    return text


def data(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_the_page_holds_every_line_and_every_run(root):
    found, lines = data(built(root)), summary(root)
    assert len(found["lines"]) == len(lines) == 4
    for line, (row, cells, _, _, runs, *_) in zip(lines, found["lines"], strict=True):
        values = {**dict(zip(found["columns"], cells, strict=True)), **found["rows"][row]["values"]}
        known = {name: found["texts"][value] if name in found["text"] and value is not None else value
                 for name, value in values.items()}
        assert known == {name: line[name] for name in known} and {"delta", "claim_delta", "verdict"} <= set(known)
        assert " ".join(run[0] for run in runs) == (line["keys"] or "")


def test_the_same_records_give_the_same_bytes(root, tmp_path):
    for name in ("one", "two"):
        files = sorted(root.rglob("*.*"), reverse=name == "two")
        for file in files:
            copy = tmp_path / name / file.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
        assert main(["report", "--root", str(tmp_path / name)]) == 0
    one, two = ((tmp_path / name / "results/index.html").read_bytes() for name in ("one", "two"))
    assert one == two == built(root).encode() and str(tmp_path).encode() not in one


@pytest.mark.parametrize("what", ["record", "claim", "page"])
def test_check_tells_of_a_page_that_differs(what, tmp_path, capsys):
    folder = tmp_path / "experiments/some2020"
    folder.mkdir(parents=True)
    (folder / "A.yaml").write_text(ROW.format(name="A") + CLAIM)
    (tmp_path / "experiments/papers.yaml").write_text("some2020: {title: Some Paper}\n")
    file, out = record(tmp_path), tmp_path / "results/index.html"
    check = partial(main, ["report", "--check", "--root", str(tmp_path)])
    assert check() == 1 and not out.exists()
    assert main(["report", "--root", str(tmp_path)]) == 0 and check() == 0
    capsys.readouterr()
    if what == "record":
        file.unlink()
    elif what == "claim":
        (folder / "A.yaml").write_text(ROW.format(name="A") + CLAIM.replace("93.06", "93.07"))
    else:
        out.write_text(out.read_text().replace("92", "93", 1))
    before = out.read_bytes()
    assert check() == 1 and out.read_bytes() == before
    assert capsys.readouterr().err == "error: results/index.html differs from what the records say: run make report\n"


def test_a_bad_record_is_named_once_and_the_rest_is_built(root, tmp_path, capsys):
    for file in root.rglob("*.*"):
        copy = tmp_path / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    (tmp_path / "results/runs/ff.json").write_text("{")
    assert main(["report", "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: results/runs/ff.json: ") and error.count("\n") == 1
    assert len(data((tmp_path / "results/index.html").read_text("utf-8"))["lines"]) == 4


def test_nothing_is_loaded_and_only_the_page_itself_may_act(root):
    text = built(root)
    frame = re.sub(r'(id="data">).*?(</script>)', r"\1\2", text, flags=re.S)
    assert not re.search(r"\bsrc(set)?=|@import|url\(|\bimport\(", frame)
    assert re.findall("<link .*", frame) == ['<link rel="icon" href="data:,">']
    for kind in ("style", "script"):
        inner = re.search(rf"<{kind}>(.*?)</{kind}>", text, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text and EVIL not in text


def test_the_committed_page_is_what_the_committed_records_say(capsys):
    assert main(["report", "--check", "--root", str(REPOSITORY)]) == 0, capsys.readouterr().err
