"""Operators that make strings or read their characters, each against Python, compiled and interpreted."""

import concurrent.futures
import json
import os
import re
import tempfile
import unittest

import numpy as np

import programs
import quern

try:
    from onnx import TensorProto, helper
except ImportError as e:
    raise unittest.SkipTest(f"onnx is missing: {e}")

QUERN = os.path.join(os.environ.get("QUERN_BUILD_DIR", "build/release"), "quern")
STRING = TensorProto.STRING


def graph(nodes, inputs, n_outputs, initializers=()):
    """Inputs: (type, shape); x0, x1, …, to y0, y1, …"""
    infos = [helper.make_tensor_value_info(f"x{i}", kind, shape) for i, (kind, shape) in enumerate(inputs)]
    g = helper.make_graph(nodes, "g", infos, [helper.make_empty_tensor_value_info(f"y{i}") for i in range(n_outputs)], initializers)
    return helper.make_model(g, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 4)]).SerializeToString()


def node(op, inputs, n_outputs=1, **attributes):
    kind = lambda x: STRING if x.dtype.kind in "OSU" else helper.np_dtype_to_tensor_dtype(x.dtype)
    shape = lambda i, x: [f"n{i}_{k}" if k == 0 else d for k, d in enumerate(x.shape)]
    names = [f"x{i}" for i in range(len(inputs))]
    return graph([helper.make_node(op, names, [f"y{i}" for i in range(n_outputs)], **attributes)],
                 [(kind(x), shape(i, x)) for i, x in enumerate(inputs)], n_outputs)


def both(text, *inputs, **options):
    """Outputs of machine code, after the interpreter's were the same."""
    got, want = (quern.compile(text, target=t, **options)(list(inputs)) for t in ("cpu", "interp"))
    for g, w in zip(got, want):
        np.testing.assert_array_equal(g, w)
        assert g.dtype == w.dtype
    return got


def run(op, *inputs, n_outputs=1, **attributes):
    return both(node(op, inputs, n_outputs, **attributes), *inputs)


def strings(*items):
    return np.array(items, object)


