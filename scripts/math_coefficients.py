#!/usr/bin/env python3
"""Derives passes/math/coefficients.h: minimax polynomials by Remez exchange in 60 digits, and constants in parts.

    scripts/math_coefficients.py > passes/math/coefficients.h

Each polynomial approximates f on [a, b] as sum c_i x^p_i so that the weighted error is smallest. Coefficients are rounded
to the element type one after the other, lowest power first, and the rest is fitted again around what is fixed; the best of what that gives is taken.
"""
import sys

import mpmath as mp

mp.mp.dps = 60
DEBUG = 'debug' in sys.argv


def solve(f, weight, powers, points):
    """Coefficients and level with error +-level, alternating, at the points."""
    n = len(powers)
    rows, right = [], []
    for k, x in enumerate(points):
        rows.append([x**p for p in powers] + [mp.mpf(-1)**k / weight(x)])
        right.append(f(x))
    solution = mp.lu_solve(mp.matrix(rows), mp.matrix(right))
    return [solution[i] for i in range(n)], abs(solution[n])


def extremes(error, a, b, count):
    """Points of alternating extreme error, from a fine grid refined by golden sections."""
    grid = [a + (b - a) * (1 - mp.cos(mp.pi * i / (24 * count))) / 2 for i in range(24 * count + 1)]
    values = [error(x) for x in grid]
    best = []
    for i, v in enumerate(values):
        if best and mp.sign(values[best[-1]]) == mp.sign(v):
            if abs(v) > abs(values[best[-1]]):
                best[-1] = i
        else:
            best.append(i)
    points = []
    for i in best:
        low, high = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
        for _ in range(30):
            third = (high - low) / 3
            if abs(error(low + third)) < abs(error(high - third)):
                low += third
            else:
                high -= third
        points.append((low + high) / 2)
    while len(points) > count:  # drop the smaller end
        points.pop(0 if abs(error(points[0])) < abs(error(points[-1])) else -1)
    return points


def remez(f, weight, powers, a, b):
    n = len(powers)
    points = [a + (b - a) * (1 - mp.cos(mp.pi * i / n)) / 2 for i in range(n + 1)]
    for _ in range(12):
        coefficients, level = solve(f, weight, powers, points)

        def error(x):
            return (sum(c * x**p for c, p in zip(coefficients, powers)) - f(x)) * weight(x)

        found = extremes(error, a, b, n + 1)
        if len(found) < n + 1:
            if DEBUG: print('  lost', n, len(found), file=sys.stderr)
            break
        largest = max(abs(error(x)) for x in found)
        if DEBUG: print("  ", n, mp.nstr(level, 5), mp.nstr(largest, 5), file=sys.stderr)
        points = found
        if largest < level * mp.mpf("1.0001"):
            break
    return coefficients, max(abs(error(x)) for x in points)


def rounded(v, bits):
    """Nearest binary float of so many bits of precision."""
    if v == 0:
        return mp.mpf(0)
    exponent = mp.floor(mp.log(abs(v), 2)) + 1
    scale = mp.mpf(2)**(bits - exponent)
    return mp.nint(v * scale) / scale


def fit(f, powers, a, b, bits, weight=None, fixed=()):
    """Rounded coefficients for `powers`; f minus the `fixed` terms (coefficient, power) is what they approximate."""
    a, b = mp.mpf(a), mp.mpf(b)
    wish = weight or (lambda x: 1 / f(x))
    # Remez wants a weight that is nowhere 0; where the error counts for little it may just as well be small.
    floor = max(abs(wish(a + (b - a) * i / 64)) for i in range(65)) / 200
    weight = lambda x: mp.sqrt(wish(x)**2 + floor**2)
    grid = [a + (b - a) * (mp.mpf(i) + mp.mpf(1) / 2) / 400 for i in range(400)]
    wanted = [(f(x) - sum(c * x**p for c, p in fixed), wish(x)) for x in grid]

    def worst_of(values):
        return max(abs((sum(c * x**p for c, p in zip(values, powers)) - y) * w) for x, (y, w) in zip(grid, wanted))

    powers = list(powers)
    done, best, last = [], None, None
    while len(done) < len(powers):
        terms = list(fixed) + list(zip(done, powers))
        target = lambda x: f(x) - sum(c * x**p for c, p in terms)
        coefficients, level = remez(target, weight, powers[len(done):], a, b)
        if last and level > 1.5 * last:
            break  # too little freedom left
        last = level
        values = done + [rounded(c, bits) for c in coefficients]
        worst = worst_of(values)
        if best is None or worst < best[1]:
            best = values, worst
        done.append(values[len(done)])
    return best


