/* Recurrent language models: on letters of a source whose entropy is known, and on the characters of a real text. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/common/common.h"

typedef struct sizes {
    int64_t letters, embedding, hidden;
    double learning_rate; /* in the first step; it falls to 0 in a line */
    int64_t steps;
} sizes;

/* Letters u8[batch, time] to logits of the letter after each, [batch, time, letters]. */
static quern_trainer *new_model(const example *e, const sizes *s, bool gru)
{
    const quern_train_options options = { .size = sizeof options,
                                          .loss = "cross_entropy",
                                          .optimizer = "adam",
                                          .learning_rate = s->learning_rate,
                                          .schedule = "linear",
                                          .schedule_steps = s->steps };
    quern_trainer *trainer;
    quern_builder *b = quern_builder_new("language");
    quern_builder_seed(b, e->seed);
    quern_value *x = quern_input(b, "x", QUERN_U8, QUERN_SHAPE(QUERN_DIM("batch"), QUERN_DIM("time")));
    quern_value *h = quern_embedding(b, x, s->letters, s->embedding, "embedding");
    h = gru ? quern_gru(b, h, s->hidden, "cell") : quern_lstm(b, h, s->hidden, "cell");
    quern_output(b, quern_linear(b, h, s->letters, "out"), "logits");
    example_check(quern_train(b, &options, &e->compile, &trainer));
    return trainer;
}

/* `rows` pieces of `time` letters, each `stride` behind the one before, and the letters one further on. */
typedef struct pieces {
    int64_t dims[2];
    uint8_t *x;
    int64_t *y;
} pieces;

static pieces cut(const uint8_t *text, int64_t rows, int64_t time, int64_t stride)
{
    pieces p = { .dims = { rows, time } };
    p.x = malloc((size_t)(rows * time));
    p.y = malloc((size_t)(rows * time) * sizeof *p.y);
    if (!p.x || !p.y)
        exit(1);
    for (int64_t i = 0; i < rows * time; i++) {
        const uint8_t *at = text + i / time * stride + i % time;
        p.x[i] = at[0];
        p.y[i] = at[1];
    }
    return p;
}

static quern_array letters_of(const pieces *p)
{
    return (quern_array){ QUERN_U8, 2, p->dims, p->x };
}

static quern_array next_of(const pieces *p)
{
    return (quern_array){ QUERN_I64, 2, p->dims, p->y };
}

static void pieces_free(pieces *p)
{
    free(p->x);
    free(p->y);
}

/* ---- a source of known entropy: a letter depends on the last one and on the one LAG before it ---- */

enum { V = 5, LAG = 3, STATES = V * V * V }; /* a state: the last LAG letters, the newest in front */

typedef struct source {
    double next[V][V][V]; /* probability of a letter, by the last one and the oldest one of the state */
} source;

static source new_source(uint64_t *random)
{
    source s;
    for (int i = 0; i < V * V; i++) {
        double *p = s.next[i / V][i % V], sum = 0;
        for (int k = 0; k < V; k++)
            sum += p[k] = exp(2 * example_normal(random));
        for (int k = 0; k < V; k++)
            p[k] /= sum;
    }
    return s;
}

static const double *next_of_state(const source *s, int state)
{
    return s->next[state / (STATES / V)][state % V];
}

static int after(int state, int letter)
{
    return letter * (STATES / V) + state / V;
}

static double entropy(const double *p)
{
    double sum = 0;
    for (int k = 0; k < V; k++)
        sum -= p[k] > 0 ? p[k] * log(p[k]) : 0;
    return sum;
}

