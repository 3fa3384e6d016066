/* What the machine can do at this moment: the yardstick of `quern bench`. */
#ifndef QN_DRIVER_CEILING_H
#define QN_DRIVER_CEILING_H

#include "quern.h"

/* FP32 multiply-adds in registers on all threads of the pool (NULL: the caller's), in FLOP/s; 0 where there is no kernel
 * for this CPU. Takes about `seconds`. */
double qn_peak_flops(quern_pool *pool, double seconds);
/* Reading memory that no cache holds, in bytes/s. */
double qn_peak_bandwidth(quern_pool *pool, double seconds);

#endif