def parts(v, widths):
    """v as a sum of floats of so many bits each."""
    out = []
    for bits in widths:
        out.append(rounded(v, bits))
        v -= out[-1]
    return out


def number(v):
    return float(v).hex().replace("0x1.0000000000000p", "0x1p")


def array(name, values, note):
    print(f"/* {note} */")
    body = ", ".join(number(v) for v in values)
    print(f"static const double {name}[] = {{ {body} }};")


def polynomial(name, what, f, powers, a, b, bits, weight=None, fixed=()):
    values, worst = fit(f, powers, a, b, bits, weight, fixed)
    array(name, values, f"{what} on [{mp.nstr(mp.mpf(a), 5)}, {mp.nstr(mp.mpf(b), 5)}], error 2^{mp.nstr(mp.log(worst, 2), 4)}")


def pieces(name, what, f, width, degree, count=32):
    """f on pieces around 0, width, 2 width, ...: a polynomial in the distance from the middle each, by relative error."""
    width, columns, worst = mp.mpf(width), [], 0
    for k in range(count):
        low = -width / 2 if k else mp.mpf(0)
        values, error = fit(lambda u: f(k * width + u), range(degree + 1), low, width / 2, SINGLE)
        columns.append(values + [mp.mpf(0)] * (degree + 1 - len(values)))
        worst = max(worst, error)
    print(f"/* {what} around {mp.nstr(width, 8)} k, in the distance from there, error 2^{mp.nstr(mp.log(worst, 2), 4)} */")
    print(f"static const float {name}[{degree + 1}][32] = {{")
    for row in zip(*columns):
        print("    { " + ", ".join(number(v) + "f" for v in row) + " },")
    print("};")


SINGLE, DOUBLE = 24, 53
LN2 = mp.log(2)


def exponentials():
    half = LN2 / 2 * mp.mpf("1.0005")
    f = lambda r: (mp.exp(r) - 1 - r) / r**2 if abs(r) > mp.mpf(10)**-12 else mp.mpf(1) / 2 + r / 6 + r**2 / 24
    w = lambda r: r**2 / mp.exp(r)
    polynomial("exp_f32", "(e^r - 1 - r) / r^2", f, range(0, 5), -half, half, SINGLE, w)
    polynomial("exp_f64", "(e^r - 1 - r) / r^2", f, range(0, 10), -half, half, DOUBLE, w)
    polynomial("exp2_f32_wide", "2^r for a f32 result, in f64", lambda r: mp.mpf(2)**r, range(0, 7), -0.5002, 0.5002, DOUBLE)
    f = lambda z: (mp.sinh(mp.sqrt(z)) / mp.sqrt(z) - 1) / z if z > mp.mpf(10)**-24 else mp.mpf(1) / 6
    w = lambda z: z
    polynomial("sinh_f32", "(sinh(x) / x - 1) / z, z = x^2", f, range(0, 4), 0, 1, SINGLE, w)
    polynomial("sinh_f64", "(sinh(x) / x - 1) / z, z = x^2", f, range(0, 8), 0, 1, DOUBLE, w)
    f = lambda z: (mp.tanh(mp.sqrt(z)) / mp.sqrt(z) - 1) / z if z > mp.mpf(10)**-24 else -mp.mpf(1) / 3
    w = lambda z: z / (1 + z * f(z))
    polynomial("tanh_f32", "(tanh(x) / x - 1) / z, z = x^2", f, range(0, 5), 0, "0.3601", SINGLE, w)
    polynomial("tanh_f64", "(tanh(x) / x - 1) / z, z = x^2", f, range(0, 11), 0, "0.3601", DOUBLE, w)
    print("/* 2^(k / 32) */")
    print("static const float exp_steps[32] = { " + ", ".join(number(rounded(mp.mpf(2)**(mp.mpf(k) / 32), 24)) + "f" for k in range(32)) + " };")
    f = lambda r: (mp.exp(r) - 1 - r) / r**2 if abs(r) > mp.mpf(10)**-12 else mp.mpf(1) / 2 + r / 6 + r**2 / 24
    w = lambda r: r**2 / mp.exp(r)
    polynomial("exp_step_f32", "(e^r - 1 - r) / r^2", f, range(0, 2), -half / 32, half / 32, SINGLE, w)
    polynomial("exp2_step_f32", "(2^r - 1) / r", lambda r: (mp.mpf(2)**r - 1) / r if abs(r) > mp.mpf(10)**-24 else LN2, range(0, 2), -1 / mp.mpf(64), 1 / mp.mpf(64), SINGLE, lambda r: abs(r) / mp.mpf(2)**r)
    pieces("tanh_pieces", "tanh(x) / x", lambda x: mp.tanh(x) / x if x else mp.mpf(1), mp.mpf(37) / 128, 5)
    array("ln2_f32", parts(LN2, [15, 24]), "log(2) in parts; n * the first is exact for |n| < 512")
    array("ln2_f64", parts(LN2, [40, 53]), "log(2) in parts; n * the first is exact for |n| < 8192")


