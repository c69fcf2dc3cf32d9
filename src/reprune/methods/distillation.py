r"""Knowledge distillation: the pruned net learns from the unpruned one.  Hinton et al. 2015, arXiv:1503.02531

    p^T(z)  = softmax(z / T)                                                         (1)
    KL      = mean over the batch of  sum_c p^T_c(t) * log( p^T_c(t) / p^T_c(s) )    (2)
    total   = (1 - a) * CE + a * T^2 * KL                                            (3)
            = CE + a * (T^2 * KL - CE)                                               (4)

    s, t    logits of the student (the net in training) and of the teacher     [B, classes]
    T, a    temperature > 0; share of the teacher in [0, 1]

A penalty is added to the cross-entropy, so it is the second term of (4): it takes back the share a of CE and puts the
teacher's share in its place. The penalty alone may therefore be negative; the total (3) never is.
T^2 keeps the gradient of the soft part of the same size whatever T is.

Deviations: the form (3) and the defaults a = 0.7, T = 4 are those used here for Hu et al. 2018 (arXiv:1805.11394), a
reconstruction. (4) equals (3) where the loss it is added to is plain cross-entropy, without label smoothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reprune.errors import UserError
from reprune.pruning.sockets import Step


def soft_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Eq. 2. student, teacher: logits [B, classes] -> scalar.

    >>> teacher = torch.tensor([[3., 1.]]).log()             # p = 3/4, 1/4
    >>> soft_kl(teacher, teacher, 4.)
    tensor(0.)
    >>> soft_kl(torch.zeros(1, 2), teacher, 1.)              # 3/4 log(3/4 / 1/2) + 1/4 log(1/4 / 1/2)
    tensor(0.1308)
    """
    p = F.log_softmax(teacher / temperature, dim=1)
    q = F.log_softmax(student / temperature, dim=1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


class Distillation:
    """The second term of eq. 4, added to the cross-entropy. UserError: bad argument, or a step without a teacher.

    alpha          a: 0 = labels only, 1 = teacher only
    temperature    T: the higher, the more the teacher's ranking of the wrong classes counts
    """

    needs_teacher = True

    def __init__(self, alpha: float = 0.7, temperature: float = 4.0) -> None:
        if not 0 <= alpha <= 1:
            raise UserError(f"distillation: alpha must lie in [0, 1], got {alpha}")
        if not 0 < temperature < float("inf"):
            raise UserError(f"distillation: temperature must be a number > 0, got {temperature}")
        self.alpha, self.temperature = alpha, temperature

    def __call__(self, step: Step) -> Tensor:
        if step.teacher is None:
            raise UserError("distillation: this step has no teacher; give the unpruned net as `teacher`")
        step.teacher.eval()  # its BN must use, and keep, the statistics it was trained with
        with torch.no_grad():
            target = step.teacher(step.x)  # [B, classes]
        soft = self.temperature**2 * soft_kl(step.logits, target, self.temperature)
        return self.alpha * (soft - F.cross_entropy(step.logits, step.y))
