/* Attention: a decoder that reverses what it reads, and a small GPT that writes licences.
 *
 * Each is trained by one compiled function; a second model, which shares its parameters, reads or writes. The writing one keeps
 * keys and values of the characters so far in states, each run adding those of one character in place. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/common/common.h"

/* a new table of `rows` vectors, looked up for positions 0 to rows - 1 */
static quern_value *places(quern_builder *b, int64_t rows, int64_t width, const char *name)
{
    char text[64];
    snprintf(text, sizeof text, "axis = 0, dims = [%d], dtype = i64", (int)rows);
    return quern_embedding(b, quern_op(b, "iota", 0, NULL, text), rows, width, name);
}

/* A model beside the trained one, with its parameters. */
typedef struct reader {
    quern_model *model;
    quern_session *session;
} reader;

static reader reader_new(const example *e, quern_builder *b, quern_trainer *trainer)
{
    reader r;
    quern_module *module;
    example_check(quern_builder_finish(b, &module));
    example_check(quern_compile(module, &e->compile, &r.model));
    quern_module_free(module);
    example_check(quern_session_new(r.model, NULL, &r.session));
    example_check(quern_session_share_states(r.session, quern_trainer_session(trainer)));
    return r;
}

static void reader_bind(reader *r, const char *input, int rank, const int64_t *dims, const int64_t *data)
{
    example_check(quern_session_bind(r->session, quern_session_find(r->session, input),
                                     &(quern_array){ QUERN_I64, rank, dims, (void *)data }));
}

static const float *reader_output(reader *r, const char *output)
{
    quern_array array;
    example_check(quern_session_get(r->session, quern_session_find(r->session, output), &array));
    return array.data;
}

static void reader_free(reader *r)
{
    quern_session_free(r->session);
    quern_model_free(r->model);
}