def logarithms():
    low, high = mp.sqrt(mp.mpf(1) / 2) - 1, mp.sqrt(2) - 1
    f = lambda x: (mp.log(1 + x) - x + x**2 / 2) / x**3 if abs(x) > mp.mpf(10)**-12 else mp.mpf(1) / 3 - x / 4 + x**2 / 5
    w = lambda x: x**3 / mp.log(1 + x) if x != 0 else mp.mpf(0)
    polynomial("log_f32", "(log(1 + x) - x + x^2/2) / x^3", f, range(0, 9), low, high, SINGLE, w)
    # f64 goes through s = x / (2 + x): log(1 + x) = 2 atanh(s), R = (log(1+x) - 2s) / s, a series in z = s^2
    top = ((mp.sqrt(2) - 1) / (mp.sqrt(2) + 1))**2 * mp.mpf("1.0005")
    f = lambda z: (2 * mp.atanh(mp.sqrt(z)) / mp.sqrt(z) - 2) / z if z > mp.mpf(10)**-20 else mp.mpf(2) / 3 + z * 2 / 5
    w = lambda z: z
    polynomial("log_f64", "(2 atanh(s) / s - 2) / z, z = s^2", f, range(0, 7), 0, top, DOUBLE, w)
    polynomial("log_f32_wide", "likewise, for a f32 power in f64", f, range(0, 5), 0, top, DOUBLE, w)
    g = lambda z: (f(z) - mp.mpf(2) / 3) / z if z > mp.mpf(10)**-20 else mp.mpf(2) / 5
    polynomial("log_tail_f64", "(2 atanh(s) / s - 2 - 2z/3) / z^2, z = s^2", g, range(0, 7), 0, top, DOUBLE, lambda z: z**2)


def trigonometry():
    top = (mp.pi / 4 * mp.mpf("1.0005"))**2
    s = lambda z: (mp.sin(mp.sqrt(z)) / mp.sqrt(z) - 1) / z if z > mp.mpf(10)**-24 else -mp.mpf(1) / 6
    c = lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2 if z > mp.mpf(10)**-12 else mp.mpf(1) / 24
    t = lambda z: (mp.tan(mp.sqrt(z)) / mp.sqrt(z) - 1) / z if z > mp.mpf(10)**-24 else mp.mpf(1) / 3
    for bits, name, n, m, k in ((SINGLE, "f32", 4, 3, 6), (DOUBLE, "f64", 7, 6, 14)):
        polynomial(f"sin_{name}", "(sin(x) / x - 1) / z, z = x^2", s, range(0, n), 0, top, bits, lambda z: z)
        polynomial(f"cos_{name}", "(cos(x) - 1 + z/2) / z^2, z = x^2", c, range(0, m), 0, top, bits, lambda z: z**2)
        polynomial(f"tan_{name}", "(tan(x) / x - 1) / z, z = x^2", t, range(0, k), 0, top, bits,
                   lambda z: z / (1 + z * t(z)))
    array("pio2_f32", parts(mp.pi / 2, [8, 8, 24, 24]), "pi/2 in parts; n * the first two is exact for |n| < 65536")
    array("pio2_f64", parts(mp.pi / 2, [33, 20, 53, 53]), "pi/2 in parts; n * the first two is exact for |n| < 2^20")
    with mp.workdps(500):
        bits = int(mp.floor(2 / mp.pi * mp.mpf(2)**1280))
        words = [(bits >> (1280 - 64 * (i + 1))) & (2**64 - 1) for i in range(20)]
    print("/* 2/pi, the first 1280 bits behind the binary point */")
    print("static const uint64_t two_over_pi[] = { " + ", ".join(f"0x{w:016x}u" for w in words) + " };")


