"""Newton's steps of one logistic fit on all its rows, compiled by numba.

What ``probes.solvers.newton.initial_fit`` does with a Cholesky factor a step, conjugate
gradients do here: a product with the Gram matrix of few rows costs less than a
hundredth of its factor, and a step need not be solved further than it helps. With s the
roots of the curvatures, u = alpha / s, and P what takes s out of a vector (alpha sums
to 0, as the intercept is free), a step solves P (I + s K s) P u = P s z for the working
responses z. Only ``probes.solvers.newton.initial_fit`` imports this file.
"""

import math

import numpy as np

from probes.solvers.compiled.math import compiled, logistic

MAX_CG_STEPS = 60
"""Products of one step, at most."""
FORCING = 0.03
"""Share of a residual that a step may leave."""


@compiled
def _value(goal, base, dual, scores, intercept):
    """Penalised loss."""
    total = 0.0
    for i in range(len(goal)):
        score = float(scores[i])
        cross = math.log1p(math.exp(-abs(score))) + max(score, 0.0)
        total += base[i] * (cross - goal[i] * score)
    for i in range(len(goal)):
        total += 0.5 * dual[i] * (scores[i] - intercept)
    return total


@compiled
def _project_out(vector, root, mass):
    """Project: take ``root`` out of ``vector``. Its squared length then."""
    kind = vector.dtype.type
    across, square = kind(0), kind(0)
    for i in range(len(vector)):
        across += vector[i] * root[i]
    across /= mass
    for i in range(len(vector)):
        vector[i] -= across * root[i]
    for i in range(len(vector)):
        square += vector[i] * vector[i]
    return square


@compiled
def _apply(gram, root, vector, scaled, image):
    """``image`` = (I + s K s) ``vector``."""
    for i in range(len(root)):
        scaled[i] = root[i] * vector[i]
    np.dot(gram, scaled, image)
    for i in range(len(root)):
        image[i] = vector[i] + root[i] * image[i]


@compiled
def _solve(gram, root, mass, wanted, unknown, room):
    """Bring ``unknown`` on from where it stands; whether as far as asked."""
    left, search, scaled, image = room
    n, kind = len(root), gram.dtype.type
    _apply(gram, root, unknown, scaled, image)
    for i in range(n):
        left[i] = wanted[i] - image[i]
    square = _project_out(left, root, mass)
    least = kind(FORCING * FORCING) * square
    for i in range(n):
        search[i] = left[i]
    for _ in range(MAX_CG_STEPS):
        _apply(gram, root, search, scaled, image)
        _project_out(image, root, mass)
        stiff = kind(0)
        for i in range(n):
            stiff += search[i] * image[i]
        if not stiff > 0:
            return False
        length = square / stiff
        for i in range(n):
            unknown[i] += length * search[i]
        fresh = kind(0)
        for i in range(n):
            left[i] -= length * image[i]
            fresh += left[i] * left[i]
        if fresh <= least:
            return True
        rate = fresh / square
        for i in range(n):
            search[i] = left[i] + rate * search[i]
        square = fresh
    return False


def _fit(gram, goal, base, scores, dual, tolerance, steps):
    """Where it ends: the intercept, and whether it came near.

    Args:
        gram: (n, n).
        goal: (n,) 0 or 1.
        base: (n,) weights > 0.
        scores: (n,) a guess; written to, as is ``dual``.
        dual: (n,) zeros.
        tolerance: See ``fullfit.initial_fit``.
        steps: At most so many.
    """
    n, kind = len(goal), gram.dtype.type
    root, wanted, unknown = (
        np.empty_like(goal),
        np.empty_like(goal),
        np.zeros_like(goal),
    )
    fresh, moved = np.empty_like(goal), np.empty_like(goal)
    room = (
        np.empty_like(goal),
        np.empty_like(goal),
        np.empty_like(goal),
        np.empty_like(goal),
    )
    least, nothing, heaviest = kind(0), 0.0, kind(0)
    for i in range(n):
        nothing += math.log(2.0) * base[i]
        heaviest = max(heaviest, base[i])
    least = kind(1e-7) * heaviest
    value, intercept, guessed = np.inf, kind(0), True
    for _ in range(steps):
        mass = kind(0)
        for i in range(n):
            chance = logistic(scores[i])
            bend = max(chance * (1 - chance) * base[i], least)
            root[i] = np.sqrt(bend)
            wanted[i] = root[i] * scores[i] + (goal[i] - chance) * base[i] / root[i]
            mass += bend
        for i in range(n):
            unknown[i] = dual[i] / root[i]
        solved = _solve(gram, root, mass, wanted, unknown, room)
        for i in range(n):
            moved[i] = root[i] * unknown[i]
        np.dot(gram, moved, fresh)
        bias = kind(0)
        for i in range(n):
            bias += root[i] * (wanted[i] - unknown[i] - root[i] * fresh[i])
        bias /= mass
        for i in range(n):
            fresh[i] += bias
        length = 1.0
        while True:
            reached = _value(goal, base, moved, fresh, bias)
            if reached <= value or length < 1e-2:
                break
            # Half of the way is enough to do better, or half of that.
            length *= 0.5
            for i in range(n):
                moved[i] = kind(0.5) * (dual[i] + moved[i])
            for i in range(n):
                fresh[i] = kind(0.5) * (scores[i] + fresh[i])
            bias = kind(0.5) * (intercept + bias)
        if guessed and not reached <= nothing:
            scores[:], guessed = 0, False
            continue
        guessed = False
        change, largest = kind(0), kind(0)
        for i in range(n):
            change = max(change, abs(fresh[i] - scores[i]))
            largest = max(largest, abs(fresh[i]))
        for i in range(n):
            scores[i], dual[i] = fresh[i], moved[i]
        intercept, value = bias, reached
        if change <= tolerance * largest:
            return intercept, solved
    return intercept, False


fit = compiled(_fit, cache=True)
