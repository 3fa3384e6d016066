"""suppress: machine code, its kernel or the loop that it else is, and the interpreter, against NumPy."""

import platform
import unittest

import numpy as np

import quern


def suppress(b, c, n, k, scores="f32", boxes="f32", least=True, centre=False, dims=""):
    last, place = (f", %least: {scores}[]", ", %least") if least else ("", "")
    return f"""{dims}graph @f(%scores: {scores}[{b}, {c}, {n}], %boxes: {boxes}[{b}, {n}, 4], %limit: i64[], %overlap: {boxes}[]{last}) -> i64[{b}, {c}, {k}] {{
  %kept = suppress %scores, %boxes, %limit, %overlap{place} {{centre = {str(centre).lower()}, k = [{k}]}} : i64[{b}, {c}, {k}]
  return %kept
}}
""".encode()


def overlaps(x, y, overlap):
    """A row against rows of low, low, high, high, in float32."""
    side = np.maximum(np.minimum(x[2:], y[:, 2:]) - np.maximum(x[:2], y[:, :2]), 0)
    common = side[:, 0] * side[:, 1]
    area = lambda z: (z[..., 2] - z[..., 0]) * (z[..., 3] - z[..., 1])
    return common > (area(x) + area(y) - common) * overlap


def reference(scores, boxes, limit, overlap, least, k, centre):
    if boxes.dtype == np.float16:
        boxes, overlap = boxes.astype(np.float32), np.float32(overlap)
    half = boxes[..., 2:] * boxes.dtype.type(.5)
    low, high = boxes[..., :2], boxes[..., 2:]
    corners = np.concatenate([low - half, low + half] if centre else [np.minimum(low, high), np.maximum(low, high)], 2)
    out = np.full((*scores.shape[:2], k), -1)
    for b, c in np.ndindex(scores.shape[:2]):
        s, kept = scores[b, c], []
        for i in np.argsort(-s, kind="stable"):
            if len(kept) >= min(limit, k) or np.isnan(s[i]) or (least is not None and not s[i] > least):
                break
            if not overlaps(corners[b, i], corners[b, kept], overlap).any():
                kept.append(i)
        out[b, c, :len(kept)] = kept
    return out


def samples(rng, b, c, n, centre, scores=np.float32, boxes=np.float32, spread=200):
    """Whole numbers, so that every machine computes the same areas; scores with ties, zeros of both signs and infinities."""
    x = rng.integers(0, spread, (b, n, 4)).astype(boxes)
    x[..., 2:] = 2 * rng.integers(0, 20, (b, n, 2)) if centre else x[..., :2] + rng.integers(-30, 31, (b, n, 2))
    s = np.where(rng.random((b, c, n)) < .5, rng.integers(-4, 5, (b, c, n)) / 4, rng.standard_normal((b, c, n))).astype(scores)
    for special in (np.inf, -np.inf, -0.):
        s[rng.random(s.shape) < .01] = special
    return s, x


