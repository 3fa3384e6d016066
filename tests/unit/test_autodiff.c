/* Every derivative rule against finite differences in float64, and what cannot be differentiated against its message.
 *
 * A case is the body of a graph in the text form whose last value is %r. The loss is sum(sin(%r)), so that adjoints differ
 * from element to element. Derivatives by a five-point stencil: exact to about 1e-11 for smooth functions, and short, so that it seldom crosses a kink. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "frontend/text/text.h"
#include "ir/build.h"
#include "passes/pass.h"
#include "passes/vjp.h"

typedef struct {
    const char *name;
    double low, high; /* range of the inputs' values */
    const char *inputs, *type, *body;
} gradient_case;

#define X3 "%x: f64[3]"
#define XY "%x: f64[2, 3], %y: f64[2, 3]"
#define T23 "f64[2, 3]"
#define UNARY(op, low, high) { op, low, high, "%x: f64[2, 3]", T23, "%r = " op " %x : " T23 }
#define BINARY(op, low, high) { op, low, high, XY, T23, "%r = " op " %x, %y : " T23 }

static const gradient_case cases[] = {
    UNARY("neg", -1, 1),
    UNARY("abs", 0.1, 1),
    UNARY("sqrt", 0.5, 2),
    UNARY("rsqrt", 0.5, 2),
    UNARY("exp", -1, 1),
    UNARY("expm1", -1, 1),
    UNARY("log", 0.5, 2),
    UNARY("log1p", -0.5, 2),
    UNARY("sin", -2, 2),
    UNARY("cos", -2, 2),
    UNARY("tan", -1, 1),
    UNARY("asin", -0.8, 0.8),
    UNARY("acos", -0.8, 0.8),
    UNARY("atan", -2, 2),
    UNARY("sinh", -1, 1),
    UNARY("cosh", -1, 1),
    UNARY("tanh", -1, 1),
    UNARY("asinh", -2, 2),
    UNARY("acosh", 1.5, 3),
    UNARY("atanh", -0.8, 0.8),
    UNARY("erf", -1, 1),
    UNARY("logistic", -2, 2),
    UNARY("relu", 0.1, 1),
    UNARY("silu", -2, 2),
    UNARY("sign", 0.5, 1),
    UNARY("floor", 0.2, 0.8),
    UNARY("gelu", -2, 2),
    UNARY("gelu_tanh", -2, 2),
    BINARY("add", -1, 1),
    BINARY("sub", -1, 1),
    BINARY("mul", -1, 1),
    BINARY("div", 0.5, 2),
    BINARY("pow", 0.5, 2),
    BINARY("max", -1, 1),
    BINARY("min", -1, 1),
    BINARY("atan2", 0.5, 2),
    BINARY("rem", 1.1, 1.9),
    { "select", -1, 1, XY, T23,
      "%p = compare %x, %y {direction = lt} : bool[2, 3]\n%r = select %p, %x, %y : " T23 },
    { "convert", -1, 1, X3, "f64[3]", "%a = convert %x {dtype = f64} : f64[3]\n%r = mul %a, %a : f64[3]" },
    { "used twice", -1, 1, X3, "f64[3]",
      "%a = mul %x, %x : f64[3]\n%b = exp %a : f64[3]\n%r = add %a, %b : f64[3]" },
    /* movement */
    { "broadcast", -1, 1, "%x: f64[3, 1]", "f64[2, 3, 4]",
      "%r = broadcast %x {axes = [1, 2], dims = [2, 3, 4]} : f64[2, 3, 4]" },
    { "broadcast across", -1, 1, "%x: f64[3, 2]", "f64[2, 3]",
      "%r = broadcast %x {axes = [1, 0], dims = [2, 3]} : f64[2, 3]" },
    { "reshape", -1, 1, "%x: f64[2, 6]", "f64[3, 4]", "%r = reshape %x {dims = [3, 4]} : f64[3, 4]" },
    { "transpose", -1, 1, "%x: f64[2, 3, 4]", "f64[4, 2, 3]",
      "%r = transpose %x {perm = [2, 0, 1]} : f64[4, 2, 3]" },
    { "slice", -1, 1, "%x: f64[7, 3]", "f64[3, 2]",
      "%r = slice %x {limit = [6, 3], start = [1, 1], stride = [2, 1]} : f64[3, 2]" },
    { "pad", -1, 1, "%x: f64[3], %y: f64[]", "f64[8]",
      "%r = pad %x, %y {high = [2], interior = [1], low = [1]} : f64[8]" },
    { "crop", -1, 1, "%x: f64[5], %y: f64[]", "f64[3]",
      "%r = pad %x, %y {high = [-1], interior = [0], low = [-1]} : f64[3]" },
    { "concatenate", -1, 1, "%x: f64[2, 2], %y: f64[2, 3]", "f64[2, 5]",
      "%r = concatenate %x, %y {axis = 1} : f64[2, 5]" },
    { "reverse", -1, 1, "%x: f64[2, 3]", T23, "%r = reverse %x {axes = [1]} : " T23 },
    { "dynamic_slice", -1, 1, "%x: f64[5]", "f64[2]",
      "%s = constant 2 : i64[]\n%r = dynamic_slice %x, %s {dims = [2]} : f64[2]" },
    { "dynamic_update_slice", -1, 1, "%x: f64[5], %y: f64[2]", "f64[5]",
      "%s = constant 2 : i64[]\n%r = dynamic_update_slice %x, %y, %s : f64[5]" },
    { "gather", -1, 1, "%x: f64[4, 3]", "f64[4, 2]",
      "%i = constant [2, 0] : i64[2]\n%r = gather %x, %i {axis = 1} : f64[4, 2]" },
    { "gather repeated", -1, 1, "%x: f64[3, 2]", "f64[4, 2]",
      "%i = constant [2, 0, 2, -1] : i64[4]\n%r = gather %x, %i {axis = 0} : f64[4, 2]" },
    { "gather_nd", -1, 1, "%x: f64[2, 3]", "f64[2]",
      "%i = constant [[1, 2], [0, 1]] : i64[2, 2]\n%r = gather_nd %x, %i {batch_dims = 0} : f64[2]" },
    { "gather_nd batched", -1, 1, "%x: f64[2, 3]", "f64[2]",
      "%i = constant [[2], [0]] : i64[2, 1]\n%r = gather_nd %x, %i {batch_dims = 1} : f64[2]" },
    { "gather_elements", -1, 1, "%x: f64[2, 3]", "f64[2, 2]",
      "%i = constant [[2, 0], [1, 1]] : i64[2, 2]\n%r = gather_elements %x, %i {axis = 1} : f64[2, 2]" },
    { "scatter_nd", -1, 1, "%x: f64[4], %y: f64[2]", "f64[4]",
      "%i = constant [[2], [0]] : i64[2, 1]\n%r = scatter_nd %x, %i, %y {kind = set} : f64[4]" },
    { "scatter_nd sum", -1, 1, "%x: f64[4], %y: f64[2]", "f64[4]",
      "%i = constant [[2], [2]] : i64[2, 1]\n%r = scatter_nd %x, %i, %y {kind = sum} : f64[4]" },
    { "scatter_elements", -1, 1, "%x: f64[2, 3], %y: f64[2, 1]", T23,
      "%i = constant [[2], [0]] : i64[2, 1]\n%r = scatter_elements %x, %i, %y {axis = 1, kind = set} "
      ": " T23 },
    { "scatter_nd onto the same place", -1, 1, "%x: f64[4], %y: f64[3]", "f64[4]",
      "%i = constant [[2], [0], [2]] : i64[3, 1]\n%r = scatter_nd %x, %i, %y {kind = set} : f64[4]" },
    { "scatter_nd slices", -1, 1, "%x: f64[4, 3], %y: f64[2, 3]", "f64[4, 3]",
      "%i = constant [[2], [2]] : i64[2, 1]\n%r = scatter_nd %x, %i, %y {kind = set} : f64[4, 3]" },
    { "scatter_nd prod", 0.5, 2, "%x: f64[4], %y: f64[3]", "f64[4]",
      "%i = constant [[2], [0], [2]] : i64[3, 1]\n%r = scatter_nd %x, %i, %y {kind = prod} : f64[4]" },
    { "scatter_nd prod with zeros", 0.5, 2, "%x: f64[4], %y: f64[3]", "f64[4]",
      "%i = constant [[2], [0], [2]] : i64[3, 1]\n%k = constant [1, 0, 1] : f64[3]\n"
      "%z = mul %y, %k : f64[3]\n%c = constant [0, 1, 1, 1] : f64[4]\n%a = mul %x, %c : f64[4]\n"
      "%q = scatter_nd %x, %i, %z {kind = prod} : f64[4]\n%p = scatter_nd %a, %i, %y {kind = prod} : f64[4]\n"
      "%r = add %p, %q : f64[4]" },
    { "scatter_nd max", -1, 1, "%x: f64[4], %y: f64[3]", "f64[4]",
      "%i = constant [[2], [0], [2]] : i64[3, 1]\n%r = scatter_nd %x, %i, %y {kind = max} : f64[4]" },
    { "scatter_elements min", -1, 1, "%x: f64[2, 3], %y: f64[2, 2]", T23,
      "%i = constant [[2, 2], [0, 1]] : i64[2, 2]\n%r = scatter_elements %x, %i, %y {axis = 1, kind = min} "
      ": " T23 },
    { "scatter_elements prod", 0.5, 2, "%x: f64[2, 3], %y: f64[2, 2]", T23,
      "%i = constant [[2, 2], [0, 1]] : i64[2, 2]\n%r = scatter_elements %x, %i, %y {axis = 1, kind = prod} "
      ": " T23 },
    { "pad, cropped and spread", -1, 1, "%x: f64[2, 5], %y: f64[]", "f64[2, 8]",
      "%r = pad %x, %y {high = [0, 1], interior = [0, 1], low = [0, -2]} : f64[2, 8]" },
    { "dynamic_slice at its limit", -1, 1, "%x: f64[3, 5]", "f64[2, 2]",
      "%s = constant 9 : i64[]\n%t = constant 1 : i64[]\n%r = dynamic_slice %x, %t, %s {dims = [2, 2]} : "
      "f64[2, 2]" },
    { "sort with companions", -1, 1, "%x: f64[2, 4], %y: f64[2, 4]", "f64[2, 4]",
      "%a, %b = sort %x, %y {axis = 1, descending = true} : f64[2, 4], f64[2, 4]\n%r = mul %a, %b : f64[2, "
      "4]" },
    { "smallest of the other axis", -1, 1, "%x: f64[4, 2]", "f64[2, 2]",
      "%r, %i = top_k %x {axis = 0, k = [2]} : f64[2, 2], i64[2, 2]" },
    { "sort", -1, 1, "%x: f64[2, 4]", "f64[2, 4]", "%r = sort %x {axis = 1} : f64[2, 4]" },
    { "top_k", -1, 1, "%x: f64[2, 4]", "f64[2, 2]",
      "%r, %i = top_k %x {axis = 1, k = [2], largest = true} : f64[2, 2], i64[2, 2]" },
    /* reductions */
    { "reduce sum", -1, 1, "%x: f64[2, 3, 2]", "f64[3]",
      "%r = reduce %x {axes = [0, 2], kind = sum} : f64[3]" },
    { "reduce prod", 0.5, 2, "%x: f64[2, 3, 2]", "f64[3]",
      "%r = reduce %x {axes = [0, 2], kind = prod} : f64[3]" },
    { "reduce max", -1, 1, "%x: f64[2, 3]", "f64[2]", "%r = reduce %x {axes = [1], kind = max} : f64[2]" },
    { "reduce min", -1, 1, "%x: f64[2, 3]", "f64[3]", "%r = reduce %x {axes = [0], kind = min} : f64[3]" },
    { "cumulative", -1, 1, "%x: f64[2, 4]", "f64[2, 4]",
      "%r = cumulative %x {axis = 1, exclusive = true, kind = sum} : f64[2, 4]" },
    { "cumulative sum backwards", -1, 1, "%x: f64[3, 2]", "f64[3, 2]",
      "%r = cumulative %x {axis = 0, kind = sum, reverse = true} : f64[3, 2]" },
    { "cumulative prod", 0.5, 1.5, "%x: f64[2, 4]", "f64[2, 4]",
      "%r = cumulative %x {axis = 1, kind = prod} : f64[2, 4]" },
    { "cumulative prod, exclusive, backwards", 0.5, 1.5, "%x: f64[2, 3, 2]", "f64[2, 3, 2]",
      "%r = cumulative %x {axis = 1, exclusive = true, kind = prod, reverse = true} : f64[2, 3, 2]" },
    { "cumulative max", -1, 1, "%x: f64[2, 4]", "f64[2, 4]",
      "%r = cumulative %x {axis = 1, kind = max} : f64[2, 4]" },
    { "cumulative min backwards", -1, 1, "%x: f64[4]", "f64[4]",
      "%r = cumulative %x {axis = 0, kind = min, reverse = true} : f64[4]" },
    { "window prod", 0.5, 1.5, "%x: f64[2, 7]", "f64[2, 4]",
      "%r = reduce_window %x {dilation = [1, 2], high = [0, 1], kind = prod, low = [0, 2], stride = [1, 2], "
      "window = [1, 2]} : f64[2, 4]" },
    { "window min", -1, 1, "%x: f64[4, 5]", "f64[3, 2]",
      "%r = reduce_window %x {dilation = [1, 1], high = [0, 0], kind = min, low = [0, 0], stride = [1, 2], "
      "window = [2, 3]} : f64[3, 2]" },
    { "select_and_scatter", -1, 1, "%x: f64[2, 6], %y: f64[2, 3]", "f64[2, 6]",
      "%k = stop_gradient %x : f64[2, 6]\n"
      "%r = select_and_scatter %k, %y {dilation = [1, 1], high = [0, 1], low = [0, 0], stride = [1, 2], "
      "window = [1, 3]} : f64[2, 6]" },
    { "window sum", -1, 1, "%x: f64[2, 7]", "f64[2, 4]",
      "%r = reduce_window %x {dilation = [1, 2], high = [0, 1], kind = sum, low = [0, 2], stride = [1, 2], "
      "window = [1, 2]} : f64[2, 4]" },
    { "window max", -1, 1, "%x: f64[2, 6]", "f64[2, 3]",
      "%r = reduce_window %x {dilation = [1, 1], high = [0, 1], kind = max, low = [0, 0], stride = [1, 2], "
      "window = [1, 3]} : f64[2, 3]" },
    /* contractions */
    { "matmul", -1, 1, "%x: f64[2, 3], %y: f64[3, 4]", "f64[2, 4]",
      "%r = dot_general %x, %y {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f64[2, "
      "4]" },
    { "matmul transposed", -1, 1, "%x: f64[3, 2], %y: f64[4, 3]", "f64[2, 4]",
      "%r = dot_general %x, %y {x_batch = [], x_contract = [0], y_batch = [], y_contract = [1]} : f64[2, "
      "4]" },
    { "batched, two contracted axes", -1, 1, "%x: f64[2, 3, 2, 4], %y: f64[4, 2, 3, 2]", "f64[2, 3, 3]",
      "%r = dot_general %x, %y {x_batch = [0], x_contract = [2, 3], y_batch = [3], y_contract = [1, 0]} : "
      "f64[2, 3, 3]" },
    { "outer product", -1, 1, "%x: f64[2, 3], %y: f64[4]", "f64[2, 3, 4]",
      "%r = dot_general %x, %y {x_batch = [], x_contract = [], y_batch = [], y_contract = []} : f64[2, 3, "
      "4]" },
    { "two batch axes in another order", -1, 1, "%x: f64[3, 4, 2], %y: f64[2, 5, 3, 4]", "f64[2, 3, 5]",
      "%r = dot_general %x, %y {x_batch = [2, 0], x_contract = [1], y_batch = [0, 2], y_contract = [3]} : "
      "f64[2, 3, 5]" },
    { "convolution, cropped, of one axis", -1, 1, "%x: f64[2, 2, 7], %y: f64[3, 2, 2]", "f64[2, 3, 2]",
      "%r = convolution %x, %y {groups = 1, high = [-1], low = [-1], stride = [2], w_dilation = [1], "
      "x_dilation = [1]} : f64[2, 3, 2]" },
    { "convolution of a wide image", -1, 1, "%x: f64[1, 2, 3, 20], %y: f64[2, 2, 3, 3]", "f64[1, 2, 3, 20]",
      "%r = convolution %x, %y {groups = 1, high = [1, 1], low = [1, 1], stride = [1, 1], w_dilation = [1, "
      "1], "
      "x_dilation = [1, 1]} : f64[1, 2, 3, 20]" },
    { "strided convolution of a wide image", -1, 1, "%x: f64[1, 2, 6, 37], %y: f64[2, 1, 3, 2]",
      "f64[1, 2, 2, 19]",
      "%r = convolution %x, %y {groups = 2, high = [0, 1], low = [0, 1], stride = [3, 2], w_dilation = [1, "
      "1], "
      "x_dilation = [1, 1]} : f64[1, 2, 2, 19]" },
    { "depthwise, dilated, transposed", -1, 1, "%x: f64[1, 3, 3, 2], %y: f64[6, 1, 2, 2]", "f64[1, 6, 4, 3]",
      "%r = convolution %x, %y {groups = 3, high = [1, 1], low = [0, 1], stride = [1, 1], w_dilation = [2, "
      "1], "
      "x_dilation = [2, 1]} : f64[1, 6, 4, 3]" },
    { "convolution", -1, 1, "%x: f64[2, 2, 5, 4], %y: f64[3, 2, 3, 2]", "f64[2, 3, 3, 3]",
      "%r = convolution %x, %y {groups = 1, high = [1, 0], low = [1, 1], stride = [2, 1], w_dilation = [1, "
      "2], x_dilation = [1, 1]} : f64[2, 3, 3, 3]" },
    { "grouped convolution", -1, 1, "%x: f64[2, 4, 6], %y: f64[6, 2, 3]", "f64[2, 6, 2]",
      "%r = convolution %x, %y {groups = 2, high = [0], low = [0], stride = [2], w_dilation = [1], "
      "x_dilation = [1]} : f64[2, 6, 2]" },
    { "transposed convolution", -1, 1, "%x: f64[1, 2, 3], %y: f64[2, 2, 3]", "f64[1, 2, 6]",
      "%r = convolution %x, %y {groups = 1, high = [2], low = [1], stride = [1], w_dilation = [1], "
      "x_dilation = [2]} : f64[1, 2, 6]" },
    /* composites */
    { "softmax", -1, 1, "%x: f64[2, 4]", "f64[2, 4]", "%r = softmax %x {axis = 1} : f64[2, 4]" },
    { "log_softmax", -1, 1, "%x: f64[2, 4]", "f64[2, 4]", "%r = log_softmax %x {axis = 0} : f64[2, 4]" },
    { "layer_norm", -1, 1, "%x: f64[3, 4], %s: f64[4], %b: f64[4]", "f64[3, 4]",
      "%r = layer_norm %x, %s, %b {axis = 1, epsilon = 0.01} : f64[3, 4]" },
    { "rms_norm", -1, 1, "%x: f64[2, 3, 2], %s: f64[3, 2]", "f64[2, 3, 2]",
      "%r = rms_norm %x, %s {axis = 1, epsilon = 0.01} : f64[2, 3, 2]" },
    { "batch_norm", 0.5, 2, "%x: f64[2, 3, 2], %s: f64[3], %b: f64[3], %m: f64[3], %v: f64[3]",
      "f64[2, 3, 2]",
      "%r, %rm, %rv = batch_norm %x, %s, %b, %m, %v {epsilon = 0.01, momentum = 0.9} : f64[2, 3, 2], f64[3], "
      "f64[3]" },
    { "batch_norm in training", -1, 1, "%x: f64[2, 3, 2], %s: f64[3], %b: f64[3], %m: f64[3], %v: f64[3]",
      "f64[3]",
      "%y, %rm, %rv = batch_norm %x, %s, %b, %m, %v {epsilon = 0.01, momentum = 0.7, training = true} : "
      "f64[2, 3, 2], f64[3], f64[3]\n%z = mul %y, %y : f64[2, 3, 2]\n%q = mul %z, %y : f64[2, 3, 2]\n"
      "%a = reduce %q {axes = [0, 2], kind = sum} : f64[3]\n%c = mul %rm, %rv : f64[3]\n"
      "%r = add %a, %c : f64[3]" },
    { "dropout", -1, 1, "%x: f64[4, 5]", "f64[4, 5]",
      "%k = constant [3, 4] : u64[2]\n%s = constant 5 : u64[]\n"
      "%r, %m = dropout %x, %k, %s {ratio = 0.3, training = true} : f64[4, 5], bool[4, 5]" },
    { "attention", -1, 1, "%q: f64[1, 2, 3, 2], %k: f64[1, 1, 4, 2], %v: f64[1, 1, 4, 3]", "f64[1, 2, 3, 3]",
      "%r = attention %q, %k, %v {causal = true, scale = 0.7} : f64[1, 2, 3, 3]" },
    { "attention with a learnt mask", -1, 1,
      "%q: f64[1, 2, 3, 2], %k: f64[1, 2, 4, 2], %v: f64[1, 2, 4, 3], %m: f64[1, 1, 3, 4]", "f64[1, 2, 3, 3]",
      "%r = attention %q, %k, %v, %m {scale = 0.7} : f64[1, 2, 3, 3]" },
    { "lstm", -1, 1,
      "%x: f64[3, 2, 2], %w: f64[8, 2], %u: f64[8, 2], %b: f64[8], %h: f64[2, 2], %c: f64[2, 2]",
      "f64[3, 2, 2]", "%r, %hn, %cn = lstm %x, %w, %u, %b, %h, %c : f64[3, 2, 2], f64[2, 2], f64[2, 2]" },
    /* control */
    { "scan", -1, 1, "%s: f64[2], %x: f64[4, 2], %w: f64[2]", "f64[4, 2]",
      "%last, %r = scan %s, %x, %w {length = [4], n_carried = 1, n_scanned = 1} : f64[2], f64[4, 2]\n"
      "  body (%a: f64[2], %b: f64[2], %c: f64[2]) {\n"
      "    %d = mul %a, %c : f64[2]\n"
      "    %e = add %d, %b : f64[2]\n"
      "    %f = tanh %e : f64[2]\n"
      "    return %f, %d\n"
      "  }" },
    { "scan with matrices", -1, 1, "%s: f64[1, 4], %x: f64[3, 1, 4], %w: f64[4, 4], %u: f64[4, 4]",
      "f64[3, 1, 4]",
      "%last, %r = scan %s, %x, %w, %u {length = [3], n_carried = 1, n_scanned = 1} : f64[1, 4], f64[3, 1, "
      "4]\n"
      "  body (%a: f64[1, 4], %b: f64[1, 4], %c: f64[4, 4], %d: f64[4, 4]) {\n"
      "    %e = dot_general %a, %c {x_batch = [], x_contract = [1], y_batch = [], y_contract = [1]} : f64[1, "
      "4]\n"
      "    %f = dot_general %d, %b {x_batch = [], x_contract = [0], y_batch = [], y_contract = [1]} : f64[4, "
      "1]\n"
      "    %g = reshape %f {dims = [1, 4]} : f64[1, 4]\n    %h = add %e, %g : f64[1, 4]\n"
      "    %i = tanh %h : f64[1, 4]\n    return %i, %e\n  }" },
    { "scan backwards over integers too", -1, 1, "%s: f64[2], %x: f64[3, 2]", "f64[2]",
      "%n = constant [1, 2, 3] : i64[3]\n"
      "%r = scan %s, %x, %n {length = [3], n_carried = 1, n_scanned = 2, reverse = true} : f64[2]\n"
      "  body (%a: f64[2], %b: f64[2], %k: i64[]) {\n"
      "    %c = convert %k {dtype = f64} : f64[]\n    %d = broadcast %c {axes = [], dims = [2]} : f64[2]\n"
      "    %e = mul %b, %d : f64[2]\n    %f = sin %a : f64[2]\n    %g = add %e, %f : f64[2]\n"
      "    return %g\n  }" },
    { "bounded while", 0.5, 0.7, "%x: f64[2], %w: f64[2]", "f64[2]",
      "%i = constant 0 : i64[]\n"
      "%n, %r = while %i, %x, %w {limit = [9], n_carried = 2} : i64[], f64[2]\n"
      "  condition (%k: i64[], %a: f64[2], %c: f64[2]) {\n"
      "    %l = constant 3 : i64[]\n    %p = compare %k, %l {direction = lt} : bool[]\n    return %p\n  }\n"
      "  body (%k: i64[], %a: f64[2], %c: f64[2]) {\n"
      "    %o = constant 1 : i64[]\n    %m = add %k, %o : i64[]\n    %q = mul %a, %c : f64[2]\n"
      "    %t = sin %q : f64[2]\n    return %m, %t\n  }" },
    { "while that ends by its value", 0.9, 1, "%x: f64[]", "f64[]",
      "%r = while %x {limit = [20], n_carried = 1} : f64[]\n"
      "  condition (%a: f64[]) {\n    %l = constant 1.5 : f64[]\n"
      "    %p = compare %a, %l {direction = lt} : bool[]\n    return %p\n  }\n"
      "  body (%a: f64[]) {\n    %b = mul %a, %a : f64[]\n    %c = add %b, %a : f64[]\n    return %c\n  }" },
    { "if", 0.5, 1, X3, "f64[3]",
      "%p = constant true : bool[]\n"
      "%r = if %p, %x : f64[3]\n"
      "  then (%a: f64[3]) {\n"
      "    %b = mul %a, %a : f64[3]\n"
      "    return %b\n"
      "  }\n"
      "  else (%a: f64[3]) {\n"
      "    return %a\n"
      "  }" },
};

