/* Writing compiled models to files: an object of one kind or another and its header, or text. Everything is written under
 * temporary names first; nothing is left when one of the files cannot be. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/llvm/choice.h"
#include "backends/llvm/link.h"
#include "backends/nvptx/ptx.h"
#include "driver/compile.h"
#include "driver/header.h"
#include "driver/output.h"
#include "driver/tune.h"
#include "ir/print.h"
#include "runtime/model.h"

#if defined(__x86_64__)
#define QN_HOST_TRIPLE "x86_64"
#elif defined(__aarch64__)
#define QN_HOST_TRIPLE "aarch64"
#else
#define QN_HOST_TRIPLE "this machine"
#endif

typedef enum emit_form { FORM_BINARY, FORM_CODE, FORM_PTX, FORM_MODULE } emit_form;

static const struct {
    const char *name, *ending;
    emit_form form;
    qn_link_kind link; /* BINARY */
    qn_emit emit;      /* CODE */
} kinds[] = {
    { "so", ".so", FORM_BINARY, QN_LINK_SHARED, QN_EMIT_OBJECT },
    { "a", ".a", FORM_BINARY, QN_LINK_ARCHIVE, QN_EMIT_OBJECT },
    { "o", ".o", FORM_BINARY, QN_LINK_OBJECT, QN_EMIT_OBJECT },
    { "llvm", ".ll", FORM_CODE, 0, QN_EMIT_LLVM },
    { "asm", ".s", FORM_CODE, 0, QN_EMIT_ASSEMBLY },
    { "ptx", ".ptx", FORM_PTX, 0, QN_EMIT_ASSEMBLY },
    { "qn", ".qn", FORM_MODULE, 0, QN_EMIT_OBJECT },
};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

/* Weights above this go to a side file unless they are asked for inside, those above the other cannot be inside: code
 * reaches them with 32-bit offsets. */
#define SIDE_BYTES ((int64_t)1 << 30)
#define MOST_INSIDE_BYTES ((int64_t)2000 << 20)

/* The model's code for one CPU. */
typedef struct variant {
    qn_settings settings;
    qn_module *module; /* its own, but for the first */
    qn_compiled compiled;
    const char *cpu;
    int level; /* of the CPU; -1: there is no such in lists */
} variant;

typedef struct emission {
    const qn_settings *settings;
    const quern_emit_options *options;
    const char *path, *prefix, *source;
    bool inside; /* weights */
    qn_arena *arena;
    qn_diags *diags;
    int n_variants;
    variant *variants;
    qn_weights weights; /* of all variants, each contents once */
} emission;

/* ---- what is asked for ---- */

const char *qn_emit_kind(const char *path)
{
    const size_t length = strlen(path);
    for (int i = 0; i < N_KINDS; i++) {
        const size_t n = strlen(kinds[i].ending);
        if (length > n && strcmp(path + length - n, kinds[i].ending) == 0)
            return kinds[i].name;
    }
    return NULL;
}

static qn_status find_kind(const emission *e, int *out_kind)
{
    const bool gpu = e->settings->backend == &qn_backend_nvptx;
    const char *name = e->options->emit ? e->options->emit : qn_emit_kind(e->path);
    if (!name)
        name = gpu ? "ptx" : "so";
    for (int i = 0; i < N_KINDS; i++)
        if (strcmp(kinds[i].name, name) == 0) {
            if (kinds[i].form != FORM_MODULE && gpu != (kinds[i].form == FORM_PTX))
                return qn_error(e->diags, QUERN_ERROR_ARGUMENT, NULL,
                                gpu ? "'%s' is code for a CPU: for a GPU it is ptx"
                                    : "'%s' is code for a GPU: --target nvptx64",
                                name);
            *out_kind = i;
            return QUERN_OK;
        }
    return qn_error(e->diags, QUERN_ERROR_ARGUMENT, NULL,
                    "cannot emit '%s': so, a, o, llvm, asm, ptx and qn are what there is", name);
}

