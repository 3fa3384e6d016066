/* The steps of a lowered model and the buffers between them, for Graphviz. Pictures are in inspect_picture.c. */
#include "driver/inspect.h"

/* ---- DOT ---- */

void qn_dot_label(const char *text, char line_end, FILE *to)
{
    putc('"', to);
    for (; *text; text++)
        if (*text == '"' || *text == '\\')
            fprintf(to, "\\%c", *text);
        else if (*text == '\n')
            fprintf(to, "\\%c", line_end);
        else
            putc(*text, to);
    putc('"', to);
}

typedef struct drawing {
    const qn_program *p;
    FILE *to;
    int *writer; /* by root buffer: the step that wrote it last; -1: none yet */
    qn_arena *arena;
} drawing;

static void dot_edges(drawing *d, const qn_step *s)
{
    for (int i = 0; i < s->n_buffers; i++) {
        int root = qn_program_root(d->p, s->buffers[i]);
        const qn_pbuffer *b = &d->p->buffers[root];
        if (!qn_step_reads(d->p, s, i) || b->place == QN_PLACE_WEIGHTS)
            continue;
        if (d->writer[root] >= 0)
            fprintf(d->to, "  s%d -> s%d [label=", d->writer[root], s->number);
        else if (b->place == QN_PLACE_IO)
            fprintf(d->to, "  io%d -> s%d [label=", b->io, s->number);
        else
            continue;
        qn_dot_label(qn_arena_printf(d->arena, "%s x %s", qn_dtype_name(b->dtype),
                                     qn_dim_print(b->elements, d->arena)),
                     'n', d->to);
        fputs("];\n", d->to);
    }
    for (int i = 0; i < s->n_buffers; i++)
        if (qn_step_writes(d->p, s, i))
            d->writer[qn_program_root(d->p, s->buffers[i])] = s->number;
}

static void dot_steps(drawing *d, const qn_steps *steps)
{
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *s = &steps->items[i];
        if (s->kind == QN_STEP_KERNEL || s->kind == QN_STEP_LIBRARY || s->kind == QN_STEP_COPY) {
            fprintf(d->to, "  s%d [label=", s->number);
            qn_dot_label(s->kind == QN_STEP_COPY ? "copy"
                         : s->name               ? s->name
                                                 : d->p->kernels[s->kernel]->name,
                         'n', d->to);
            fputs("];\n", d->to);
            dot_edges(d, s);
            continue;
        }
        bool inside = s->kind == QN_STEP_LOOP || s->kind == QN_STEP_IF;
        if (inside) {
            fprintf(d->to, "  subgraph cluster_%d { label=", s->number);
            qn_dot_label(s->kind == QN_STEP_IF ? "if"
                         : s->count ? qn_arena_printf(d->arena, "loop %s", qn_dim_print(s->count, d->arena))
                                    : "loop",
                         'n', d->to);
            fputs(";\n", d->to);
        }
        dot_steps(d, &s->test);
        dot_steps(d, &s->body);
        dot_steps(d, &s->other);
        if (inside)
            fputs("  }\n", d->to);
    }
}

void qn_view_dot(const qn_view *v, FILE *to)
{
    const qn_program *p = v->compiled->programs[0];
    drawing d = { .p = p, .to = to, .writer = QN_NEW_ARRAY(v->arena, int, p->n_buffers), .arena = v->arena };
    for (int i = 0; i < p->n_buffers; i++)
        d.writer[i] = -1;
    fputs("digraph model {\n  node [shape=box, fontname=\"sans-serif\", fontsize=10];\n"
          "  edge [fontname=\"sans-serif\", fontsize=8];\n",
          to);
    for (int i = 0; i < p->n_io; i++) {
        fprintf(to, "  io%d [shape=ellipse, label=", i);
        qn_dot_label(
            qn_arena_printf(v->arena, "%s %s", p->io[i].name, qn_type_print(&p->io[i].type, v->arena)), 'n',
            to);
        fputs("];\n", to);
    }
    dot_steps(&d, &p->steps);
    for (int i = 0; i < p->n_buffers; i++)
        if (p->buffers[i].place == QN_PLACE_IO && p->io[p->buffers[i].io].role != QUERN_INPUT &&
            d.writer[i] >= 0)
            fprintf(to, "  s%d -> io%d;\n", d.writer[i], p->buffers[i].io);
    fputs("}\n", to);
}
