"""Imported operators that read images between their pixels: Resize, RoiAlign, DeformConv."""

import unittest

import numpy as np

import quern
from onnx_models import TensorProto, floats, helper, info, model, numpy_helper


class Images(unittest.TestCase):
    def test_resize_of_opset_11(self):
        nodes = [helper.make_node("Resize", ["x", "none", "none", "to"], ["y"], mode="nearest", nearest_mode="floor",
                                  coordinate_transformation_mode="tf_half_pixel_for_nn")]
        to = helper.make_tensor("to", TensorProto.INT64, [4], [1, 1, 4, 7])
        none = helper.make_tensor("none", TensorProto.FLOAT, [0], [])
        rows, columns = [0, 1, 3, 4], [0, 0, 1, 1, 1, 2, 2]
        for shape in ([1, 1, 5, 3], [1, 1, "h", "w"]):
            x = floats(1, 1, 5, 3)
            got, = quern.compile(model(nodes, [info("x", shape)], [info("y", None)], [to, none], opset=11))([x])
            np.testing.assert_array_equal(got[0, 0], x[0, 0][rows][:, columns])

    def test_resize_by_rounded_fractions(self):
        """5/3 is a little less as float32, and so are its products before they are rounded."""
        x = floats(1, 1, 24, 30)
        for scale, n, m in ((5 / 3, 40, 50), (2 / 3, 16, 20), (5 / 6, 20, 25), (1.4, 33, 42)):
            scales = helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, scale, scale])
            nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest", nearest_mode="floor",
                                      coordinate_transformation_mode="tf_half_pixel_for_nn")]
            rows, columns = (np.floor((np.arange(k) + 0.5) / scale).astype(int) for k in (n, m))
            for shape in (x.shape, [1, 1, "h", "w"]):
                got, = quern.compile(model(nodes, [info("x", shape)], [info("y", None)], [scales]))([x])
                np.testing.assert_array_equal(got[0, 0], x[0, 0][rows][:, columns])

    def test_resize_of_many(self):
        """More elements than there are tables for: indices and weights are computed."""
        n, m = 1000, 700_001
        to = helper.make_tensor("to", TensorProto.INT64, [3], [1, 2, m])
        x = floats(1, 2, n)
        at = (np.arange(m) + 0.5) / (m / n) - 0.5
        linear = np.stack([np.interp(at, np.arange(n), row) for row in x[0].astype(np.float64)])
        nearest = x[0][:, np.clip(np.ceil(at - 0.5), 0, n - 1).astype(int)]
        for mode, expected in (("linear", linear), ("nearest", nearest)):
            nodes = [helper.make_node("Resize", ["x", "", "", "to"], ["y"], mode=mode)]
            got, = quern.compile(model(nodes, [info("x", [1, 2, n])], [info("y", None)], [to]))([x])
            np.testing.assert_allclose(got[0], expected, atol=1e-6)

    def test_resize_antialias(self):
        """The filter is as wide as the scale is small: few taps are a sum, many one reduction, along any axis."""
        def kernel(mode, x):
            x = np.abs(x)
            if mode == "linear":
                return np.maximum(0, 1 - x)
            a = -0.75
            return np.where(x <= 1, ((a + 2) * x - (a + 3)) * x * x + 1, np.where(x < 2, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a, 0))

        def weights(mode, n, m):
            """Of m sums of n elements; what lies beyond an edge counts to the element there."""
            w, scale = np.zeros((m, n)), m / n
            for i in range(m):
                at = (i + 0.5) / scale - 0.5
                taps = np.arange(np.floor(at - 2 / scale) - 1, np.ceil(at + 2 / scale) + 2)
                np.add.at(w[i], np.clip(taps, 0, n - 1).astype(int), kernel(mode, (taps - at) * min(scale, 1)))
            return w / w.sum(1, keepdims=True)

        to = lambda *sizes: helper.make_tensor("to", TensorProto.INT64, [4], sizes)
        for mode in ("linear", "cubic"):
            node = helper.make_node("Resize", ["x", "", "", "to"], ["y"], mode=mode, antialias=1)
            for n, m in (((50, 37), (23, 40)), ((90, 130), (3, 9)), ((5, 200), (1, 1))):
                h, w = weights(mode, n[0], m[0]), weights(mode, n[1], m[1])
                for axes, batch, dtype in (("nchw", "b", np.float32), ("nhwc", 2, np.float32), ("nhwc", 2, np.float16), ("nchw", 2, np.float64)):
                    sizes = {"n": 2, "c": 3, "h": n[0], "w": n[1]}
                    x = floats(*(sizes[a] for a in axes)).astype(dtype)
                    expected = np.einsum(f"{axes},yh,xw->{axes.replace('h', 'y').replace('w', 'x')}", x.astype(np.float64), h, w)
                    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
                    text = model([node], [info("x", [batch, *x.shape[1:]], kind)], [info("y", None, kind)], [to(*expected.shape)])
                    one, two = (quern.compile(text, threads=threads)([x])[0] for threads in (1, 2))
                    np.testing.assert_array_equal(one, two)
                    atol = {np.float32: 2e-6, np.float16: 4e-3, np.float64: 1e-13}[dtype]
                    np.testing.assert_allclose(one, expected, atol=atol, rtol=atol, err_msg=f"{mode} {n} {m} {axes} {dtype}")

    def test_resize_of_integers(self):
        """Their sums are rounded, the halves to even numbers, and end where the dtype does."""
        x = np.array([[0, 255, 0, 255, 255, 0, 9, 10]], np.float32)
        to = helper.make_tensor("to", TensorProto.INT64, [2], [1, 16])
        for dtype in (np.uint8, np.int8, np.int32, np.int64):
            kind, moved = helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), (x - 128 * (dtype == np.int8)).astype(dtype)
            for mode in ("linear", "cubic"):
                node = helper.make_node("Resize", ["x", "", "", "to"], ["y"], mode=mode)
                for columns in (8, "n"):
                    of = lambda kind: model([node], [info("x", [1, columns], kind)], [info("y", None, kind)], [to])
                    real, = quern.compile(of(TensorProto.FLOAT))([moved.astype(np.float32)])
                    got, = quern.compile(of(kind))([moved])
                    self.assertEqual(got.dtype, dtype)
                    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
                    np.testing.assert_array_equal(got, np.clip(np.round(real.astype(np.float64)), least, most))

    @staticmethod
    def pixel(image, y, x):
        """Between four pixels of [C, H, W], those outside being 0."""
        y0, x0, sum = int(np.floor(y)), int(np.floor(x)), 0
        for j, i in ((y0, x0), (y0, x0 + 1), (y0 + 1, x0), (y0 + 1, x0 + 1)):
            if 0 <= j < image.shape[1] and 0 <= i < image.shape[2]:
                sum = sum + (1 - abs(y - j)) * (1 - abs(x - i)) * image[:, j, i]
        return sum + np.zeros(image.shape[0])

    def test_points_of_images(self):
        """GridSample of few channels and of many, which are computed in another order."""
        rng = np.random.default_rng(6)
        for channels in (2, 19):
            x = rng.standard_normal((2, channels, 9, 14)).astype(np.float32)
            grid = rng.uniform(-1.2, 1.2, (2, 40, 30, 2)).astype(np.float32)
            at = ((grid + 1) * (14, 9) - 1) / 2
            want = np.array([[[self.pixel(x[n], at[n, j, i, 1], at[n, j, i, 0]) for i in range(30)] for j in range(40)] for n in range(2)])
            for batch, points in ((2, 40), ("n", "p")):
                graph = model([helper.make_node("GridSample", ["x", "g"], ["y"])],
                              [info("x", [batch, channels, 9, 14]), info("g", [batch, points, 30, 2])], [info("y", None)])
                for target in ("cpu", "interp"):
                    got, = quern.compile(graph, target=target)([x, grid])
                    np.testing.assert_allclose(got, want.transpose(0, 3, 1, 2), rtol=1e-3, atol=1e-4)

    def test_regions_of_images(self):
        """RoiAlign: each region from the image that it names, at whichever place of the batch."""
        rng = np.random.default_rng(7)
        x = rng.standard_normal((3, 5, 12, 17)).astype(np.float32)
        corner = rng.uniform(0, 5, (9, 2))
        regions = np.concatenate([corner, corner + rng.uniform(2, 6, (9, 2))], 1).astype(np.float32)
        which = rng.integers(0, 3, 9)
        node = helper.make_node("RoiAlign", ["x", "r", "i"], ["y"], output_height=2, output_width=3, sampling_ratio=2,
                                coordinate_transformation_mode="output_half_pixel")
        want = np.zeros((9, 5, 2, 3))
        for r, (left, top, right, bottom) in enumerate(regions):
            for j in range(4):
                for i in range(6):
                    want[r, :, j // 2, i // 2] += self.pixel(x[which[r]], top + (bottom - top) * (j + .5) / 4,
                                                             left + (right - left) * (i + .5) / 6) / 4
        for batch in (3, "n"):
            graph = model([node], [info("x", [batch, 5, 12, 17]), info("r", ["m", 4]), info("i", ["m"], TensorProto.INT64)], [info("y", None)])
            for target in ("cpu", "interp"):
                got, = quern.compile(graph, target=target)([x, regions, which])
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

    def test_places_in_wide_images(self):
        """Pixels beyond number 2048 of a row of float16, which has no numbers for all of them."""
        f16 = TensorProto.FLOAT16
        x = np.random.default_rng(9).standard_normal((1, 2, 1, 2100)).astype(np.float16)
        for width in (2050, 2052, 2100):
            image, still = x[..., :width], np.zeros((1, 2, 1, width), np.float16)
            ones = numpy_helper.from_array(np.eye(2, dtype=np.float16).reshape(2, 2, 1, 1), "w")
            graph = model([helper.make_node("DeformConv", ["x", "w", "o"], ["y"])],
                          [info("x", image.shape, f16), info("o", still.shape, f16)], [info("y", None, f16)], [ones], 22)
            regions, which = np.array([[width - 4 - width % 4, 0, width - width % 4, 1]], np.float16), np.zeros(1, np.int64)
            align = model([helper.make_node("RoiAlign", ["x", "r", "i"], ["y"], output_height=1, output_width=4, sampling_ratio=1,
                                            coordinate_transformation_mode="half_pixel")],
                          [info("x", image.shape, f16), info("r", [1, 4], f16), info("i", [1], TensorProto.INT64)],
                          [info("y", None, f16)], [], 22)
            for target in ("cpu", "interp"):
                np.testing.assert_array_equal(quern.compile(graph, target=target)([image, still])[0], image)
                got, = quern.compile(align, target=target)([image, regions, which])
                first = width - 4 - width % 4
                np.testing.assert_array_equal(got, image[..., first:first + 4])

    def test_deformed_groups(self):
        """DeformConv: groups of channels, and of offsets, that are not the same."""
        rng = np.random.default_rng(8)
        for groups, shifts in ((1, 1), (4, 2), (2, 4), (1, 2)):
            x, o, m, w, c = (rng.standard_normal(shape).astype(np.float32) for shape in (
                (2, 8, 6, 7), (2, 18 * shifts, 6, 7), (2, 9 * shifts, 6, 7), (12, 8 // groups, 3, 3), (12,)))
            node = helper.make_node("DeformConv", ["x", "w", "o", "b", "m"], ["y"], kernel_shape=[3, 3], pads=[1] * 4, group=groups,
                                    offset_group=shifts)
            want = np.zeros((2, 12, 6, 7)) + c[:, None, None]
            for n, y, z, k in np.ndindex(2, 6, 7, 9):
                column = np.concatenate([self.pixel(part, y + k // 3 - 1 + o[n, 18 * s + 2 * k, y, z], z + k % 3 - 1 + o[n, 18 * s + 2 * k + 1, y, z])
                                         * m[n, 9 * s + k, y, z] for s, part in enumerate(np.split(x[n], shifts))])
                for g in range(groups):
                    rows = slice(12 // groups * g, 12 // groups * (g + 1))
                    want[n, rows, y, z] += w[rows, :, k // 3, k % 3] @ np.split(column, groups)[g]
            graph = model([node], [info("x", x.shape), info("o", o.shape), info("m", m.shape)], [info("y", None)],
                          [numpy_helper.from_array(w, "w"), numpy_helper.from_array(c, "b")], 19)
            got, = quern.compile(graph)([x, o, m])
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    unittest.main()