/* Nats a letter, from the source's stationary distribution. out_last: where only the last letter is known. */
static double entropy_rate(const source *s, double *out_last)
{
    static double p[STATES], q[STATES];
    double rate = 0, joint[V][V] = { { 0 } };
    for (int i = 0; i < STATES; i++)
        p[i] = 1.0 / STATES;
    for (int round = 0; round < 500; round++) {
        memset(q, 0, sizeof q);
        for (int i = 0; i < STATES; i++)
            for (int k = 0; k < V; k++)
                q[after(i, k)] += p[i] * next_of_state(s, i)[k];
        memcpy(p, q, sizeof p);
    }
    for (int i = 0; i < STATES; i++) {
        rate += p[i] * entropy(next_of_state(s, i));
        for (int k = 0; k < V; k++)
            joint[i / (STATES / V)][k] += p[i] * next_of_state(s, i)[k];
    }
    *out_last = 0;
    for (int i = 0; i < V; i++) {
        double share = 0;
        for (int k = 0; k < V; k++)
            share += joint[i][k];
        for (int k = 0; k < V; k++)
            joint[i][k] /= share;
        *out_last += share * entropy(joint[i]);
    }
    return rate;
}

static int draw(const double *p, int n, uint64_t *random)
{
    double u = example_uniform(random);
    int k = 0;
    while (k < n - 1 && (u -= p[k]) >= 0)
        k++;
    return k;
}

static void generate(const source *s, uint64_t *random, int64_t n, uint8_t *text)
{
    int state = 0;
    for (int64_t i = -100; i < n; i++) { /* the first ones let it forget where it began */
        const int letter = draw(next_of_state(s, state), V, random);
        state = after(state, letter);
        if (i >= 0)
            text[i] = (uint8_t)letter;
    }
}

static bool learn_source(example e, bool gru)
{
    enum {
        ROWS = 4096,
        TIME = 32,
        TEST_ROWS = 64,
        TEST_TIME = 1024,
        TEST = TEST_ROWS * TEST_TIME,
        BATCH = 64,
        EPOCHS = 5
    };
    static uint8_t text[ROWS * TIME + 1], unseen[TEST + 1];
    uint64_t random = e.seed;
    const source s = new_source(&random);
    generate(&s, &random, sizeof text, text);
    generate(&s, &random, sizeof unseen, unseen);
    pieces train = cut(text, ROWS, TIME, TIME), test = cut(unseen, TEST_ROWS, TEST_TIME, TEST_TIME);
    const quern_array x = letters_of(&train), y = next_of(&train);
    const quern_array test_x = letters_of(&test), test_y = next_of(&test);

    e.name = gru ? "gru-source" : "lstm-source";
    quern_trainer *trainer = new_model(&e, &(sizes){ V, 8, 32, 2e-2, EPOCHS * ROWS / BATCH }, gru);
    example_train(&e, trainer, &x, &y, BATCH, EPOCHS);
    double loss, last, rate = entropy_rate(&s, &last);
    example_check(quern_trainer_eval(trainer, &test_x, &test_y, &loss, NULL));
    if (!e.dump)
        printf("%s: perplexity %.3f of unseen letters, %.2f %% above e^H = %.3f (from the last letter alone: "
               "%.3f)\n",
               e.name, exp(loss), 100 * (exp(loss - rate) - 1), exp(rate), exp(last));
    quern_trainer_free(trainer);
    pieces_free(&train);
    pieces_free(&test);
    return exp(loss) <= 1.03 * exp(rate);
}

/* ---- a real text ---- */

typedef struct book {
    int64_t n;
    char *text;       /* ends with a 0 */
    uint8_t *letters; /* the same as numbers */
    int n_letters;
    char characters[256]; /* by number */
} book;

static book read_book(const char *path)
{
    enum { LONGEST = 1 << 24, SHORTEST = 1000 };
    book k = { .text = calloc(LONGEST + 1, 1), .letters = malloc(LONGEST) };
    FILE *file = fopen(path, "rb");
    if (!file || !k.text || !k.letters) {
        perror(path);
        exit(1);
    }
    k.n = (int64_t)fread(k.text, 1, LONGEST, file);
    fclose(file);
    if (k.n < SHORTEST) {
        fprintf(stderr, "%s: fewer than %d characters are no text to learn from\n", path, SHORTEST);
        exit(1);
    }
    for (int64_t i = 0; i < k.n; i++) {
        const char *at = memchr(k.characters, k.text[i], (size_t)k.n_letters);
        if (!at) {
            at = &k.characters[k.n_letters++];
            k.characters[k.n_letters - 1] = k.text[i];
        }
        k.letters[i] = (uint8_t)(at - k.characters);
    }
    return k;
}

