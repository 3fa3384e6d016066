"""Optimizers, schedules and losses against PyTorch's recorded numbers; training mode; what is a parameter."""
import json
import pathlib
import tempfile
import unittest

import numpy as np

import quern
import train_cases as cases

REFERENCE = json.loads((pathlib.Path(__file__).parent / "train_reference.json").read_text())


def trainer(name, **more):
    options = {"loss": "cross_entropy", **cases.CASES[name], **more}
    return quern.train(cases.model(options["loss"]), **options), options["loss"]


class AgainstPyTorch(unittest.TestCase):
    def test_every_case_is_recorded(self):
        self.assertEqual(set(REFERENCE), set(cases.CASES))

    def test_losses_and_parameters(self):
        for name in cases.CASES:
            with self.subTest(name):
                t, loss = trainer(name)
                losses = []
                for i in range(cases.STEPS):
                    x, target = cases.batch(loss, i % cases.BATCHES)
                    losses.append(t.step([x], target))
                np.testing.assert_allclose(losses, REFERENCE[name]["losses"], rtol=1e-5)
                found = t.averages if "ema" in cases.CASES[name] else t.parameters
                for key, expected in REFERENCE[name]["parameters"].items():
                    np.testing.assert_allclose(found[key].flatten(), expected, rtol=2e-4, atol=2e-6, err_msg=key)


class OwnLoss(unittest.TestCase):
    def test_output_is_the_loss(self):
        model = b"""graph @main(%x: f32[n, 2], %w: f32[2] param = [1, -2]) -> (loss: f32[n, 2]) {
  %0 = broadcast %w {axes = [1], dims = [n, 2]} : f32[n, 2]
  %1 = sub %x, %0 : f32[n, 2]
  %2 = mul %1, %1 : f32[n, 2]
  return %2
}
"""
        x, w = np.array([[1, 2], [3, 4], [5, -6]], np.float32), np.array([1, -2], np.float32)
        t = quern.train(model, "output", "sgd", 0.1)
        self.assertAlmostEqual(t.evaluate([x])[0], ((x - w) ** 2).mean(), places=5)
        self.assertAlmostEqual(t.step([x]), ((x - w) ** 2).mean(), places=5)
        w += 0.1 * (x - w).mean(0)
        np.testing.assert_allclose(t.parameters["w"], w, rtol=1e-6)
        self.assertAlmostEqual(t.step({"x": x}), ((x - w) ** 2).mean(), places=5)
        with self.assertRaises(quern.ArgumentError):
            t.step([x], x)


def half_model():
    """y = x w in float16, with float32 parameters"""
    return b"""graph @main(%x: f32[4], %w: f32[4] param = [1, 2, 3, 4]) -> (y: f32[4]) {
  %0 = convert %x {dtype = f16} : f16[4]
  %1 = convert %w {dtype = f16} : f16[4]
  %2 = mul %0, %1 : f16[4]
  %3 = convert %2 {dtype = f32} : f32[4]
  return %3
}
"""


class NarrowParameters(unittest.TestCase):
    """Parameters of 16 bits are kept in float32: steps that they are too coarse for add up."""
    MODEL = """graph @main(%x: f32[n, 2], %w: TYPE[2] param = [1024, 3]) -> (y: TYPE[n]) {
  %0 = convert %x {dtype = TYPE} : TYPE[n, 2]
  %1 = dot_general %0, %w {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : TYPE[n]
  %2 = constant [0.5] "bias" : TYPE[1]
  %3 = broadcast %2 {axes = [0], dims = [n]} : TYPE[n]
  %4 = add %1, %3 : TYPE[n]
  return %4
}
"""
    X, TARGET, RATE = np.float32([[1, 2], [-1, 1]]), np.float32([1020, -1010]), 1e-3

    def test_small_steps_add_up(self):
        w, bias, x = np.float32([1024, 3]), np.float32([0.5]), self.X.astype(np.float16)
        for _ in range(100):
            y = (x.astype(np.float32) @ w.astype(np.float16).astype(np.float32)).astype(np.float16) + bias.astype(np.float16)
            g = (self.TARGET.dtype.type(2 / 2) * (y.astype(np.float32) - self.TARGET)).astype(np.float16).astype(np.float32)
            w -= np.float32(self.RATE) * (x.astype(np.float32).T @ g)
            bias -= np.float32(self.RATE) * g.sum()
        for target in "interp", "cpu":
            t = quern.train(self.MODEL.replace("TYPE", "f16").encode(), "mse", "sgd", self.RATE, target=target)
            for _ in range(100):
                t.step([self.X], self.TARGET)
            self.assertEqual(t.parameters["w"].dtype, np.float32)
            np.testing.assert_allclose(t.parameters["w"], w, atol=2e-3)
            np.testing.assert_allclose(t.parameters["bias"], bias, atol=2e-3)
            self.assertGreater(abs(w[0] - 1024), 0.25)
            self.assertEqual(t([self.X])[0].dtype, np.float16)

    def test_every_way_to_learn(self):
        """Averages, norms and the step in parts; the loss of bfloat16 is one of float32."""
        for how in dict(ema=0.5), dict(clip_norm=1.0, optimizer="lamb"), dict(parts=True), dict(loss_scale=1024.0):
            options = dict(loss="huber", optimizer="adamw", learning_rate=0.01) | how
            t = quern.train(self.MODEL.replace("TYPE", "bf16").replace("1024", "4").encode(), **options)
            losses = [t.step([self.X], self.TARGET / 1000) for _ in range(10)]
            self.assertLess(losses[-1], losses[0])
            self.assertTrue(all(v.dtype == np.float32 for v in t.parameters.values()))
            if "parts" in how:
                t.update(t.backward(t.forward([self.X], self.TARGET)))


