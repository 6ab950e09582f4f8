"""The learning-rate law of deep linear networks."""


def inverse_depth(depth: int) -> float:
    r"""Learning-rate multiplier that keeps the speed of the end-to-end map independent of depth.

    One step of size :math:`\eta` on each of ``N`` orthogonal factors of gain ``s`` changes their product
    :math:`W = W_N \cdots W_1` to first order by

    .. math:: \Delta W = -\eta \, N s^{2(N-1)} \, \partial L / \partial W

    under SGD. With :math:`\eta / N` and ``s = 1`` it is the step of a single matrix. The factor :math:`s^{2(N-1)}` is
    deliberately not divided out: correct at the first step, it diverges later, when singular values near 1 decide
    stability. Under Adam the same rule holds to within a quarter, and decoupled weight decay
    :math:`(1 - \eta\lambda/N)^N` keeps its end-to-end strength.

    Args:
        depth: Number of linear layers, 0 or more.

    Returns:
        ``1 / depth``; 1 for depth 0, where there is nothing to scale.

    Source: derived after Saxe et al. 2014 (arXiv 1312.6120) and Arora et al. 2018 (arXiv 1802.06509), for the method
    of Sun et al. 2021 (arXiv 2107.01301).

    Example:
        >>> inverse_depth(4)
        0.25
    """
    return 1.0 / max(depth, 1)
