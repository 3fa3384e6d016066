/* build_id.h: which build of Quern this is. Its version does not tell builds apart. */
#ifndef QN_DRIVER_BUILD_ID_H
#define QN_DRIVER_BUILD_ID_H

#include "ir/arena.h"

/* What the linker made of its contents; or else size and time of its file, which may have been given the time of another. */
const char *qn_this_build(qn_arena *arena);

#endif