static qn_module *parse(const char *text, qn_diags *diags)
{
    qn_module *module = NULL;
    if (qn_text_parse(text, strlen(text), "case", &module, diags))
        print_error("%s\n%s\n", text, qn_diags_text(diags, diags->arena));
    return module;
}

/* The case as @f */
static qn_module *parse_case(const gradient_case *c, qn_diags *diags)
{
    const char *text = qn_arena_printf(diags->arena, "graph @f(%s) -> %s {\n%s\nreturn %%r\n}\n", c->inputs,
                                       c->type, c->body);
    qn_module *module = parse(text, diags);
    if (!module)
        fail_msg("%s does not parse", c->name);
    return module;
}

/* @f with the loss as its output */
static qn_graph *with_loss(qn_module *module, qn_diags *diags)
{
    qn_graph *f = qn_graph_clone(qn_module_find(module, "f"), "loss");
    qn_builder b = { .graph = f, .diags = diags };
    qn_value *r = qn_b_unary(&b, QN_OP_SIN, f->outputs[0]);
    int64_t axes[QN_MAX_RANK];
    for (int i = 0; i < QN_MAX_RANK; i++)
        axes[i] = i;
    f->outputs[0] = qn_b_reduce(&b, QN_SUM, r, r->type.rank, axes, false);
    assert_int_equal(qn_verify(module, diags), QUERN_OK);
    return f;
}

