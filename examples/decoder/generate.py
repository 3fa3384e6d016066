#!/usr/bin/env python3
"""A token loop over an imported decoder: compiled once, for a prompt and for steps, with caches that are updated where they lie.

    python generate.py model.onnx 15496 11 995 --tokens 20 --room 512

The model has inputs input_ids, attention_mask, past_key_values.N.key and .value (and position_ids, perhaps) and outputs logits,
present.N.key and .value, as onnxruntime-genai and Optimum write them.
"""
import argparse
import time

import numpy as np

import quern

NAMES = ("batch_size", "past_sequence_length", "total_sequence_length")  # of the model's dimensions


class Decoder:
    """One sequence of at most `room` tokens. `options` are those of quern.compile."""

    def __init__(self, model, room, names=NAMES, **options):
        # Caches of a length that is known are buffers: what is new goes to its place in them. The number of new tokens stays open.
        self.model = quern.compile(model, dims=dict(zip(names, (1, room, room))), **options)
        self.room, self.used = room, 0
        self.inputs = {x.name: x for x in self.model.inputs}
        self.caches = {name: np.zeros(x.shape, x.dtype) for name, x in self.inputs.items() if name.startswith("past")}
        self.mask = np.zeros((1, room), self.inputs["attention_mask"].dtype)
        self.logits = [x.name for x in self.model.outputs].index("logits")
        self.session = self.model.session()
        self.session.bind({"attention_mask": self.mask, **self.caches})
        self.session.bind_outputs({"present" + name[name.index("."):]: cache for name, cache in self.caches.items()})

    def feed(self, ids):
        """Adds tokens; what is likely to follow each of them, as logits [tokens, words], which the next call overwrites."""
        ids = np.array(ids, self.inputs["input_ids"].dtype).reshape(1, -1)
        first, self.used = self.used, self.used + ids.size
        if self.used > self.room:
            self.used = first
            raise ValueError(f"{first} tokens and {ids.size} more are too many: there is room for {self.room}")
        self.mask[0, first:self.used] = 1
        self.session.bind({"input_ids": ids})
        if "position_ids" in self.inputs:
            self.session.bind({"position_ids": np.arange(first, self.used, dtype=ids.dtype).reshape(1, -1)})
        self.session.run()
        return self.session.outputs[self.logits][0]

    def rewind(self, used=0):
        """Forgets all but the first tokens."""
        self.used = used
        self.mask[0, used:] = 0


def generate(decoder, prompt, tokens):
    """The most likely tokens, one after the other."""
    logits = decoder.feed(prompt)
    for i in range(tokens):
        token = int(logits[-1].argmax())
        yield token
        if i + 1 < tokens:
            logits = decoder.feed([token])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("prompt", type=int, nargs="+")
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--room", type=int, default=512)
    parser.add_argument("--names", default=",".join(NAMES), help="the dimensions of the model that are batch, length of the caches, and of the mask")
    parser.add_argument("--precision", default="f32")
    args = parser.parse_args()
    start = time.perf_counter()
    decoder = Decoder(args.model, args.room, args.names.split(","), precision=args.precision)
    print(f"compiled in {time.perf_counter() - start:.2f} s")
    times = [time.perf_counter()]
    for token in generate(decoder, args.prompt, args.tokens):
        times.append(time.perf_counter())
        print(token, end=" ", flush=True)
    print(f"\nfirst token after {1e3 * (times[1] - times[0]):.1f} ms", end="")
    if args.tokens > 1:
        print(f", then {1e3 * float(np.median(np.diff(times[1:]))):.2f} ms each", end="")
    print()
