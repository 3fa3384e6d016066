/* quern.h: compiling a module to a model or to files. */
#include <string.h>

#include "driver/api.h"

int quern_compile(quern_module *module, const quern_compile_options *options, quern_model **out)
{
    qn_call call;
    *out = NULL;
    qn_call_begin(&call);
    QN_OPTIONS(quern_compile_options, o, options);
    qn_status status = qn_call_need(&call, module, "quern_compile", "module");
    if (!status && (!o.target || strcmp(o.target, "interp") != 0))
        status = qn_error(&call.diags, QUERN_ERROR_UNSUPPORTED, NULL,
                          "target '%s' is not in this version: interp is", o.target ? o.target : "cpu");
    if (!status)
        status = qn_model_interp(module, out, &call.diags);
    return qn_call_end(&call, status);
}

int quern_compile_file(quern_module *module, const quern_compile_options *options,
                       const quern_emit_options *emit, const char *path)
{
    qn_call call;
    (void)module, (void)options, (void)emit;
    qn_call_begin(&call);
    return qn_call_end(&call, qn_error(&call.diags, QUERN_ERROR_UNSUPPORTED, NULL,
                                       "%s: compiling to files is not in this version", path));
}