static double run_loss(const qn_graph *f, const qn_array *inputs, qn_diags *diags)
{
    qn_array loss;
    assert_int_equal(qn_interp_run(f, inputs, &loss, diags->arena, diags), QUERN_OK);
    return *(double *)loss.data;
}

static uint64_t random_state = 88172645463325252u;
static double random_between(double low, double high)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return low + (high - low) * (double)(random_state >> 11) / 9007199254740992.0;
}

static void make_inputs(const qn_graph *f, qn_array *inputs, const gradient_case *c, qn_arena *arena)
{
    for (int i = 0; i < f->n_inputs; i++) {
        const qn_type *t = &f->inputs[i]->type;
        int64_t n = qn_type_elements(t);
        inputs[i] =
            (qn_array){ .dtype = t->dtype, .rank = t->rank, .data = QN_NEW_ARRAY(arena, double, n + 1) };
        for (int axis = 0; axis < t->rank; axis++)
            inputs[i].dims[axis] = t->dims[axis]->value;
        for (int64_t j = 0; j < n; j++)
            ((double *)inputs[i].data)[j] = random_between(c->low, c->high);
    }
}

static void compare(const gradient_case *c, const qn_graph *f, const qn_graph *gradient, qn_array *inputs,
                    qn_diags *diags)
{
    qn_array outputs[8];
    assert_int_equal(qn_interp_run(gradient, inputs, outputs, diags->arena, diags), QUERN_OK);
    for (int i = 0; i < f->n_inputs; i++) {
        double *x = inputs[i].data, *g = outputs[1 + i].data;
        for (int64_t j = 0; j < qn_type_elements(&f->inputs[i]->type); j++) {
            const double h = 1e-4, kept = x[j];
            double at[4];
            for (int k = 0; k < 4; k++) {
                x[j] = kept + h * (double[]){ -2, -1, 1, 2 }[k];
                at[k] = run_loss(f, inputs, diags);
            }
            x[j] = kept;
            double expected = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h);
            if (!(fabs(g[j] - expected) <= 1e-6 * fmax(1e-2, fabs(expected))))
                fail_msg("%s: input %d element %d: gradient %.12g, by differences %.12g", c->name, i, (int)j,
                         g[j], expected);
        }
    }
}