static qn_status find_prefix(emission *e)
{
    char derived[128];
    qn_prefix_from_path(e->path, derived, sizeof derived);
    e->prefix = e->options->prefix ? e->options->prefix : qn_arena_strdup(e->arena, derived);
    bool good = e->prefix[0] && !isdigit((unsigned char)e->prefix[0]);
    for (const char *c = e->prefix; *c; c++)
        good &= isalnum((unsigned char)*c) || *c == '_';
    if (!good)
        return qn_error(e->diags, QUERN_ERROR_ARGUMENT, NULL, "the prefix '%s' is no C identifier",
                        e->prefix);
    return QUERN_OK;
}

static qn_status place_weights(emission *e)
{
    const char *where = e->options->weights;
    int64_t bytes = e->weights.bytes;
    if (where && strcmp(where, "embed") != 0 && strcmp(where, "side") != 0)
        return qn_error(e->diags, QUERN_ERROR_ARGUMENT, NULL, "weights go to 'embed' or 'side', not '%s'",
                        where);
    e->inside = where ? strcmp(where, "embed") == 0 : bytes <= SIDE_BYTES;
    if (e->inside && bytes > MOST_INSIDE_BYTES)
        return qn_error(e->diags, QUERN_ERROR_UNSUPPORTED, NULL,
                        "%lld bytes of weights are too many for one object: let them go to a side file",
                        (long long)bytes);
    if (!e->inside)
        qn_weights_hash(&e->weights);
    for (int i = 0; i < e->n_variants; i++)
        e->variants[i].compiled.weights = e->weights;
    return QUERN_OK;
}

static const char *triple_of(const emission *e)
{
    return e->settings->target.triple ? e->settings->target.triple : QN_HOST_TRIPLE;
}

/* One for each CPU of a list. */
static qn_status find_variants(emission *e, bool binary)
{
    const char *cpus = e->settings->target.cpu ? e->settings->target.cpu : "";
    const bool list = strchr(cpus, ',') != NULL;
    e->n_variants = 1;
    for (const char *c = cpus; *c; c++)
        e->n_variants += *c == ',';
    e->variants = QN_NEW_ARRAY(e->arena, variant, e->n_variants);
    if (list && !binary)
        return qn_error(e->diags, QUERN_ERROR_ARGUMENT, NULL,
                        "a list of CPUs ('%s') is for shared objects, archives and objects", cpus);
    for (int i = 0; i < e->n_variants; i++) {
        const size_t length = strcspn(cpus, ",");
        const char *name = qn_arena_printf(e->arena, "%.*s", (int)length, cpus);
        variant *v = &e->variants[i];
        qn_target level = e->settings->target;
        *v = (variant){ .settings = *e->settings,
                        .cpu = *name ? name : "native",
                        .level = qn_llvm_level(e->settings->target.triple, name, &level) };
        if (list && (v->level < 0 || (i > 0 && v->level <= v[-1].level)))
            return qn_error(e->diags, QUERN_ERROR_ARGUMENT, NULL,
                            "a list of CPUs cannot have '%s' there: it takes some of %s, in this order", name,
                            qn_llvm_level_names(e->settings->target.triple));
        if (list)
            v->settings.target = level;
        cpus += length + (cpus[length] == ',');
    }
    return QUERN_OK;
}

/* Beside the output, with its ending replaced; NULL for none. */
static const char *header_path(const emission *e)
{
    if (e->options->header)
        return e->options->header[0] ? e->options->header : NULL;
    const char *slash = strrchr(e->path, '/'), *dot = strrchr(e->path, '.');
    size_t stem = dot && (!slash || dot > slash + 1) ? (size_t)(dot - e->path) : strlen(e->path);
    return qn_arena_printf(e->arena, "%.*s.h", (int)stem, e->path);
}

/* ---- files ---- */

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* The most memory that any variant needs. */
static qn_program **largest_programs(const emission *e)
{
    const int n = e->variants[0].compiled.n_programs;
    qn_program **largest = QN_NEW_ARRAY(e->arena, qn_program *, n);
    for (int p = 0; p < n; p++)
        for (int i = 0; i < e->n_variants; i++) {
            qn_program *program = e->variants[i].compiled.programs[p];
            if (!largest[p] || program->arena_bytes->max > largest[p]->arena_bytes->max)
                largest[p] = program;
        }
    return largest;
}

