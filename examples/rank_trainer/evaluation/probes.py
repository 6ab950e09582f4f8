"""How well a linear classifier does on latents."""

import copy
import warnings
from collections.abc import Sequence

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

#: Inverse strengths of regularization that are tried.
INVERSE_REGULARIZATIONS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)

Labelled = tuple[Tensor, Tensor]


def linear_probe(
    train: Labelled,
    val: Labelled,
    test: Labelled,
    per_class: int | None = None,
    seed: int = 0,
    standardize: bool = True,
    inverse_regularizations: Sequence[float] = INVERSE_REGULARIZATIONS,
) -> float | None:
    """Test accuracy of scikit-learn's logistic regression on latents.

    The strength of its regularization is the one of highest validation accuracy, the stronger of equal ones; the test
    data is looked at once, with that.

    Args:
        train: Latents ``(n, dim)`` and labels ``(n,)`` to fit on.
        val: Those to choose by.
        test: Those to report on.
        per_class: Number of training samples of each class, drawn at random; ``None`` takes all.
        seed: Of the draw.
        standardize: Give every coordinate mean 0 and variance 1, by the samples that are fitted on.
        inverse_regularizations: Strengths to choose from, the strongest first.

    Returns:
        A share of 1; ``None`` if some class has fewer than ``per_class`` samples, or there is but one class.
    """
    latents, labels = train
    if per_class is not None:
        chosen = _draw(labels, per_class, seed)
        if chosen is None:
            return None
        latents, labels = latents[chosen], labels[chosen]
    if len(labels.unique()) < 2:
        return None
    scaler = StandardScaler(with_mean=standardize, with_std=standardize).fit(latents.double().numpy())
    (x, y), (val_x, val_y), (test_x, test_y) = (
        (scaler.transform(latents.double().numpy()), labels.numpy())
        for latents, labels in ((latents, labels), val, test)
    )
    probe = LogisticRegression(max_iter=200, warm_start=True)  # each fit starts from the one before
    best_accuracy, best = -1.0, None
    with threadpool_limits(1), warnings.catch_warnings():  # more threads take longer
        warnings.simplefilter("ignore", ConvergenceWarning)  # what 200 iterations reach is judged like any other
        for inverse_regularization in inverse_regularizations:
            accuracy = probe.set_params(C=inverse_regularization).fit(x, y).score(val_x, val_y)
            if accuracy > best_accuracy:
                best_accuracy, best = accuracy, copy.deepcopy(probe)
        return float(best.score(test_x, test_y))


def _draw(labels: Tensor, per_class: int, seed: int) -> Tensor | None:
    """Indices of ``per_class`` samples of each class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    drawn = [order[labels[order] == label][:per_class] for label in labels.unique()]
    return torch.cat(drawn) if min(map(len, drawn)) == per_class else None
