"""Attention that goes on token by token: GroupQueryAttention with its caches, and a decoder of them."""

import importlib.util
import math
import os
import unittest

import numpy as np

import microsoft
import quern
from formulas import attend, causal, close, floats, heads, ints, rms_norm, rng, run, turn
from microsoft import helper, numpy_helper


class Grouped(unittest.TestCase):
    """GroupQueryAttention. `lengths` are those of the sequences, of which the last S are new."""

    def check(self, new, before, lengths, n=4, groups=2, size=16, total=None, rotary=None, at=None, packed=False, dims=None, known=True, bias=None,
              window=0, norms=False, both=False, **more):
        batch = len(lengths)
        total = before + new if total is None else total
        capacity = max(total, before)
        q, k, v = floats(batch, new, n * size), floats(batch, new, groups * size), floats(batch, new, groups * size)
        past = floats(2, batch, groups, before, size)
        table = floats(2, 40, size // 2)
        scales = floats(2, size) if norms else [None, None]
        sink = more.pop("sink", None)
        given = {"q": np.concatenate([q, k, v], 2) if packed else q, "k": None if packed else k, "v": None if packed else v,
                 "pk": past[0], "pv": past[1], "last": np.array(lengths, np.int32) - 1, "total": np.array(total, np.int32),
                 "c": table[0] if rotary is not None else None, "s": table[1] if rotary is not None else None, "at": at, "bias": bias, "sink": sink,
                 "ks": None, "vs": None, "qn": scales[0], "kn": scales[1]}
        if rotary is not None:
            more |= {"do_rotary": 1, "rotary_interleaved": rotary}
        if window:
            more["local_window_size"] = window
        if both:
            more["causal"] = 0
        got = run("GroupQueryAttention", given, ["c", "s", "qn", "kn"] + ["total"] * known, 3, dims, num_heads=n, kv_num_heads=groups, **more)
        q, k, v = heads(q, n), heads(k, groups), heads(v, groups)
        if norms:
            q, k = rms_norm(q, scales[0], 1e-6), rms_norm(k, scales[1], 1e-6)
        first = np.maximum(np.array(lengths) - new, 0)
        where = first[:, None] + np.arange(new) if at is None else at
        if rotary is not None:
            q, k = (turn(x, table[0][where], table[1][where], rotary) for x in (q, k))
        for b, length in enumerate(lengths):
            valid = length - first[b]
            all_k, all_v = (np.concatenate([old[b:b + 1, :, :first[b]], x[b:b + 1, :, :valid]], 2) for old, x in zip(past, (k, v)))
            visible = np.ones((valid, length), bool) if both else causal(valid, length)
            if window:
                visible &= np.arange(length) > np.arange(length)[first[b]:, None] - window
            some = 0 if bias is None else bias[b if bias.shape[0] > 1 else 0][None, :, :valid, :length]
            want = attend(q[b:b + 1, :, :valid], all_k, all_v, some, visible, more.get("scale"), more.get("softcap", 0),
                          np.zeros(n) if more.get("smooth_softmax") else sink)
            close(got[0][b:b + 1, :valid], want)
            for cache, kept in zip(got[1:], (all_k, all_v)):
                self.assertEqual(cache.shape[2], capacity)
                close(cache[b:b + 1, :, :length], kept)

    def test_growing_cache(self):
        names = {**{x: {0: "batch", 1: "new"} for x in "qkv"}, "pk": {0: "batch", 2: "before"}, "pv": {0: "batch", 2: "before"}, "last": {0: "batch"}}
        for dims, known in ((None, True), (None, False), (names, False)):
            for rotary in (None, 0, 1):
                for packed in (False, True):
                    with self.subTest(dims=bool(dims), known=known, rotary=rotary, packed=packed):
                        more = {"dims": dims, "known": known, "rotary": rotary, "packed": packed}
                        self.check(5, 0, [5, 3], **more)
                        self.check(1, 7, [8], **more)
                        self.check(1, 7, [8, 3, 6], **more)
                        self.check(4, 7, [11], **more)

    def test_buffer(self):
        """total_sequence_length is known to fit in the past, which is as long afterwards."""
        for rotary in (None, 0):
            self.check(1, 16, [8, 3, 6], total=8, rotary=rotary)
            self.check(4, 16, [9], total=16, rotary=rotary)
            self.check(5, 16, [5], total=5, rotary=rotary)

    def test_rows_of_a_buffer(self):
        """Only new rows change, wherever present is; of sequences that are too many to be updated one by one, what is behind becomes 0."""
        groups, size, room = 2, 16, 12
        for batch, new, lengths in ((1, 1, [7]), (1, 4, [4]), (1, 3, [12]), (3, 1, [8, 1, 12]), (3, 2, [2, 12, 5]), (17, 1, list(range(1, 13)) + [3] * 5)):
            q, k, v = (floats(batch, new, heads * size) for heads in (4, groups, groups))
            past, total, last = floats(2, batch, groups, room, size), np.array(room, np.int32), np.array(lengths, np.int32) - 1
            inputs = {"q": q, "k": k, "v": v, "pk": past[0], "pv": past[1], "last": last}
            text = microsoft.model("GroupQueryAttention", inputs, {"order": [*inputs, "total"], "total": total},
                                   {"num_heads": 4, "kv_num_heads": groups}, 3)
            want = past.copy()
            for b, length in enumerate(lengths):
                for cache, x in zip(want, (k, v)):
                    cache[b, :, length - new:length] = heads(x, groups)[b]
                    cache[b, :, length:] *= batch <= 16
            for target in ("cpu", "interp"):
                with self.subTest(batch=batch, new=new, target=target):
                    model = quern.compile(text, target=target)
                    before = past.copy()
                    y, *apart = [np.array(x) for x in model([q, k, v, *past, last])]
                    np.testing.assert_array_equal(past, before)
                    np.testing.assert_array_equal(apart, want)
                    caches = [x.copy() for x in past]
                    session = model.session()
                    session.bind({**inputs, "pk": caches[0], "pv": caches[1]})
                    session.bind_outputs(dict(zip([x.name for x in model.outputs][1:], caches)))
                    session.run()
                    np.testing.assert_array_equal(caches, want)
                    np.testing.assert_array_equal(np.array(session.outputs[0]), y)

    def test_window_cache(self):
        """Of all positions so far the last stay, as many as a formula says, whatever the steps they came in."""
        groups, size, window, table = 2, 16, 5, floats(2, 40, 8)
        names = {**{x: {0: "batch", 1: "new"} for x in "qkv"}, **{x: {0: "batch", 2: "capacity"} for x in ("pk", "pv")}, "last": {0: "batch"}}
        kept = lambda total, capacity: total - max(0, -(-(total - capacity) // (capacity - window + 1))) * (capacity - window + 1)
        for capacity, dims, cap in ((5, None, 0.0), (5, names, 0.0), (8, names, 0.0), (8, None, 3.0)):
            q, k, v = (floats(1, 24, heads * size) for heads in (4, groups, groups))
            past = floats(2, 1, groups, capacity, size)
            where = np.arange(24)[None]
            all_q, all_k = (turn(heads(x, n), table[0][where], table[1][where], 0) for x, n in ((q, 4), (k, groups)))
            visible = causal(24, 24) & (np.arange(24) > np.arange(24)[:, None] - window)
            want = attend(all_q, all_k, heads(v, groups), visible=visible, cap=cap)
            at = 0
            for new in (3, 1, 1, 1, 4, 1, 12, 1):
                with self.subTest(capacity=capacity, symbolic=bool(dims), at=at, new=new):
                    total = at + new
                    given = {"q": q[:, at:total], "k": k[:, at:total], "v": v[:, at:total], "pk": past[0], "pv": past[1], "last": ints(total - 1),
                             "total": np.array(total, np.int32), "c": table[0], "s": table[1]}
                    y, *past = run("GroupQueryAttention", given, "cs", 3, dims, num_heads=4, kv_num_heads=groups, local_window_size=window,
                                   sliding_window_cache=1, do_rotary=1, softcap=cap)
                    close(y, want[:, at:total])
                    rows = kept(total, capacity)
                    for cache, x in zip(past, (all_k, heads(v, groups))):
                        self.assertEqual(cache.shape[2], capacity)
                        close(cache[:, :, :rows], x[:, :, total - rows:total])
                    at = total

    def test_window_caches_of_sequences(self):
        """Each sequence of a batch has its own length."""
        window, capacity, lengths, size = 4, 6, (2, 6, 9, 30), 16
        q, k, v = floats(4, 1, 2 * size), floats(4, 30, size), floats(4, 30, size)
        for b, length in enumerate(lengths):
            k[b, length:] = v[b, length:] = 0
        past = floats(2, 4, 1, capacity, size)
        for b, length in enumerate(lengths):
            held = length - 1 - max(0, -(-(length - 1 - capacity) // 3)) * 3
            for cache, x in zip(past, (k, v)):
                cache[b, 0, :held] = x[b, length - 1 - held:length - 1]
        new = lambda x: np.stack([x[b, length - 1:length] for b, length in enumerate(lengths)])
        given = {"q": q, "k": new(k), "v": new(v), "pk": past[0], "pv": past[1], "last": ints(*lengths) - 1, "total": np.array(30, np.int32)}
        y, *present = run("GroupQueryAttention", given, (), 3, num_heads=2, kv_num_heads=1, local_window_size=window, sliding_window_cache=1)
        for b, length in enumerate(lengths):
            begin = max(0, length - window)
            close(y[b:b + 1], attend(heads(q[b:b + 1], 2), k[b:b + 1, None, begin:length], v[b:b + 1, None, begin:length]))
            rows = length - max(0, -(-(length - capacity) // 3)) * 3
            for cache, x in zip(present, (k, v)):
                close(cache[b, 0, :rows], x[b, length - rows:length])

    def test_window_cache_in_place(self):
        """The memory of before may be that of afterwards; elsewhere it stays as it is."""
        for names in (None, {"pk": {2: "capacity"}, "pv": {2: "capacity"}}):
            for total in (3, 7, 8, 20):
                given = {"q": floats(1, 1, 64), "k": floats(1, 1, 32), "v": floats(1, 1, 32), "pk": floats(1, 2, 7, 16), "pv": floats(1, 2, 7, 16),
                         "last": ints(total - 1), "total": np.array(total, np.int32)}
                text = microsoft.model("GroupQueryAttention", given, {"order": list(given)},
                                       {"num_heads": 4, "kv_num_heads": 2, "local_window_size": 5, "sliding_window_cache": 1}, 3, names)
                model = quern.compile(text)
                past = [given[name].copy() for name in ("pk", "pv")]
                want = [np.array(y) for y in model({x.name: given[x.name] for x in model.inputs})]
                np.testing.assert_array_equal(past, [given["pk"], given["pv"]])
                session = model.session()
                session.bind({**{x.name: given[x.name] for x in model.inputs}, "pk": past[0], "pv": past[1]})
                session.bind_outputs(dict(zip([x.name for x in model.outputs][1:], past)))
                session.run()
                np.testing.assert_array_equal(past, want[1:])
                np.testing.assert_array_equal(np.array(session.outputs[0]), want[0])

    def test_heads(self):
        self.check(5, 0, [5], n=4, groups=4)
        self.check(5, 0, [5], n=6, groups=1, size=32)
        self.check(3, 2, [5], norms=True, rotary=0)

    def test_positions(self):
        self.check(1, 6, [7, 4], rotary=0, at=np.array([[9], [3]]))
        self.check(4, 6, [10], rotary=1, at=np.array([[6, 7, 9, 8]]))

    def test_what_is_seen(self):
        for window in (1, 3, 100):
            self.check(9, 0, [9, 9], window=window)
            self.check(1, 9, [10, 7], window=window)
            self.check(3, 9, [12], window=window, softcap=2.0)
        self.check(5, 0, [5, 5], softcap=1.5, scale=0.7)
        self.check(5, 0, [5, 3], both=True)
        self.check(1, 5, [6, 4], both=True)
        for shape in ((1, 1), (1, 4), (2, 1), (2, 4)):
            self.check(5, 0, [5, 5], bias=floats(*shape, 5, 5))
            self.check(1, 5, [6, 6], bias=floats(*shape, 1, 6), softcap=2.0)

    def test_sinks(self):
        self.check(5, 0, [5, 5], sink=floats(4))
        self.check(1, 5, [6, 3], sink=floats(4), window=3)
        self.check(5, 0, [5, 5], smooth_softmax=1)


class Decoder(unittest.TestCase):
    """A decoder of two layers as onnxruntime-genai writes them: the lengths come from the mask, the cache grows. What it says of a
    sequence at once, it says of it in parts."""

    HIDDEN, HEADS, GROUPS, SIZE, WORDS, BLOCK, LAYERS = 64, 4, 2, 16, 50, 32, 2

    def build(self):
        constants, nodes = {}, []

        def node(op, inputs, outputs, domain=microsoft.MICROSOFT, **attributes):
            nodes.append(helper.make_node(op, inputs, [outputs] if isinstance(outputs, str) else outputs, domain=domain, **attributes))
            return nodes[-1].output[0]

        def constant(name, array):
            constants[name] = array
            return name

        def product(x, name, k, n):
            w = rng.integers(0, 256, (n, k // self.BLOCK, self.BLOCK // 2)).astype(np.uint8)
            scale = (rng.uniform(0.5, 1, (n, k // self.BLOCK)) / (4 * math.sqrt(k))).astype(np.float32)
            return node("MatMulNBits", [x, constant(f"{name}.w", w), constant(f"{name}.s", scale)], name, K=k, N=n, bits=4, block_size=self.BLOCK)

        constants |= {"one": np.array([1]), "at": np.array(1), "cos": floats(32, self.SIZE // 2), "sin": floats(32, self.SIZE // 2)}
        node("ReduceSum", ["attention_mask", "one"], "count", "", keepdims=0)
        node("Cast", [node("Sub", ["count", "one"], "less", "")], "last", "", to=6)
        node("Cast", [node("Gather", [node("Shape", ["attention_mask"], "shape", ""), "at"], "width", "")], "total", "", to=6)
        table = constant("table", rng.integers(0, 256, (self.WORDS, self.HIDDEN // 2)).astype(np.uint8))
        x = node("GatherBlockQuantized", [table, "input_ids", constant("table.s", rng.uniform(0.1, 0.2, (self.WORDS, 2)).astype(np.float32))], "x",
                 bits=4, block_size=self.BLOCK, quantize_axis=1)
        h = node("SimplifiedLayerNormalization", [x, constant("g", floats(self.HIDDEN))], "h", "", epsilon=1e-5)
        kv = self.GROUPS * self.SIZE
        for i in range(self.LAYERS):
            qkv = [product(h, f"{part}{i}", self.HIDDEN, n) for part, n in (("q", self.HIDDEN), ("k", kv), ("v", kv))]
            node("GroupQueryAttention", [*qkv, f"past.{i}.key", f"past.{i}.value", "last", "total", "cos", "sin"],
                 [f"a{i}", f"present.{i}.key", f"present.{i}.value"], num_heads=self.HEADS, kv_num_heads=self.GROUPS, do_rotary=1)
            o = product(f"a{i}", f"o{i}", self.HIDDEN, self.HIDDEN)
            h = node("SkipSimplifiedLayerNormalization", [x, o, constant(f"g{i}", floats(self.HIDDEN))], [f"h{i}", "", "", f"x{i}"], epsilon=1e-5)
            gate, up = product(h, f"gate{i}", self.HIDDEN, 96), product(h, f"up{i}", self.HIDDEN, 96)
            inner = node("Mul", [node("QuickGelu", [gate], f"silu{i}", alpha=1.0), up], f"inner{i}", "")
            down = product(inner, f"down{i}", 96, self.HIDDEN)
            h = node("SkipSimplifiedLayerNormalization", [f"x{i}", down, constant(f"n{i}", floats(self.HIDDEN))], [f"n{i}.y", "", "", f"x{i}.y"],
                     epsilon=1e-5)
            x = f"x{i}.y"
        product(h, "logits", self.HIDDEN, self.WORDS)
        info = helper.make_tensor_value_info
        cache = [f"{i}.{part}" for i in range(self.LAYERS) for part in ("key", "value")]
        graph = helper.make_graph(
            nodes, "decoder",
            [info("input_ids", 7, ["batch", "new"]), info("attention_mask", 7, ["batch", "all"])] +
            [info(f"past.{c}", 1, ["batch", self.GROUPS, "before", self.SIZE]) for c in cache],
            [info("logits", 1, ["batch", "new", self.WORDS])] + [info(f"present.{c}", 1, ["batch", self.GROUPS, "all", self.SIZE]) for c in cache],
            [numpy_helper.from_array(a, k) for k, a in constants.items()])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(microsoft.MICROSOFT, 1)]).SerializeToString()

    def test_in_parts(self):
        text = self.build()
        compiled, interpreted = quern.compile(text), quern.compile(text, target="interp")
        one = quern.compile(text, dims={"new": 1})
        ids = rng.integers(0, self.WORDS, (2, 9))
        empty = [np.zeros((2, self.GROUPS, 0, self.SIZE), np.float32)] * (2 * self.LAYERS)
        whole = [np.array(y) for y in compiled([ids, np.ones((2, 9), np.int64), *empty])]
        for got, want in zip(whole, interpreted([ids, np.ones((2, 9), np.int64), *empty])):
            close(got, np.array(want))
        for lengths in ([6, 6], [6, 4]):  # the second sequence may be shorter: its rest is padding, then comes what follows
            mask = (np.arange(6) < np.array(lengths)[:, None]).astype(np.int64)
            first = [np.array(y) for y in compiled([ids[:, :6], mask, *empty])]
            state = first[1:]
            for step in range(3):
                lengths = [n + 1 for n in lengths]
                mask = (np.arange(7 + step) < np.array(lengths)[:, None]).astype(np.int64)
                next_ids = np.array([[ids[b, n - 1]] for b, n in enumerate(lengths)])
                want = [np.array(y) for y in interpreted([next_ids, mask, *state])]
                for run_step in (compiled, one):
                    got = [np.array(y) for y in run_step([next_ids, mask, *state])]
                    for b, n in enumerate(lengths):
                        close(got[0][b], whole[0][b, n - 1:n])
                    for g, w in zip(got, want):
                        close(g, w)
                state = got[1:]


    def test_token_loop(self):
        """The example: one model for prompts and tokens, whose caches stay where they are."""
        path = os.path.join(os.path.dirname(__file__), "..", "..", "examples", "decoder", "generate.py")
        spec = importlib.util.spec_from_file_location("generate", path)
        example = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(example)
        text = self.build()
        ids = rng.integers(0, self.WORDS, 9)
        empty = [np.zeros((1, self.GROUPS, 0, self.SIZE), np.float32)] * (2 * self.LAYERS)
        want = np.array(quern.compile(text)([ids[None], np.ones((1, 9), np.int64), *empty])[0])[0]
        decoder = example.Decoder(text, 9, ("batch", "before", "all"))
        where = {name: cache.ctypes.data for name, cache in decoder.caches.items()}
        for _ in range(2):
            got = [np.array(decoder.feed(ids[:4]))] + [np.array(decoder.feed([i])) for i in ids[4:]]
            close(np.concatenate(got), want)
            with self.assertRaisesRegex(ValueError, "room for 9"):
                decoder.feed([1])
            decoder.rewind()
        self.assertEqual(where, {name: cache.ctypes.data for name, cache in decoder.caches.items()})
        self.assertTrue(all(cache.any() for cache in decoder.caches.values()))
        first = list(example.generate(decoder, ids[:3], 4))
        self.assertEqual(first[0], want[2].argmax())
        self.assertEqual(len(first), 4)

    def test_caches_may_be_apart(self):
        """Outputs that may take the place of an input need not."""
        model = quern.compile(self.build(), dims={"batch": 1, "before": 6, "all": 6})
        past = [floats(1, self.GROUPS, 6, self.SIZE) for _ in range(2 * self.LAYERS)]
        before = [c.copy() for c in past]
        out = model([np.array([[3]]), np.array([[1, 1, 1, 0, 0, 0]]), *past])
        for c, b, after in zip(past, before, out[1:]):
            np.testing.assert_array_equal(c, b)
            after = np.array(after)
            np.testing.assert_array_equal(after[:, :, :2], b[:, :, :2])
            self.assertFalse((after[:, :, 2] == b[:, :, 2]).any())

    def test_lengths_without_room(self):
        """A mask that is wider than the cache is, with the new tokens."""
        for target in ("cpu", "interp"):
            model = quern.compile(self.build(), target=target)
            cache = [np.zeros((1, self.GROUPS, 3, self.SIZE), np.float32)] * (2 * self.LAYERS)
            with self.assertRaises(quern.OutOfRangeError) as e:
                model([np.array([[1]]), np.ones((1, 9), np.int64), *cache])
            self.assertIn("com.microsoft.GroupQueryAttention", str(e.exception))


if __name__ == "__main__":
    unittest.main()