static qn_status write_header(emission *e, qn_output *output, const char *path)
{
    QN_TRY(qn_output_open(output, path, e->diags));
    qn_header_info info = { .prefix = e->prefix,
                            .name = file_name(path),
                            .source = e->source[0] ? file_name(e->source) : "a model",
                            .object = file_name(e->path),
                            .weights_bytes = e->weights.bytes,
                            .weights_inside = e->inside,
                            .n_strings = (int)e->variants[0].module->strings.n,
                            .strings = e->variants[0].module->strings.items };
    qn_header_write(output->file, &info, e->variants[0].compiled.n_programs, largest_programs(e));
    return qn_output_close(output, e->diags);
}

static qn_status write_side_file(emission *e, qn_output *output)
{
    QN_TRY(qn_output_open(output, qn_arena_printf(e->arena, "%s.safetensors", e->path), e->diags));
    qn_weights_write_safetensors(&e->weights, output->file, e->arena);
    return qn_output_close(output, e->diags);
}

static qn_status write_weights_object(emission *e, qn_output *output)
{
    const char *triple = triple_of(e);
    QN_TRY(qn_output_open(output, qn_arena_printf(e->arena, "%s.weights", e->path), e->diags));
    if (!qn_weights_write_object(&e->weights, triple, qn_arena_printf(e->arena, "%s_weights", e->prefix),
                                 output->file))
        return qn_error(e->diags, QUERN_ERROR_UNSUPPORTED, NULL,
                        "weights cannot be put into an object for %s: let them go to a side file", triple);
    return qn_output_close(output, e->diags);
}

static qn_status choice_object(const emission *e, const char *const *queries, qn_code *out)
{
    const qn_compiled *first = &e->variants[0].compiled;
    const qn_entries entries = qn_compiled_entries(first, e->prefix, e->inside);
    uint32_t *needs = QN_NEW_ARRAY(e->arena, uint32_t, e->n_variants);
    for (int i = 0; i < e->n_variants; i++)
        needs[i] = e->variants[i].compiled.machine.needs;
    if (e->n_variants == 1)
        needs[0] &= ~(uint32_t)QN_NEEDS_TILES; /* what uses them asks for them */
    const qn_choice choice = { .entries = &entries,
                               .triple = e->settings->target.triple,
                               .cpu = e->variants[0].cpu,
                               .n = e->n_variants,
                               .needs = needs,
                               .queries = queries };
    return qn_compile_choice(first, &choice, e->settings, out, e->diags);
}

static qn_status link_objects(emission *e, qn_link_kind kind, const qn_output *weights, const char *to)
{
    int capacity = 2, n = 0;
    for (int i = 0; i < e->n_variants; i++)
        capacity += e->variants[i].compiled.n_kernels + 1;
    qn_link_input *inputs = QN_NEW_ARRAY(e->arena, qn_link_input, capacity);
    const char **queries = QN_NEW_ARRAY(e->arena, const char *, e->n_variants);
    /* when it is loaded, with the machine's CPU */
    const bool compares = e->n_variants > 1 || e->variants[0].compiled.machine.needs;
    for (int i = 0; i < e->n_variants; i++) {
        const qn_compiled *c = &e->variants[i].compiled;
        qn_entries entries = qn_compiled_entries(c, e->prefix, e->inside);
        for (int k = 0; k < c->n_kernels; k++)
            inputs[n++] = (qn_link_input){ .name = qn_arena_printf(e->arena, "%s.o", c->kernel_symbols[k]),
                                           .code = c->kernels[k] };
        entries.query = queries[i] =
            qn_arena_printf(e->arena, compares ? "%s_query_%d" : "%s_query", e->prefix, i);
        inputs[n].name = qn_arena_printf(e->arena, compares ? "%s_%d.o" : "%s.o", e->prefix, i);
        QN_TRY(qn_compile_entries(c, &entries, &e->variants[i].settings, &inputs[n++].code, e->diags));
    }
    if (compares) {
        inputs[n].name = qn_arena_printf(e->arena, "%s.o", e->prefix);
        QN_TRY(choice_object(e, queries, &inputs[n++].code));
    }
    if (weights->temporary)
        inputs[n++] = (qn_link_input){ .name = qn_arena_printf(e->arena, "%s_weights.o", e->prefix),
                                       .path = weights->temporary };
    return qn_link(kind, to, qn_arena_printf(e->arena, "%s_query", e->prefix), e->settings->target.triple, n,
                   inputs, e->diags);
}

