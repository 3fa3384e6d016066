#!/usr/bin/env python3
"""What can be counted of GPU kernels without a GPU.

    bench/gpu_counts.py [--gpu sm_90] MODEL…       needs ptxas; nvdisasm (--nvdisasm PATH) for the instructions of the inner loop
    bench/gpu_counts.py --banks                    conflicts of passes/gpu_gemm.c in shared memory

For each kernel: registers, spilled bytes, shared memory, warps that fit on a multiprocessor, and the instructions of its longest
loop by sort."""
import argparse
import collections
import os
import re
import subprocess
import sys
import tempfile


def loops(lines, labels):
    for i, line in enumerate(lines):
        to = re.search(r"BRA.*?`\((\.L_x_\d+)\)", line)
        if to and labels.get(to.group(1), i + 1) <= i:
            yield lines[labels[to.group(1)] : i + 1]


def sort_of(line):
    words = line.split()
    parts = words[words[0].startswith("@")].rstrip(";").split(".")
    wide = [p for p in parts[1:] if p in ("64", "128", "16816", "M88", "4", "2")]
    return ".".join(parts[:1] + wide) if parts[0] in ("LDS", "LDG", "STS", "STG", "LDL", "STL", "LDSM", "LDGSTS", "HMMA") else parts[0]


def instructions(disassembler, cubin):
    """{kernel: Counter of its longest loop}"""
    text = subprocess.run([disassembler, "-c", cubin], capture_output=True, text=True, check=True).stdout
    found = {}
    for part in re.split(r"\n(?=\.text\.)", text):
        name = re.match(r"\.text\.([^\s:]+):", part)
        if not name:
            continue
        lines, labels = [], {}
        for line in part.splitlines():
            label = re.match(r"(\.L_x_\d+):", line)
            code = re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*)", line)
            if label:
                labels[label.group(1)] = len(lines)
            elif code:
                lines.append(code.group(1))
        longest = max(loops(lines, labels), key=len, default=[])
        found[name.group(1)] = collections.Counter(map(sort_of, longest))
    return found


def warps_that_fit(registers, shared, threads):
    """On a multiprocessor with 65536 registers, 64 warps, 228 KiB of shared memory (sm_90)."""
    a_block = threads // 32
    by_registers = 65536 // (-(-registers * 32 // 256) * 256 * a_block)
    by_shared = 228 * 1024 // (shared + 1024)
    return a_block * min(by_registers, by_shared, 64 // a_block, 32)


def count(quern, gpu, disassembler, model):
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = folder + "/m.ptx", folder + "/m.cubin"
        subprocess.run([quern, "compile", model, "--target", "nvptx64", "--gpu", gpu, "-o", ptx], check=True)
        text = subprocess.run(["ptxas", "-v", "-arch=" + gpu, "-o", cubin, ptx], capture_output=True, text=True, check=True).stderr
        loops_of = instructions(disassembler, cubin) if disassembler else {}
        threads = dict(re.findall(r"^// kernel \d+ (\w+) threads (\d+)", open(ptx).read(), re.M))
    print(os.path.basename(model))
    for name, body in re.findall(r"entry function '(\w+)'(.*?)(?=Compiling entry|\Z)", text, re.S):
        registers = int(re.search(r"Used (\d+) registers", body).group(1))
        spilled = int(re.search(r"(\d+) bytes spill stores", body).group(1))
        shared = int((re.search(r"(\d+) bytes smem", body) or [0, 0])[1])
        n = int(threads[name])
        print(f"  {n} threads, {registers} registers, {spilled} bytes spilled, {shared} bytes shared, "
              f"{warps_that_fit(registers, shared, n)} of 64 warps")
        loop = loops_of.get(name)
        if loop:
            total = sum(loop.values())
            work = loop["FFMA"] + sum(v for k, v in loop.items() if k.startswith("HMMA"))
            print(f"    loop of {total}: {100 * work / total:.1f} % multiply;",
                  ", ".join(f"{v} {k}" for k, v in loop.most_common(12)))


def passes(places, width):
    """How often a warp goes to shared memory, and how often it would without conflicts: lane i touches `width` floats from places[i]
    on; accesses of 16 bytes are made by quarters of a warp."""
    lanes = 32 // width if width > 1 else 32
    needed = 0
    for first in range(0, 32, lanes):
        banks = collections.defaultdict(set)
        for place in places[first : first + lanes]:
            for word in range(place, place + width):
                banks[word % 32].add(word)
        needed += max(map(len, banks.values()))
    return needed, 32 // lanes


def print_unit_banks():
    """The matrix unit's: lines of 16-bit elements, in words of 4 bytes; ldmatrix takes a tile, 8 lines of 16 bytes, at once."""
    step, run, pad, tile = 32, 8, 8, 8
    for extent, threads in ((128, 256), (64, 128), (32, 64)):
        along, straight = (step + pad) // 2, (extent + pad) // 2
        numbers = [[w * 32 + i * threads + lane for lane in range(32)]
                   for w in range(threads // 32) for i in range(extent * step // run // threads)]
        write_k = [passes([(n // 32 * tile + n % tile) * along + n // tile % 4 * run // 2 for n in ns], 4) for ns in numbers]
        write = [passes([n // (extent // run) * straight + n % (extent // run) * run // 2 for n in ns], 4) for ns in numbers]
        read = [passes([(lane % tile + lane // tile % 2 * tile) * size + lane // 16 * tile // 2 for lane in range(32)], 4)
                for size in (along, straight)]
        print(f"matrix unit, side of {extent}: writes along k {max(write_k)}, along lines {max(write)}, reads {max(read)}")


def print_banks():
    step, four, pad = 16, 4, 4
    for rows, cols, down, across in ((128, 128, 8, 8), (128, 64, 8, 8), (64, 64, 8, 4), (32, 32, 4, 4)):
        threads = rows * cols // (down * across)
        for extent in (rows, cols):
            line = extent + pad
            numbers = [[w * 32 + i * threads + lane for lane in range(32)]
                       for w in range(threads // 32) for i in range(extent * step // four // threads)]
            turned = [passes([(2 * (n // (2 * extent)) + n % 2) * four * line + e * line + n // 2 % extent for n in ns], 1)
                      for ns in numbers for e in range(four)]
            straight = [passes([n // (extent // four) * line + n % (extent // four) * four for n in ns], 4) for ns in numbers]
            print(f"{rows} x {cols}, side of {extent}: writes along k {max(turned)}, along lines {max(straight)}")
        print(f"{rows} x {cols}: reads of rows {passes([lane // 8 * four for lane in range(32)], 4)}, "
              f"of columns {passes([lane % 8 * four for lane in range(32)], 4)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--gpu", default="sm_90")
    parser.add_argument("--quern", default="build/release/quern")
    parser.add_argument("--nvdisasm")
    parser.add_argument("--banks", action="store_true")
    options = parser.parse_args()
    if options.banks:
        print("passes over shared memory of a warp: (needed, without conflicts)")
        print_banks()
        print_unit_banks()
    for model in options.models:
        count(options.quern, options.gpu, options.nvdisasm, model)
    return 0 if options.banks or options.models else parser.error("a model, or --banks")


if __name__ == "__main__":
    sys.exit(main())