class Operators(unittest.TestCase):
    def test_concat(self):
        x, y = np.array([["a"], ["é世"], [""]], object), strings("b", "", "\U0001f600")
        self.assertEqual(run("StringConcat", x, y)[0].tolist(), [[a + b for b in y] for a, in x])
        self.assertEqual(run("StringConcat", np.array("p", object), np.array("q", object))[0].tolist(), "pq")
        self.assertEqual(run("StringConcat", strings(), strings())[0].shape, (0,))
        raw, = quern.compile(node("StringConcat", [x, x]))([np.array([[b"\xff"]]), np.array([[b"\xe4"]])])[0].ravel()
        self.assertEqual(raw.encode(errors="surrogateescape"), b"\xff\xe4")

    def test_split(self):
        x = strings("a,b,,c", "", ",", "x", ",,", "no", "ab,")
        for separator, most in ((",", None), (",", 1), (",,", None), ("b", 0), ("世", None)):
            more = {} if most is None else dict(maxsplit=most)
            pieces, counts = run("StringSplit", x, n_outputs=2, delimiter=separator, **more)
            want = [text.split(separator, -1 if most is None else most) for text in x]
            self.assertEqual(counts.tolist(), [len(w) for w in want])
            self.assertEqual(pieces.tolist(), [w + [""] * (max(counts) - len(w)) for w in want])

    def test_split_at_white_space(self):
        x = np.array([["  a b  c ", "\ta\u2003b\u00a0"], ["", " \n "]], object)
        for more in ({}, {"maxsplit": 1}, {"delimiter": "", "maxsplit": 0}):
            pieces, counts = run("StringSplit", x, n_outputs=2, **more)
            want = [text.split(None, more.get("maxsplit", -1)) for text in x.flat]
            self.assertEqual(counts.ravel().tolist(), [len(w) for w in want])
            self.assertEqual(pieces.reshape(4, -1).tolist(), [w + [""] * (counts.max() - len(w)) for w in want])
        pieces, counts = run("StringSplit", np.empty((0, 3), object), n_outputs=2)
        self.assertEqual((pieces.shape, counts.shape), ((0, 3, 0), (0, 3)))

    def test_many_pieces(self):
        """1024 fit, more when the options say so."""
        x = [strings(" ".join(map(str, range(1024))))]
        text = node("StringSplit", x, 2)
        self.assertEqual(both(text, *x)[0][0].tolist(), [str(i) for i in range(1024)])
        x = [strings(" ".join(map(str, range(1500))))]
        with self.assertRaisesRegex(quern.ArgumentError, "pieces is 1500 here; .*--dim pieces=0..N"):
            quern.compile(text)(x)
        self.assertEqual(both(text, *x, dims={"pieces": (0, 2000)})[0].shape, (1, 1500))
        with self.assertRaisesRegex(quern.ArgumentError, "pieces is 1500 here"):
            quern.compile(text, dims={"pieces": (0, 1499)})(x)

    def test_case(self):
        text = "".join(chr(c) for c in range(0x20, 0x3000) if len(chr(c).upper()) == len(chr(c).lower()) == 1)
        x = strings(text, "Straße", "Ǆ", "ΑΣ", "", "\U00010400\U00010428", "ɐⱯ")
        for action, change in (("LOWER", str.lower), ("UPPER", str.upper), ("NONE", str)):
            got, = run("StringNormalizer", x, case_change_action=action)
            one = lambda c: change(c) if len(change(c)) == 1 else c  # ß stays: its upper case is two letters
            self.assertEqual(got.tolist(), ["".join(map(one, text)) for text in x])
        got = quern.compile(node("StringNormalizer", [x], case_change_action="UPPER"))([[b"a\xffb\xe4", b"\xc3"]])[0]
        self.assertEqual([text.encode(errors="surrogateescape") for text in got], [b"A\xffB\xe4", b"\xc3"])

    def test_stop_words(self):
        x = strings("The", "cat", "THE", "Élan", "the")
        self.assertEqual(run("StringNormalizer", x, stopwords=["the", "éLAN"])[0].tolist(), ["cat"])
        self.assertEqual(run("StringNormalizer", x, stopwords=["the"], is_case_sensitive=1)[0].tolist(), ["The", "cat", "THE", "Élan"])
        self.assertEqual(run("StringNormalizer", x[None], stopwords=["the"], case_change_action="UPPER")[0].tolist(), [["CAT", "ÉLAN"]])
        self.assertEqual(run("StringNormalizer", x[:1], stopwords=["the"])[0].tolist(), [""])
        self.assertEqual(run("StringNormalizer", x[None, :1], stopwords=["the"])[0].tolist(), [[""]])

    def test_numbers(self):
        for dtype, words, want in ((np.float32, ["0.1", " 3 ", "\u3000\xa03\x85", "-1e5", "-INF", "+inf", "5.", ".5"], [.1, 3, 3, -1e5, -np.inf, np.inf, 5, .5]),
                                   (np.float64, ["0.1", "1e-320", "1e400"], [.1, 1e-320, np.inf]), (np.float16, ["0.1", "1e9"], [.1, np.inf]),
                                   (np.int64, ["-9223372036854775808", "+7", "2.9"], [-2**63, 7, 2]), (np.uint64, ["18446744073709551615"], [2**64 - 1]),
                                   (np.int8, ["-5"], [-5]), (np.bool_, ["0", "1", "0.0", "2"], [False, True, False, True])):
            got, = run("Cast", strings(*words), to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
            np.testing.assert_array_equal(got, np.array(want, dtype))
            self.assertEqual(got.dtype, dtype)
        self.assertTrue(np.isnan(run("Cast", strings("NaN"), to=TensorProto.FLOAT)[0][0]))
        for wrong in ("hello", "", "1 2", "0x10", "1e", ".", "infinit", "--1"):
            with self.assertRaisesRegex(quern.ArgumentError, f'Cast#0.*"{wrong}" is no number'):
                run("Cast", strings("1", wrong), to=TensorProto.FLOAT)

    def test_prints_numbers(self):
        rng = np.random.default_rng(1)
        for dtype in (np.float32, np.float64):
            bits = rng.integers(0, 2**(8 * np.dtype(dtype).itemsize - 1), 300, np.uint64).astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
            x = np.concatenate([bits[np.isfinite(bits)], dtype([0, -0., 1, 1e16, 9999999, 123456789, 1e-4, 1e-5, -2.5])])
            plain = lambda v: v == 0 or 1e-4 <= abs(v) < 1e16
            want = [np.format_float_positional(v, trim="0") if plain(v) else np.format_float_scientific(v, trim="-", exp_digits=2) for v in x]
            self.assertEqual(run("Cast", x, to=STRING)[0].tolist(), want)
            self.assertEqual(run("Cast", dtype([np.nan, np.inf, -np.inf]), to=STRING)[0].tolist(), ["NaN", "INF", "-INF"])
        for dtype in (np.int64, np.uint64, np.int8, np.uint16):
            x = np.array([np.iinfo(dtype).min, 0, 7, np.iinfo(dtype).max], dtype)
            self.assertEqual(run("Cast", x, to=STRING)[0].tolist(), x.astype(str).tolist())
        self.assertEqual(run("Cast", np.array([False, True]), to=STRING)[0].tolist(), ["0", "1"])
        self.assertEqual(run("CastLike", np.array([3]), strings("like these"))[0].tolist(), ["3"])
        self.assertEqual(run("CastLike", strings("3"), np.array([3]))[0].tolist(), [3])

    def test_matches(self):
        words = strings("", "a", "ab", "abab", "a\n", "é", "éé", "世", "A", "k", "\u212a", "foo.bar@x.org", "12-34", "_", "a b", "]", "^", "-", "\\")
        for pattern in ("", "a*", "(ab)*", "(?:a|b){2,4}", ".", "..?", "(?s).*", "[^a]", r"\w+", r"\W", r"[\w.]+@\w+\.(com|org)", r"\d{2}-\d{2}?", "é+",
                        "[à-ÿ]*", r"\x61", r"[]^-]", r"^a$", "a|^$", r"\Aab\z", r"\ba\b \bb\b", r"a\Bb", "[[:alpha:]]+", r"\Q^\E", r"\\", "(?P<n>a)b?"):
            got, = run("RegexFullMatch", words, pattern=pattern)
            theirs = pattern.replace("[[:alpha:]]", "[A-Za-z]").replace(r"\Q^\E", r"\^").replace(r"\z", r"\Z").replace("$", r"\Z").replace("[]^-]", r"[\]^-]")
            self.assertEqual(got.tolist(), [re.fullmatch(theirs, word, re.ASCII) is not None for word in words], pattern)
        got, = run("RegexFullMatch", words, pattern="(?i)K|AB")
        self.assertEqual([w for w, g in zip(words, got) if g], ["ab", "k", "\u212a"])
        self.assertEqual(run("RegexFullMatch", np.empty((2, 0), object), pattern="a")[0].shape, (2, 0))

    def test_together(self):
        """What operators on numbers do with strings that were made."""
        nodes = [helper.make_node("StringNormalizer", ["x0"], ["low"], case_change_action="LOWER", stopwords=["stop"]),
                 helper.make_node("LabelEncoder", ["low"], ["y0"], domain="ai.onnx.ml", keys_strings=["cat", "dog"], values_int64s=[1, 2], default_int64=0),
                 helper.make_node("TfIdfVectorizer", ["low"], ["y1"], mode="TF", min_gram_length=1, max_gram_length=1, max_skip_count=0,
                                  ngram_counts=[0], ngram_indexes=[0, 1], pool_strings=["dog", "cat"]),
                 helper.make_node("Equal", ["low", "word"], ["y2"])]
        text = graph(nodes, [(STRING, ["n"])], 3, [helper.make_tensor("word", STRING, [1], ["bird"])])
        codes, counts, same = both(text, strings("Cat", "STOP", "Bird", "DOG", "cat"))
        self.assertEqual((codes.tolist(), counts.tolist(), same.tolist()), ([1, 0, 2, 1], [1, 2], [False, True, False, False]))


class Refused(unittest.TestCase):
    def test_refused(self):
        x = strings("a")
        for pattern, why in ((r"(a)\1", "references to groups"), ("(", "has no \\)"), ("a)", "has no \\("), ("[a", "has no \\]"), ("*", "repeats nothing"),
                             ("a**", "or another one"), ("a{2}{3}", "or another one"), ("a*{2}", "or another one"), ("{2}", "repeats nothing"), ("(?=a)", "look ahead"), ("(?<=a)", "look ahead or behind"), (r"\pL", "Unicode's classes"),
                             ("(?m)^a", "lines of their own"), ("[z-a]", "ends before it begins"), ("a{3,2}", "ends before it begins"), ("a{2000}", "more than 1000"),
                             ("(?i)É", "beyond ASCII"), (r"\y", "means nothing"), ("[[:x:]]", "names no class"), (r"\x{110000}", "no number of a character"),
                             ("(((a{100}){100}){100})", "too large"), ("(a|b)*a(a|b){12}", "too large"), ("(" * 300 + ")" * 300, "too deep"), ("()" * 200000, "too large"), ("a|" * 200000, "too large"), ("((((){1000}){1000}){1000}){1000}", "too large"), ("(?P<n", "does not end")):
            with self.assertRaisesRegex(quern.UnsupportedError, why):
                quern.compile(node("RegexFullMatch", [x], pattern=pattern))
        refused = lambda message, *args, error=quern.ModelError, **more: self.assertRaisesRegex(error, message, quern.compile, node(*args, **more))
        refused("delimiter has a byte of zero", "StringSplit", [x], delimiter="\0", n_outputs=2, error=quern.UnsupportedError)
        refused("pattern is missing", "RegexFullMatch", [x])
        for op in ("StringConcat", "StringSplit", "StringNormalizer", "RegexFullMatch"):
            refused("input 0 must be of strings", op, [np.array([1])] * (1 + (op == "StringConcat")), pattern="")
        refused(r"only strings \[C\] or \[1, C\]", "StringNormalizer", [np.empty((1, 2, 3), object)], error=quern.UnsupportedError)
        refused('case_change_action is "TITLE"', "StringNormalizer", [x], case_change_action="TITLE")


class Tables(unittest.TestCase):
    def test_limit(self):
        m = quern.compile(node("StringConcat", [strings("a")] * 2))
        session = m.session()
        session.limit_strings(10000)
        for i in range(50):  # each run forgets the last one's
            x = strings(*[f"{i} {k}" for k in range(20)])
            session.bind([x, x]).run()
            self.assertEqual(session.outputs[0].tolist(), [a + a for a in x])
        with self.assertRaisesRegex(MemoryError, "the table of strings is full"):
            session.bind([strings("x" * 4900)] * 2).run()
        session.bind([strings("x")] * 2).run()
        self.assertEqual(session.outputs[0].tolist(), ["xx"])

    def test_threads(self):
        m = quern.compile(node("StringConcat", [strings("a")] * 2))
        wrong = []

        def work(k):
            for i in range(200):
                x = strings(*[f"{k} {i} {j}" for j in range(i % 7)])
                if m([x, x])[0].tolist() != [a + a for a in x]:
                    wrong.append((k, i))

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        self.assertEqual(wrong, [])

    def test_command(self):
        """quern run shows strings that the run has made."""
        text = graph([helper.make_node("Cast", ["x0"], ["y0"], to=STRING), helper.make_node("StringConcat", ["y0", "more"], ["y1"])],
                     [(TensorProto.INT64, ["n"])], 2, [helper.make_tensor("more", STRING, [], ["é"])])
        with tempfile.TemporaryDirectory() as folder:
            path = lambda name: os.path.join(folder, name)
            with open(path("m.onnx"), "wb") as f:
                f.write(text)
            np.save(path("x.npy"), np.array([5, -7]))
            command = lambda *more: programs.run([QUERN, "run", path("m.onnx"), *more], check=True, encoding="utf-8").stdout
            self.assertEqual(command("--input", path("x.npy")), 'y0 strings[2] ["5" "-7"]\ny1 strings[2] ["5é" "-7é"]\n')
            self.assertEqual([o["data"] for o in json.loads(command("--json", "--input", path("x.npy")))["outputs"]], [["5", "-7"], ["5é", "-7é"]])
            command()  # random inputs


if __name__ == "__main__":
    unittest.main()
