"""Tensors on GPUs, which tests/fake_cuda stands for: its memory is out of the host's reach, its kernels run as their PTX says."""

import ctypes
import gc
import os
import subprocess
import sys
import tempfile
import unittest

import numpy as np

LIBRARY = os.environ.get("QUERN_FAKE_CUDA")
if not LIBRARY or not os.path.exists(LIBRARY):
    raise unittest.SkipTest("QUERN_FAKE_CUDA is not the driver that the tests build")
os.environ["QUERN_CUDA_LIBRARY"] = LIBRARY
os.environ["FAKE_CUDA_DEVICES"] = "2"

import quern  # noqa: E402
from quern import Tensor  # noqa: E402

fake = ctypes.CDLL(LIBRARY)
EXP = b"""graph @main(%x: f32[n, 3]) -> f32[n, 3] {
  %y = exp %x : f32[n, 3]
  return %y
}
"""


def in_use():
    """Allocations, without what is kept for the next tensors."""
    quern.trim("cuda")
    return fake.fake_cuda_live()


class Case(unittest.TestCase):
    def setUp(self):
        self.mistakes = fake.fake_cuda_mistakes()
        self.x = np.arange(12, dtype=np.float32).reshape(3, 4)

    def tearDown(self):
        self.assertEqual(fake.fake_cuda_mistakes(), self.mistakes)

    def same(self, ours, theirs):
        self.assertEqual(ours.device, "cuda:0")
        self.assertEqual((ours.shape, ours.dtype), (theirs.shape, theirs.dtype))
        np.testing.assert_allclose(ours.cpu().numpy(), theirs, rtol=1e-6)


class Moving(Case):
    def test_to_and_fro(self):
        t = Tensor(self.x)
        self.assertEqual((t.device, t.cpu().data_ptr(), quern.device_count()), ("cpu", t.data_ptr(), 2))
        g = t.to("cuda")
        self.same(g, self.x)
        self.same(g.T, self.x.T)
        self.same(g[1:, ::-2], self.x[1:, ::-2])
        self.assertEqual(g.to("cuda:0").data_ptr(), g.data_ptr())
        self.assertEqual(g.to("cuda:1").device, "cuda:1")
        self.assertEqual(t.cuda(1).device, "cuda:1")
        self.assertEqual(g.to(np.float64).dtype, np.float64)
        self.assertEqual(g.to(np.float32).data_ptr(), g.data_ptr())
        self.assertEqual(Tensor(g).data_ptr(), g.data_ptr())
        self.same(Tensor(self.x, device="cuda"), self.x)
        self.same(Tensor(self.x.tolist(), dtype=np.float32, device="cuda"), self.x)
        quern.wait("cuda")

    def test_making(self):
        self.same(Tensor.zeros(2, 3, device="cuda"), np.zeros((2, 3), np.float32))
        self.same(Tensor.ones(2, device="cuda"), np.ones(2, np.float32))
        self.same(Tensor.full((2, 2), 3, device="cuda"), np.full((2, 2), 3, np.float32))
        self.same(Tensor.arange(5, device="cuda"), np.arange(5))
        self.same(Tensor.eye(3, device="cuda"), np.eye(3, dtype=np.float32))
        self.same(Tensor.randn(5, seed=1, device="cuda"), Tensor.randn(5, seed=1).numpy())
        self.same(Tensor.uniform(5, seed=1, device="cuda"), Tensor.uniform(5, seed=1).numpy())

    def test_values_come_by_themselves_but_not_to_numpy(self):
        g = Tensor(self.x, device="cuda")
        self.assertEqual((g.tolist(), g[1, 2].item(), float(g[0, 1]), int(g[0, 2])), (self.x.tolist(), 6, 1, 2))
        self.assertTrue(bool((g == g).all()))
        self.assertEqual(repr(g[0]), "Tensor([0., 1., 2., 3.], float32, cuda:0)")
        for look in (g.numpy, lambda: np.asarray(g), lambda: np.sum(g.numpy())):
            with self.assertRaisesRegex(quern.ArgumentError, r"on cuda:0, which NumPy cannot read: x.cpu\(\) copies it"):
                look()

    def test_memory_is_freed(self):
        t = Tensor(self.x)
        for _ in range(2):  # kernels of the first time stay
            g = t.to("cuda")
            row = (g + g)[1]
            del g, row
            gc.collect()
        before = in_use()
        g = t.to("cuda")
        row = (g + g)[1]
        self.assertEqual(in_use(), before + 2)
        del g
        self.assertEqual(row.tolist(), (2 * self.x[1]).tolist())
        del row
        self.assertEqual(in_use(), before)

    def test_says_what_is_missing(self):
        program = "import quern; quern.Tensor.zeros(3).to('cuda')"
        run = subprocess.run([sys.executable, "-c", program], env=os.environ | {"QUERN_CUDA_LIBRARY": "/no/libcuda.so.1"},
                             capture_output=True, text=True)
        self.assertIn("there is no GPU here: libcuda.so.1 could not be opened", run.stderr)
        with self.assertRaisesRegex(quern.Error, "there is no GPU 5 here: the driver finds 2"):
            Tensor(self.x).to("cuda:5")
        with self.assertRaisesRegex(quern.ArgumentError, "there is no device 'cuda1'"):
            Tensor(self.x).to("cuda1")


