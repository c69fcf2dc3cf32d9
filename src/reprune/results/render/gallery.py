"""docs/methods.md: all methods, made of what each says of itself in the docstring of its file, and of results.

A method's docstring: what it does and the citation, the equations, `Needs:`, `Deviations:`. Read, never imported."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from reprune.results.lines import Collected
from reprune.results.render.markdown import escape, table
from reprune.results.render.text import counted, standing

INTRO = """\
# Methods

Made by `make tables` from the files in [src/reprune/methods](../src/reprune/methods) and from the records.

*Exact*: as the paper and its code say, but for what stands under *deviations*. *In part*: some of its settings had to
be filled in. *Reconstruction*: the paper's text does not say enough; what was filled in is named."""


def gallery(root: Path, found: Collected) -> str:
    """A table, then a section for each method."""
    rows, sections = [], []
    for file in sorted((root / "conf/method").glob("*.yaml")):
        code = root / f"src/reprune/methods/{file.stem}.py"
        if not code.is_file():                                    # the unpruned baseline
            continue
        said = parts(ast.get_docstring(ast.parse(code.read_text(encoding="utf-8"))) or "")
        paper = next((key for key, about in found.about.items() for at in (about.arxiv, about.doi)
                      if at and at in said["citation"]), None)
        if paper and said["exact"] == "exact" and found.about[paper].reconstruction:
            said["exact"] = "in part"
        stand = [standing(found.of(row)) for row in found.rows
                 if row.claim and row.choices.get("method") == file.stem]
        links = [f"[its claims](../results/{paper}.md)"] * (paper is not None)
        rows.append({"method": f"[{file.stem}](#{file.stem})", "what it does": said["title"], "needs": said["needs"],
                     "as the paper": said["exact"], "claims": str(len(stand))})
        sections.append("\n\n".join([
            f"## {file.stem}", f"{said['title']}. {said['citation']}".strip(),
            f"`reprune run method={file.stem}` · [code](../src/reprune/methods/{file.stem}.py) · "
            f"[config](../conf/method/{file.stem}.yaml)" + "".join(f" · {link}" for link in links),
            said["body"], f"**Needs** {said['needs']}.", f"**Deviations** ({said['exact']}): {said['deviations']}",
            *[f"**Claims** {counted(stand)}."] * bool(stand)]))
    return "\n\n".join([INTRO, table(rows), *sections]) + "\n"


def parts(doc: str) -> dict[str, str]:
    """Of a method's docstring.

    >>> said = parts("A: does b.     X et al., Y 2020\\n\\n    a = b  (1)\\n\\nNeeds: images.\\n\\nDeviations: none.")
    >>> said["title"], said["citation"], said["needs"], said["exact"]
    ('A: does b', 'X et al., Y 2020', 'images', 'exact')
    """
    first, _, rest = doc.partition("\n\n")
    title, citation = (*re.split(r"\s{3,}", first, maxsplit=1), "")[:2]
    rest, _, deviations = rest.partition("Deviations: ")
    deviations, _, after = deviations.partition("\n\n")
    body, _, needs = rest.partition("Needs: ")
    needs, _, more = needs.partition("\n\n")
    exact = "reconstruction" if deviations.startswith("a reconstruction") else (
        "in part" if "reconstruction" in doc else "exact")
    return {"title": title.rstrip("."), "citation": citation, "needs": " ".join(needs.split()).rstrip("."),
            "exact": exact, "deviations": escape(" ".join(deviations.split())),
            "body": "\n\n".join(part for part in (body.strip("\n"), more.strip("\n"), after.strip("\n")) if part)}
