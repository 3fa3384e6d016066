/* Views of a lowered model as text and JSON: see inspect.h. Pictures are in inspect_draw.c. */
#include <inttypes.h>
#include <string.h>

#include "driver/inspect.h"
#include "driver/output.h"

static const char *const role_names[] = { "input", "output", "state" };

/* "4.9 MB"; the expression where it depends on symbols. */
static const char *size_text(const qn_view *v, qn_dim bytes)
{
    if (!qn_dim_is_const(bytes))
        return qn_arena_printf(v->arena, "%s bytes", qn_dim_print(bytes, v->arena));
    double n = (double)bytes->value;
    return n >= 1e6   ? qn_arena_printf(v->arena, "%.1f MB", n * 1e-6)
           : n >= 1e3 ? qn_arena_printf(v->arena, "%.1f kB", n * 1e-3)
                      : qn_arena_printf(v->arena, "%.0f bytes", n);
}

static const char *place_text(const qn_view *v, const qn_program *p, int buffer)
{
    const qn_pbuffer *b = &p->buffers[buffer];
    return qn_arena_printf(v->arena, "%s%s", b->place == QN_PLACE_WEIGHTS ? "=" : "",
                           b->name && b->name[0] ? b->name : qn_arena_printf(v->arena, "%%%d", buffer));
}

static void text_steps(const qn_view *v, const qn_program *p, const qn_steps *steps, int depth, FILE *to)
{
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *s = &steps->items[i];
        fprintf(to, "  %*s", 2 * depth, "");
        switch (s->kind) {
        case QN_STEP_KERNEL:
            fprintf(to, "%-48s x %s\n", s->name ? s->name : p->kernels[s->kernel]->name,
                    qn_dim_print(s->tasks, v->arena));
            break;
        case QN_STEP_LIBRARY:
            fprintf(to, "%-48s x %s\n", s->name ? s->name : qn_libraries[s->library].name,
                    qn_dim_print(s->tasks, v->arena));
            break;
        case QN_STEP_COPY:
            fprintf(to, "copy %s to %s\n", place_text(v, p, s->buffers[0]), place_text(v, p, s->buffers[1]));
            break;
        case QN_STEP_LOOP:
            fprintf(to, "loop %s%s\n", s->count ? qn_dim_print(s->count, v->arena) : "while",
                    s->count && s->condition >= 0 ? " times at most" : "");
            text_steps(v, p, &s->test, depth + 1, to);
            text_steps(v, p, &s->body, depth + 1, to);
            break;
        case QN_STEP_IF:
            fprintf(to, "if %s\n", place_text(v, p, s->condition));
            text_steps(v, p, &s->body, depth + 1, to);
            if (s->other.n) {
                fprintf(to, "  %*selse\n", 2 * depth, "");
                text_steps(v, p, &s->other, depth + 1, to);
            }
            break;
        case QN_STEP_SWAP: fputs("swap\n", to); break;
        case QN_STEP_COLLECTIVE:
            fprintf(to, "%s%s\n", s->starts ? "start " : "", s->name ? s->name : qn_ops[s->collective].name);
            break;
        case QN_STEP_TEXT: fprintf(to, "%s\n", s->name ? s->name : qn_ops[s->text].name); break;
        case QN_STEP_WAIT: fprintf(to, "%s\n", s->name ? s->name : "wait"); break;
        case QN_STEP_CHECK: fprintf(to, "check %s\n", p->node_names[s->node]); break;
        case QN_STEP_BIND: fprintf(to, "count %s\n", place_text(v, p, s->buffers[0])); break;
        }
    }
}