class Suppress(unittest.TestCase):
    def check(self, b, c, n, k, limit, overlap, least, centre=False, scores="f32", boxes="f32", targets=("cpu", "interp"), data=None, **options):
        rng = np.random.default_rng(n + 10 * k)
        names = {"f32": np.float32, "f16": np.float16, "f64": np.float64}
        s, x = data or samples(rng, b, c, n, centre, names[scores], names[boxes])
        overlap = names[boxes](overlap)
        inputs = [s, x, np.array(limit), np.array(overlap)]
        if least is not None:
            inputs.append(np.array(names[scores](least)))
        text = suppress(b, c, n, k, scores, boxes, least is not None, centre)
        want = reference(s, x, limit, overlap, None if least is None else inputs[4], k, centre)
        for target in targets:
            with self.subTest(target=target, text=text, limit=limit, overlap=overlap, least=least):
                np.testing.assert_array_equal(quern.compile(text, target=target, **options)(inputs)[0], want)

    def test_few_boxes(self):
        for n in (1, 2, 15, 16, 17, 63, 64, 65, 130):
            for k, limit in ((n, n), (1, 5), (n, 3), (16, 99), (7, -1), (n + 5, 2**40), (0, 4)):
                self.check(2, 3, n, k, limit, .25, 0., centre=n % 2 == 1)

    def test_thresholds(self):
        for least in (None, -np.inf, np.inf, np.nan, -0., 0., .25, 2):
            for overlap in (0, .5, 1, -.5):
                self.check(1, 2, 90, 90, 90, overlap, least)

    def test_dtypes(self):
        for scores in ("f16", "f32", "f64"):
            for boxes in ("f16", "f32", "f64"):
                for least in (None, .25):
                    self.check(2, 2, 70, 40, 30, .25, least, scores=scores, boxes=boxes)

    def test_nan(self):
        rng = np.random.default_rng(3)
        s, x = samples(rng, 1, 4, 300, False)
        s[:, :3][rng.random((1, 3, 300)) < .3] = np.nan
        s[:, 3] = np.nan
        x[rng.random((1, 300)) < .1, 1] = np.nan
        for least in (None, 0., -np.inf):
            self.check(1, 4, 300, 300, 300, .25, least, data=(s, x))

    def test_many_boxes(self):
        """In several portions: more than the first ones overlap, or more are kept than a portion holds."""
        rng = np.random.default_rng(4)
        for n, spread, k, limit, least in ((3000, 40, 100, 100, None), (3000, 5000, 3000, 2000, None), (9000, 60, 20, 50, .5),
                                           (20000, 3000, 100, 100, 1.), (9000, 3000, 9000, 2**40, 1.5)):
            self.check(1, 2, n, k, limit, .3, least, data=samples(rng, 1, 2, n, False, spread=spread), targets=("cpu",))

    def test_all_scores_equal(self):
        rng = np.random.default_rng(5)
        s, x = samples(rng, 1, 1, 9000, False, spread=100)
        for score in (0, -1, np.inf, -np.inf):
            s[:] = score
            self.check(1, 1, 9000, 200, 200, .1, None, data=(s, x), targets=("cpu",))

    def test_symbols(self):
        rng = np.random.default_rng(6)
        models = [quern.compile(suppress("b", "c", "n", k, dims="dims b: 0.., c: 0.., n: 0..\n"), target=target)
                  for k in ("n", "40") for target in ("cpu", "interp")]
        for b, c, n in ((1, 1, 0), (0, 2, 5), (2, 0, 5), (1, 1, 1), (2, 3, 70), (1, 2, 1500)):
            s, x = samples(rng, b, c, n, False)
            for model, k in zip(models, (n, n, 40, 40)):
                got = model([s, x, np.array(50), np.float32(.25), np.float32(-.5)])[0]
                np.testing.assert_array_equal(got, reference(s, x, 50, np.float32(.25), -.5, k, False))

    def test_threads(self):
        s, x = samples(np.random.default_rng(7), 3, 40, 2000, False)
        self.check(3, 40, 2000, 100, 100, .25, .5, data=(s, x), targets=("cpu",), threads=1)
        self.check(3, 40, 2000, 100, 100, .25, .5, data=(s, x), targets=("cpu",), threads=2)

    @unittest.skipUnless(platform.machine() == "x86_64", "names of x86's levels")
    def test_smaller_vectors(self):
        self.check(1, 2, 900, 50, 50, .25, .5, targets=("cpu",), cpu="x86-64-v3")

    def test_numbers_have_no_gradient(self):
        text = b"""graph @f(%x: f32[1, 1, 5], %boxes: f32[1, 5, 4], %limit: i64[], %overlap: f32[]) -> f32[] {
  %kept = suppress %x, %boxes, %limit, %overlap {k = [5]} : i64[1, 1, 5]
  %number = convert %kept {dtype = f32} : f32[1, 1, 5]
  %product = mul %number, %x : f32[1, 1, 5]
  %sum = reduce %product {axes = [0, 1, 2], kind = sum} : f32[]
  return %sum
}
"""
        x = np.array([[[1, 5, 2, 4, 3]]], np.float32)
        boxes = np.array([[[0, 0, 2, 2], [9, 9, 8, 8], [0, 0, 2, 2], [4, 4, 5, 5], [1, 1, 0, 0]]], np.float32)
        gradient = quern.grad(text, "sum", ["x"])([x, boxes, np.array(9), np.float32(.2)])[1]
        np.testing.assert_array_equal(gradient, [[[1, 3, 4, -1, -1]]])


if __name__ == "__main__":
    unittest.main()
