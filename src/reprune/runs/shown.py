"""What is said of a run that has finished. Without torch: there is nothing left to do."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Column, Table

from reprune.runs.store import Store


def finished(cfg: DictConfig, store: Store) -> dict | None:
    """The record where there is nothing to do, once it is shown, and published for the row that asks."""
    record = None if cfg.force else store.finished()
    if record is not None:
        print(f"{store.key}: finished before, nothing to do (force=true runs it again)")
        record = store.serve(record, cfg.experiment)
        show(record, store.folder)
    return record


def show(record: dict, folder: Path) -> None:
    """The result of one run as a table, and where its files lie."""
    base, pruned, at = record["baseline"], record["pruned"], record["latency"]
    table = Table("", *(Column(name, justify="right") for name in ("baseline", "pruned", "change")),
                  title=f"{record['method']} on {record['model']} / {record['dataset']}, seed {record['seed']}",
                  title_justify="left")
    table.add_row("top-1 %", f"{base['top1']:.2f}", f"{pruned['top1']:.2f}", f"{pruned['top1'] - base['top1']:+.2f}")
    if sparse := record.get("sparse"):
        change = f"{sparse['top1'] - base['top1']:+.2f}"
        table.add_row("top-1 % after sparse training", "", f"{sparse['top1']:.2f}", change)
    table.add_row("top-1 % before recovery", "", f"{pruned['top1_before_recovery']:.2f}", "")
    base, dynamic = {"macs_mean": base["macs"], **base}, [("MACs, mean", "macs_mean", ",")] * ("macs_mean" in pruned)
    for name, of, form in (("parameters", "params", ","), ("MACs", "macs", ","), *dynamic,
                           ("latency ms", "latency_ms", ".2f"), ("peak activations MiB", "peak_memory_mib", ".1f")):
        change = f"{100 * (pruned[of] / base[of] - 1):+.1f} %"
        if of == "latency_ms":
            name += f" (batch {at['batch_size']}, {at['device']}, {at['threads']} threads)"
            change = f"{base[of] / pruned[of]:.2f}x faster"
        table.add_row(name, f"{base[of]:{form}}", f"{pruned[of]:{form}}", change)
    if (density := pruned.get("density")) is not None:
        table.add_row("parameters that are not zero %", "100.00", f"{density:.2f}", f"{density - 100:+.1f} %")
    if (size := pruned.get("bytes")) is not None:
        change = f"{pruned['bytes_dense'] / size:.1f}x smaller"
        table.add_row("bytes", f"{pruned['bytes_dense']:,}", f"{size:,}", change)
    epochs, seconds = (", ".join(f"{stage} {value:.0f}" for stage, value in record[of].items())
                       for of in ("epochs", "seconds"))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    if unread := record.get("left_out"):
        console.print(f"images that could not be read, and were left out: {unread}")
    console.print(f"epochs: {epochs}; seconds: {seconds}\nrecord {folder / 'record.json'}\n"
                  f"net    {folder / 'net.safetensors'}   (reprune.load gives it back)")
