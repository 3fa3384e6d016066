"""Data-parallel training with ranks that are threads: the step of the whole batch, states alike on all ranks, batch norms, dropout,
the step in parts, checkpoints; collectives of arrays."""
import contextlib
import io
import pathlib
import tempfile
import threading
import unittest

import numpy as np

import quern

RANDOM = np.random.default_rng(1)
X = RANDOM.standard_normal((96, 6)).astype(np.float32)
Y = RANDOM.integers(0, 3, 96)
HOW = dict(loss="cross_entropy", optimizer="adamw", learning_rate=1e-2, threads=1)
MATMUL = "{x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]}"


def model(middle="%1 = tanh %0 : f32[batch, 8]", more="", outputs="", aliases=""):
    """Two layers with something between, whose parameters are of no use but differ."""
    w, u = (np.sin(np.arange(n) * 1.7).round(3).tolist() for n in (48, 24))
    return f"""dims batch: 1..64
graph @main(%x: f32[batch, 6], %w: f32[6, 8] param = {[w[i:i + 8] for i in range(0, 48, 8)]},
            %u: f32[8, 3] param = {[u[i:i + 3] for i in range(0, 24, 3)]}{more}) -> (y: f32[batch, 3]{outputs}) {{
  %0 = dot_general %x, %w {MATMUL} : f32[batch, 8]
  {middle}
  %2 = dot_general %1, %u {MATMUL} : f32[batch, 3]
  return %2{aliases}
}}
""".encode()


PLAIN = model()
NORM = model("""%1, %m1, %v1 = batch_norm %0, %s, %b, %m, %v {epsilon = 1e-05, momentum = 0.9} : f32[batch, 8], f32[8], f32[8]""",
             ", %s: f32[8] param = splat 1, %b: f32[8] param = splat 0.1, %m: f32[8] state = splat 0, %v: f32[8] state = splat 1")
DROPOUT = model("""%k = constant [1, 2] : u64[2]
  %z = constant 0 : u64[]
  %1, %mask = dropout %0, %k, %z {ratio = 0.5} : f32[batch, 8], bool[batch, 8]""")