void qn_view_text(const qn_view *v, FILE *to)
{
    const qn_compiled *c = v->compiled;
    fprintf(to, "%s for %s\n", v->name, qn_machine_name(&c->machine, v->arena));
    for (int i = 0; i < c->n_programs; i++) {
        const qn_program *p = c->programs[i];
        fprintf(to, "\nentry %s\n", p->name);
        for (int k = 0; k < p->n_io; k++)
            fprintf(to, "  %-6s %s %s\n", role_names[p->io[k].role], p->io[k].name,
                    qn_type_print(&p->io[k].type, v->arena));
        for (int k = 0; k < qn_dims_symbol_count(p->dims); k++) {
            qn_dim symbol = qn_dims_symbol_at(p->dims, k);
            fprintf(to, "  %-6s %s = %" PRId64 "..%" PRId64 "%s\n", "dim", symbol->name, symbol->min,
                    symbol->max, k < p->n_entry_symbols ? "" : ", found by the run");
        }
        fprintf(to, "%d ops, %d after the passes; %d different kernels", v->ops_before[i], v->ops_after[i],
                p->n_kernels);
        if (c->flops[i] > 0)
            fprintf(to, "; %.3g GFLOP", 1e-9 * c->flops[i]);
        fprintf(to, "\nworkspace %s, lower bound %s\n", size_text(v, p->arena_bytes),
                size_text(v, p->arena_lower_bound));
        const qn_remat_report *plan = &c->plans[i];
        if (plan->n_again > 0)
            fprintf(to, "%.1f MB without the %d ops that are there twice: %.3g GFLOP, %.1f %% more\n",
                    1e-6 * (double)plan->bytes_before, plan->n_again, 1e-9 * plan->flops_again,
                    100 * plan->flops_again / plan->flops);
        fputs("steps (x tasks):\n", to);
        text_steps(v, p, &p->steps, 0, to);
    }
    fprintf(to, "\nweights %.1f MB in %d tensors\n", 1e-6 * (double)c->weights.bytes, c->weights.n);
}

/* ---- JSON ---- */

static void json_dim(qn_dim d, qn_arena *arena, FILE *to)
{
    if (qn_dim_is_const(d))
        fprintf(to, "%" PRId64, d->value);
    else
        qn_json_string(qn_dim_print(d, arena), to);
}

void qn_json_type(const qn_type *type, qn_arena *arena, FILE *to)
{
    fprintf(to, "\"dtype\": \"%s\", \"dims\": [", qn_dtype_name(type->dtype));
    for (int i = 0; i < type->rank; i++) {
        fputs(i ? ", " : "", to);
        json_dim(type->dims[i], arena, to);
    }
    putc(']', to);
}

static void json_buffers(const qn_view *v, const qn_program *p, FILE *to)
{
    static const char *const places[] = { "arena", "io", "weights", "view", "slot" };
    fputs("  \"buffers\": [", to);
    for (int i = 0; i < p->n_buffers; i++) {
        const qn_pbuffer *b = &p->buffers[i];
        fprintf(to, "%s\n    {\"name\": ", i ? "," : "");
        qn_json_string(b->name, to);
        fprintf(to, ", \"place\": \"%s\", \"dtype\": \"%s\", \"bytes\": ", places[b->place],
                qn_dtype_name(b->dtype));
        json_dim(qn_program_buffer_bytes(p, i), v->arena, to);
        if (b->place == QN_PLACE_IO)
            fprintf(to, ", \"io\": %d", b->io);
        if (b->place == QN_PLACE_ARENA && b->offset) {
            fputs(", \"offset\": ", to);
            json_dim(b->offset, v->arena, to);
            fprintf(to, ", \"first\": %d, \"last\": %d", b->first, b->last);
        }
        putc('}', to);
    }
    fputs("],\n", to);
}

