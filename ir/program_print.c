/* The text of a program (docs/text-form.md): what an entry takes, where its buffers lie, its steps, then its kernels.
 *
 *   program @infer {
 *     dims batch: 1..64
 *     io 0 input "x" f32[batch, 784]
 *     %0 = io 0 : f32 784*batch "x"
 *     %1 = weights 0 : f32 7840 "w" = f32[784, 10] $9482cbf0e812c660
 *     %2 = arena 0 live 0..1 : f32 10*batch "h"
 *     arena 40*batch bound 40*batch weights 31360
 *     call 0 "dot" (%0, %1, %2; batch) tasks floordiv(batch + 7, 8)
 *     …
 *   }
 */
#include <inttypes.h>

#include "ir/print.h"

typedef struct printer {
    const qn_program *p;
    qn_printer to;
    int indent;
} printer;

static void put(printer *f, const char *text)
{
    qn_strbuf_puts(&f->to.out, text);
}

#define PUTF(f, ...) qn_strbuf_printf(&(f)->to.out, __VA_ARGS__)

static const char *dim(printer *f, qn_dim d)
{
    return qn_dim_print(d, f->to.out.arena);
}

static void line(printer *f)
{
    for (int i = 0; i < f->indent; i++)
        put(f, "  ");
}

/* " \"name\"", or nothing where there is none */
static void print_name(printer *f, const char *name)
{
    if (!name)
        return;
    put(f, " ");
    qn_strbuf_quote(&f->to.out, name);
}

static void print_io(printer *f, int i)
{
    static const char *const roles[] = { "input", "output", "state" };
    const qn_pio *io = &f->p->io[i];
    line(f);
    PUTF(f, "io %d %s", i, roles[io->role]);
    print_name(f, io->name);
    PUTF(f, " %s", qn_type_print(&io->type, f->to.out.arena));
    if (io->alias >= 0)
        PUTF(f, " alias %d", io->alias);
    if (io->trainable)
        put(f, " trainable");
    if (io->initial_offset >= 0)
        PUTF(f, " at %" PRId64, io->initial_offset);
    if (io->initial) {
        put(f, " = ");
        qn_print_tensor(&f->to, io->initial);
    }
    put(f, "\n");
}

static void print_place(printer *f, const qn_pbuffer *b)
{
    switch (b->place) {
    case QN_PLACE_ARENA:
        put(f, "arena");
        if (b->offset)
            PUTF(f, " %s live %d..%d", dim(f, b->offset), b->first, b->last);
        break;
    case QN_PLACE_IO: PUTF(f, "io %d", b->io); break;
    case QN_PLACE_WEIGHTS:
        put(f, "weights");
        if (b->offset)
            PUTF(f, " %s", dim(f, b->offset));
        break;
    case QN_PLACE_VIEW:
        PUTF(f, "view %%%d", b->base);
        if (b->offset)
            PUTF(f, " at %s", dim(f, b->offset));
        if (b->loop >= 0)
            PUTF(f, " loop %d stride %s", b->loop, dim(f, b->stride));
        break;
    case QN_PLACE_SLOT: PUTF(f, "slot %%%d", b->base); break;
    }
}

static void print_buffer(printer *f, int i)
{
    const qn_pbuffer *b = &f->p->buffers[i];
    line(f);
    PUTF(f, "%%%d = ", i);
    print_place(f, b);
    PUTF(f, " : %s %s", qn_dtype_name(b->dtype), dim(f, b->elements));
    print_name(f, b->name);
    if (b->tensor) {
        PUTF(f, " = %s ", qn_type_print(&b->tensor->type, f->to.out.arena));
        qn_print_tensor(&f->to, b->tensor);
    }
    put(f, "\n");
}

static void print_steps(printer *f, const qn_steps *steps);

static void print_block(printer *f, const char *head, const qn_steps *steps)
{
    PUTF(f, "%s{\n", head);
    f->indent++;
    print_steps(f, steps);
    f->indent--;
    line(f);
    put(f, "}");
}

static void print_arguments(printer *f, const qn_step *step)
{
    print_name(f, step->name);
    put(f, " (");
    for (int i = 0; i < step->n_buffers; i++)
        PUTF(f, "%s%%%d", i ? ", " : "", step->buffers[i]);
    for (int i = 0; i < step->n_params; i++)
        PUTF(f, "%s%s", i ? ", " : "; ", dim(f, step->params[i]));
    put(f, ")");
}

static void print_call(printer *f, const qn_step *step)
{
    if (step->kind == QN_STEP_KERNEL)
        PUTF(f, "call %d", step->kernel);
    else
        PUTF(f, "library %s", qn_libraries[step->library].name);
    print_arguments(f, step);
    PUTF(f, " tasks %s%s", dim(f, step->tasks), step->alternates ? " alternating" : "");
}

/* collective all_reduce sum (%0, %1) node 0; collective start all_reduce sum (%0, %1) node 0; collective all_gather ranks 4 (%0,
 * %1) node 0; collective rank (%0) */