def on_ranks(ranks, body):
    """[body(comm) of each rank]; what a rank raises is raised."""
    results, errors = [None] * ranks, []

    def run(comm):
        try:
            results[comm.rank] = body(comm)
        except Exception as error:
            errors.append(error)
            comm.fail(error)

    comms = quern.comm_threads(ranks)
    threads = [threading.Thread(target=run, args=(comm,)) for comm in comms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def learn(source, ranks, epochs=3, batch=24, **how):
    """[(losses, states)] of each rank; ranks 1: without a communicator."""
    def body(comm):
        t = quern.train(source, **{**HOW, **how}, data_parallel=comm or False)
        history = t.fit(X, Y, epochs=epochs, batch=batch, seed=3, progress=False)
        return history.losses, {name: np.array(x) for name, x in t.states.items()}
    return [body(None)] if ranks == 1 else on_ranks(ranks, body)


class Parallel(unittest.TestCase):
    def check_alike(self, ranks):
        for losses, states in ranks[1:]:
            self.assertEqual(losses, ranks[0][0])
            for name, x in states.items():
                np.testing.assert_array_equal(x, ranks[0][1][name], name)

    def check_whole(self, alone, ranks, tolerance=1e-5):
        np.testing.assert_allclose(ranks[0][0], alone[0], rtol=tolerance)
        for name, x in alone[1].items():
            np.testing.assert_allclose(ranks[0][1][name], x, rtol=1e-3, atol=1e-4, err_msg=name)

    def test_the_step_of_the_whole_batch(self):
        alone = learn(PLAIN, 1)[0]
        found = {}
        for ranks in 2, 4:
            for bucket in 0, 1, 100:  # all gradients together, each alone, some
                found[ranks, bucket] = learn(PLAIN, ranks, bucket_bytes=bucket)
                self.check_alike(found[ranks, bucket])
                self.check_whole(alone, found[ranks, bucket])
        for ranks in 2, 4:  # the bits do not depend on the buckets
            for bucket in 1, 100:
                self.assertEqual(found[ranks, 0][0][0], found[ranks, bucket][0][0])

    def test_optimizers_see_averages(self):
        for how in dict(optimizer="lamb"), dict(optimizer="lars", momentum=0.9), dict(clip_norm=0.1), dict(loss_scale=64.0, loss_scale_steps=2), dict(ema=0.9):
            alone, ranks = learn(PLAIN, 1, **how)[0], learn(PLAIN, 3, **how)
            self.check_alike(ranks)
            self.check_whole(alone, ranks)

    def test_batch_norm_of_all_ranks(self):
        alone, ranks = learn(NORM, 1)[0], learn(NORM, 4, sync_batch_norm=True)
        self.check_alike(ranks)
        self.check_whole(alone, ranks)

    def test_batch_norm_of_each_rank(self):
        alone, ranks = learn(NORM, 1)[0], learn(NORM, 4)
        self.check_alike(ranks)  # running statistics are averaged
        self.assertFalse(np.allclose(alone[0], ranks[0][0], rtol=1e-4))
        np.testing.assert_allclose(ranks[0][1]["m"], alone[1]["m"], atol=0.2)

    def test_masks_differ(self):
        def body(comm):
            t = quern.train(DROPOUT, **{**HOW, "optimizer": "sgd", "learning_rate": 1e-30}, data_parallel=comm, seed=5, parts=True)
            return t.forward([X[:24]], Y[:24]).loss
        alone = quern.train(DROPOUT, **{**HOW, "optimizer": "sgd"}, seed=5, parts=True).forward([X[:24]], Y[:24]).loss
        first, second, third = on_ranks(3, body)
        self.assertEqual(first, alone)  # rank 0 draws what one rank draws
        self.assertEqual(len({first, second, third}), 3)
        self.check_alike(learn(DROPOUT, 3))

    def test_parts(self):
        whole = learn(PLAIN, 2, epochs=1, batch=96)

        def body(comm):
            t = quern.train(PLAIN, **HOW, data_parallel=comm, parts=True)
            order = quern._fit.order_of(96, 3, 0)[48 * comm.rank:48 * comm.rank + 48]
            t.update(t.backward(t.forward([X[order]], Y[order])))
            return None, {name: np.array(x) for name, x in t.states.items()}
        parts = on_ranks(2, body)
        self.check_alike(parts)
        for name in "w", "u":
            np.testing.assert_allclose(parts[0][1][name], whole[0][1][name], atol=1e-5)

    def test_checkpoint_and_resume(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "c.safetensors"
            through = learn(PLAIN, 2, epochs=4)

            def body(epochs, resume):
                def rank(comm):
                    t = quern.train(PLAIN, **HOW, data_parallel=comm)
                    t.fit(X, Y, epochs=epochs, batch=24, seed=3, progress=False, checkpoint=path, resume=resume,
                          test=(X[:30], Y[:30]))
                    return None, {name: np.array(x) for name, x in t.states.items()}
                return rank
            on_ranks(2, body(2, False))
            resumed = on_ranks(2, body(4, True))
            for name, x in through[0][1].items():
                np.testing.assert_array_equal(resumed[1][1][name], x)

    def test_rank_0_alone_prints(self):
        def body(comm):
            quern.train(PLAIN, **HOW, data_parallel=comm).fit(X, Y, epochs=2, batch=24)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            on_ranks(2, body)
        self.assertEqual(out.getvalue().count("epoch 1/2: loss"), 1)

    def test_states_begin_as_those_of_rank_0(self):
        def body(comm):
            t = quern.train(PLAIN, **HOW, data_parallel=comm)
            t.parameters["w"][...] = comm.rank + 7
            t.join(comm)
            return float(t.parameters["w"].max())
        self.assertEqual(on_ranks(3, body), [7.0, 7.0, 7.0])

    def test_a_rank_that_fails_is_heard_of(self):
        """Before it comes to a collective: the others raise instead of waiting."""
        def fit(t, rank):
            t.fit(X[:-1] if rank else X, Y, epochs=1, batch=24, progress=False)

        def step(t, rank):
            t.step(X[:12, :-1] if rank else X[:12], Y[:12])

        def after(t, rank):
            t.fit(X, Y, epochs=2, batch=24, progress=False, after=lambda history: rank and 1 / 0)

        for work, reason in (fit, "samples"), (step, "takes"), (after, "division by zero"):
            said = []

            def body(comm):
                t = quern.train(model(), **HOW, data_parallel=comm)
                try:
                    work(t, comm.rank)
                except Exception as error:  # of whatever kind
                    said.append((comm.rank, str(error)))

            on_ranks(2, body)
            self.assertEqual(sorted(rank for rank, _ in said), [0, 1], said)
            self.assertRegex(dict(said)[0], f"rank 1 failed: .*{reason}")

    def test_mistakes(self):
        def failing(message, body, ranks=2):
            with self.assertRaisesRegex(quern.Error, message):
                on_ranks(ranks, body)
        failing("a batch of 24 does not go into 5 equal parts",
                lambda comm: quern.train(PLAIN, **HOW, data_parallel=comm).fit(X, Y, batch=24, progress=False), 5)
        failing("sync_batch_norm is an option of data_parallel", lambda comm: quern.train(NORM, **HOW, sync_batch_norm=True))
        failing("sync_batch_norm is of the whole step",
                lambda comm: quern.train(NORM, **HOW, data_parallel=comm, sync_batch_norm=True, parts=True))

        def one_fails(comm):
            t = quern.train(PLAIN, **HOW, data_parallel=comm)
            y = Y.copy()
            y[:48] = 99 if comm.rank == 1 else 1  # an index out of range
            return t.fit(X, y, batch=24, progress=False)
        failing("index|rank 1 failed", one_fails)

        def other_model(comm):
            return quern.train(PLAIN if comm.rank else NORM, **HOW, data_parallel=comm).fit(X, Y, batch=24, progress=False)
        failing("ranks have to ask for the same", other_model)


class Arrays(unittest.TestCase):
    def test_collectives(self):
        def body(comm):
            x = np.arange(6, dtype=np.float64).reshape(3, 2) + comm.rank
            return (comm.all_reduce(x), comm.all_reduce(x, "mean"), comm.all_gather(x), comm.reduce_scatter(x, "max"),
                    comm.broadcast(x, 1), comm.all_reduce(np.float32(comm.rank), "max"), comm.all_gather(np.int64(comm.rank)))
        x = np.arange(6, dtype=np.float64).reshape(3, 2)
        for rank, found in enumerate(on_ranks(3, body)):
            for one, expected in zip(found, (3 * x + 3, x + 1, np.concatenate([x, x + 1, x + 2]), (x + 2)[rank:rank + 1], x + 1, 2,
                                             [0, 1, 2])):
                np.testing.assert_array_equal(one, expected)

    def test_mistakes(self):
        (comm,) = quern.comm_threads(1)
        self.assertEqual(repr(comm), "<quern.Comm: rank 0 of 1>")
        with self.assertRaisesRegex(quern.ArgumentError, "combine is 'avg': expected sum, mean, max or min"):
            comm.all_reduce(X, "avg")
        with self.assertRaisesRegex(quern.ArgumentError, "mean does not combine i64"):
            comm.all_reduce(Y, "mean")
        with self.assertRaises(quern.ArgumentError):
            quern.comm_threads(0)


if __name__ == "__main__":
    unittest.main()