def inverse_trigonometry():
    f = lambda z: (mp.asin(mp.sqrt(z)) / mp.sqrt(z) - 1) / z if z > mp.mpf(10)**-24 else mp.mpf(1) / 6
    w = lambda z: z / (1 + z * f(z))
    polynomial("asin_f32", "(asin(x) / x - 1) / z, z = x^2", f, range(0, 5), 0, "0.2501", SINGLE, w)
    polynomial("asin_f64", "(asin(x) / x - 1) / z, z = x^2", f, range(0, 13), 0, "0.2501", DOUBLE, w)
    top = (mp.sqrt(2) - 1)**2 * mp.mpf("1.0005")
    g = lambda z: (mp.atan(mp.sqrt(z)) / mp.sqrt(z) - 1) / z if z > mp.mpf(10)**-24 else -mp.mpf(1) / 3
    v = lambda z: z / (1 + z * g(z))
    polynomial("atan_f32", "(atan(x) / x - 1) / z, z = x^2", g, range(0, 5), 0, top, SINGLE, v)
    polynomial("atan_f64", "(atan(x) / x - 1) / z, z = x^2", g, range(0, 11), 0, top, DOUBLE, v)
    for bits, name in ((SINGLE, "f32"), (DOUBLE, "f64")):
        array(f"pi_{name}", parts(mp.pi, [bits, bits]), "pi in parts")


def error_functions():
    f = lambda z: (mp.erf(mp.sqrt(z)) / mp.sqrt(z) if z > mp.mpf(10)**-24 else 2 / mp.sqrt(mp.pi)) - 1
    w = lambda z: 1 / (1 + f(z))
    polynomial("erf_f32", "erf(x) / x - 1, z = x^2", f, range(0, 7), 0, 1, SINGLE, w)
    polynomial("erf_f64", "erf(x) / x - 1, z = x^2", f, range(0, 13), 0, 1, DOUBLE, w)
    polynomial("erf_tail_f32", "log(erfc(x)), weighted by erfc(x)", lambda t: mp.log(mp.erfc(t)), range(0, 8), 1, 4, SINGLE, mp.erfc)
    # e^(t^2) erfc(t) with q = (t - c) / (t + c)
    for bits, name, c, top, n in ((SINGLE, "f32", 2, 11, 11), (DOUBLE, "f64", 4, 28, 23)):
        t = lambda q: c * (1 + q) / (1 - q)
        h = lambda q: mp.exp(t(q)**2) * mp.erfc(t(q)) * (1 + 2 * t(q))
        polynomial(f"erfcx_{name}", f"e^(t^2) erfc(t) (1 + 2t), q = (t - {c}) / (t + {c})", h, range(0, n), -1,
                   mp.mpf(top - c) / (top + c), bits)
    pieces("erf_pieces", "erf(x) / x", lambda x: mp.erf(x) / x if x else 2 / mp.sqrt(mp.pi), mp.mpf(1) / 8, 4)
    pieces("gelu_pieces", "erfc(x / sqrt(2)) / 2, the last one 0", lambda x: mp.erfc(x / mp.sqrt(2)) / 2, mp.mpf(3) / 16, 5, 31)
    u = lambda x: mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3)
    pieces("gelu_tanh_pieces", "(1 - tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, the last one 0", lambda x: 1 / (1 + mp.exp(2 * u(x))), mp.mpf(3) / 16, 5, 31)


print("/* Made by scripts/math_coefficients.py: polynomials (lowest power first) and constants in parts. */")
print("#ifndef QN_PASSES_MATH_COEFFICIENTS_H\n#define QN_PASSES_MATH_COEFFICIENTS_H\n\n#include <stdint.h>\n")
for section in (exponentials, logarithms, trigonometry, inverse_trigonometry, error_functions):
    if len(sys.argv) < 2 or section.__name__ in sys.argv[1:]:
        section()
        print()
print("#endif")
