/* Writing compiled models to files. */
#include "driver/compile.h"
qn_status qn_emit_files(qn_module *module, const qn_settings *settings, const quern_emit_options *emit,
                        const char *path, qn_diags *diags)
{
    (void)module;
    (void)settings;
    (void)emit;
    (void)path;
    return qn_error(diags, QUERN_ERROR_UNSUPPORTED, NULL, "writing files is not in this version");
}
