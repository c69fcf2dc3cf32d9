"""What a run would only stumble over once it has begun, or not even then: told before anything trains."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from reprune.errors import UserError
from reprune.files import writable
from reprune.runs.hints import told
from reprune.runs.store import Store

PARTS = ("baseline", "sparse", "between", "recover")    # of a recipe


def check(cfg: DictConfig) -> None:
    """Raises UserError for a seed that is none, a net that does not fit the images, a precision that this processor
    emulates, a place that takes no record."""
    if isinstance(cfg.seed, bool) or not isinstance(cfg.seed, int) or cfg.seed < 0:
        raise UserError(f"seed must be a whole number from 0 up, not {cfg.seed!r}")
    for name in ("batch_size", "eval_batch_size", *(f"{part}.epochs" for part in PARTS)):
        value, least = OmegaConf.select(cfg.recipe, name), int("size" in name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise UserError(f"recipe.{name} must be a whole number from {least} up, not {value!r}")
    outputs, classes = cfg.model.get("classes"), cfg.dataset.get("classes")
    if isinstance(classes, int) and not (outputs is None or isinstance(outputs, int) and outputs >= classes):
        raise UserError(f"model.classes must be a whole number from {classes} up, the classes of dataset "
                        f"{cfg.dataset.get('name')!r}, not {outputs!r}")
    named, bf16 = bool(cfg.experiment), str(cfg.trainer.precision).startswith("bf16")
    if (named or bf16) and (cfg.force or Store(cfg).finished() is None):
        if bf16:
            check_bf16(cfg)
        if named:
            writable("results_dir", Path(cfg.results_dir))


def check_bf16(cfg: DictConfig) -> None:
    """Raises UserError where bfloat16 is asked of a CPU that emulates it: ten times as slow as float32, or more."""
    from reprune.training.classifier import device  # seconds: other precisions need no torch to be checked
    from reprune.training.speed import cpu_bf16, native_bf16

    if cpu_bf16(cfg, device(cfg)) and not native_bf16():
        raise UserError(f"trainer.precision={cfg.trainer.precision} on a CPU without bfloat16 instructions "
                        "(avx512_bf16 or amx_bf16) would be very slow: use trainer=auto")


def trainable(cfg: DictConfig) -> None:
    """Raises UserError for a device that is not there, gradients that would not add up, masks of fresh weights, and for
    an optimiser or a schedule that cannot take a step."""
    import torch

    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={cfg.trainer.accelerator}: torch finds no GPU here; "
                        "trainer=auto trains on the CPU")
    if (cfg.trainer.get("accumulate_grad_batches", 1) != 1 and cfg.speed.graph and torch.cuda.is_available()
            and cfg.trainer.accelerator != "cpu"):
        raise UserError("trainer.accumulate_grad_batches: a recorded step keeps the gradients of its own batch alone; "
                        "set speed.graph=false")
    if cfg.method.get("masks") and cfg.recipe.get("sparse", {}).get("from_scratch"):
        raise UserError(f"method {cfg.method.name!r} masks the weights of a trained net: set "
                        "recipe.sparse.from_scratch=false")
    for part in PARTS:
        if (recipe := cfg.recipe.get(part)) is None or recipe.get("epochs") == 0:
            continue
        try:
            optimizer = instantiate(recipe.optimizer)([torch.nn.Parameter(torch.zeros(1, 1))])
            schedule = None if recipe.scheduler is None else instantiate(recipe.scheduler)(optimizer)
            optimizer.step()
            if schedule is not None:
                schedule.step()
        except Exception as error:                                # whatever torch makes of it
            raise UserError(f"recipe.{part}, its optimizer or scheduler: {told(error)}") from error