static void print_collective(printer *f, const qn_step *step)
{
    static const char *const combines[] = { "sum", "mean", "max", "min" };
    PUTF(f, "collective %s%s", step->starts ? "start " : "", qn_ops[step->collective].name);
    if (step->collective == QN_OP_ALL_REDUCE || step->collective == QN_OP_REDUCE_SCATTER)
        PUTF(f, " %s", combines[step->how]);
    if (step->collective == QN_OP_BROADCAST_RANK)
        PUTF(f, " root %d", step->how);
    if (step->ranks)
        PUTF(f, " ranks %" PRId64, step->ranks);
    print_name(f, step->name);
    put(f, " (");
    for (int i = 0; i < step->n_buffers; i++)
        PUTF(f, "%s%%%d", i ? ", " : "", step->buffers[i]);
    put(f, ")");
    if (step->n_buffers > 1)
        PUTF(f, " node %d", step->node);
}

static void print_loop(printer *f, const qn_step *step)
{
    PUTF(f, "loop %d", step->loop);
    print_name(f, step->name);
    if (step->count)
        PUTF(f, " count %s", dim(f, step->count));
    if (step->reverse)
        put(f, " reverse");
    if (step->condition >= 0) {
        PUTF(f, " while %%%d", step->condition);
        print_block(f, " test ", &step->test);
    }
    print_block(f, " ", &step->body);
}

static void print_step(printer *f, const qn_step *step)
{
    line(f);
    switch (step->kind) {
    case QN_STEP_KERNEL:
    case QN_STEP_LIBRARY: print_call(f, step); break;
    case QN_STEP_COPY: PUTF(f, "copy %%%d to %%%d", step->buffers[0], step->buffers[1]); break;
    case QN_STEP_SWAP: PUTF(f, "swap %%%d %%%d", step->buffers[0], step->buffers[1]); break;
    case QN_STEP_BIND: PUTF(f, "bind %s %%%d", dim(f, step->count), step->buffers[0]); break;
    case QN_STEP_CHECK:
        PUTF(f, "check %s = %s node %d", dim(f, step->params[0]), dim(f, step->params[1]), step->node);
        break;
    case QN_STEP_COLLECTIVE: print_collective(f, step); break;
    case QN_STEP_TEXT:
        PUTF(f, "text %s", qn_ops[step->text].name);
        print_arguments(f, step);
        PUTF(f, " node %d", step->node);
        break;
    case QN_STEP_WAIT:
        put(f, "wait");
        print_name(f, step->name);
        PUTF(f, " (%%%d, %%%d)", step->buffers[0], step->buffers[1]);
        break;
    case QN_STEP_LOOP: print_loop(f, step); break;
    case QN_STEP_IF:
        PUTF(f, "if %%%d", step->condition);
        print_name(f, step->name);
        print_block(f, " ", &step->body);
        print_block(f, " else ", &step->other);
        break;
    }
    put(f, "\n");
}

static void print_steps(printer *f, const qn_steps *steps)
{
    for (size_t i = 0; i < steps->n; i++)
        print_step(f, &steps->items[i]);
}

static void print_symbols(printer *f)
{
    const qn_program *p = f->p;
    const int n_entry = p->n_entry_symbols;
    if (n_entry > 0) {
        line(f);
        put(f, "dims ");
        qn_print_symbols(&f->to, p->dims, 0, n_entry);
        put(f, "\n");
    }
    for (int i = n_entry; i < qn_dims_symbol_count(p->dims); i++) {
        line(f);
        put(f, "bound ");
        qn_print_symbols(&f->to, p->dims, i, i + 1);
        PUTF(f, " limit %s\n", dim(f, p->limits[i - n_entry]));
    }
}

static void print_program(printer *f)
{
    const qn_program *p = f->p;
    put(f, "program @");
    if (qn_name_is_plain(p->name))
        put(f, p->name);
    else
        qn_strbuf_quote(&f->to.out, p->name);
    put(f, " {\n");
    print_symbols(f);
    for (int i = 0; i < p->n_nodes; i++) {
        line(f);
        PUTF(f, "node %d", i);
        print_name(f, p->node_names[i]);
        put(f, "\n");
    }
    for (int i = 0; i < p->n_io; i++)
        print_io(f, i);
    for (int i = 0; i < p->n_buffers; i++)
        print_buffer(f, i);
    line(f);
    PUTF(f, "arena %s bound %s weights %" PRId64 "\n", dim(f, p->arena_bytes), dim(f, p->arena_lower_bound),
         p->weights_bytes);
    print_steps(f, &p->steps);
    put(f, "}\n");
}

const char *qn_program_print_as(const qn_program *p, const qn_print_options *options, bool kernels,
                                qn_arena *arena)
{
    printer f = { .p = p, .to = { .out = { .arena = arena }, .options = options }, .indent = 1 };
    print_program(&f);
    for (int i = 0; kernels && i < p->n_kernels; i++)
        PUTF(&f, "\n%s", qn_kernel_print(p->kernels[i], arena));
    qn_print_data(&f.to);
    return qn_strbuf_text(&f.to.out);
}

const char *qn_program_print(const qn_program *p, qn_arena *arena)
{
    return qn_program_print_as(
        p, &(qn_print_options){ .inline_elements = QN_PRINT_INLINE_ELEMENTS, .data = true }, true, arena);
}