static void rules_equal_finite_differences(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const gradient_case *c = &cases[i];
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module = parse_case(c, &diags);
        qn_graph *f = with_loss(module, &diags);
        int wrt[8] = { 0, 1, 2, 3, 4, 5, 6, 7 };
        qn_graph *gradient = qn_grad(f, "gradient", 0, f->n_inputs, wrt, false, &diags);
        if (!gradient || qn_verify(module, &diags))
            fail_msg("%s: %s", c->name, qn_diags_text(&diags, arena));
        qn_array inputs[8];
        for (int round = 0; round < 2; round++) {
            make_inputs(f, inputs, c, arena);
            compare(c, f, gradient, inputs, &diags);
        }
        qn_module_free(module);
        qn_arena_free(arena);
    }
}

/* Moves the inputs by t times the directions, and runs. */
static void run_moved(const qn_graph *f, const qn_array *inputs, qn_array *const *directions, double t,
                      qn_array *out, qn_diags *diags)
{
    qn_array moved[8];
    for (int i = 0; i < f->n_inputs; i++) {
        const int64_t n = qn_type_elements(&f->inputs[i]->type);
        double *x = QN_NEW_ARRAY(diags->arena, double, n + 1);
        for (int64_t k = 0; k < n; k++)
            x[k] = ((double *)inputs[i].data)[k] + t * ((double *)directions[i]->data)[k];
        moved[i] = inputs[i];
        moved[i].data = x;
    }
    assert_int_equal(qn_interp_run(f, moved, out, diags->arena, diags), QUERN_OK);
}

