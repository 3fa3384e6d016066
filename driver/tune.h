/* Schedules that were measured (passes/schedule.h): kept in the cache folder by machine and site, found by every compilation for
 * such a machine. An entry that is damaged, or of another version of Quern, is none. */
#ifndef QN_DRIVER_TUNE_H
#define QN_DRIVER_TUNE_H

#include "driver/cache.h"
#include "driver/compile.h"
#include "passes/schedule.h"

/* Schedules out of the cache, for qn_pass_options. Both live as long as they are used. */
typedef struct qn_kept_schedules {
    qn_schedule_book schedules;
    const qn_cache *cache;
    const qn_machine *machine;
} qn_kept_schedules;
/* Another text after each time that schedules were kept for the machine. */
const char *qn_last_tuned(const qn_cache *cache, const qn_machine *machine, qn_arena *arena);
void qn_kept_schedules_init(qn_kept_schedules *kept, const qn_cache *cache, const qn_machine *machine);

/* quern_tune. `module` stays as it is. */
QN_MUST_USE qn_status qn_tune(const qn_module *module, const qn_settings *settings,
                              const quern_tune_options *options, qn_diags *diags);

#endif