/* The place of the largest of n numbers. */
static int64_t largest(const float *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

/* ---- reversal ---- */

enum { LENGTH = 10, SYMBOLS = 16, START = SYMBOLS, WIDTH = 32 }; /* START: what the decoder begins with */
enum { SEQUENCES = 6400, BATCH = 64, EPOCHS = 5, TESTS = 500 };

/* tokens [batch, 2 LENGTH]: a sequence, then START and what the decoder has written, to logits [batch, LENGTH, SYMBOLS].
 * With `peaks`, a second output is the weights of the attention to the sequence. */
static quern_builder *reverser(uint64_t seed, bool peaks)
{
    const quern_dim batch = QUERN_DIM("batch");
    quern_builder *b = quern_builder_new("reverse");
    quern_builder_seed(b, seed);
    quern_value *tokens = quern_input(b, "tokens", QUERN_I64, QUERN_SHAPE(batch, QUERN_N(2 * LENGTH)));
    quern_value *read = quern_slice(b, tokens, 1, 0, LENGTH);
    quern_value *written = quern_slice(b, tokens, 1, LENGTH, 2 * LENGTH);
    quern_value *place = places(b, LENGTH, WIDTH, "encoder.place");
    quern_value *memory = quern_add(b, quern_embedding(b, read, SYMBOLS, WIDTH, "encoder.symbol"), place);
    place = places(b, LENGTH, WIDTH, "decoder.place");
    quern_value *h = quern_add(b, quern_embedding(b, written, SYMBOLS + 1, WIDTH, "decoder.symbol"), place);
    h = quern_layer_norm(b, quern_add(b, h, quern_attention(b, h, NULL, 2, 1, "self")), "norm1");
    /* attention to the sequence, with one head, so that there is one table of weights */
    const quern_dim shape[] = { batch, QUERN_N(1), QUERN_N(LENGTH), QUERN_N(WIDTH) };
    quern_value *q = quern_reshape(b, quern_linear(b, h, WIDTH, "cross.q"), 4, shape);
    quern_value *k = quern_reshape(b, quern_linear(b, memory, WIDTH, "cross.k"), 4, shape);
    quern_value *v = quern_reshape(b, quern_linear(b, memory, WIDTH, "cross.v"), 4, shape);
    quern_value *found = quern_dot_product_attention(b, q, k, v, NULL, 0);
    found = quern_reshape(b, found, QUERN_SHAPE(batch, QUERN_N(LENGTH), QUERN_N(WIDTH)));
    h = quern_layer_norm(b, quern_add(b, h, quern_linear(b, found, WIDTH, "cross.o")), "norm2");
    quern_output(b, quern_linear(b, h, SYMBOLS, "out"), "logits");
    if (peaks) { /* what attention makes of the rows of the identity are its weights */
        float eye[LENGTH][LENGTH] = { { 0 } };
        for (int i = 0; i < LENGTH; i++)
            eye[i][i] = 1;
        quern_value *rows = quern_constant(b, QUERN_F32, 2, (const int64_t[]){ LENGTH, LENGTH }, eye);
        rows = QUERN_OP(b, "broadcast", "dims = [batch, 1, 10, 10], axes = [2, 3]", rows);
        quern_output(b, quern_dot_product_attention(b, q, k, rows, NULL, 0), "weights");
    }
    return b;
}

static void make_sequences(int64_t n, int64_t (*tokens)[2 * LENGTH], int64_t (*wanted)[LENGTH],
                           uint64_t *random)
{
    for (int64_t i = 0; i < n; i++) {
        for (int t = 0; t < LENGTH; t++)
            tokens[i][t] = wanted[i][LENGTH - 1 - t] = (int64_t)(SYMBOLS * example_uniform(random));
        tokens[i][LENGTH] = START;
        memcpy(&tokens[i][LENGTH + 1], wanted[i], (LENGTH - 1) * sizeof wanted[i][0]);
    }
}

/* The decoder writes TESTS sequences, symbol by symbol: are they right, and where did it look? */
static bool test_reversal(const example *e, quern_trainer *trainer)
{
    static int64_t tokens[TESTS][2 * LENGTH], wanted[TESTS][LENGTH];
    uint64_t random = ~e->seed;
    reader r = reader_new(e, reverser(e->seed, true), trainer);
    make_sequences(TESTS, tokens, wanted, &random);
    for (int i = 0; i < TESTS; i++)
        memset(&tokens[i][LENGTH + 1], 0, (LENGTH - 1) * sizeof tokens[i][0]);
    int right = 0, peaks = 0;
    reader_bind(&r, "tokens", 2, (const int64_t[]){ TESTS, 2 * LENGTH }, tokens[0]);
    bool good[TESTS];
    memset(good, 1, sizeof good);
    for (int t = 0; t < LENGTH; t++) {
        example_check(quern_session_run(r.session));
        const float *logits = reader_output(&r, "logits"), *weights = reader_output(&r, "weights");
        for (int i = 0; i < TESTS; i++) {
            const int64_t symbol = largest(logits + (i * LENGTH + t) * SYMBOLS, SYMBOLS);
            good[i] = good[i] && symbol == wanted[i][t];
            peaks += largest(weights + (i * LENGTH + t) * LENGTH, LENGTH) == LENGTH - 1 - t;
            if (t < LENGTH - 1)
                tokens[i][LENGTH + 1 + t] = symbol;
        }
    }
    for (int i = 0; i < TESTS; i++)
        right += good[i];
    reader_free(&r);
    const double share = 100.0 * right / TESTS, peak = 100.0 * peaks / (TESTS * LENGTH);
    printf("reverse: %.2f %% exact, %.2f %% of the peaks on the anti-diagonal\n", share, peak);
    return share >= 99 && peak >= 95;
}

static bool reversal(example e)
{
    static int64_t tokens[SEQUENCES][2 * LENGTH], wanted[SEQUENCES][LENGTH];
    const quern_train_options options = {
        .size = sizeof options, .loss = "cross_entropy", .optimizer = "adam", .learning_rate = 3e-3
    };
    uint64_t random = e.seed;
    quern_trainer *trainer;
    e.name = "attention-reverse";
    make_sequences(SEQUENCES, tokens, wanted, &random);
    example_check(quern_train(reverser(e.seed, false), &options, &e.compile, &trainer));
    example_train(
        &e, trainer, &(quern_array){ QUERN_I64, 2, (const int64_t[]){ SEQUENCES, 2 * LENGTH }, tokens },
        &(quern_array){ QUERN_I64, 2, (const int64_t[]){ SEQUENCES, LENGTH }, wanted }, BATCH, EPOCHS);
    const bool good = e.dump || test_reversal(&e, trainer);
    quern_trainer_free(trainer);
    return good;
}

/* ---- a small GPT ---- */

enum {
    VOCABULARY = 128,
    CONTEXT = 64,
    LAYERS = 2,
    HEADS = 4,
    MODEL = 64,
    DEPTH = MODEL / HEADS
}; /* of ASCII */
enum { WINDOWS = 1600, GPT_BATCH = 8, GPT_EPOCHS = 9, SAMPLES = 40, SHOWN = 10, TEXT = 1 << 14 };

/* [rows, length, MODEL] to [rows, HEADS, length, DEPTH] */
static quern_value *split(quern_builder *b, quern_value *x, quern_dim rows, quern_dim length)
{
    x = quern_reshape(b, x, QUERN_SHAPE(rows, length, QUERN_N(HEADS), QUERN_N(DEPTH)));
    return QUERN_OP(b, "transpose", "perm = [0, 2, 1, 3]", x);
}

/* The state `name` with x, keys or values of one character, in place of what it holds at `position`. */
static quern_value *cached(quern_builder *b, quern_value *x, quern_value *position, const char *name)
{
    quern_value *zero = quern_constant(b, QUERN_I64, 0, NULL, &(int64_t){ 0 });
    quern_value *cache =
        quern_state(b, name, QUERN_F32, 4, (const int64_t[]){ 1, HEADS, CONTEXT, DEPTH }, NULL);
    quern_value *next = QUERN_OP(b, "dynamic_update_slice", "", cache, x, zero, zero, position, zero);
    quern_set_state(b, cache, next);
    return next;
}

/* position: NULL for whole windows; of the only character otherwise, which attends to the cache */
static quern_value *self_attention(quern_builder *b, quern_value *x, quern_value *position, const char *block)
{
    const quern_dim rows = position ? QUERN_N(1) : QUERN_DIM("batch"),
                    length = QUERN_N(position ? 1 : CONTEXT);
    quern_value *qkv[3], *mask = NULL;
    char name[64];
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%s.%c", block, "qkv"[i]);
        qkv[i] = split(b, quern_linear(b, x, MODEL, name), rows, length);
        snprintf(name, sizeof name, "%s.cache.%c", block, "qkv"[i]);
        if (position && i > 0)
            qkv[i] = cached(b, qkv[i], position, name);
    }
    if (position) {
        quern_value *key = quern_op(b, "iota", 0, NULL, "axis = 3, dims = [1, 1, 1, 64], dtype = i64");
        quern_value *now = QUERN_OP(b, "broadcast", "dims = [1, 1, 1, 64], axes = []", position);
        mask = QUERN_OP(b, "compare", "direction = le", key, now);
    }
    x = quern_dot_product_attention(b, qkv[0], qkv[1], qkv[2], mask, !position);
    x = quern_reshape(b, QUERN_OP(b, "transpose", "perm = [0, 2, 1, 3]", x),
                      QUERN_SHAPE(rows, length, QUERN_N(MODEL)));
    snprintf(name, sizeof name, "%s.o", block);
    return quern_linear(b, x, MODEL, name);
}

