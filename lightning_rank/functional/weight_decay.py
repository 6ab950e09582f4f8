r"""Coupled weight decay that makes a rank a fixed point.

A linear autoencoder with ``N`` linear layers between encoder and decoder has ``M = N + 2`` factors. With all of them
balanced, reconstructing a share ``p`` of a direction of variance ``v`` costs

.. math:: v (1 - p)^2 + \frac{\lambda M}{2} p^{2/M}

when the loss is the squared error summed over features and averaged over samples and every factor has the coupled L2
decay :math:`\lambda` (``weight_decay`` of ``torch.optim.SGD`` and ``torch.optim.Adam``, *not* of ``AdamW``). With
:math:`a = 1 - 2/M` its slope vanishes at some ``p > 0`` if and only if

.. math:: v > v_c = \frac{\lambda}{2 \kappa}, \qquad \kappa = \max_p\, (1 - p)\, p^a = \frac{a^a}{(1 + a)^{1 + a}}

so directions below :math:`v_c` are cut and those above can survive, however long the training. (Zero is a rest point,
too: a direction of up to 1.6 times the cutoff was seen to fall to it, when the start gave it too little.) From
four layers on the cut hardly depends on the depth: :math:`v_c / \lambda` is 1.54 at ``N = 4``, 1.85 at 16 and 2 in the
limit; without linear layers it is 0.5.

Limits: derived for linear autoencoders, and tried on those only. Start from gain 1 (from a small gain, decay kills
weak signals first), decay encoder, decoder and all linear layers alike, leave biases undecayed. Divide
:math:`\lambda` by ``n`` for a loss that averages over ``n`` features. Plain L2 at ``N = 0`` holds a rank too, with a
softer cut.
"""

import math


def weight_decay_for_variance_cutoff(cutoff: float, depth: int) -> float:
    r"""Coupled weight decay that cuts the principal directions of the data below a variance.

    .. math:: \lambda = 2 \kappa v_c

    with :math:`\kappa` derived in the description of this module, for linear autoencoders that start from gain 1, with
    encoder, decoder and linear layers decayed and biases not.

    Args:
        cutoff: Smallest variance of the data along a principal direction worth keeping, an eigenvalue of the input
            covariance; in squared units of the data.
        depth: Number of linear layers between encoder and decoder.

    Returns:
        ``weight_decay`` for ``torch.optim.Adam`` or ``SGD`` and a squared error summed over features and averaged over
        samples; divide it by ``n`` for one that is averaged over ``n`` features, too.

    Raises:
        TypeError: ``depth`` is not an int.
        ValueError: ``cutoff`` is negative or not finite, or ``depth`` < 0.

    Source: derived here, for the linear autoencoders of Sun et al. 2021 (arXiv 2107.01301).

    Example:
        >>> round(weight_decay_for_variance_cutoff(0.01, depth=4), 5)
        0.00651
    """
    return 2 * _kappa(depth) * _non_negative("cutoff", cutoff)


def variance_cutoff(weight_decay: float, depth: int) -> float:
    r"""Variance below which a coupled weight decay cuts principal directions: the inverse of the above.

    .. math:: v_c = \lambda / (2 \kappa)

    Args:
        weight_decay: Coupled L2 decay of every factor, for a squared error summed over features.
        depth: Number of linear layers between encoder and decoder.

    Returns:
        A variance, in squared units of the data.

    Raises:
        TypeError: ``depth`` is not an int.
        ValueError: ``weight_decay`` is negative or not finite, or ``depth`` < 0.

    Example:
        >>> round(variance_cutoff(0.005, depth=4), 4)
        0.0077
    """
    return _non_negative("weight_decay", weight_decay) / (2 * _kappa(depth))


def _kappa(depth: int) -> float:
    if not isinstance(depth, int) or isinstance(depth, bool):
        raise TypeError(f"depth: expected an int, got {type(depth).__name__} ({depth!r})")
    if depth < 0:
        raise ValueError(f"depth: expected 0 or more, got {depth}")
    a = 1 - 2 / (depth + 2)
    return a**a / (1 + a) ** (1 + a)


def _non_negative(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: expected a non-negative finite number, got {value!r}")
    return value
