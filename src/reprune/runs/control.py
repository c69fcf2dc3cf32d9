"""The control of a row: what random filters, those of smallest L1-norm, or fresh weights reach at the row's budget, in
its rounds, with its recipe. conf/control/*.yaml say which there are.

Merged YAML takes nothing away and looks at no budget: what Hydra has composed becomes the control's config here.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf, open_dict

from reprune.errors import UserError
from reprune.runs.store import key_of

KEPT = ("allocation", "rounds", "recover_penalties", "between_penalties")   # of the row's method, by another criterion
LIMITS = ("groups", "skip", "min_filters", "min_keep", "multiple")          # of every allocation
UNIFORM, PER_LAYER, BUDGET, LATENCY, ONE_SHOT = (f"reprune.pruning.{name}" for name in
                                                 ("Uniform", "PerLayer", "Budget", "Latency", "OneShot"))


def settle(cfg: DictConfig, row: str | None) -> None:
    """Names the row, and turns its config into that of the control it asks for, in place; `control` becomes a name. A
    model of the user's own may leave out its name and weights.

    A control that changes nothing is the row itself. Raises UserError where the row has no such control.
    """
    with open_dict(cfg):
        for option, value in (("name", str(cfg.model.get("_target_")).rpartition(".")[2]), ("weights", None)):
            cfg.model.setdefault(option, value)
        control, cfg.control, cfg.experiment = cfg.control, None, row
        if not control:                                           # null; [] as expand() writes it
            return
        if row is None:
            raise UserError(f"control={control.name} is the control of a row: give experiments=PAPER/ROW too")
        before = {"method": OmegaConf.to_container(cfg.method, resolve=True),
                  "recipe": OmegaConf.to_container(cfg.recipe)}   # schedules go on following the epochs
        try:
            if before["method"].get("prunes") is False or not before["method"].get("allocation"):
                raise UserError(f"method {cfg.method.name!r} prunes nothing")
            after = (other_criterion(**before, other=OmegaConf.to_container(control.method, resolve=True))
                     if "method" in control else fresh_weights(**before))
        except UserError as error:
            raise UserError(f"{row} has no control={control.name}: {error}") from None
        if key_of(after) != key_of(before):
            cfg.control, cfg.claim, cfg.method, cfg.recipe = control.name, None, after["method"], after["recipe"]


def other_criterion(method: dict, recipe: dict, other: dict) -> dict:
    """Filters by the criterion of `other`; to the row's budget, in its rounds, recovering as it does."""
    kept = {part: method[part] for part in KEPT if part in method}
    if method.get("penalties"):                                   # what comes back between rounds is the sparse penalty
        kept.pop("between_penalties", None)
    return {"method": {**other, **kept, "allocation": even(method["allocation"])}, "recipe": paper(recipe, sparse=0)}


def even(allocation: dict) -> dict:
    """The same budget in an allocation that asks no criterion how many filters a layer loses.

    >>> even({"_target_": "reprune.pruning.Global", "rate": 0.4, "normalize": "max", "min_keep": 0.1})
    {'_target_': 'reprune.pruning.Uniform', 'rate': 0.4, 'rounding': 'removed', 'min_keep': 0.1}
    """
    target, limits = allocation["_target_"], {name: allocation[name] for name in LIMITS if name in allocation}
    if target in (UNIFORM, PER_LAYER) or (target == BUDGET and allocation.get("spread") == "uniform"):
        return allocation
    if target == LATENCY:
        return {**allocation, "spread": "uniform", "normalize": "none"}
    for unit in ("macs", "params"):
        if allocation.get(unit) is not None:
            return {"_target_": BUDGET, unit: allocation[unit], "spread": "uniform", "normalize": "none", **limits}
    if allocation.get("rate") is not None:
        return {"_target_": UNIFORM, "rate": allocation["rate"], "rounding": "removed", **limits}
    raise UserError(f"its allocation ({target}) states no budget: neither macs nor params nor a rate")


def fresh_weights(method: dict, recipe: dict) -> dict:
    """The row up to its last surgery; then what is left is trained as the baseline was, from fresh weights."""
    baseline = recipe.get("baseline")
    if not baseline or not baseline["epochs"]:
        raise UserError(f"recipe {recipe['name']!r} has no baseline part, which would say how to train from scratch")
    method, recipe = dict(method), paper(recipe, recover=(recipe.get("paper_epochs") or {}).get("baseline"))
    penalties = method.pop("recover_penalties", None)
    if method.get("rounds") != {"_target_": ONE_SHOT}:            # what comes in between is still the row's
        recipe.setdefault("between", recipe["recover"])
        method.setdefault("between_penalties", penalties or {})
    return {"method": method, "recipe": {**recipe, "recover": {**baseline, "from_scratch": True}}}


def paper(recipe: dict, **epochs: int | None) -> dict:
    """With what the control's stages take where the whole recipe is run."""
    known = recipe.get("paper_epochs")
    return {**recipe, **({"paper_epochs": {**known, **epochs}} if known else {})}