/* Characters to logits of the ones behind them. Writing, the input is one character and its position. */
static quern_builder *gpt(uint64_t seed, bool writing)
{
    quern_builder *b = quern_builder_new("gpt");
    quern_builder_seed(b, seed);
    const quern_dim rows = writing ? QUERN_N(1) : QUERN_DIM("batch"), length = QUERN_N(writing ? 1 : CONTEXT);
    quern_value *x = quern_input(b, "characters", QUERN_I64, QUERN_SHAPE(rows, length));
    quern_value *position = writing ? quern_input(b, "position", QUERN_I64, 0, NULL) : NULL;
    x = quern_embedding(b, x, VOCABULARY, MODEL, "characters");
    x = quern_add(b, x,
                  writing ? quern_embedding(b, position, CONTEXT, MODEL, "places")
                          : places(b, CONTEXT, MODEL, "places"));
    for (int i = 0; i < LAYERS; i++) {
        char block[16], name[32];
        snprintf(block, sizeof block, "block%d", i);
        snprintf(name, sizeof name, "%s.norm1", block);
        x = quern_add(b, x, self_attention(b, quern_layer_norm(b, x, name), position, block));
        snprintf(name, sizeof name, "%s.norm2", block);
        quern_value *h = quern_layer_norm(b, x, name);
        snprintf(name, sizeof name, "%s.up", block);
        h = quern_gelu(b, quern_linear(b, h, 4 * MODEL, name));
        snprintf(name, sizeof name, "%s.down", block);
        x = quern_add(b, x, quern_linear(b, h, MODEL, name));
    }
    quern_output(b, quern_linear(b, quern_layer_norm(b, x, "norm"), VOCABULARY, "head"), "logits");
    return b;
}

/* The licence of Quern in ASCII, with one space for all that is white. */
static int read_text(char text[TEXT])
{
    FILE *file = fopen(EXAMPLE_TEXT, "rb");
    int n = 0;
    for (int c; file && n < TEXT - 1 && (c = getc(file)) != EOF;)
        if (c > ' ' || (n > 0 && text[n - 1] != ' '))
            text[n++] = (char)(c <= ' ' ? ' ' : c < VOCABULARY ? c : '?');
    text[n] = 0;
    if (!file || ferror(file) | fclose(file) || n <= CONTEXT) {
        perror(EXAMPLE_TEXT);
        exit(1);
    }
    return n;
}