/* tangent[i] = J v by the stencil, for all outputs of `f`, of which `pushed` is the jvp. */
static void compare_pushed(const gradient_case *c, const qn_graph *f, const qn_graph *pushed,
                           const qn_array *inputs, qn_diags *diags)
{
    const gradient_case direction = { .low = -1, .high = 1 };
    qn_array both[16], outputs[16], at[4][8], *directions[8];
    make_inputs(f, both + f->n_inputs, &direction, diags->arena);
    for (int i = 0; i < f->n_inputs; i++) {
        both[i] = inputs[i];
        directions[i] = &both[f->n_inputs + i];
    }
    assert_int_equal(qn_interp_run(pushed, both, outputs, diags->arena, diags), QUERN_OK);
    const double h = 1e-4;
    for (int k = 0; k < 4; k++)
        run_moved(f, inputs, directions, h * (double[]){ -2, -1, 1, 2 }[k], at[k], diags);
    for (int o = 0; o < f->n_outputs; o++)
        for (int64_t j = 0; j < qn_type_elements(&f->outputs[o]->type); j++) {
            const double found = ((double *)outputs[f->n_outputs + o].data)[j];
            double y[4];
            for (int k = 0; k < 4; k++)
                y[k] = ((double *)at[k][o].data)[j];
            const double expected = (y[0] - 8 * y[1] + 8 * y[2] - y[3]) / (12 * h);
            if (!(fabs(found - expected) <= 1e-6 * fmax(1e-2, fabs(expected))))
                fail_msg("%s: output %d element %d: tangent %.12g, by differences %.12g", c->name, o, (int)j,
                         found, expected);
        }
}

