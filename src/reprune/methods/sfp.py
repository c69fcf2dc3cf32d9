r"""SFP: soft filter pruning.                                He et al., IJCAI 2018, arXiv:1808.06866

    s_j = || F_ij ||_2                                       (eq. 2 with p = 2)
    before training and after every epoch: F_ij <- 0 for the floor(N_i P) filters with the smallest s_j   (section 3.3)

    F_ij     filter j of layer i, flattened                 [c_in * k * k]
    N_i, P   filters of layer i; fraction removed (the authors' `rate` is the fraction kept)

Zeroed filters go on training and may come back; what is zero after the last epoch is removed. The silencing itself is
`PruningCallback`, the ranking `FilterNorm(p=2)`: this method is its YAML, conf/method/sfp.yaml, and this page.

Needs: training.

Deviations: the authors zero every conv on its own, block outputs included; here the layers of a residual group share
one mask (ranked by the sum of their norms), so that the removal at the end is real (a reconstruction). With
`silence_layers: true` each layer has its own, and the shared one only the last time. Batch norm is removed with its
filter (the authors leave its shift behind): rows take new statistics after the removal. The authors keep the epoch that
is best on the test set, here the last one counts.

Which filters come back, of those silenced, from one epoch to the next (ResNet-20, 40 %, three epochs of 1280 CIFAR-10
images; inner widths / block outputs):
                                shared masks      masks of their own
    from a trained net, 0.01    5 % / 63 %        4 % / 51 %
    from scratch, 0.1           none / none       none / 55 %
From scratch, shared masks choose for good in the first epoch; only masks of their own let block outputs come back.
"""

from reprune.methods.l1 import FilterNorm

__all__ = ["FilterNorm"]