static qn_status emit_binary(emission *e, qn_link_kind kind)
{
    qn_output header = { 0 }, side = { 0 }, weights = { 0 }, object;
    const char *header_at = header_path(e);
    QN_TRY(qn_output_reserve(&object, e->path, e->diags));
    qn_status status = header_at ? write_header(e, &header, header_at) : QUERN_OK;
    if (!status)
        status = e->inside ? write_weights_object(e, &weights) : write_side_file(e, &side);
    if (!status)
        status = link_objects(e, kind, &weights, object.temporary);
    if (!status)
        status = qn_output_commit(&object, e->diags);
    qn_output_discard(&weights);
    if (!status && !e->inside)
        status = qn_output_commit(&side, e->diags);
    if (!status && header_at)
        status = qn_output_commit(&header, e->diags);
    qn_output_discard(&side);
    qn_output_discard(&header);
    qn_output_discard(&object);
    return status;
}

/* All modules in one text: to be read, not to be assembled. */
static qn_status emit_code(emission *e, qn_emit emit)
{
    const qn_compiled *c = &e->variants[0].compiled;
    const qn_entries of = qn_compiled_entries(c, e->prefix, e->inside);
    qn_code entries;
    QN_TRY(e->settings->backend->emit_entries(&of, &e->settings->target, emit, e->arena, &entries, e->diags));
    qn_output output;
    QN_TRY(qn_output_open(&output, e->path, e->diags));
    const char *comment = emit == QN_EMIT_LLVM ? ";" : "#";
    for (int i = 0; i < c->n_kernels; i++) {
        fprintf(output.file, "%s ---- kernel %s\n", comment, c->kernel_names[i]);
        fwrite(c->kernels[i].data, 1, c->kernels[i].size, output.file);
    }
    fprintf(output.file, "%s ---- entries and tables\n", comment);
    fwrite(entries.data, 1, entries.size, output.file);
    return qn_output_commit(&output, e->diags);
}

static void write_comment(FILE *file, const char *text)
{
    while (*text) {
        int n = (int)strcspn(text, "\n");
        fprintf(file, "//%s%.*s\n", n ? " " : "", n, text);
        text += n + (text[n] == '\n');
    }
}

/* Kernels for a GPU behind the programs that call them, as comments: docs/adding-a-backend.md. */
static qn_status emit_ptx(emission *e)
{
    const qn_compiled *c = &e->variants[0].compiled;
    qn_output output, side = { 0 };
    if (e->weights.bytes > 0)
        QN_TRY(write_side_file(e, &side));
    qn_status status = qn_output_open(&output, e->path, e->diags);
    if (!status) {
        for (int p = 0; p < c->n_programs; p++) {
            const qn_program *program = c->programs[p];
            write_comment(output.file,
                          qn_program_print_as(
                              program, &(qn_print_options){ .inline_elements = QN_PRINT_INLINE_ELEMENTS },
                              false, e->arena));
            for (int k = 0; k < program->n_kernels; k++)
                fprintf(output.file, "// kernel %d %s threads %d\n", k, c->program_symbols[p][k],
                        program->kernels[k]->gpu_threads);
        }
        if (c->n_kernels > 0)
            fputs(qn_ptx_join(c->n_kernels, c->kernels, e->arena), output.file);
        status = qn_output_commit(&output, e->diags);
    }
    if (!status && e->weights.bytes > 0)
        status = qn_output_commit(&side, e->diags);
    qn_output_discard(&side);
    return status;
}