/* Of the functions themselves; of their gradients, which gives Hessians times vectors. */
static void tangents_equal_finite_differences(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const gradient_case *c = &cases[i];
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module = parse_case(c, &diags);
        int wrt[8] = { 0, 1, 2, 3, 4, 5, 6, 7 };
        qn_array inputs[8];
        qn_graph *f = qn_module_find(module, "f");
        qn_graph *loss = with_loss(module, &diags);
        qn_graph *gradient = qn_grad(loss, "gradient", 0, loss->n_inputs, wrt, false, &diags);
        qn_graph *pushed = qn_jvp(f, "pushed", f->n_inputs, wrt, &diags);
        qn_graph *hessian = qn_jvp(gradient, "hessian", f->n_inputs, wrt, &diags);
        if (!pushed || !hessian || qn_verify(module, &diags))
            fail_msg("%s: %s", c->name, qn_diags_text(&diags, arena));
        make_inputs(f, inputs, c, arena);
        compare_pushed(c, f, pushed, inputs, &diags);
        compare_pushed(c, gradient, hessian, inputs, &diags);
        qn_module_free(module);
        qn_arena_free(arena);
    }
}

/* What only the reverse pass needs is gone, in loops too. */
static void tangents_cost_what_they_need(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_module *module = parse(
        "graph @f(%s: f64[2], %x: f64[4, 2], %w: f64[2]) -> f64[2] {\n"
        "  %r = scan %s, %x, %w {length = [4], n_carried = 1, n_scanned = 1} : f64[2]\n"
        "    body (%a: f64[2], %b: f64[2], %c: f64[2]) {\n      %d = mul %a, %c : f64[2]\n"
        "      %e = add %d, %b : f64[2]\n      return %e\n    }\n  return %r\n}\n"
        "graph @g(%x: f64[3]) -> f64[3] {\n  %y = sin %x : f64[3]\n  %z = exp %y : f64[3]\n  return %z\n}\n",
        &diags);
    int wrt[3] = { 0, 1, 2 };
    const qn_graph *f = qn_jvp(qn_module_find(module, "f"), "jf", 3, wrt, &diags);
    const qn_graph *g = qn_jvp(qn_module_find(module, "g"), "jg", 1, wrt, &diags);
    int n_scans = 0, n_nodes = 0;
    QN_FOR_NODES (f, node) {
        n_scans += node->op == QN_OP_SCAN;
        if (node->op == QN_OP_SCAN)
            assert_false(node->n_operands > 7);
    }
    QN_FOR_NODES (g, node)
        n_nodes += qn_ops[node->op].class == QN_ELEMENTWISE;
    assert_int_equal(n_scans, 2); /* with the stacked starts of the steps, and the tangents' */
    assert_int_equal(n_nodes, 5); /* sin, exp, cos, two products */
    qn_module_free(module);
    qn_arena_free(arena);
}

