/* quern.h: compiling a module to a model or to files. */
#include <string.h>

#include "driver/api.h"
#include "driver/cache.h"
#include "driver/compile.h"
#include "driver/tune.h"

static const char *const math_names[] = { [QN_MATH_STRICT] = "strict",
                                          [QN_MATH_DEFAULT] = "default",
                                          [QN_MATH_FAST] = "fast" };

static qn_status read_precision(const char *word, qn_settings *out, qn_diags *diags)
{
    size_t i = 0;
    while (word && qn_precision_names[i] && strcmp(qn_precision_names[i], word) != 0)
        i++;
    if (!qn_precision_names[i])
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                        "there is no precision '%s': f32, bf16, int8 or int4", word);
    out->precision = (qn_precision)i;
    return QUERN_OK;
}

static qn_status read_remat(const quern_compile_options *o, qn_settings *out, qn_diags *diags)
{
    if (o->remat && !qn_remat_parse(o->remat, &out->remat))
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "there is no remat '%s': none, sqrt or all",
                        o->remat);
    if (o->memory_limit < 0)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "the memory limit must not be negative");
    out->memory_limit = o->memory_limit;
    return QUERN_OK;
}

static qn_status read_blas(const char *word, qn_settings *out, qn_diags *diags)
{
    static const char *const words[] = { [QN_BLAS_AUTO] = "auto",
                                         [QN_BLAS_NONE] = "none",
                                         [QN_BLAS_OPENBLAS] = "openblas" };
    size_t i = 0;
    while (word && i < sizeof words / sizeof *words && strcmp(words[i], word) != 0)
        i++;
    if (i == sizeof words / sizeof *words)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "there is no blas '%s': auto, none or openblas",
                        word);
    out->blas = (qn_blas_choice)i;
    if (out->blas == QN_BLAS_OPENBLAS && out->math == QN_MATH_STRICT)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                        "OpenBLAS rounds in an order of its own: blas 'openblas' is not for math 'strict'");
    return QUERN_OK;
}

qn_status qn_settings_need_no_blas(const qn_settings *settings, const char *what, qn_diags *diags)
{
    if (settings->blas != QN_BLAS_OPENBLAS)
        return QUERN_OK;
    return qn_error(
        diags, QUERN_ERROR_ARGUMENT, NULL,
        "%s cannot call OpenBLAS: blas 'openblas' is for models that are compiled into this process "
        "for its CPU",
        what);
}

qn_status qn_settings_from(const quern_compile_options *options, qn_settings *out, qn_diags *diags)
{
    QN_TRY(qn_need_size(options, "quern_compile_options", diags));
    QN_OPTIONS(quern_compile_options, o, options);
    *out = (qn_settings){ .math = QN_MATH_DEFAULT,
                          .threads = o.threads,
                          .fuse = o.optimize != 1,
                          .cache = o.cache,
                          .tune = o.tune != 0,
                          .compile_threads = o.compile_threads,
                          .cancel = o.cancel,
                          .progress = o.progress,
                          .progress_user = o.progress_user };
    if (o.math) {
        size_t i = 0;
        while (i < sizeof math_names / sizeof *math_names && strcmp(math_names[i], o.math) != 0)
            i++;
        if (i == sizeof math_names / sizeof *math_names)
            return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                            "there is no math mode '%s': strict, default or fast", o.math);
        out->math = (qn_math)i;
    }
    if (o.threads < 0)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "threads must not be negative");
    if (o.optimize < 0 || o.optimize > 2)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                        "optimize cannot be %d: 0 (the default, which is 2), 1 (no fusion) or 2", o.optimize);
    QN_TRY(read_blas(o.blas, out, diags));
    QN_TRY(read_precision(o.precision, out, diags));
    QN_TRY(read_remat(&o, out, diags));
    const char *target = o.target ? o.target : "cpu";
    if (strcmp(target, "interp") == 0)
        return QUERN_OK;
    bool is_triple = strchr(target, '-') != NULL;
    const bool is_device = strcmp(target, "cuda") == 0 || strncmp(target, "cuda:", 5) == 0;
    if (strcmp(target, "nvptx64") == 0 || is_device || strncmp(target, "nvptx64-", 8) == 0) {
        out->backend = &qn_backend_nvptx;
        out->device = is_device ? target : "cuda";
        out->target = (qn_target){ .cpu = o.cpu };
        return QUERN_OK;
    }
    if (strcmp(target, "cpu") != 0 && !is_triple)
        return qn_error(
            diags, QUERN_ERROR_ARGUMENT, NULL,
            "there is no target '%s': cpu, interp, nvptx64 (code for a GPU), cuda or cuda:N (a GPU "
            "here), or a triple",
            target);
    out->backend = &qn_backend_cpu;
    out->target = (qn_target){ .triple = is_triple ? target : NULL,
                               .cpu = o.cpu       ? o.cpu
                                      : is_triple ? NULL
                                                  : "native" };
    return QUERN_OK;
}