class FewerBits(unittest.TestCase):
    """Steps under precision bf16: on a CPU that multiplies pairs of bfloat16 all products and convolutions are of these."""
    MODEL = """graph @main(%x: f32[8, 16, 10, 10], %w: f32[32, 16, 3, 3] param = x"W", %v: f32[32, 32, 1, 1] param = x"V",
    %m: f32[3200, 10] param = x"M") -> (y: f32[8, 10]) {
  %0 = convolution %x, %w {stride = [1, 1], low = [1, 1], high = [1, 1], x_dilation = [1, 1], w_dilation = [1, 1], groups = 1} : f32[8, 32, 10, 10]
  %1 = tanh %0 : f32[8, 32, 10, 10]
  %2 = convolution %1, %v {stride = [1, 1], low = [0, 0], high = [0, 0], x_dilation = [1, 1], w_dilation = [1, 1], groups = 1} : f32[8, 32, 10, 10]
  %3 = tanh %2 : f32[8, 32, 10, 10]
  %4 = reshape %3 {dims = [8, 3200]} : f32[8, 3200]
  %5 = dot_general %4, %m {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[8, 10]
  return %5
}
"""
    DENSE = """graph @main(%x: f32[64, 96], %w: f32[96, 160] param = x"W", %v: f32[160, 32] param = x"V") -> (y: f32[64, 32]) {
  %0 = dot_general %x, %w {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[64, 160]
  %1 = tanh %0 : f32[64, 160]
  %2 = dot_general %1, %v {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[64, 32]
  return %2
}
"""

    def compare(self, text, shapes, x_shape, classes):
        rng = np.random.default_rng(5)
        for name, shape in shapes.items():
            values = (rng.normal(size=shape) / np.sqrt(np.prod(shape) / shape[-1 if len(shape) == 2 else 0])).astype("<f4")
            text = text.replace(f'x"{name}"', f'x"{values.tobytes().hex()}"')
        batches = [(rng.normal(size=x_shape).astype(np.float32), rng.integers(0, classes, x_shape[0])) for _ in range(3)]

        def losses(**options):
            t = quern.train(text.encode(), "cross_entropy", "sgd", 0.1, momentum=0.9, **options)
            return [t.step([x], target) for _ in range(4) for x, target in batches], t.parameters
        want, _ = losses()
        got, parameters = losses(precision="bf16", threads=1)
        same, others = losses(precision="bf16", threads=2)
        self.assertEqual(got, same)
        for key, value in parameters.items():
            self.assertEqual(value.dtype, np.float32)
            np.testing.assert_array_equal(value, others[key])
        np.testing.assert_allclose(got, want, rtol=0.02, atol=0.01)
        self.assertLess(got[-1], got[0])
        try:
            pairs = "avx512_bf16" in pathlib.Path("/proc/cpuinfo").read_text()
        except OSError:
            pairs = False
        if pairs:
            self.assertNotEqual(got, want)
        self.assertEqual(losses(precision="bf16", remat="all", threads=1)[0][0], got[0])

    def test_products(self):
        self.compare(self.DENSE, {"W": (96, 160), "V": (160, 32)}, (64, 96), 32)

    def test_convolutions(self):
        self.compare(self.MODEL, {"W": (32, 16, 3, 3), "V": (32, 32, 1, 1), "M": (3200, 10)}, (8, 16, 10, 10), 10)