static const float *next_logits(reader *writer, int64_t character, int64_t position)
{
    reader_bind(writer, "characters", 2, (const int64_t[]){ 1, 1 }, &character);
    reader_bind(writer, "position", 0, NULL, &position);
    example_check(quern_session_run(writer->session));
    return reader_output(writer, "logits");
}

/* How far logits of the writing model, by its cache, are from those of the trained one, which sees the window at once. */
static double compare(quern_trainer *trainer, reader *writer, const int64_t *window)
{
    double worst = 0;
    quern_array all;
    const quern_array x = { QUERN_I64, 2, (const int64_t[]){ 1, CONTEXT }, (void *)window };
    example_check(quern_trainer_predict(trainer, &x, &all));
    for (int t = 0; t < CONTEXT; t++) {
        const float *one = next_logits(writer, window[t], t), *of_all = (float *)all.data + t * VOCABULARY;
        for (int i = 0; i < VOCABULARY; i++)
            worst = fmax(worst, fabs((double)one[i] - (double)of_all[i]));
    }
    return worst;
}

/* CONTEXT characters behind a space, each drawn with a temperature of 0.3. */
static void write_sample(reader *writer, uint64_t *random, char sample[CONTEXT + 1])
{
    int64_t character = ' ';
    for (int t = 0; t < CONTEXT; t++) {
        const float *logits = next_logits(writer, character, t);
        const float top = logits[largest(logits, VOCABULARY)];
        double share[VOCABULARY], sum = 0;
        for (int i = 0; i < VOCABULARY; i++)
            sum += share[i] = exp((logits[i] - top) / 0.3);
        double at = sum * example_uniform(random);
        for (character = 0; character < VOCABULARY - 1 && (at -= share[character]) >= 0; character++)
            ;
        sample[t] = (char)character;
    }
    sample[CONTEXT] = 0;
}

/* Which share of the words in samples, in percent, are in the text? The last of each sample may be cut, and does not count. */
static double known_words(reader *writer, uint64_t *random, const char *text)
{
    int words = 0, known = 0;
    for (int k = 0; k < SAMPLES; k++) {
        char sample[CONTEXT + 1], word[CONTEXT + 3];
        write_sample(writer, random, sample);
        if (k < SHOWN)
            printf("gpt: \"%s\"\n", sample);
        for (const char *at = sample, *end; (end = strchr(at, ' ')); at = end + 1) {
            snprintf(word, sizeof word, " %.*s ", (int)(end - at), at);
            words += end > at;
            known += end > at && strstr(text, word);
        }
    }
    return words ? 100.0 * known / words : 0;
}

static bool language(example e)
{
    static int64_t x[WINDOWS][CONTEXT], y[WINDOWS][CONTEXT];
    static char text[TEXT];
    const quern_train_options options = { .size = sizeof options,
                                          .loss = "cross_entropy",
                                          .optimizer = "adam",
                                          .learning_rate = 5e-3,
                                          .clip_norm = 1 };
    const int n = read_text(text);
    uint64_t random = e.seed;
    quern_trainer *trainer;
    e.name = "attention-gpt";
    for (int i = 0; i < WINDOWS; i++) {
        const char *from = text + (int)(example_uniform(&random) * (n - CONTEXT));
        for (int t = 0; t < CONTEXT; t++) {
            x[i][t] = from[t];
            y[i][t] = from[t + 1];
        }
    }
    const quern_array xs = { QUERN_I64, 2, (const int64_t[]){ WINDOWS, CONTEXT }, x };
    const quern_array ys = { QUERN_I64, 2, (const int64_t[]){ WINDOWS, CONTEXT }, y };
    example_check(quern_train(gpt(e.seed, false), &options, &e.compile, &trainer));
    example_train(&e, trainer, &xs, &ys, GPT_BATCH, GPT_EPOCHS);
    bool good = true;
    if (!e.dump) {
        double loss;
        reader writer = reader_new(&e, gpt(e.seed, true), trainer);
        const double difference = compare(trainer, &writer, x[0]);
        const double words = known_words(&writer, &random, text);
        example_check(quern_trainer_eval(trainer, &xs, &ys, &loss, NULL));
        printf("gpt: loss %.3f a character, %.1f %% of the words are the text's; by the cache logits differ "
               "by %.1e\n",
               loss, words, difference);
        good = difference < 1e-3 && (e.epochs || (loss < 1 && words >= 80));
        reader_free(&writer);
    }
    quern_trainer_free(trainer);
    return good;
}

int main(int argc, char **argv)
{
    const example e = example_parse(argc, argv, "attention");
    const bool reverses = reversal(e), writes = language(e);
    return (reverses || e.epochs) && writes ? 0 : 1;
}
