#!/usr/bin/env python3
"""What can be counted of AArch64 kernels without such a machine.

    bench/arm_counts.py [--cpu neoverse-n1,cortex-a55] [--precision bf16] [--all] [--show] MODEL…       needs llvm-mca (--mca PATH)

For each kernel the inner loop that multiplies and adds most (--all: each that does at all): its instructions by sort, and how many of
the multiply-adds that the core could do in that time it does, as LLVM's model of the core has it: 100 % is a loop of nothing but
independent fmla (or of the products of bytes or bf16 that the kernel has)."""
import argparse
import collections
import os
import re
import subprocess
import sys
import tempfile

PRODUCTS = re.compile(r"(fml[as]|fmlal2?|[su]dot|usdot|sudot|bfdot|bfmmla|bfmlal[bt]|[su]mmla|usmmla|[su]mlal2?|mla)$")
KNOWN = ("generic", "cortex-a510", "cortex-a53", "cortex-a55")  # whose models have what others need in --mcpu


def functions(text):
    """(name, lines) of each kernel, labels among the lines"""
    for name, body in re.findall(r"^(qn_k_\w+):.*?\n(.*?)^\.Lfunc_end", text, re.S | re.M):
        lines = []
        for line in body.splitlines():
            line = line.split("//")[0].strip()
            if re.match(r"\.L\w+:", line) or (line and not line.startswith(".") and not line.endswith(":")):
                lines.append(line)
        yield name, lines


def loops(lines):
    """Instructions of loops without a loop inside: from a label to a branch back to it"""
    labels, last = {}, -1
    for i, line in enumerate(lines):
        if line.endswith(":"):
            labels[line[:-1]] = i
            continue
        to = re.search(r"^(?:b\.?\w*|cbn?z|tbn?z)\b.*?(\.L\w+)$", line)
        if to and labels.get(to.group(1), i + 1) <= i:
            first = labels[to.group(1)]
            if first > last:
                yield [l for l in lines[first : i + 1] if not l.endswith(":")]
            last = max(last, i)


def word(line):
    return line.split()[0]


def sort_of(line):
    op, rest = line.split()[0], line[len(line.split()[0]) :]
    if PRODUCTS.match(op):
        return op + (" by lane" if re.search(r"\[\d\]\s*$", rest) else "")
    if re.match(r"(ld|st)[rpn1-4]u?\w*", op) and "[sp" in rest:
        return "spill" if op.startswith("st") else "reload"
    if re.match(r"ld\d?r?|ldn?[rp]|ldu?r", op):
        return op + (" q" if re.search(r"\bq\d", rest) or op.startswith("ld1") else "")
    return op


def mca(tool, cpu, lines, iterations=200):
    """Cycles of an iteration"""
    # Branches go nowhere in a loop that is all there is; the model says what a step through it takes.
    text = "\n".join(re.sub(r"\.L\w+", "0", l) if re.match(r"(b\.?\w*|cbn?z|tbn?z)\b", l) else re.sub(r":lo12:\.?\w+", "0", l) for l in lines)
    command = [tool, "-mtriple=aarch64-linux-gnu", "-mcpu=" + cpu, "-mattr=+dotprod,+i8mm,+bf16,+fullfp16,+fp16fml",
               "-iterations=%d" % iterations, "-instruction-info=0", "-resource-pressure=0"]
    out = subprocess.run(command, input=text, capture_output=True, text=True)
    if out.returncode:
        sys.exit("llvm-mca: " + out.stderr.strip())
    return int(re.search(r"Total Cycles:\s+(\d+)", out.stdout).group(1)) / iterations


def independent(tool, cpu, op, cache={}):
    """Products of that sort that the core does in a cycle"""
    op = "usdot" if op == "sudot" else op  # which has numbers by lane only
    if (cpu, op) not in cache:
        shape = {"fmla": "{0}.4s, v30.4s, v31.4s", "mla": "{0}.4s, v30.4s, v31.4s", "bfdot": "{0}.4s, v30.8h, v31.8h",
                 "bfmmla": "{0}.4s, v30.8h, v31.8h", "smlal": "{0}.4s, v30.4h, v31.4h", "umlal": "{0}.4s, v30.4h, v31.4h",
                 "smlal2": "{0}.4s, v30.8h, v31.8h", "umlal2": "{0}.4s, v30.8h, v31.8h", "fmlal": "{0}.4s, v30.4h, v31.4h",
                 "fmlal2": "{0}.4s, v30.4h, v31.4h"}.get(op, "{0}.4s, v30.16b, v31.16b")
        loop = ["%s %s" % (op, shape.format("v%d" % i)) for i in range(24)]
        cache[cpu, op] = 24 / mca(tool, cpu, loop)
    return cache[cpu, op]


def count(options, cpu, model):
    with tempfile.TemporaryDirectory() as folder:
        out = folder + "/m.s"
        command = [options.quern, "compile", model, "--target", "aarch64-linux-gnu", "--cpu", cpu, "-o", out, "--header", ""]
        if options.precision:
            command += ["--precision", options.precision]
        subprocess.run(command, check=True)
        text = open(out).read()
    print(os.path.basename(model), cpu)
    for name, lines in functions(text):
        found = []
        for loop in loops(lines):
            sorts = collections.Counter(map(sort_of, loop))
            products = collections.Counter(word(l) for l in loop if PRODUCTS.match(word(l)))
            if products:
                found.append((sum(products.values()), loop, sorts, products))
        found.sort(key=lambda f: -f[0])
        for n, loop, sorts, products in found if options.all else found[:1]:
            cycles = mca(options.mca, cpu, loop)
            op = products.most_common(1)[0][0]
            share = n / (independent(options.mca, cpu, op) * cycles)
            spilled = sum(1 for l in lines if re.match(r"(st|ld)[rp]\s+q.*\[sp", l))
            print(f"  {name[5:13]} loop of {len(loop)}, {n / len(loop):.0%} products, {cycles:.1f} cycles, {share:.0%} of the peak;",
                  ", ".join(f"{v} {k}" for k, v in sorts.most_common()), f"; {spilled} q spilled or reloaded in the kernel" if spilled else "")
            if options.show:
                print("\n".join("      " + l for l in loop))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--cpu", default="neoverse-n1")
    parser.add_argument("--precision")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--mca", default="llvm-mca-22")
    parser.add_argument("--quern", default=os.path.join(os.path.dirname(__file__), "../build/release/quern"))
    options = parser.parse_args()
    for model in options.models:
        for cpu in options.cpu.split(","):
            count(options, cpu, model)


if __name__ == "__main__":
    main()