class StrictMath(unittest.TestCase):
    MODEL = b"""graph @main(%x: f32[n], %w: f32[1] param = [0.7]) -> (y: f32[n]) {
  %0 = broadcast %w {axes = [0], dims = [n]} : f32[n]
  %1 = mul %x, %0 : f32[n]
  %2 = tanh %1 : f32[n]
  %one = constant 1 : f32[]
  %3 = broadcast %one {axes = [], dims = [n]} : f32[n]
  %4 = add %2, %3 : f32[n]
  %half = constant 0.5 : f32[]
  %5 = broadcast %half {axes = [], dims = [n]} : f32[n]
  %6 = mul %4, %5 : f32[n]
  return %6
}
"""

    def test_the_step_computes_what_the_model_says(self):
        """(tanh(x) + 1) / 2 stays that, to the bit, before it is differentiated."""
        same = {}
        for math in "strict", "default":
            t = quern.train(self.MODEL, "output", "sgd", 0.1, target="interp", math=math)
            before = [t.evaluate([np.float32([x])])[0] for x in np.linspace(-9, 3, 40)]
            w = t.parameters["w"].copy()
            after = []
            for x in np.linspace(-9, 3, 40):
                after.append(t.step([np.float32([x])]))
                t.parameters["w"][:] = w
            same[math] = before == after
        self.assertEqual(same, {"strict": True, "default": False})
        with self.assertRaisesRegex(quern.ArgumentError, "no math mode 'exact'"):
            quern.train(self.MODEL, "output", "sgd", 0.1, math="exact")


