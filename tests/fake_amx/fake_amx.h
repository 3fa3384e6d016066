/* AMX for machines without it, so that tests run the code for it anywhere: see fake_amx.c. */
#ifndef QN_TESTS_FAKE_AMX_H
#define QN_TESTS_FAKE_AMX_H

/* How this process runs AMX's instructions. */
enum { FAKE_AMX_NONE, FAKE_AMX_EMULATED, FAKE_AMX_REAL };
int fake_amx(void);
/* Takes the signals again where something else has taken them since, as cmocka does for each test. */
void fake_amx_take_signals(void);
/* How many the emulator has run, in all threads. */
long fake_amx_instructions(void);

#endif