/* Where the rule is a formula with jumps, small steps cross none: second derivatives are those of the pieces. */
static void gradients_of_gradients_equal_finite_differences(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const gradient_case *c = &cases[i];
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module = parse_case(c, &diags);
        qn_graph *f = with_loss(module, &diags);
        int wrt[8] = { 0, 1, 2, 3, 4, 5, 6, 7 };
        qn_graph *first = qn_grad(f, "first", 0, f->n_inputs, wrt, false, &diags);
        assert_non_null(first);
        /* the sum of the sines of all gradients as a loss */
        qn_builder b = { .graph = first, .diags = &diags };
        qn_value *sum = qn_b_scalar(&b, QUERN_F64, 0);
        for (int k = 1; k <= f->n_inputs; k++) {
            int64_t axes[QN_MAX_RANK];
            qn_value *g = first->outputs[k];
            for (int axis = 0; axis < g->type.rank; axis++)
                axes[axis] = axis;
            g = qn_b_reduce(&b, QN_SUM, qn_b_unary(&b, QN_OP_SIN, g), g->type.rank, axes, false);
            sum = qn_b_binary(&b, QN_OP_ADD, sum, g);
        }
        first->outputs[0] = sum;
        first->n_outputs = 1;
        qn_graph *second = qn_grad(first, "second", 0, f->n_inputs, wrt, false, &diags);
        if (!second || qn_verify(module, &diags))
            fail_msg("%s: %s", c->name, qn_diags_text(&diags, arena));
        qn_array inputs[8];
        make_inputs(f, inputs, c, arena);
        compare(c, first, second, inputs, &diags);
        qn_module_free(module);
        qn_arena_free(arena);
    }
}