class LossScale(unittest.TestCase):
    X, TARGET, RATE = np.float32([1, 2, -1, 0.5]), np.float32([5, -4, 1, 6]), 0.02

    def reference(self, steps, scale, good_for):
        """Weights, scales and skipped steps, in NumPy's float16."""
        w, good, trace = np.float32([1, 2, 3, 4]), 0, []
        x = self.X.astype(np.float16)
        for _ in range(steps):
            y = (x * w.astype(np.float16)).astype(np.float32)
            with np.errstate(over="ignore"):
                g = (x * (np.float32(scale) * 2 * (y - self.TARGET) / 4).astype(np.float16)).astype(np.float32)
            finite = bool(np.isfinite(g).all())
            if finite:
                w = w - np.float32(self.RATE) * g / np.float32(scale)
            if good_for:
                good = good + 1 if finite else 0
                scale = scale / 2 if not finite else scale * 2 if good == good_for else scale
                good = 0 if good == good_for else good
            trace.append((w.copy(), scale, finite))
        return trace

    def trainer(self, **more):
        return quern.train(half_model(), "mse", "sgd", self.RATE, **more)

    def test_against_numpy(self):
        for target in "interp", "cpu":
            for good_for in 0, 2, 3:
                t = self.trainer(loss_scale=2.0 ** 15, loss_scale_steps=good_for, target=target)
                reference = self.reference(14, 2.0 ** 15, good_for)
                for w, scale, _ in reference:
                    t.step([self.X], self.TARGET)
                    np.testing.assert_allclose(t.parameters["w"], w, rtol=1e-4)
                    if good_for:
                        self.assertEqual(float(t.states["loss_scale"]), scale)
                skipped = sum(not finite for _, _, finite in reference)
                self.assertEqual(skipped, 14) if good_for == 0 else self.assertIn(skipped, range(2, 10))

    def test_a_skipped_step_changes_nothing_else(self):
        t = self.trainer(loss_scale=2.0 ** 15, loss_scale_steps=3, ema=0.5)
        t.step([self.X], self.TARGET)
        before = {k: v.copy() for k, v in t.states.items()}
        t.step([self.X * np.float32(np.inf)], self.TARGET)
        changed = [k for k, v in t.states.items() if not np.array_equal(v, before[k])]
        self.assertEqual(changed, ["loss_scale"])

    def test_powers_of_two_change_no_bit(self):
        plain, loss = trainer("adam")
        scaled, _ = trainer("adam", loss_scale=1024.0, loss_scale_steps=2)
        for i in range(6):
            x, y = cases.batch(loss, i % cases.BATCHES)
            self.assertEqual(plain.step([x], y), scaled.step([x], y))
        for k, v in plain.states.items():
            np.testing.assert_array_equal(v, scaled.states[k])
        self.assertEqual(float(scaled.states["loss_scale"]), 8192)

    def test_checkpoints_carry_the_scale(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "c.safetensors"
            a, b = (self.trainer(loss_scale=2.0 ** 15, loss_scale_steps=2) for _ in range(2))
            for _ in range(3):
                a.step([self.X], self.TARGET)
            a.save_checkpoint(path)
            b.load_checkpoint(path)
            self.assertNotEqual(float(b.states["loss_scale"]), 2.0 ** 15)
            for _ in range(5):
                self.assertEqual(a.step([self.X], self.TARGET), b.step([self.X], self.TARGET))
            for k, v in a.states.items():
                np.testing.assert_array_equal(v, b.states[k])

    def test_mistakes(self):
        with self.assertRaisesRegex(quern.ArgumentError, "steps after which a loss_scale above 0"):
            self.trainer(loss_scale_steps=4)
        with self.assertRaisesRegex(quern.ArgumentError, "loss_scale is -1"):
            self.trainer(loss_scale=-1.0)
        with self.assertRaisesRegex(quern.ArgumentError, "the host scales"):
            self.trainer(loss_scale=8.0, parts=True)


class Checkpoints(unittest.TestCase):
    EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "digits"

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self.folder.name)

    def tearDown(self):
        self.folder.cleanup()

    def digits(self, **more):
        return quern.train(self.EXAMPLE / "untrained.onnx", "cross_entropy", "adam", 1e-3, dims={"batch": 32}, **more)

    def batches(self, n):
        with np.load(self.EXAMPLE / "digits.npz") as z:
            x, y = z["x"].astype(np.float32) / 16, z["y"]
        return [(x[32 * i:32 * i + 32], y[32 * i:32 * i + 32]) for i in range(n)]

    def test_resumes_to_the_same_bits(self):
        batches, a, b = self.batches(8), self.digits(), self.digits()
        for x, y in batches[:4]:
            a.step([x], y)
        a.save_checkpoint(self.path / "c.safetensors", "after four")
        self.assertEqual(b.load_checkpoint(self.path / "c.safetensors"), "after four")
        for x, y in batches[4:]:
            self.assertEqual(a.step([x], y), b.step([x], y))
        for name, value in a.states.items():
            np.testing.assert_array_equal(value, b.states[name])

    def test_damaged_or_foreign_checkpoints_are_refused(self):
        (x, y), = self.batches(1)
        a, path = self.digits(), self.path / "c.safetensors"
        a.step([x], y)
        a.save_checkpoint(path, "epochs=3")
        good = path.read_bytes()
        before = {k: v.copy() for k, v in a.states.items()}
        for damaged, message in ((good[:-1], "damaged"), (good[:40], "damaged"), (b"", "damaged"),
                                 (good[:-5] + bytes([good[-5] ^ 1]) + good[-4:], "hash"),
                                 (good.replace(b"epochs=3", b"epochs=7"), "hash"), (good.replace(b" ", b"\t"), "hash"),
                                 (good[:8] + b"#" + good[9:], "no safetensors")):
            path.write_bytes(damaged)
            with self.assertRaisesRegex(quern.ModelError, message):
                a.load_checkpoint(path)
        path.write_bytes(good)
        with self.assertRaisesRegex(quern.ModelError, "another optimizer"):
            quern.train(self.EXAMPLE / "untrained.onnx", "cross_entropy", "sgd", 0.1).load_checkpoint(path)
        for k, v in a.states.items():
            np.testing.assert_array_equal(v, before[k])

    def test_saved_models_predict_alike(self):
        t = self.digits(ema=0.5)
        for x, y in self.batches(5):
            t.step([x], y)
        (x, y), = self.batches(1)
        t.save(self.path / "now.onnx")
        t.save(self.path / "average.onnx", averages=True)
        (now,) = quern.compile(self.path / "now.onnx", dims={"batch": 32})([x])
        np.testing.assert_array_equal(now, t([x])[0])
        (average,) = quern.compile(self.path / "average.onnx")([x])
        self.assertGreater(np.abs(average - now).max(), 1e-4)
        for name, value in t.averages.items():
            t.parameters[name][...] = value
        np.testing.assert_allclose(average, t([x])[0], rtol=1e-5, atol=1e-6)


NORMED = b"""graph @main(%x: f32[batch, 6], %w: f32[6, 5] param = [[1, -2, 3, 1, 0], [0, 1, 1, -1, 2], [2, 1, 0, 0, 1], [1, 1, -1, 2, 0],
    [0, 0, 1, 1, 1], [-1, 0, 1, 0, 2]], %s: f32[5] param = [1, 2, 1, 1, 1], %b: f32[5] param) -> (y: f32[batch, 5]) {
  %m = constant [0, 0, 0, 0, 0] : f32[5]
  %v = constant [1, 1, 1, 1, 1] : f32[5]
  %key = constant [1, 2] : u64[2]
  %zero = constant 0 : u64[]
  %0 = dot_general %x, %w {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[batch, 5]
  %1, %2, %3 = batch_norm %0, %s, %b, %m, %v {epsilon = 0.125, momentum = 0.75} : f32[batch, 5], f32[5], f32[5]
  %4, %5 = dropout %1, %key, %zero {ratio = 0.5} : f32[batch, 5], bool[batch, 5]
  %6 = tanh %4 : f32[batch, 5]
  return %6
}
"""