static void json_steps(const qn_view *v, const qn_program *p, const qn_steps *steps, FILE *to)
{
    static const char *const kinds[] = {
        [QN_STEP_KERNEL] = "kernel", [QN_STEP_LIBRARY] = "library", [QN_STEP_COPY] = "copy",
        [QN_STEP_LOOP] = "loop",     [QN_STEP_IF] = "if",           [QN_STEP_SWAP] = "swap",
        [QN_STEP_BIND] = "bind",     [QN_STEP_CHECK] = "check",     [QN_STEP_COLLECTIVE] = "collective",
        [QN_STEP_TEXT] = "text",     [QN_STEP_WAIT] = "wait",
    };
    putc('[', to);
    for (size_t i = 0; i < steps->n; i++) {
        const qn_step *s = &steps->items[i];
        fprintf(to, "%s\n    {\"kind\": \"%s\", \"number\": %d", i ? "," : "", kinds[s->kind], s->number);
        if (s->kind == QN_STEP_KERNEL) {
            fputs(", \"name\": ", to);
            qn_json_string(s->name ? s->name : p->kernels[s->kernel]->name, to);
            fprintf(to, ", \"kernel\": %d, \"tasks\": ", s->kernel);
            json_dim(s->tasks, v->arena, to);
        }
        if (s->kind == QN_STEP_LIBRARY) {
            fprintf(to, ", \"function\": \"%s\", \"tasks\": ", qn_libraries[s->library].name);
            json_dim(s->tasks, v->arena, to);
        }
        fputs(", \"buffers\": [", to);
        for (int k = 0; k < s->n_buffers; k++)
            fprintf(to, "%s%d", k ? ", " : "", s->buffers[k]);
        putc(']', to);
        if (s->count) {
            fputs(", \"count\": ", to);
            json_dim(s->count, v->arena, to);
        }
        const struct {
            const char *name;
            const qn_steps *steps;
        } inside[] = { { "test", &s->test }, { "body", &s->body }, { "other", &s->other } };
        for (int k = 0; k < 3; k++)
            if (inside[k].steps->n) {
                fprintf(to, ", \"%s\": ", inside[k].name);
                json_steps(v, p, inside[k].steps, to);
            }
        putc('}', to);
    }
    putc(']', to);
}

static void json_entry(const qn_view *v, int i, FILE *to)
{
    const qn_program *p = v->compiled->programs[i];
    fputs("\n {\"name\": ", to);
    qn_json_string(p->name, to);
    fprintf(to, ", \"ops\": %d, \"ops_after_passes\": %d, \"n_kernels\": %d, \"flops\": %.17g,\n  \"io\": [",
            v->ops_before[i], v->ops_after[i], p->n_kernels, v->compiled->flops[i]);
    for (int k = 0; k < p->n_io; k++) {
        fprintf(to, "%s\n    {\"name\": ", k ? "," : "");
        qn_json_string(p->io[k].name, to);
        fprintf(to, ", \"role\": \"%s\", ", role_names[p->io[k].role]);
        qn_json_type(&p->io[k].type, v->arena, to);
        putc('}', to);
    }
    fputs("],\n  \"symbols\": [", to);
    for (int k = 0; k < qn_dims_symbol_count(p->dims); k++) {
        qn_dim symbol = qn_dims_symbol_at(p->dims, k);
        fputs(k ? ", {\"name\": " : "{\"name\": ", to);
        qn_json_string(symbol->name, to);
        fprintf(to, ", \"min\": %" PRId64 ", \"max\": %" PRId64 ", \"decided\": %s}", symbol->min,
                symbol->max, k < p->n_entry_symbols ? "false" : "true");
    }
    fputs("],\n  \"workspace_bytes\": ", to);
    json_dim(p->arena_bytes, v->arena, to);
    fputs(", \"workspace_lower_bound\": ", to);
    json_dim(p->arena_lower_bound, v->arena, to);
    fprintf(to, ",\n  \"workspace_without_remat\": %" PRId64 ", \"flops_again\": %.17g,\n",
            v->compiled->plans[i].bytes_before, v->compiled->plans[i].flops_again);
    json_buffers(v, p, to);
    fputs("  \"steps\": ", to);
    json_steps(v, p, &p->steps, to);
    putc('}', to);
}

void qn_view_json(const qn_view *v, FILE *to)
{
    fputs("{\"model\": ", to);
    qn_json_string(v->name, to);
    fputs(", \"target\": ", to);
    qn_json_string(qn_machine_name(&v->compiled->machine, v->arena), to);
    fprintf(to, ", \"weights_bytes\": %" PRId64 ", \"entries\": [", v->compiled->weights.bytes);
    for (int i = 0; i < v->compiled->n_programs; i++) {
        if (i)
            putc(',', to);
        json_entry(v, i, to);
    }
    fputs("]}\n", to);
}
