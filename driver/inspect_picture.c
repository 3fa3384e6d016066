/* The picture of `quern inspect --svg`: the graph with its fused kernels as Graphviz lays it out, and below it the memory
 * plan, as one SVG file. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "driver/graphviz.h"
#include "driver/inspect.h"

static void svg_text(const char *text, FILE *to)
{
    for (; text && *text; text++)
        if (*text == '<')
            fputs("&lt;", to);
        else if (*text == '&')
            fputs("&amp;", to);
        else
            putc((unsigned char)*text < 0x20 ? ' ' : *text, to);
}

/* ---- the memory plan ---- */

enum { PLAN_WIDTH = 1100, PLAN_HEIGHT = 480, LEFT = 60, TOP = 80, NAMES = 230 };

typedef struct plan {
    const qn_view *v;
    const qn_program *p;
    FILE *to;
    int n_steps;        /* that something lives in */
    double total;       /* bytes */
    const char **names; /* by step; NULL: not one that does something by itself */
} plan;

static double step_x(const plan *plan, int step)
{
    return LEFT + (double)PLAN_WIDTH * step / plan->n_steps;
}

static void name_steps(plan *plan, const qn_steps *steps)
{
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *s = &steps->items[i];
        if (s->number < plan->n_steps)
            plan->names[s->number] = s->kind == QN_STEP_KERNEL
                                         ? s->name ? s->name : plan->p->kernels[s->kernel]->name
                                     : s->kind == QN_STEP_LIBRARY ? s->name
                                     : s->kind == QN_STEP_COPY    ? "copy"
                                     : s->kind == QN_STEP_LOOP    ? "loop"
                                     : s->kind == QN_STEP_IF      ? "if"
                                                                  : NULL;
        name_steps(plan, &s->test);
        name_steps(plan, &s->body);
        name_steps(plan, &s->other);
    }
}

static const char *size_text(const plan *plan, double bytes)
{
    return bytes >= 1e6   ? qn_arena_printf(plan->v->arena, "%.1f MB", bytes * 1e-6)
           : bytes >= 1e3 ? qn_arena_printf(plan->v->arena, "%.1f kB", bytes * 1e-3)
                          : qn_arena_printf(plan->v->arena, "%.0f bytes", bytes);
}

/* The first `most` bytes, or fewer where that would cut a character; "…" behind where something is missing. */
static const char *shorten(const plan *plan, const char *name, int most)
{
    if ((int)strlen(name) <= most)
        return name;
    int n = most - 1;
    while (n > 0 && ((unsigned char)name[n] & 0xc0) == 0x80)
        n--;
    return qn_arena_printf(plan->v->arena, "%.*s…", n, name);
}

/* As much of the name as fits, and the size below it where there is room. */
static void draw_buffer_text(const plan *plan, const char *name, double bytes, double x, double y, double w,
                             double h)
{
    const int fit = (int)((w - 6) / 6.2);
    if (fit < 4 || h < 12)
        return;
    fprintf(plan->to, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"10\">", x + 3, y + 11);
    svg_text(shorten(plan, name, fit), plan->to);
    fputs("</text>\n", plan->to);
    if (h >= 25 && fit >= 9)
        fprintf(plan->to, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"9\" fill=\"#444\">%s</text>\n", x + 3,
                y + 22, size_text(plan, bytes));
}

/* A pale colour, "#f5cccc", of the hue in degrees: many readers of SVG know no hsl(). */
static const char *pale(const plan *plan, int hue)
{
    int rgb[3];
    for (int i = 0; i < 3; i++) {
        const int around = abs(hue - 120 * i), away = around < 180 ? around : 360 - around;
        const int part = away < 60 ? 60 : away < 120 ? 120 - away : 0; /* of 60 */
        rgb[i] = 182 + part * 55 / 60;
    }
    return qn_arena_printf(plan->v->arena, "#%02x%02x%02x", (unsigned)rgb[0], (unsigned)rgb[1],
                           (unsigned)rgb[2]);
}

static void draw_buffer(const plan *plan, int i)
{
    const qn_pbuffer *b = &plan->p->buffers[i];
    const qn_dim bytes = qn_program_buffer_bytes(plan->p, i);
    if (b->place != QN_PLACE_ARENA || !b->offset || !qn_dim_is_const(b->offset) || !qn_dim_is_const(bytes))
        return;
    const char *name = b->name && b->name[0] ? b->name : qn_arena_printf(plan->v->arena, "%%%d", i);
    const double x = step_x(plan, b->first), w = step_x(plan, b->last + 1) - x;
    const double y = TOP + PLAN_HEIGHT * (double)b->offset->value / plan->total,
                 h = PLAN_HEIGHT * (double)bytes->value / plan->total;
    fprintf(plan->to, "<g><title>%%%d ", i);
    svg_text(name, plan->to);
    fprintf(plan->to,
            ": %" PRId64 " bytes at %" PRId64
            ", steps %d to %d</title><rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" "
            "height=\"%.1f\" fill=\"%s\" stroke=\"#888\" stroke-width=\"0.5\"/>\n",
            bytes->value, b->offset->value, b->first, b->last, x, y, w, h > 0.5 ? h : 0.5,
            pale(plan, i * 137 % 360));
    draw_buffer_text(plan, name, (double)bytes->value, x, y, w, h);
    fputs("</g>\n", plan->to);
}