enum { START = 32, SAMPLE = 500 };

/* Characters drawn one by one from the model's softmax, a little sharpened, after some from the middle of the book. */
static void sample(quern_trainer *trainer, const book *k, uint64_t *random, char *out)
{
    enum { CONTEXT = 64 };
    const double sharpness = 2; /* the inverse of a temperature */
    uint8_t text[START + SAMPLE];
    memcpy(text, k->letters + k->n / 2, START);
    for (int n = START; n < START + SAMPLE; n++) {
        const int64_t length = n < CONTEXT ? n : CONTEXT;
        const quern_array x = { QUERN_U8, 2, (const int64_t[]){ 1, length }, text + n - length };
        quern_array logits;
        double p[256], sum = 0;
        example_check(quern_trainer_predict(trainer, &x, &logits));
        const float *last = (const float *)logits.data + (length - 1) * k->n_letters;
        for (int i = 0; i < k->n_letters; i++)
            sum += p[i] = exp(sharpness * (double)last[i]);
        for (int i = 0; i < k->n_letters; i++)
            p[i] /= sum;
        text[n] = (uint8_t)draw(p, k->n_letters, random);
        out[n - START] = k->characters[text[n]];
    }
    out[SAMPLE] = 0;
}

static bool is_word_of(const book *k, const char *word, size_t length)
{
    for (const char *at = k->text; (at = strchr(at, word[0])); at++)
        if (strncmp(at, word, length) == 0 && !isalpha((unsigned char)at[length]) &&
            (at == k->text || !isalpha((unsigned char)at[-1])))
            return true;
    return false;
}

/* The share of words of three letters and more that the book has too; the last one may be cut. */
static double share_of_words(const book *k, const char *text)
{
    int words = 0, known = 0;
    for (const char *at = text; *at;) {
        size_t length = 0;
        while (isalpha((unsigned char)at[length]))
            length++;
        if (length >= 3 && at != text && at[length]) {
            words++;
            known += is_word_of(k, at, length);
        }
        at += length + (at[length] != 0);
    }
    return words ? (double)known / words : 0;
}

static bool learn_text(example e, bool gru, const char *path)
{
    enum { TIME = 64, STRIDE = 16, BATCH = 16, EPOCHS = 16 };
    book k = read_book(path);
    const int64_t rows = (k.n - 1 - TIME) / STRIDE + 1;
    pieces train = cut(k.letters, rows, TIME, STRIDE);
    const quern_array x = letters_of(&train), y = next_of(&train);
    uint64_t random = e.seed;
    char text[SAMPLE + 1];

    e.name = gru ? "gru-text" : "lstm-text";
    quern_trainer *trainer =
        new_model(&e, &(sizes){ k.n_letters, 32, 96, 1e-2, EPOCHS * ((rows + BATCH - 1) / BATCH) }, gru);
    example_train(&e, trainer, &x, &y, BATCH, EPOCHS);
    sample(trainer, &k, &random, text);
    const double share = share_of_words(&k, text);
    if (!e.dump)
        printf("%s: after \"%.*s\"\n%s\n%s: %.1f %% of the words are words of the text\n", e.name, START,
               k.text, text, e.name, 100 * share);
    quern_trainer_free(trainer);
    pieces_free(&train);
    free(k.text);
    free(k.letters);
    return share >= 0.75;
}

int main(int argc, char **argv)
{
    const char *cell = example_option(&argc, argv, "--cell", "lstm");
    const char *path = example_option(&argc, argv, "--text", EXAMPLE_TEXT);
    const example e = example_parse(argc, argv, "lstm");
    const bool gru = strcmp(cell, "gru") == 0;
    if (!gru && strcmp(cell, "lstm") != 0) {
        fprintf(stderr, "--cell is lstm or gru, not %s\n", cell);
        return 2;
    }
    const bool source = learn_source(e, gru), text = learn_text(e, gru, path);
    return e.dump || e.epochs || (source && text) ? 0 : 1;
}
