/* See ok.h. */
#include "tests/support/ok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "quern.h"

void ok(int status)
{
    if (status)
        fail_msg("%s", quern_last_error());
}
