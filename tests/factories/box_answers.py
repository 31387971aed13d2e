"""Answers of a network that finds boxes."""

import numpy as np

ANCHORS = [[4.0, 4.0], [8.0, 6.0]]


def answer_of(boxes, cells, stride=4):
    """What a perfect network says of boxes: x, y, w, h and which anchor is to say it."""
    count = len(ANCHORS)
    output = np.zeros((*cells, 5 * count))
    output[..., 4 * count :] = -20
    for x, y, w, h, which in boxes:
        column, row = int(x // stride), int(y // stride)
        within = np.array([x, y]) / stride - (column, row)
        cell = output[column, row]
        cell[4 * which : 4 * which + 2] = np.log(within / (1 - within))
        cell[4 * which + 2 : 4 * which + 4] = np.log(np.array([w, h]) / ANCHORS[which])
        cell[4 * count + which] = 20
    return output