class Computing(Case):
    def test_operations(self):
        x, g = self.x, Tensor(self.x, device="cuda")
        self.same(g + 1.5, x + np.float32(1.5))
        self.same(2 * g.T, 2 * x.T)
        self.same(g @ g.T, x @ x.T)
        self.same((g - g.mean(0)).exp().sum(1), np.exp(x - x.mean(0)).sum(1))
        self.same(g.argmax(1), x.argmax(1))
        self.same(g.cumsum(0), x.cumsum(0))
        self.same(Tensor.where(g > 5, g, 0), np.where(x > 5, x, np.float32(0)))
        self.same(Tensor.concatenate([g, g]), np.concatenate([x, x]))
        self.same(Tensor.op("softmax", g, axis=1), np.exp(x) / np.exp(x).sum(1, keepdims=True))
        self.same(g * np.float32(3), x * 3)

    def test_by_index(self):
        x, g = self.x, Tensor(self.x, device="cuda")
        self.same(g[[2, 0]], x[[2, 0]])
        self.same(g[:, np.array([1, -1])], x[:, [1, -1]])
        self.same(g[g > 4], x[x > 4])
        self.same(g[np.array([True, False, True])], x[[True, False, True]])
        self.same(g.gather(1, [[1], [0], [3]]), np.take_along_axis(x, np.array([[1], [0], [3]]), 1))
        with self.assertRaisesRegex(quern.OutOfRangeError, "an index is out of range"):
            g[[3]]

    def test_in_place(self):
        x, g = self.x.copy(), Tensor(self.x, device="cuda")
        at = g.data_ptr()
        for a in (x, g):
            a += 1
            a[1] = 7
            a[:, 1:] = a[:, :-1]
            a[[0, 2]] = np.float32(3)
            a[a > 6] = 5
        g[1] = x[1]  # from the host's memory
        self.same(g, x)
        self.assertEqual(g.data_ptr(), at)

    def test_devices_do_not_mix(self):
        g = Tensor(self.x, device="cuda")
        for other in (Tensor(self.x), self.x, g.to("cuda:1")):
            with self.assertRaisesRegex(quern.ArgumentError, "quern_tensor_to copies one to the other's device"):
                g + other
        with quern.Tape():
            g + 1
            with self.assertRaisesRegex(quern.UnsupportedError, "this one has cuda:0 and cuda:1"):
                g.to("cuda:1")


class Tapes(Case):
    def test_learns_where_its_tensors_are(self):
        rng = np.random.default_rng(3)
        x, y = (rng.standard_normal(s).astype(np.float32) for s in ((20, 3), (20, 2)))
        found = []
        for device in "cpu", "cuda":
            w, b = Tensor.randn(3, 2, seed=1, device=device), Tensor.zeros(2, device=device)
            tx, ty = Tensor(x, device=device), Tensor(y.copy())
            with quern.Tape() as tape:
                loss = ((tx @ w + b - ty.to(device)).tanh() ** 2).mean()
                grads = tape.gradient(loss, [w, b])
                self.assertEqual(grads[0].device, w.device)
                for p, g in zip((w, b), grads):
                    p -= 0.1 * g
            step = tape.compile(loss)
            losses = [loss.item()]
            for _ in range(5):
                step()
                losses.append(loss.item())
            ty *= 2  # the step brings what is there now
            step()
            found.append(losses + [loss.item()] + w.tolist()[0] + b.tolist())
            with self.assertRaisesRegex(quern.ArgumentError, f"the target is {w.device}"):
                tape.compile(loss, target="interp")
        np.testing.assert_allclose(*found, rtol=1e-5)


class Theirs:
    """Another library's tensor on a GPU, by DLPack alone."""

    def __init__(self, tensor):
        self.tensor, self.streams = tensor, []

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, stream=None):
        self.streams.append(stream)
        return self.tensor.__dlpack__(stream=stream)


