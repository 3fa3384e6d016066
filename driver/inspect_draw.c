/* Pictures of a lowered model: its steps for Graphviz, its memory plan as SVG. */
#include <inttypes.h>
#include <string.h>

#include "driver/inspect.h"

/* ---- DOT ---- */

static void dot_label(const char *text, FILE *to)
{
    putc('"', to);
    for (; *text; text++)
        if (*text == '"' || *text == '\\')
            fprintf(to, "\\%c", *text);
        else
            putc(*text == '\n' ? ' ' : *text, to);
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
        dot_label(qn_arena_printf(d->arena, "%s x %s", qn_dtype_name(b->dtype),
                                  qn_dim_print(b->elements, d->arena)),
                  d->to);
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
            dot_label(s->kind == QN_STEP_COPY ? "copy"
                      : s->name               ? s->name
                                              : d->p->kernels[s->kernel]->name,
                      d->to);
            fputs("];\n", d->to);
            dot_edges(d, s);
            continue;
        }
        bool inside = s->kind == QN_STEP_LOOP || s->kind == QN_STEP_IF;
        if (inside) {
            fprintf(d->to, "  subgraph cluster_%d { label=", s->number);
            dot_label(s->kind == QN_STEP_IF ? "if"
                      : s->count ? qn_arena_printf(d->arena, "loop %s", qn_dim_print(s->count, d->arena))
                                 : "loop",
                      d->to);
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
        dot_label(qn_arena_printf(v->arena, "%s %s", p->io[i].name, qn_type_print(&p->io[i].type, v->arena)),
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

/* ---- SVG ---- */

static void svg_text(const char *text, FILE *to)
{
    for (; text && *text; text++)
        if (*text == '<')
            fputs("&lt;", to);
        else if (*text == '&')
            fputs("&amp;", to);
        else
            putc(*text, to);
}

void qn_view_svg(const qn_view *v, FILE *to)
{
    enum { WIDTH = 1200, HEIGHT = 700, MARGIN = 60 };
    const qn_program *p = v->compiled->programs[0];
    int last = 1;
    for (int i = 0; i < p->n_buffers; i++)
        if (p->buffers[i].place == QN_PLACE_ARENA && p->buffers[i].last + 1 > last)
            last = p->buffers[i].last + 1;
    bool constant = qn_dim_is_const(p->arena_bytes);
    double total = constant && p->arena_bytes->value ? (double)p->arena_bytes->value : 1;
    fprintf(to,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" "
            "font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n<text x=\"%d\" "
            "y=\"30\">",
            WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN, MARGIN);
    svg_text(v->name, to);
    fprintf(to, ": workspace %s bytes, lower bound %s; steps to the right, offsets downwards</text>\n",
            qn_dim_print(p->arena_bytes, v->arena), qn_dim_print(p->arena_lower_bound, v->arena));
    for (int i = 0; i < p->n_buffers; i++) {
        const qn_pbuffer *b = &p->buffers[i];
        qn_dim bytes = qn_program_buffer_bytes(p, i);
        if (b->place != QN_PLACE_ARENA || !b->offset || !qn_dim_is_const(b->offset) ||
            !qn_dim_is_const(bytes))
            continue;
        double x = MARGIN + (double)WIDTH * b->first / last,
               w = (double)WIDTH * (b->last - b->first + 1) / last;
        double y = MARGIN + HEIGHT * (double)b->offset->value / total,
               h = HEIGHT * (double)bytes->value / total;
        fprintf(to,
                "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"hsl(%d, 60%%, 75%%)\" "
                "stroke=\"white\" stroke-width=\"0.5\"><title>",
                x, y, w, h > 0.5 ? h : 0.5, i * 137 % 360);
        svg_text(b->name, to);
        fprintf(to, ": %" PRId64 " bytes at %" PRId64 ", steps %d to %d</title></rect>\n", bytes->value,
                b->offset->value, b->first, b->last);
    }
    if (!constant)
        fprintf(to,
                "<text x=\"%d\" y=\"50\">the plan depends on dimensions: fix them with --dim NAME=N</text>\n",
                MARGIN);
    fputs("</svg>\n", to);
}
