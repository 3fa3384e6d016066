/* Calls of the API that have to succeed. */
#ifndef QN_TESTS_OK_H
#define QN_TESTS_OK_H

/* Fails the test with the last error unless the status is QUERN_OK. */
void ok(int status);

#endif