static void every_smooth_op_has_a_rule(void **state)
{
    (void)state;
    qn_vjp_rule (*const families[])(qn_op) = { qn_vjp_elementwise, qn_vjp_movement, qn_vjp_reduction,
                                               qn_vjp_contraction, qn_vjp_control,  qn_vjp_composite };
    for (int op = 0; op < QN_N_OPS; op++) {
        bool found = qn_op_is_composite((qn_op)op) || op == QN_OP_CALL;
        for (size_t i = 0; i < sizeof families / sizeof *families; i++)
            found |= families[i]((qn_op)op) != NULL;
        if (found != ((qn_ops[op].flags & QN_FLAG_SMOOTH) != 0) && !qn_op_is_composite((qn_op)op))
            fail_msg("%s: its flag and its rules do not agree", qn_ops[op].name);
    }
}

/* d/dx of d/dx: x^4 -> 12 x^2 */
static void gradients_have_gradients(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_module *module = parse(
        "graph @f(%x: f64[]) -> f64[] {\n%a = mul %x, %x : f64[]\n%r = mul %a, %a : f64[]\nreturn %r\n}\n",
        &diags);
    int x = 0;
    qn_graph *first = qn_grad(qn_module_find(module, "f"), "first", 0, 1, &x, false, &diags);
    assert_non_null(first);
    qn_graph *second = qn_grad(first, "second", 1, 1, &x, false, &diags);
    assert_non_null(second);
    double value = 1.5;
    qn_array input = { .dtype = QUERN_F64, .data = &value }, outputs[2];
    assert_int_equal(qn_interp_run(second, &input, outputs, arena, &diags), QUERN_OK);
    assert_float_equal(*(double *)outputs[0].data, 4 * 1.5 * 1.5 * 1.5, 1e-12);
    assert_float_equal(*(double *)outputs[1].data, 12 * 1.5 * 1.5, 1e-12);
    qn_module_free(module);
    qn_arena_free(arena);
}

static void what_has_no_derivative_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } bad[] = {
        { "graph @f(%x: f64[]) -> f64[] {\n"
          "  %r = while %x {n_carried = 1} : f64[]\n"
          "    condition (%a: f64[]) {\n      %c = constant 1 : f64[]\n      %d = compare %a, %c {direction "
          "= lt} : bool[]\n"
          "      return %d\n    }\n"
          "    body (%a: f64[]) {\n      %b = add %a, %a : f64[]\n      return %b\n    }\n"
          "  return %r\n}\n",
          "while can't be differentiated" },
        { "graph @f(%x: f64[3]) -> f64[3] {\n  %r = exp %x : f64[3]\n  return %r\n}\n",
          "expected a floating-point scalar" },
        { "graph @f(%x: i64[]) -> f64[] {\n  %r = convert %x {dtype = f64} : f64[]\n  return %r\n}\n",
          "with respect to 'x'" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module = parse(bad[i].text, &diags);
        assert_non_null(module);
        int x = 0;
        assert_null(qn_grad(qn_module_find(module, "f"), "g", 0, 1, &x, false, &diags));
        assert_non_null(strstr(qn_diags_text(&diags, arena), bad[i].message));
        qn_module_free(module);
        qn_arena_free(arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules_equal_finite_differences),
        cmocka_unit_test(gradients_of_gradients_equal_finite_differences),
        cmocka_unit_test(tangents_equal_finite_differences),
        cmocka_unit_test(tangents_cost_what_they_need),
        cmocka_unit_test(every_smooth_op_has_a_rule),
        cmocka_unit_test(gradients_have_gradients),
        cmocka_unit_test(what_has_no_derivative_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
