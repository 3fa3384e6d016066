"""Gradients, forward mode and Hessians times vectors, as models."""

import unittest

import numpy as np

import quern

MODEL = b"""graph @f(%x: f64[n, 3], %w: f64[3, 2], %k: i64[2]) -> (loss: f64[], h: f64[n, 2]) {
  %0 = dot_general %x, %w {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f64[n, 2]
  %h = tanh %0 : f64[n, 2]
  %1 = gather %h, %k {axis = 1} : f64[n, 2]
  %2 = exp %1 : f64[n, 2]
  %3 = mul %2, %h : f64[n, 2]
  %loss = reduce %3 {axes = [0, 1], kind = sum} : f64[]
  return %loss, %h
}
"""


class Derivatives(unittest.TestCase):
    def setUp(self):
        random = np.random.default_rng(1)
        self.x, self.w = random.normal(size=(4, 3)), random.normal(size=(3, 2))
        self.u, self.v = random.normal(size=(4, 3)), random.normal(size=(3, 2))
        self.k = np.array([1, 1])

    def along(self, function, h=1e-4):
        """The derivative of function(x, w) along (u, v), by a five-point stencil."""
        at = [function(self.x + t * h * self.u, self.w + t * h * self.v) for t in (-2, -1, 1, 2)]
        return (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h)

    def test_they_agree(self):
        for target in ("interp", "cpu"):
            f = quern.compile(MODEL, target=target)
            grad = quern.grad(MODEL, "loss", ["x", "w"], target=target)
            jvp = quern.jvp(MODEL, ["x", "w"], target=target)
            hvp = quern.hvp(MODEL, "loss", ["x", "w"], target=target)
            inputs = [self.x, self.w, self.k]
            loss, gx, gw = grad(inputs)
            primal, h, tangent, th = jvp([*inputs, self.u, self.v])
            self.assertEqual([s.name for s in jvp.outputs], ["loss", "h", "tangent_loss", "tangent_h"])
            np.testing.assert_allclose(primal, loss, rtol=1e-12)
            np.testing.assert_allclose(tangent, (gx * self.u).sum() + (gw * self.v).sum(), rtol=1e-10)
            np.testing.assert_allclose(tangent, self.along(lambda x, w: f([x, w, self.k])[0]), rtol=1e-7)
            np.testing.assert_allclose(th, self.along(lambda x, w: f([x, w, self.k])[1]), rtol=1e-7, atol=1e-9)
            _, _, _, again, hx, hw = hvp([*inputs, self.u, self.v])
            np.testing.assert_allclose(again, tangent, rtol=1e-10)
            np.testing.assert_allclose(hx, self.along(lambda x, w: grad([x, w, self.k])[1]), rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(hw, self.along(lambda x, w: grad([x, w, self.k])[2]), rtol=1e-6, atol=1e-8)

    def test_higher_orders(self):
        """Of x^4 y and its derivatives, up to the fourth"""
        model = b"""graph @f(%x: f64[], %y: f64[]) -> (loss: f64[]) {
          %0 = mul %x, %x : f64[]
          %1 = mul %0, %0 : f64[]
          %2 = mul %1, %y : f64[]
          return %2
        }"""
        x, y, u, v = map(np.float64, (0.7, -1.3, 2.0, 3.0))
        for target in ("interp", "cpu"):
            derivative, name = model, "loss"
            for order, expected in enumerate([4 * x ** 3 * y, 12 * x ** 2 * y, 24 * x * y, 24 * y], 1):
                derivative = quern.grad(derivative, name, ["x"], target=target)
                last, name = name, "grad_x" if order == 1 else f"grad{order}_x"
                self.assertEqual([s.name for s in derivative.outputs], [last, name])
                np.testing.assert_allclose(derivative([x, y])[1], expected, rtol=1e-12)
            first = quern.grad(model, "loss", ["x", "y"], target=target)
            mixed = quern.grad(first, "grad_x", ["y"], target=target)
            np.testing.assert_allclose(mixed([x, y]), [4 * x ** 3 * y, 4 * x ** 3], rtol=1e-12)
            twice = quern.jvp(quern.jvp(model, ["x"], target=target), ["x", "tangent_x"], target=target)
            self.assertEqual([s.name for s in twice.inputs], ["x", "y", "tangent_x", "tangent2_x", "tangent2_tangent_x"])
            self.assertEqual([s.name for s in twice.outputs],
                             ["loss", "tangent_loss", "tangent2_loss", "tangent2_tangent_loss"])
            np.testing.assert_allclose(twice([x, y, u, v, u])[2:], [4 * x ** 3 * y * v, 12 * x ** 2 * y * u * v + 4 * x ** 3 * y * u],
                                       rtol=1e-12)
            product = quern.hvp(first, "grad_x", ["x"], target=target)
            np.testing.assert_allclose(product([x, y, u])[3], 24 * x * y * u, rtol=1e-12)
        for make, message in ((lambda: quern.grad(quern.compile(model), "loss", ["x"]), "has no graph to differentiate"),
                              (lambda: quern.grad(first, "grad_x", ["x"], dims={"n": 2}), "dims are those of the model")):
            with self.assertRaisesRegex(quern.ArgumentError, message):
                make()

    def test_labels_that_count_from_the_end(self):
        model = b"""graph @f(%x: f32[n, 4], %labels: i64[n]) -> (loss: f32[]) {
          %0 = cross_entropy %x, %labels : f32[n]
          %1 = reduce %0 {axes = [0], kind = sum} : f32[]
          return %1
        }"""
        for target in ("interp", "cpu"):
            gradient = quern.grad(model, "loss", ["x"], target=target)
            x = self.x[:, [0, 1, 2, 0]].astype(np.float32)
            usual, same = gradient([x, np.array([3, 0, 2, 1])]), gradient([x, np.array([-1, 0, -2, -3])])
            np.testing.assert_array_equal(same[0], usual[0])
            np.testing.assert_array_equal(same[1], usual[1])

    def test_convolutions_over_several_sizes(self):
        rows, columns = "floordiv(h - 1, 2) + 1", "floordiv(w - 1, 2) + 1"
        one = "w_dilation = [1, 1], x_dilation = [1, 1]}"
        model = f"""graph @f(%x: f32[n, 4, h, w], %a: f32[16, 4, 3, 3], %b: f32[16, 1, 3, 3], %c: f32[5, 16]) -> (loss: f32[]) {{
          %0 = convolution %x, %a {{groups = 1, high = [1, 1], low = [1, 1], stride = [2, 1], {one} : f32[n, 16, {rows}, w]
          %1 = tanh %0 : f32[n, 16, {rows}, w]
          %2 = convolution %1, %b {{groups = 16, high = [1, 1], low = [1, 1], stride = [1, 2], {one} : f32[n, 16, {rows}, {columns}]
          %3 = reduce %2 {{axes = [2, 3], kind = max}} : f32[n, 16]
          %4 = dot_general %3, %c {{x_batch = [], x_contract = [1], y_batch = [], y_contract = [1]}} : f32[n, 5]
          %5 = sin %4 : f32[n, 5]
          %6 = reduce %5 {{axes = [0, 1], kind = sum}} : f32[]
          return %6
        }}""".encode()
        rng = np.random.default_rng(3)
        weights = [rng.standard_normal(s).astype(np.float32) for s in ((16, 4, 3, 3), (16, 1, 3, 3), (5, 16))]
        of_any_size = quern.grad(model, "loss", ["x", "a", "b", "c"])
        for n, h, w in (2, 9, 20), (1, 4, 33), (3, 16, 5), (1, 1, 1):
            inputs = [rng.standard_normal((n, 4, h, w)).astype(np.float32), *weights]
            of_this = quern.grad(model, "loss", ["x", "a", "b", "c"], dims={"n": n, "h": h, "w": w})
            for found, expected in zip(of_any_size(inputs), of_this(inputs)):
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())

    def test_mistakes(self):
        for make, message in ((lambda: quern.jvp(MODEL, ["y"]), "has no input 'y'"),
                              (lambda: quern.jvp(MODEL, ["k"]), "can't differentiate with respect to 'k': it is i64"),
                              (lambda: quern.grad(MODEL, "h", ["x", "x"]), "'x' is named twice"),
                              (lambda: quern.grad(MODEL, "h", ["x"]), "floating-point scalar"),
                              (lambda: quern.grad(MODEL, "g", ["x"]), "has no output 'g'")):
            with self.assertRaisesRegex(quern.ArgumentError, message):
                make()


if __name__ == "__main__":
    unittest.main()
