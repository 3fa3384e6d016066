/* Model bytes -> parsed messages, without copying the weights. */
#ifndef QN_FRONTEND_ONNX_WIRE_H
#define QN_FRONTEND_ONNX_WIRE_H

#include "ir/diag.h"
#include "onnx.pb-c.h"

/* Raw data of at least this many bytes is left where it is: the parsed tensor has mapped_offset and mapped_size (checked
 * to lie within the bytes) instead of raw_data. */
#define QN_ONNX_MAPPED_MIN 65536

/* Parses into `arena`; nothing has to be freed. Total: garbage gives QUERN_ERROR_MODEL. `name`: file, for messages. */
QN_MUST_USE qn_status qn_onnx_parse(const void *data, size_t size, const char *name, qn_arena *arena,
                                    Onnx__Model **out, qn_diags *diags);

#endif