static bool asks_to_check(const quern_compile_options *options)
{
    return options && QN_HAS_FIELD(options, check_numerics) && options->check_numerics;
}

/* How calls begin that compile a module for this process. */
static qn_status begin(qn_call *call, const char *name, const quern_module *module,
                       const quern_compile_options *options, qn_settings *out)
{
    qn_call_begin(call);
    QN_TRY(qn_call_need(call, module, name, "module"));
    return qn_settings_from(options, out, &call->diags);
}

int quern_compile(quern_module *module, const quern_compile_options *options, quern_model **out)
{
    qn_call call;
    qn_settings settings;
    *out = NULL;
    qn_status status = begin(&call, "quern_compile", module, options, &settings);
    if (!status && settings.tune)
        status = qn_tune(module->ir, &settings, &(quern_tune_options){ 0 }, &call.diags);
    if (!status && settings.backend != &qn_backend_cpu)
        status = qn_settings_need_no_blas(&settings, "this target", &call.diags);
    if (!status && settings.target.cpu && strchr(settings.target.cpu, ','))
        status = qn_error(&call.diags, QUERN_ERROR_ARGUMENT, NULL,
                          "a list of CPUs ('%s') is for files: name one here, or none for this machine's",
                          settings.target.cpu);
    if (!status && asks_to_check(options) && settings.backend == &qn_backend_nvptx)
        status =
            qn_error(&call.diags, QUERN_ERROR_ARGUMENT, NULL, "check_numerics is for targets cpu and interp");
    if (!status && !settings.backend)
        status = qn_model_interp(module, out, &call.diags);
    else if (!status) {
        qn_module *copy = qn_module_clone(module->ir, 0, NULL);
        if (settings.backend == &qn_backend_nvptx) {
            status = qn_model_cuda(copy, &settings, out, &call.diags);
        } else {
            settings.target.jit = true;
            status = qn_model_jit(copy, &settings, out, &call.diags);
            qn_module_free(copy);
        }
    }
    if (!status && asks_to_check(options))
        qn_check_numerics(*out, module, options);
    return qn_call_end(&call, status);
}

int quern_tune(quern_module *module, const quern_compile_options *options, const quern_tune_options *tune)
{
    qn_call call;
    qn_settings settings;
    qn_status status = begin(&call, "quern_tune", module, options, &settings);
    if (!status)
        status = qn_need_size(tune, "quern_tune_options", &call.diags);
    if (!status) {
        QN_OPTIONS(quern_tune_options, t, tune);
        status = qn_tune(module->ir, &settings, &t, &call.diags);
    }
    return qn_call_end(&call, status);
}

int quern_compile_file(quern_module *module, const quern_compile_options *options,
                       const quern_emit_options *emit, const char *path)
{
    qn_call call;
    qn_settings settings;
    qn_call_begin(&call);
    qn_status status = qn_call_need(&call, module, "quern_compile_file", "module");
    if (!status)
        status = qn_call_need(&call, path, "quern_compile_file", "path");
    if (!status)
        status = qn_need_size(emit, "quern_emit_options", &call.diags);
    if (!status)
        status = qn_settings_from(options, &settings, &call.diags);
    if (!status && asks_to_check(options))
        status = qn_error(&call.diags, QUERN_ERROR_ARGUMENT, NULL,
                          "check_numerics needs the compiler at hand: it is for models in this process");
    if (!status) {
        QN_OPTIONS(quern_emit_options, e, emit);
        qn_module *copy = qn_module_clone(module->ir, 0, NULL);
        status = qn_emit_files(copy, &settings, &e, path, NULL, &call.diags);
        qn_module_free(copy);
    }
    return qn_call_end(&call, status);
}

int quern_cache_trim(const char *folder, int64_t most, int64_t *out_bytes, int64_t *out_entries)
{
    qn_call call;
    qn_cache cache;
    int64_t bytes = 0, entries = 0;
    qn_call_begin(&call);
    const qn_status status = qn_cache_open(&cache, folder, &call.diags);
    if (!status) {
        bytes = qn_cache_keep(&cache, most < 0 ? INT64_MAX : most, most, &entries);
        qn_cache_close(&cache);
    }
    if (out_bytes)
        *out_bytes = bytes;
    if (out_entries)
        *out_entries = entries;
    return qn_call_end(&call, status);
}