/* Numbers below the plan, about forty at most; names where every step has room for one. */
static void draw_steps(const plan *plan)
{
    const int every = (plan->n_steps + 39) / 40;
    const double y = TOP + PLAN_HEIGHT;
    for (int i = 0; i < plan->n_steps; i++) {
        const double x = (step_x(plan, i) + step_x(plan, i + 1)) / 2;
        if (i % every == 0)
            fprintf(plan->to,
                    "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\" font-size=\"10\">%d</text>\n", x,
                    y + 14, i);
        if (!plan->names[i] || every > 1)
            continue;
        fprintf(plan->to,
                "<text transform=\"translate(%.1f,%.1f) rotate(40)\" font-size=\"10\" fill=\"#333\">", x - 3,
                y + 26);
        svg_text(shorten(plan, plan->names[i], 48), plan->to);
        fputs("</text>\n", plan->to);
    }
}

enum { PLAN_OUTER_WIDTH = LEFT + PLAN_WIDTH + NAMES };

/* The rectangles, within a frame. */
static void draw_chart(const plan *plan)
{
    fprintf(plan->to,
            "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"#fafafa\" stroke=\"#888\"/>\n"
            "<text x=\"%d\" y=\"%d\" font-size=\"10\" text-anchor=\"end\">0</text>\n"
            "<text x=\"%d\" y=\"%d\" font-size=\"10\" text-anchor=\"end\">%s</text>\n",
            LEFT, TOP, PLAN_WIDTH, PLAN_HEIGHT, LEFT - 4, TOP + 10, LEFT - 4, TOP + PLAN_HEIGHT,
            size_text(plan, plan->total));
    for (int i = 0; i < plan->p->n_buffers; i++)
        draw_buffer(plan, i);
    draw_steps(plan);
}

static bool has_chart(const qn_program *p)
{
    return qn_dim_is_const(p->arena_bytes) && p->arena_bytes->value > 0;
}

/* Its height, in pixels. */
static double plan_height(const qn_program *p)
{
    return has_chart(p) ? TOP + PLAN_HEIGHT + NAMES : TOP;
}

static void draw_plan(const qn_view *v, double y, FILE *to)
{
    const qn_program *p = v->compiled->programs[0];
    plan plan = { .v = v, .p = p, .to = to, .n_steps = 1 };
    for (int i = 0; i < p->n_buffers; i++)
        if (p->buffers[i].place == QN_PLACE_ARENA && p->buffers[i].last >= plan.n_steps)
            plan.n_steps = p->buffers[i].last + 1;
    plan.names = QN_NEW_ARRAY(v->arena, const char *, plan.n_steps);
    name_steps(&plan, &p->steps);
    fprintf(to,
            "<svg x=\"0\" y=\"%.0f\" width=\"%d\" height=\"%.0f\" font-family=\"sans-serif\">\n"
            "<text x=\"%d\" y=\"30\" font-size=\"16\">Memory plan</text>\n"
            "<text x=\"%d\" y=\"50\" font-size=\"12\">workspace %s bytes, lower bound %s",
            y, PLAN_OUTER_WIDTH, plan_height(p), LEFT, LEFT, qn_dim_print(p->arena_bytes, v->arena),
            qn_dim_print(p->arena_lower_bound, v->arena));
    if (has_chart(p)) {
        fputs("; steps to the right, offsets downwards</text>\n", to);
        plan.total = (double)p->arena_bytes->value;
        draw_chart(&plan);
    } else {
        fputs(qn_dim_is_const(p->arena_bytes)
                  ? "</text>\n"
                  : "; the plan depends on dimensions: fix them with --dim NAME=N</text>\n",
              to);
    }
    fputs("</svg>\n", to);
}

/* ---- all of it ---- */

/* The number behind `name` in the first tag of Graphviz's drawing, which is in points; as pixels. */
static double attribute(const char *svg, const char *name)
{
    const char *at = strstr(svg, name);
    return at ? strtod(at + strlen(name), NULL) * 4 / 3 : 0;
}

qn_status qn_view_svg(const qn_view *v, FILE *to, qn_diags *diags)
{
    enum { HEADING = 60 };
    FILE *dot = NULL;
    char *drawing = NULL;
    qn_status status = qn_temporary_file(&dot, diags);
    if (!status)
        status = qn_view_graph(v, dot, diags);
    if (!status)
        status = qn_graphviz_svg(dot, v->arena, &drawing, diags);
    if (dot)
        fclose(dot);
    QN_TRY(status);
    const char *svg = strstr(drawing, "<svg "); /* behind it: its attributes */
    if (!svg)
        return qn_error(diags, QUERN_ERROR_IO, NULL, "dot has drawn no SVG");
    const double width = attribute(svg, " width=\""), height = attribute(svg, " height=\"");
    fprintf(to,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" xmlns:xlink=\"http://www.w3.org/1999/xlink\" "
            "width=\"%.0f\" height=\"%.0f\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n"
            "<g font-family=\"sans-serif\"><text x=\"%d\" y=\"30\" font-size=\"16\">",
            width > PLAN_OUTER_WIDTH ? width : PLAN_OUTER_WIDTH,
            HEADING + height + plan_height(v->compiled->programs[0]), LEFT);
    svg_text(v->name, to);
    fprintf(
        to,
        "</text>\n<text x=\"%d\" y=\"50\" font-size=\"12\">the graph after the passes: a frame is a fused "
        "kernel; numbers are the order they run in</text></g>\n<svg x=\"%.0f\" y=\"%d\" %s\n",
        LEFT, width < PLAN_WIDTH ? LEFT + (PLAN_WIDTH - width) / 2 : 0, HEADING, svg + strlen("<svg "));
    draw_plan(v, HEADING + height, to);
    fputs("</svg>\n", to);
    return QUERN_OK;
}
