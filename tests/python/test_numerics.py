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
GROWS = b"""graph @main(%x: f32[2], %w: f32[2]) -> (y: f32[2]) {
  %i = constant 0 : i64[]
  %n, %y = while %i, %x, %w {n_carried = 2} : i64[], f32[2]
    condition (%k: i64[], %a: f32[2], %c: f32[2]) {
      %l = constant 3 : i64[]
      %p = compare %k, %l {direction = lt} : bool[]
      return %p
    }
    body (%k: i64[], %a: f32[2], %c: f32[2]) {
      %o = constant 1 : i64[]
      %m = add %k, %o : i64[]
      %d = mul %a, %c : f32[2]
      %e = exp %d : f32[2]
      return %m, %e
    }
  return %y
}
"""
NESTED = b"""graph @main(%x: f32[2], %u: f32[3, 4, 2]) -> (y: f32[2]) {
  %y = scan %x, %u {length = [3], n_carried = 1, n_scanned = 1} : f32[2]
    body (%a: f32[2], %b: f32[4, 2]) {
      %r = tanh %a : f32[2]
      %q = scan %r, %b {length = [4], n_carried = 1, n_scanned = 1} : f32[2]
        body (%c: f32[2], %d: f32[2]) {
          %t = cos %c : f32[2]
          %e = log %d : f32[2]
          %f = add %t, %e : f32[2]
          return %f
        }
      return %q
    }
  return %y
}
"""
BRANCH = b"""graph @main(%x: f32[2], %p: bool[]) -> (y: f32[2]) {
  %y = if %p, %x : f32[2]
    then (%a: f32[2]) {
      %b = add %a, %a : f32[2]
      %c = log %b : f32[2]
      return %c
    }
    else (%a: f32[2]) {
      %d = neg %a : f32[2]
      %b = exp %a : f32[2]
      %c = sub %b, %b : f32[2]
      %e = add %c, %d : f32[2]
      return %e
    }
  return %y
}
"""
ROOTS = b"""graph @main(%x: f32[3, n], %w: f32[1] param = [1]) -> (y: f32[n]) {
  %0 = broadcast %w {axes = [0], dims = [n]} : f32[n]
  %y = scan %0, %x, %0 {length = [3], n_carried = 1, n_scanned = 1} : f32[n]
    body (%a: f32[n], %b: f32[n], %c: f32[n]) {
      %d = sub %c, %b : f32[n]
      %e = sqrt %d : f32[n]
      %f = mul %a, %e : f32[n]
      return %f
    }
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
        self.refused(LOOP, [vector(1, 1), np.full((3, 2), -2, np.float32)], r":4:7: sqrt gives NaN in iteration 2 of scan: output 'y'")

    def test_in_loops_and_branches(self):
        """The node inside, and the iteration of the outermost loop."""
        x = vector(0.5, 1)
        self.refused(GROWS, [x, vector(3, 20)], r":13:7: exp gives infinite in iteration 2 of while: output 'y'")
        self.refused(GROWS, [x, vector(3, np.nan)], "input 'w' holds NaN: output 'y'")
        for m in self.each(GROWS):
            self.assertTrue(np.isfinite(m([x, vector(0.1, 0.2)])[0]).all())
        u = np.ones((3, 4, 2), np.float32)
        u[1, 2] = 0  # of the second iteration
        self.refused(NESTED, [x, u], r":7:11: cos gives NaN in iteration 2 of scan: output 'y'.*\n"
                     r".*:8:11: log gives infinities in iteration 2 of scan, of which that is made")
        u[1, 2] = -1
        self.refused(NESTED, [x, u], r":8:11: log gives NaN in iteration 2 of scan: output 'y'")
        self.refused(BRANCH, [vector(1, -1), np.array(True)], r":5:7: log gives NaN: output 'y'")
        self.refused(BRANCH, [vector(1, 200), np.array(False)],
                     r":11:7: sub gives NaN: output 'y'.*\n.*:10:7: exp gives infinities, of which that is made")

    def test_the_backward_pass_of_a_loop(self):
        for target in ("interp", "cpu"):
            t = quern.train(ROOTS, "mse", "sgd", 0.1, target=target, check_numerics=True)
            x = np.full((3, 1), 0.5, np.float32)
            t.step([x], vector(1))
            x[:] = t.parameters["w"]  # so that the root is of 0 in the second iteration, and 1 / 0 behind it
            with self.assertRaisesRegex(quern.NumericError, r"gives (infinite|NaN) in iteration \d of scan: state 'w'"):
                t.step([x], vector(1))

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