NOISY = b"""graph @main(%x: f32[4, 3], %w: f32[4, 3] param = [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]) -> (y: f32[4, 3]) {
  %key = constant [3, 1] : u64[2]
  %zero = constant 0 : u64[]
  %0 = random_bits %key, %zero {dims = [4, 3]} : u32[4, 3]
  %1 = convert %0 {dtype = f32} : f32[4, 3]
  %2 = mul %1, %w : f32[4, 3]
  %3 = mul %2, %x : f32[4, 3]
  return %3
}
"""
NOISY_LOOP = b"""graph @main(%w: f32[4] param = [1, 2, 3, 4]) -> (y: f32[4]) {
  %0 = scan %w {length = [2], n_carried = 1, n_scanned = 0} : f32[4]
    body (%c: f32[4]) {
    %key = constant [3, 1] : u64[2]
    %zero = constant 0 : u64[]
    %1 = random_bits %key, %zero {dims = [4]} : u32[4]
    %2 = convert %1 {dtype = f32} : f32[4]
    %3 = mul %c, %2 : f32[4]
    return %3
  }
  return %0
}
"""


class RandomNumbers(unittest.TestCase):
    """Noise times w: with w = 1, x = 1 and the loss mean(y) the gradient is the noise divided by the number of elements."""
    X = np.ones((4, 3), np.float32)

    def noise(self, steps=3, **options):
        t = quern.train(NOISY, loss="output", optimizer="sgd", learning_rate=1e-30, parts=True, math="strict", **options)
        noises = []
        for _ in range(steps):
            forward = t.forward([self.X])
            gradients = t.backward(forward)["w"] * self.X.size
            self.assertAlmostEqual(forward.loss / 2**32, gradients.mean() / 2**32, 6)        # it is that of the forward
            t.update({"w": gradients})
            noises.append(gradients)
        return noises

    def test_each_step_draws_new_ones(self):
        first, second, third = self.noise()
        self.assertTrue((first != second).all() and (second != third).all() and (first != third).all())
        for target in "cpu", "interp":
            for noise, same in zip((first, second, third), self.noise(target=target)):
                np.testing.assert_array_equal(noise, same)
        self.assertTrue((first != self.noise(1, seed=1)[0]).all())

    def test_the_whole_step_draws_those_of_the_parts(self):
        t = quern.train(NOISY, loss="output", optimizer="sgd", learning_rate=1e-30)
        losses = [t.step([self.X]) for _ in range(3)]
        np.testing.assert_allclose(losses, [noise.mean() for noise in self.noise()], rtol=1e-6)
        self.assertEqual(t.evaluate([self.X]), t.evaluate([self.X]))
        np.testing.assert_array_equal(t([self.X])[0], quern.compile(NOISY)([self.X])[0])

    def test_in_a_loop_they_are_refused(self):
        with self.assertRaisesRegex(quern.UnsupportedError, "random numbers in a loop or a branch can't be trained"):
            quern.train(NOISY_LOOP, loss="output", optimizer="sgd", learning_rate=1)


