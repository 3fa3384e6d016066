/* The text of a program: what an entry takes, where its buffers lie, its steps, then its kernels.
 *
 *   program @infer {
 *     dims batch: 1..64
 *     io 0 input "x" f32[batch, 784]
 *     %0 = io 0 : f32 784*batch "x"
 *     %1 = weights 0 : f32 7840 "w"
 *     %2 = arena 0 : f32 10*batch "h"
 *     arena 40*batch bound 40*batch weights 31360
 *     call 0 "dot" (%0, %1, %2; batch) tasks floordiv(batch + 7, 8)
 *     …
 */
#include "ir/program.h"
#include "ir/strbuf.h"

typedef struct {
    const qn_program *p;
    qn_strbuf *out;
    int indent;
} printer;

static const char *dim(printer *f, qn_dim d)
{
    return qn_dim_print(d, f->out->arena);
}

static void line(printer *f)
{
    for (int i = 0; i < f->indent; i++)
        qn_strbuf_puts(f->out, "  ");
}

static const char *const roles[] = { "input", "output", "state" };

static void print_io(printer *f, int i)
{
    const qn_pio *io = &f->p->io[i];
    line(f);
    qn_strbuf_printf(f->out, "io %d %s ", i, roles[io->role]);
    qn_strbuf_quote(f->out, io->name ? io->name : "");
    qn_strbuf_printf(f->out, " %s", qn_type_print(&io->type, f->out->arena));
    if (io->alias >= 0)
        qn_strbuf_printf(f->out, " alias %d", io->alias);
    qn_strbuf_puts(f->out, "\n");
}

static void print_buffer(printer *f, int i)
{
    const qn_pbuffer *b = &f->p->buffers[i];
    line(f);
    qn_strbuf_printf(f->out, "%%%d = ", i);
    switch (b->place) {
    case QN_PLACE_ARENA: qn_strbuf_printf(f->out, "arena %s", b->offset ? dim(f, b->offset) : "?"); break;
    case QN_PLACE_IO: qn_strbuf_printf(f->out, "io %d", b->io); break;
    case QN_PLACE_WEIGHTS: qn_strbuf_printf(f->out, "weights %s", b->offset ? dim(f, b->offset) : "?"); break;
    case QN_PLACE_VIEW:
        qn_strbuf_printf(f->out, "view %%%d", b->base);
        if (b->offset)
            qn_strbuf_printf(f->out, " + %s", dim(f, b->offset));
        if (b->loop >= 0)
            qn_strbuf_printf(f->out, " + loop %d * %s", b->loop, dim(f, b->stride));
        break;
    case QN_PLACE_SLOT: qn_strbuf_printf(f->out, "slot %%%d", b->base); break;
    }
    qn_strbuf_printf(f->out, " : %s %s", qn_dtype_name(b->dtype), dim(f, b->elements));
    if (b->name) {
        qn_strbuf_puts(f->out, " ");
        qn_strbuf_quote(f->out, b->name);
    }
    qn_strbuf_puts(f->out, "\n");
}

static void print_steps(printer *f, const qn_steps *steps);

static void print_block(printer *f, const char *head, const qn_steps *steps)
{
    qn_strbuf_printf(f->out, "%s{\n", head);
    f->indent++;
    print_steps(f, steps);
    f->indent--;
    line(f);
    qn_strbuf_puts(f->out, "}");
}

static void print_step(printer *f, const qn_step *step)
{
    line(f);
    switch (step->kind) {
    case QN_STEP_KERNEL:
        qn_strbuf_printf(f->out, "call %d ", step->kernel);
        qn_strbuf_quote(f->out, step->name ? step->name : "");
        for (int i = 0; i < step->n_buffers; i++)
            qn_strbuf_printf(f->out, "%s%%%d", i ? ", " : " (", step->buffers[i]);
        for (int i = 0; i < step->n_params; i++)
            qn_strbuf_printf(f->out, "%s%s", i ? ", " : "; ", dim(f, step->params[i]));
        qn_strbuf_printf(f->out, ") tasks %s", dim(f, step->tasks));
        break;
    case QN_STEP_COPY:
        qn_strbuf_printf(f->out, "copy %%%d to %%%d", step->buffers[0], step->buffers[1]);
        break;
    case QN_STEP_SWAP: qn_strbuf_printf(f->out, "swap %%%d %%%d", step->buffers[0], step->buffers[1]); break;
    case QN_STEP_BIND: qn_strbuf_printf(f->out, "bind %s %%%d", dim(f, step->count), step->buffers[0]); break;
    case QN_STEP_LOOP:
        qn_strbuf_printf(f->out, "loop %d", step->loop);
        if (step->count)
            qn_strbuf_printf(f->out, " count %s", dim(f, step->count));
        if (step->reverse)
            qn_strbuf_puts(f->out, " reverse");
        if (step->condition >= 0) {
            qn_strbuf_printf(f->out, " while %%%d", step->condition);
            print_block(f, " test ", &step->test);
        }
        print_block(f, " ", &step->body);
        break;
    case QN_STEP_IF:
        qn_strbuf_printf(f->out, "if %%%d", step->condition);
        print_block(f, " ", &step->body);
        print_block(f, " else ", &step->other);
        break;
    }
    qn_strbuf_puts(f->out, "\n");
}

static void print_steps(printer *f, const qn_steps *steps)
{
    for (size_t i = 0; i < steps->n; i++)
        print_step(f, &steps->items[i]);
}

static void print_program(const qn_program *p, qn_strbuf *to)
{
    printer f = { .p = p, .out = to, .indent = 1 };
    qn_strbuf_printf(to, "program @%s {\n", p->name);
    for (int i = 0; i < p->n_entry_symbols; i++) {
        qn_dim symbol = qn_dims_symbol_at(p->dims, i);
        qn_strbuf_printf(to, "  dims %s: %lld..%lld\n", dim(&f, symbol), (long long)symbol->min,
                         (long long)symbol->max);
    }
    for (int i = 0; i < p->n_io; i++)
        print_io(&f, i);
    for (int i = 0; i < p->n_buffers; i++)
        print_buffer(&f, i);
    qn_strbuf_printf(to, "  arena %s bound %s weights %lld\n", dim(&f, p->arena_bytes),
                     dim(&f, p->arena_lower_bound), (long long)p->weights_bytes);
    print_steps(&f, &p->steps);
    qn_strbuf_puts(to, "}\n");
}

const char *qn_program_print_steps(const qn_program *p, qn_arena *arena)
{
    qn_strbuf out = { .arena = arena };
    print_program(p, &out);
    return qn_strbuf_text(&out);
}

const char *qn_program_print(const qn_program *p, qn_arena *arena)
{
    qn_strbuf out = { .arena = arena };
    print_program(p, &out);
    for (int i = 0; i < p->n_kernels; i++)
        qn_strbuf_printf(&out, "\n%s", qn_kernel_print(p->kernels[i], arena));
    return qn_strbuf_text(&out);
}
