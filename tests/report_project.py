"""A small project to make a page of."""

from project import CLAIM, ROW, record

EVIL = '</script><script>document.title = "gone"</script><img src=x onerror="document.title = 1">'


def small_project(root):
    """Four rows of a paper (two claimed and run, one not run, one of our own), several seeds, and a hostile text."""
    folder = root / "experiments" / "some2020"
    folder.mkdir(parents=True)
    for name, claim in (("A", CLAIM), ("B", CLAIM.replace("93.06", "92.54").replace("Table 1,", f"'{EVIL}',")),
                        ("C", CLAIM.replace("27.6", "80").replace("macs_drop", "macs_drop_min")), ("own", "")):
        text = ROW.format(name=name) + claim
        if name == "C":
            text = text.replace("- override /method", "- override /model: net\n  - override /dataset: cifar10\n"
                                                      "  - override /method")
        (folder / f"{name}.yaml").write_text(text)
    (root / "experiments" / "papers.yaml").write_text("some2020: {title: Some Paper, venue: CONF, arxiv: '1'}\n")
    for seed, top1 in enumerate((92.0, 93.0, 91.0)):
        record(root, seed=seed, top1=top1)
    record(root, row="B", top1=80.5, epochs__recover=2, pruned__macs=400)
    record(root, row="own", top1=70.25, method="random", config__recipe__recover={"epochs": 40, "from_scratch": True})
    return root