class Schedules(unittest.TestCase):
    def test_the_host_sets_the_rate(self):
        """The same steps as those of a schedule that computes the same rates."""
        rates = [0.1 * 0.5 ** (i // 2) for i in range(6)]
        for optimizer in "sgd", "adamw", "lars":
            options = dict(loss="mse", optimizer=optimizer, learning_rate=0.1, weight_decay=0.1, math="strict")
            for parts in False, True:
                a = quern.train(cases.model("mse"), schedule="step", schedule_steps=2, schedule_factor=0.5, **options)
                b = quern.train(cases.model("mse"), schedule="host", parts=parts, name="mine", **options)
                self.assertEqual(b.learning_rate, 0.1)
                for i, rate in enumerate(rates):
                    x, y = cases.batch("mse", i % cases.BATCHES)
                    b.learning_rate = rate
                    a.step([x], y)
                    if parts:
                        b.update(b.backward(b.forward([x], y)))
                    else:
                        b.step([x], y)
                for name, value in a.parameters.items():
                    np.testing.assert_allclose(value, b.parameters[name], rtol=1e-6, atol=1e-7, err_msg=name)
                self.assertEqual(float(b.states["mine.learning_rate"]), rates[-1])
        with self.assertRaisesRegex(quern.ArgumentError, "learning_rate is -1: it must be a number of at least 0"):
            b.learning_rate = -1
        with self.assertRaisesRegex(AttributeError, "constant of the compiled step; .*schedule=.host"):
            a.learning_rate = 1
        with self.assertRaisesRegex(quern.ArgumentError, "schedule_steps is an option of cosine, linear, step, and not of host"):
            quern.train(cases.model("mse"), loss="mse", optimizer="sgd", learning_rate=1, schedule="host", schedule_steps=3)


class ByTurns(unittest.TestCase):
    """Two numbers a and b, of which each trainer moves one so that a b is what it wants."""

    def trainers(self, names=("first", "second"), params="ab"):
        model = """graph @main(%one: f32[], %a: f32[] param = 1, %b: f32[] param = 2) -> (loss: f32[]) {{
  %0 = mul %a, %b : f32[]
  %1 = constant {} : f32[]
  %2 = sub %0, %1 : f32[]
  %3 = mul %2, %2 : f32[]
  %4 = mul %3, %one : f32[]
  return %4
}}
"""
        return [quern.train(model.format(wanted).encode(), "output", "adam", 0.1, params=param, name=name)
                for wanted, param, name in zip((3, 5), params, names)]

    def test_what_one_learns_the_other_sees(self):
        one = [np.float32(1)]
        a, b = self.trainers()
        self.assertAlmostEqual(b.evaluate(one)[0], 9, places=5)
        b.share(a)
        self.assertAlmostEqual(a.step(one), 1, places=5)
        self.assertAlmostEqual(float(b.states["a"]), 1.1, places=5)
        self.assertAlmostEqual(b.evaluate(one)[0], (1.1 * 2 - 5) ** 2, places=4)
        self.assertAlmostEqual(b.step(one), (1.1 * 2 - 5) ** 2, places=4)
        self.assertAlmostEqual(float(a.states["b"]), 2.1, places=5)
        self.assertAlmostEqual(float(a(one)[0]), (1.1 * 2.1 - 3) ** 2, places=4)
        self.assertEqual((int(a.states["first.step"]), int(b.states["second.step"])), (1, 1))
        with tempfile.TemporaryDirectory() as folder:
            quern.save_checkpoint([a, b], folder + "/both", "one turn each")
            losses = [t.step(one) for t in (a, b, a, b)]
            c, d = self.trainers()
            d.share(c)
            self.assertEqual(quern.load_checkpoint([c, d], folder + "/both"), "one turn each")
            self.assertEqual([t.step(one) for t in (c, d, c, d)], losses)
            with self.assertRaisesRegex(quern.ModelError, "states that the model has not"):
                c.load_checkpoint(folder + "/both")
            with self.assertRaisesRegex(quern.ArgumentError, "two sessions have a state 'a', and do not share it"):
                quern.save_checkpoint([a, c], folder + "/none")

    def test_mistakes(self):
        a, b = self.trainers(names=(None, None))
        with self.assertRaisesRegex(quern.ArgumentError, "each training has a state 'step' of its own"):
            b.share(a)
        a, b = self.trainers(params="aa")
        with self.assertRaisesRegex(quern.ArgumentError, "each training has a state 'a.m' of its own"):
            b.share(a)


class Mistakes(unittest.TestCase):
    HOW = dict(loss="mse", optimizer="sgd", learning_rate=0.1)

    def refused(self, message, **more):
        with self.assertRaises(quern.ArgumentError) as caught:
            quern.train(cases.model("mse"), **self.HOW | more)
        self.assertEqual(str(caught.exception), message)

    def test_options_of_something_else(self):
        self.refused("momentum is an option of sgd, rmsprop, lars, and not of adam", optimizer="adam", momentum=0.9)
        self.refused("beta1 is an option of adam, adamw, lamb, and not of sgd", beta1=0.9)
        self.refused("alpha is an option of rmsprop, and not of lamb", optimizer="lamb", alpha=0.9)
        self.refused("label_smoothing is an option of cross_entropy, and not of mse", label_smoothing=0.1)
        self.refused("huber_delta is an option of huber, and not of none", loss=None, parts=True, huber_delta=2.0)
        self.refused("schedule_steps is an option of cosine, linear, step, and not of constant", schedule_steps=9)

    def test_names(self):
        self.refused("optimizer is None: it must be a name", optimizer=None)
        self.refused("loss is 3: it must be a name", loss=3)
        self.refused("params is 1: it must be a name", params=[1])

    def test_parameters(self):
        self.refused("no parameter is called 'w9': expected a floating-point initializer of the model", params=["w9"])
        self.refused("params names nothing to train; None: all parameters", params=[])
        self.assertEqual(list(quern.train(cases.model("mse"), **self.HOW, params="w1").parameters), ["w1"])

    def test_batches(self):
        model = cases.model("mse").decode().replace(f"[{cases.ROWS},", "[n,").encode()
        x, y = cases.batch("mse", 0)
        for target in "cpu", "interp":
            t = quern.train(b"dims n: 0..64\n" + model, **self.HOW, target=target)
            before = {name: value.copy() for name, value in t.parameters.items()}
            with self.assertRaisesRegex(quern.ArgumentError, "n is 0 by input 0 'x'"):  # its mean would be NaN
                t.step([x[:0]], y[:0])
            with self.assertRaisesRegex(quern.ArgumentError, "input 'target' is missing"):
                t.step({"x": x})
            for name, value in t.parameters.items():
                np.testing.assert_array_equal(value, before[name])
            self.assertEqual(t.evaluate(x, y), t.evaluate([x], y))  # the only input needs no list
        with self.assertRaisesRegex(quern.ArgumentError, r"output 'y' is f32\[0, 3\]: of no elements there is no loss"):
            quern.train(b"dims n: 0..64\n" + model, **self.HOW, dims={"n": 0})
        with self.assertRaisesRegex(quern.ArgumentError, "there are no averages"):
            t._path = "model.onnx"
            t.save("x.onnx", averages=True)
        with self.assertRaisesRegex(quern.ArgumentError, r"train\(parts=True\)"):
            t.forward([x], y)

    def test_numbers_of_other_dtypes(self):
        """Labels of 8 and 32 bits, inputs of float64 and whole ones: as in fit, they become what the step takes."""
        how = dict(loss="cross_entropy", optimizer="sgd", learning_rate=0.1)
        x, y = cases.batch("cross_entropy", 0)
        whole = np.round(4 * x)
        a = quern.train(cases.model("cross_entropy"), **how)
        b = quern.train(cases.model("cross_entropy"), **how, parts=True)
        for xs, labels in [(x, np.int32), (x.astype("f8"), np.uint8), (whole.astype("f8"), np.int64)]:
            expected = a.evaluate([xs.astype("f4")], y), a.step([xs.astype("f4")], y)
            self.assertEqual((b.evaluate(xs, y.astype(labels)), b.step([xs], y.astype(labels))), expected)
        np.testing.assert_array_equal(b([whole.astype("i2")])[0], a([whole])[0])
        self.assertEqual(b.forward([whole.astype("u1")], y).loss, b.forward([whole.astype("u1").astype("f4")], y).loss)
        with self.assertRaisesRegex(quern.ArgumentError, r"'target' is f32"):
            a.step([x], y.astype("f4"))
        with self.assertRaisesRegex(quern.ArgumentError, "target: str is not an array|'target': str is not an array"):
            a.step([x], "labels")


class InParts(unittest.TestCase):
    """forward, backward and update against train_step, of which they are the parts."""

    def pair(self, model, **options):
        return quern.train(model, **options), quern.train(model, parts=True, **options)

    def assert_alike(self, a, b, exact):
        for name, value in a.states.items():
            if exact:
                np.testing.assert_array_equal(value, b.states[name], name)
            else:
                np.testing.assert_allclose(value, b.states[name], rtol=1e-6, atol=1e-7, err_msg=name)

    def test_one_step(self):
        """The same bits where no arithmetic is contracted; otherwise they may differ by rounding."""
        for name in cases.CASES:
            for target, math in (("interp", "default"), ("cpu", "strict"), ("cpu", "default")):
                options = {"loss": "cross_entropy", **cases.CASES[name]}
                a, b = self.pair(cases.model(options["loss"]), target=target, math=math, **options)
                with self.subTest(name, target=target, math=math):
                    for i in range(4):
                        x, y = cases.batch(options["loss"], i % cases.BATCHES)
                        forward = b.forward([x], y)
                        b.update(b.backward(forward))
                        self.assertAlmostEqual(a.step([x], y), forward.loss, 6)
                    self.assert_alike(a, b, exact=math == "strict" or target == "interp")

    def test_micro_batches_make_a_batch(self):
        """Of any sizes, on their way at once: with the share of its rows each adds its part of the gradient."""
        model = cases.model("mse").replace(f"[{cases.ROWS},".encode(), b"[batch,")
        a, b = self.pair(model, loss="mse", optimizer="adam", learning_rate=0.01, clip_norm=0.5)
        for i in range(3):
            x, y = cases.batch("mse", i)
            loss = a.step([x], y)
            pieces = [slice(0, 3), slice(3, 4), slice(4, cases.ROWS)]
            forwards = [b.forward([x[p]], y[p]) for p in pieces]
            shares = [(p.stop - p.start) / cases.ROWS for p in pieces]
            gradients = [b.backward(f, share) for f, share in zip(forwards, shares)]
            b.update({name: sum(g[name] for g in gradients) for name in b.parameters})
            self.assertAlmostEqual(loss, sum(f.loss * share for f, share in zip(forwards, shares)), 6)
            for name, value in a.parameters.items():
                np.testing.assert_allclose(value, b.parameters[name], rtol=2e-5, atol=1e-6, err_msg=name)

    def test_statistics_and_masks_belong_to_the_forward(self):
        options = dict(loss="mse", optimizer="sgd", learning_rate=0.1, seed=3)
        a, b = self.pair(NORMED, **options)
        x, y = cases.wave(48, 1, 1).reshape(8, 6), cases.wave(40, 2, 1).reshape(8, 5)
        for i in range(3):
            forward = b.forward([x], y)
            b.update(b.backward(forward))
            self.assertAlmostEqual(a.step([x], y), forward.loss, 6)
        for name, value in a.parameters.items():
            np.testing.assert_allclose(value, b.parameters[name], rtol=1e-5, atol=1e-6, err_msg=name)
        self.assertEqual(int(b.states["draws"]), 3)
        before = b.states["batch_norm_0.mean"].copy()
        first, second = b.forward([x], y), b.forward([x], y)
        self.assertEqual(int(b.states["draws"]), 5)
        self.assertNotEqual(first.loss, second.loss)
        self.assertFalse(np.array_equal(before, b.states["batch_norm_0.mean"]))
        # the first one's mask is its own still: behind it nothing depends on the order of the two
        one, two = b.backward(first), b.backward(second)
        again = b.backward(first)
        for name in one:
            np.testing.assert_array_equal(one[name], again[name])
            self.assertFalse(np.array_equal(one[name], two[name]))

    def test_a_loss_of_the_callers(self):
        """mean (p - t)^2 by hand, and the gradient of the input, by finite differences."""
        options = dict(optimizer="sgd", learning_rate=0.1)
        model = cases.model("mse")
        a = quern.train(model, loss="mse", **options)
        b = quern.train(model, loss=None, parts=True, input_gradients=True, **options)
        x, y = cases.batch("mse", 0)
        with self.assertRaisesRegex(quern.ArgumentError, "forward, backward and update instead"):
            b.step([x], y)
        for i in range(3):
            loss = a.step([x], y)
            forward = b.forward([x])
            p, = forward.outputs
            self.assertIsNone(forward.loss)
            self.assertAlmostEqual(loss, float(np.mean((p - y) ** 2)), 6)
            with self.assertRaisesRegex(quern.ArgumentError, "gradients of y, not 2"):
                b.backward(forward, [p, p])
            gradients = b.backward(forward, [2 * (p - y) / y.size])
            if i == 0:
                moved = x.copy()
                moved[2, 3] += 1e-2
                change = float(np.mean((b.forward([moved]).outputs[0] - y) ** 2)) - loss
                self.assertAlmostEqual(gradients["x"][2, 3], change / 1e-2, 3)
            with self.assertRaisesRegex(quern.ArgumentError, "no gradient is given of 'b1'"):
                b.update({"w1": gradients["w1"], "w2": gradients["w2"]})
            b.update(gradients)
        self.assert_alike(a, b, exact=False)

    def test_outputs_outlive_the_forward(self):
        """Its memory is used again, but for what the caller got."""
        t = quern.train(cases.model("mse"), loss=None, parts=True, optimizer="sgd", learning_rate=0.1)
        x, _ = cases.batch("mse", 0)
        outputs = t.forward([x]).outputs
        kept = outputs[0].copy()
        other = t.forward([2 * x])
        np.testing.assert_array_equal(outputs[0], kept)
        self.assertFalse(np.array_equal(other.outputs[0], kept))

    def test_mistakes(self):
        for more, message in ((dict(loss=None), "no loss is named"), (dict(loss="mse", input_gradients=True), "in parts")):
            with self.assertRaisesRegex(quern.ArgumentError, message):
                quern.train(cases.model("mse"), optimizer="sgd", learning_rate=0.1, **more)


if __name__ == "__main__":
    unittest.main()