static qn_status emit_module(emission *e, const qn_module *module)
{
    const char *text = qn_module_print(module, e->arena);
    qn_output output;
    QN_TRY(qn_output_open(&output, e->path, e->diags));
    fputs(text, output.file);
    return qn_output_commit(&output, e->diags);
}

/* ---- the whole ---- */

/* Can there be a file of that name? Better known before the compilation than after it. */
static qn_status try_path(emission *e, bool binary)
{
    qn_output output;
    QN_TRY(qn_output_reserve(&output, e->path, e->diags));
    const bool in_place = output.temporary == output.path;
    qn_output_discard(&output);
    return in_place && binary
               ? qn_error(e->diags, QUERN_ERROR_IO, NULL,
                          "%s: is a device or pipe, into which no object can be linked", e->path)
               : QUERN_OK;
}

/* Weights that are equal in several variants are there once; those that are packed for wider vectors are not. */
static void lay_out_weights(emission *e)
{
    const int n_programs = e->variants[0].compiled.n_programs;
    qn_program **all = QN_NEW_ARRAY(e->arena, qn_program *, e->n_variants * n_programs);
    for (int i = 0; i < e->n_variants; i++)
        memcpy(&all[i * n_programs], e->variants[i].compiled.programs, (size_t)n_programs * sizeof *all);
    qn_weights_lay_out(e->n_variants * n_programs, all, e->arena, &e->weights);
}

static qn_status compile_variants(emission *e, qn_module *module, qn_emit emit, qn_compile_times *out_times)
{
    qn_compile_times sum = { 0 };
    e->variants[0].module = module;
    for (int i = 1; i < e->n_variants; i++)
        e->variants[i].module = qn_module_clone(module, 0, NULL);
    for (int i = 0; i < e->n_variants; i++) {
        variant *v = &e->variants[i];
        QN_TRY(qn_compile_module(v->module, &v->settings, emit, e->arena, &v->compiled, e->diags));
        const qn_compile_times *t = &v->compiled.times;
        sum = (qn_compile_times){ sum.passes + t->passes,       sum.lower + t->lower,
                                  sum.kernels + t->kernels,     sum.entries + t->entries,
                                  sum.n_kernels + t->n_kernels, sum.n_cached + t->n_cached };
    }
    if (out_times)
        *out_times = sum;
    lay_out_weights(e);
    return QUERN_OK;
}

static qn_status emit(emission *e, qn_module *module, qn_compile_times *out_times)
{
    int kind = 0;
    QN_TRY(find_kind(e, &kind));
    QN_TRY(find_prefix(e));
    QN_TRY(try_path(e, kinds[kind].form == FORM_BINARY));
    if (kinds[kind].form == FORM_MODULE)
        return emit_module(e, module);
    if (!e->settings->backend)
        return qn_error(e->diags, QUERN_ERROR_ARGUMENT, NULL,
                        "the interpreter emits no code: leave the target away");
    QN_TRY(find_variants(e, kinds[kind].form == FORM_BINARY));
    QN_TRY(compile_variants(e, module, kinds[kind].emit, out_times));
    if (kinds[kind].form == FORM_PTX) {
        qn_weights_hash(&e->weights);
        return emit_ptx(e);
    }
    QN_TRY(place_weights(e));
    return kinds[kind].form == FORM_BINARY ? emit_binary(e, kinds[kind].link)
                                           : emit_code(e, kinds[kind].emit);
}

qn_status qn_emit_files(qn_module *module, const qn_settings *settings, const quern_emit_options *options,
                        const char *path, qn_compile_times *out_times, qn_diags *diags)
{
    emission e = { .settings = settings,
                   .options = options,
                   .path = path,
                   .source = module->name,
                   .arena = qn_arena_new(),
                   .diags = diags };
    qn_status status = qn_settings_need_no_blas(settings, "a file", diags);
    if (!status && settings->tune)
        status = qn_tune(module, settings, &(quern_tune_options){ 0 }, diags);
    if (!status)
        status = emit(&e, module, out_times);
    for (int i = 1; i < e.n_variants; i++)
        qn_module_free(e.variants[i].module);
    qn_arena_free(e.arena);
    return status;
}
