"""check_numerics: who made NaN or infinity, and what is no alarm."""

import unittest

import numpy as np

import quern


def unary(body, result="y"):
    return f"""graph @main(%x: f32[n], %w: f32[n]) -> (y: f32[n], z: f32[n]) {{
{body}
  %z = neg %w : f32[n]
  return %{result}, %z
}}
""".encode()


LOG = unary("""  %a = add %x, %x : f32[n]
  %b = log %a : f32[n]
  %y = mul %b, %w : f32[n]""")
OVERFLOW = unary("""  %a = exp %x : f32[n]
  %b = mul %a, %w : f32[n]
  %y = sub %a, %b : f32[n]""")
HIDDEN = unary("""  %l = log %x : f32[n]
  %k = is_nan %l : bool[n]
  %y = select %k, %x, %l : f32[n]""")
MASKED = b"""graph @main(%x: f32[4]) -> (y: f32[4]) {
  %m = constant [0, 0, -inf, -inf] : f32[4]
  %a = add %x, %m : f32[4]
  %y = softmax %a {axis = 0} : f32[4]
  return %y
}
"""
LOOP = b"""graph @main(%x: f32[2], %u: f32[3, 2]) -> (y: f32[2]) {
  %s = scan %x, %u {length = [3], n_carried = 1, n_scanned = 1} : f32[2]
    body (%a: f32[2], %b: f32[2]) {
      %c = sqrt %a : f32[2]
      %d = add %c, %b : f32[2]
      return %d
    }
  %y = neg %s : f32[2]
  return %y
}
"""
STEP = b"""graph @main(%x: f32[batch, 2], %w: f32[2] param = [1, 2]) -> (y: f32[batch]) {
  %0 = broadcast %w {axes = [1], dims = [batch, 2]} : f32[batch, 2]
  %1 = mul %x, %0 : f32[batch, 2]
  %2 = reduce %1 {axes = [1], kind = sum} : f32[batch]
  %3 = sqrt %2 : f32[batch]
  return %3
}
"""


def vector(*values):
    return np.array(values, np.float32)


class CheckNumerics(unittest.TestCase):
    def each(self, model, **options):
        for target in ("interp", "cpu"):
            with self.subTest(target=target):
                yield quern.compile(model, target=target, check_numerics=True, **options)

    def refused(self, model, inputs, message):
        for m in self.each(model):
            with self.assertRaisesRegex(quern.NumericError, message):
                m(inputs)

    def test_who_made_it(self):
        ones = vector(1, 1, 1)
        self.refused(LOG, [vector(1, -1, 2), ones], r":3:3: log gives NaN: output 'y' of entry 'infer' is not finite$")
        self.refused(LOG, [vector(1, 0, 2), ones], ":3:3: log gives infinite: output 'y'")
        self.refused(OVERFLOW, [vector(1, 100, 2), ones],
                     r":4:3: sub gives NaN: output 'y'.*\n.*:2:3: exp gives infinities, of which that is made")
        self.refused(OVERFLOW, [vector(1, 2, 2), vector(1, np.nan, 1)], "input 'w' holds NaN: output 'y'")
        self.refused(HIDDEN, [vector(1, 2, 3), vector(1, np.inf, 1)], "input 'w' holds infinite: output 'z'")
        self.refused(LOOP, [vector(1, 1), np.full((3, 2), -2, np.float32)], ":2:3: scan gives NaN: output 'y'")

    def test_no_false_alarm(self):
        """NaN that a select hides, infinities of a mask: only results count."""
        for m in self.each(HIDDEN):
            np.testing.assert_allclose(m([vector(1, -2, 3), vector(1, 1, 1)])[0], [0, -2, np.log(3)], rtol=1e-6)
        for m in self.each(MASKED):
            np.testing.assert_allclose(m([vector(1, 1, 5, 6)])[0], [0.5, 0.5, 0, 0], rtol=1e-6)
        for m in self.each(LOG):
            m([vector(1, 2, 3), vector(1, 1, 1)])

    def test_a_failed_step_is_undone(self):
        options = dict(loss="mse", optimizer="adam", learning_rate=0.1, check_numerics=True)
        for target in ("interp", "cpu"):
            t = quern.train(STEP, target=target, **options)
            t.step([np.ones((3, 2), np.float32)], vector(1, 2, 3))
            before = {name: value.copy() for name, value in t.states.items()}
            with self.assertRaisesRegex(quern.NumericError, "sqrt gives NaN: output 'loss' of entry 'train_step'"):
                t.step([np.full((2, 2), -1, np.float32)], vector(1, 2))
            # a loss of numbers, whose gradient is not: 1 / (2 sqrt 0)
            with self.assertRaisesRegex(quern.NumericError, "gives infinit.*state 'w'|gives NaN.*state 'w'"):
                t.step([np.zeros((2, 2), np.float32)], vector(1, 2))
            for name, value in t.states.items():
                np.testing.assert_array_equal(value, before[name], name)
            t.step([np.ones((3, 2), np.float32)], vector(1, 2, 3))

    def test_only_where_the_compiler_is(self):
        with self.assertRaisesRegex(quern.ArgumentError, "targets cpu and interp"):
            quern.compile(LOG, target="nvptx64", check_numerics=True)


if __name__ == "__main__":
    unittest.main()