class DLPack(Case):
    def test_both_ways_without_a_copy(self):
        for dtype in (np.float32, np.int64, np.bool_, np.float16):
            g = Tensor(self.x.astype(dtype), device="cuda:1").T
            self.assertEqual(g.__dlpack_device__(), (2, 1))
            theirs = Theirs(g)
            taken = Tensor(theirs)
            self.assertEqual((taken.device, taken.data_ptr(), taken.shape, taken.strides, taken.dtype),
                             ("cuda:1", g.data_ptr(), g.shape, g.strides, g.dtype))
            self.assertEqual(theirs.streams, [1])  # the one that everything is done on

    def test_memory_lives_as_long_as_it_is_used(self):
        import quern._dlpack as module

        before = in_use()
        g = Tensor(self.x, device="cuda")
        taken, capsule = Tensor(Theirs(g)), g.__dlpack__()
        del g
        gc.collect()
        self.assertEqual(len(module._given), 2)
        del capsule  # that nobody took
        self.assertEqual(len(module._given), 1)
        self.assertEqual(taken.tolist(), self.x.tolist())
        row = taken[1]
        del taken
        self.assertEqual((len(module._given), in_use()), (1, before + 1))
        self.assertEqual(row.tolist(), self.x[1].tolist())
        del row
        self.assertEqual((len(module._given), in_use()), (0, before))

    def test_asked_for_another_device(self):
        g = Tensor(self.x, device="cuda")
        np.testing.assert_array_equal(np.from_dlpack(g, device="cpu"), self.x)
        with self.assertRaises(BufferError):
            g.__dlpack__(dl_device=(1, 0), copy=False)
        with self.assertRaises(BufferError):
            g.__dlpack__(dl_device=(2, 1))


class Models(Case):
    def test_take_and_give_tensors(self):
        model = quern.compile(EXP, target="cuda")
        x = self.x.reshape(4, 3)
        g = Tensor(x, device="cuda")
        np.testing.assert_allclose(model([x])[0], np.exp(x), rtol=1e-6)  # by way of the host
        self.same(model([g])[0], np.exp(x))
        self.same(model([Theirs(g)])[0], np.exp(x))
        self.same(model({"x": Tensor(self.x.reshape(3, 4).T.copy(), device="cuda").T.reshape(4, 3)})[0], np.exp(x))
        out = Tensor.zeros(4, 3, device="cuda")
        self.assertIs(model([x], out=[out])[0], out)
        self.same(out, np.exp(x))
        session = model.bind([g])
        session.bind_outputs([out])
        g += 1
        session.run()
        self.same(session.outputs[0], np.exp(x + 1))
        np.testing.assert_allclose(model([x])[0], np.exp(x), rtol=1e-6)

    def test_a_training_step(self):
        """Parameters and optimizer states stay on the GPU; the numbers are the CPU's."""
        model = b"""graph @main(%x: f32[n, 3], %w: f32[3, 4] param, %b: f32[4] param) -> f32[n, 4] {
  %0 = dot_general %x, %w {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[n, 4]
  %1 = broadcast %b {axes = [1], dims = [n, 4]} : f32[n, 4]
  %2 = add %0, %1 : f32[n, 4]
  return %2
}
"""
        x, y = self.x.reshape(4, 3) / 10, np.array([0, 3, 1, 2])
        found = []
        for target in "cpu", "cuda":
            t = quern.train(model, "cross_entropy", "adamw", 0.1, label_smoothing=0.1, target=target)
            losses = [t.step([x], y) for _ in range(5)]
            with tempfile.TemporaryDirectory() as folder:
                t.save_checkpoint(folder + "/c")
                t.parameters["w"][:] = 100
                other = quern.train(model, "cross_entropy", "adamw", 0.1, label_smoothing=0.1, target=target)
                for trainer in t, other:
                    trainer.load_checkpoint(folder + "/c")
            losses += [other.step([x], y) for _ in range(5)]
            w = Tensor(other.parameters["w"])
            self.assertEqual(w.device, target.replace("cuda", "cuda:0"))
            found.append(losses + w.reshape(-1).tolist() + [other.evaluate([x], y)[1]] + other([x])[0].ravel().tolist() +
                         Tensor(t.parameters["w"]).reshape(-1).tolist())
        np.testing.assert_allclose(*found, rtol=1e-4)
        self.assertLess(found[0][9], found[0][0])

    def test_onnx_backend(self):
        try:
            import quern.backend as backend
        except ImportError:
            self.skipTest("the onnx package is not installed")
        self.assertEqual([backend.supports_device(d) for d in ("CUDA", "CUDA:1", "CUDA:2")], [True, True, False])

    def test_refuse_other_devices(self):
        g = Tensor(self.x.reshape(4, 3), device="cuda")
        with self.assertRaisesRegex(quern.ArgumentError, "is on cuda:0 and the model runs on cpu"):
            quern.compile(EXP)([g])
        with self.assertRaisesRegex(quern.ArgumentError, "is on cuda:0 and the model runs on cuda:1"):
            quern.compile(EXP, target="cuda:1")([g])
        with self.assertRaisesRegex(quern.Error, "there is no GPU 2 here"):
            quern.compile(EXP, target="cuda:2")


if __name__ == "__main__":
    unittest.main()
