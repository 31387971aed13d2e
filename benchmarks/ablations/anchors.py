"""Anchors of the cascade's boxes, by clustering; used by ``cascade.py``."""

import numpy as np


def cluster_anchors(sizes: np.ndarray, count: int, *, rounds: int = 200) -> np.ndarray:
    """Cluster the sizes of boxes by k-means whose distance is 1 - IoU.

    Args:
        sizes: Sides of boxes, (N, 2), in any unit.
        count: Number of anchors.
        rounds: At most.

    Returns:
        The smallest first, (count, 2). Clustering begins with sizes at equal shares of the areas,
        so that the same sizes give the same anchors.

    Raises:
        ValueError: If there are fewer sizes than anchors.

    Source:
        Redmon & Farhadi 2017, doi:10.1109/CVPR.2017.690.
    """
    if len(sizes) < count:
        raise ValueError(f"Anchors must not be more than boxes, {len(sizes)}; found {count}.")
    sizes = np.asarray(sizes, float)
    ordered = sizes[np.argsort(sizes.prod(axis=1), kind="stable")]
    anchors = ordered[((np.arange(count) + 0.5) / count * len(sizes)).astype(int)]
    assigned = np.full(len(sizes), -1)
    for _ in range(rounds):
        nearest = compute_size_iou(sizes, anchors).argmax(axis=1)
        if (nearest == assigned).all():
            break
        assigned = nearest
        clusters = [sizes[assigned == number] for number in range(count)]
        anchors = np.array(
            [
                cluster.mean(axis=0) if len(cluster) else anchor
                for cluster, anchor in zip(clusters, anchors, strict=True)
            ]
        )
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")]


def compute_size_iou(sizes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute the intersection over union of boxes of one centre, (N, 2) and (M, 2): (N, M)."""
    common = np.minimum(sizes[:, None], others[None]).prod(axis=-1)
    return common / (sizes.prod(axis=1)[:, None] + others.prod(axis=1)[None] - common)
